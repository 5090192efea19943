"""Looking into a spiking model: what it costs and what it does."""

from spikenlp.analysis.energy import EnergyConstants, EnergyReport, energy_report
from spikenlp.analysis.memory import MemoryEstimate, estimate_memory
from spikenlp.analysis.spikes import (
    SpikeCounts,
    SpikeMonitor,
    assert_spiking,
    describe_spikes,
    spikes_table,
)

__all__ = [
    "EnergyConstants",
    "EnergyReport",
    "MemoryEstimate",
    "SpikeCounts",
    "SpikeMonitor",
    "assert_spiking",
    "describe_spikes",
    "energy_report",
    "estimate_memory",
    "spikes_table",
]
