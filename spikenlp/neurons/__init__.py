"""Spiking neurons: one membrane update, four kinds, binary or ternary."""

from spikenlp.neurons.modules import IF, LIF, PLIF, RoundingIF, SpikingNeuron
from spikenlp.neurons.surrogate import SURROGATES

__all__ = ["IF", "LIF", "PLIF", "SURROGATES", "RoundingIF", "SpikingNeuron"]
