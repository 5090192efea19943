"""Looking into a spiking model: what it costs and what it does."""

from spikenlp.analysis.memory import MemoryEstimate, estimate_memory

__all__ = ["MemoryEstimate", "estimate_memory"]
