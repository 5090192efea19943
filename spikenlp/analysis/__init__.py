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
from spikenlp.analysis.temporal import (
    gradient_norms,
    loss_oscillation,
    mean_off_diagonal,
    temporal_similarity,
    weight_rank,
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
    "gradient_norms",
    "loss_oscillation",
    "mean_off_diagonal",
    "spikes_table",
    "temporal_similarity",
    "weight_rank",
]
