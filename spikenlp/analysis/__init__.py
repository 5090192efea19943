"""Looking into a spiking model: what it costs and what it does."""

from spikenlp.analysis.energy import (
    EnergyConstants,
    EnergyReport,
    energy_by_step,
    energy_report,
    microjoules,
    pooled,
)
from spikenlp.analysis.equilibrium import RateConvergence, rate_convergence
from spikenlp.analysis.memory import MemoryEstimate, estimate_memory
from spikenlp.analysis.spikes import (
    SpikeCounts,
    SpikeMonitor,
    assert_spiking,
    describe_spikes,
    spike_trains,
    spikes_table,
)
from spikenlp.analysis.temporal import (
    ScalingFactors,
    gradient_norms,
    loss_oscillation,
    loss_residual,
    mean_off_diagonal,
    rate_by_depth,
    scaling_factor_distribution,
    temporal_similarity,
    weight_rank,
)

__all__ = [
    "EnergyConstants",
    "EnergyReport",
    "MemoryEstimate",
    "RateConvergence",
    "ScalingFactors",
    "SpikeCounts",
    "SpikeMonitor",
    "assert_spiking",
    "describe_spikes",
    "energy_by_step",
    "energy_report",
    "estimate_memory",
    "gradient_norms",
    "loss_oscillation",
    "loss_residual",
    "mean_off_diagonal",
    "microjoules",
    "pooled",
    "rate_by_depth",
    "rate_convergence",
    "scaling_factor_distribution",
    "spike_trains",
    "spikes_table",
    "temporal_similarity",
    "weight_rank",
]
