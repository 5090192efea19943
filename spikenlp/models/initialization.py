"""The values that neurons start with, for models that transformers builds without storage."""

from __future__ import annotations

from torch import nn
from transformers import initialization as init

from spikenlp.neurons import IF, RoundingIF


def init_neuron(module: nn.Module) -> None:
    """Writes the constants of `module`, if it is a neuron, where no checkpoint has them."""
    if isinstance(module, RoundingIF):
        init.ones_(module.amplitude)
        if module.offset is not None:
            init.zeros_(module.offset)
    elif isinstance(module, IF):
        init.ones_(module.amplitude)
        init.constant_(module.v_threshold, module.initial_threshold)
