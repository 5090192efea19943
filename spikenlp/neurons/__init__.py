"""Spiking neurons: one membrane update, four kinds, binary or ternary; a linear layer of spikes."""

from spikenlp.neurons.linear import SpikingLinear
from spikenlp.neurons.modules import IF, LIF, PLIF, RoundingIF, SpikingNeuron
from spikenlp.neurons.streaming import NeuronState
from spikenlp.neurons.surrogate import SURROGATES

__all__ = [
    "IF",
    "LIF",
    "PLIF",
    "SURROGATES",
    "NeuronState",
    "RoundingIF",
    "SpikingLinear",
    "SpikingNeuron",
]
