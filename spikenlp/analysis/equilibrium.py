"""How the average spiking rates of a `spikingbert` model settle over its time steps.

    rate      a_t = |s_1 + ... + s_t| / t, s_t in {0, 1} or {-1, 0, 1}
    distance  |a_t - clamp(f(a_t) / v_th)|, of the rates so far from the equilibrium map at them

Both are means over channels and real tokens. The gradient of `gradient="implicit"` is that of the map:
it is as good as the distance is small. Source: Bal & Sengupta, AAAI 2024, who show the convergence of
rates; the distance is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from spikenlp.models.modes import evaluating
from spikenlp.models.spiking_bert.equilibrium import (
    AtRates,
    SpikingBertRateEncoder,
    Stepping,
    equilibrium_rate,
    mean_of_samples,
)
from spikenlp.neurons import IF


@dataclass(frozen=True)
class RateConvergence:
    """One population of neurons; float64 [T] each, means over the batch's samples.

    Attributes:
        rate: average spiking rate after each step, of ternary neurons its size; in [0, 1].
        distance: of the rates from the equilibrium map at them.
    """

    rate: NDArray[np.float64]
    distance: NDArray[np.float64]


class _Distances(AtRates):
    """The equilibrium map at given means, which notes how far its values are from them."""

    def __init__(self, means: dict[IF, Tensor]):
        super().__init__(means)
        self.distances: dict[IF, Tensor] = {}

    def __call__(self, neuron: IF, current: Tensor) -> Tensor:
        assert self.means is not None
        mean = self.means[neuron].to(current.dtype)
        self.distances[neuron] = (equilibrium_rate(neuron, current) - mean).abs()
        return mean


@torch.no_grad()
def rate_convergence(
    model: PreTrainedModel, batch: Mapping[str, Tensor]
) -> dict[str, RateConvergence]:
    """Rates and their distance from the equilibrium at each time step, by population of neurons.

    Args:
        model: of architecture "spikingbert", with or without a head; it runs in eval mode, all
            steps, about twice as long as its forward pass.
        batch: its inputs [B, ...]; padding (`attention_mask` [B, L]) is left out.

    Raises:
        ValueError: a model of another architecture.

    >>> curves = rate_convergence(model, batch)
    >>> curves["encoder.layer.0.output.neuron"].distance[-1] < 0.05
    """
    base = model.base_model
    encoder = getattr(base, "encoder", None)
    if not isinstance(encoder, SpikingBertRateEncoder):
        raise ValueError(
            f"rate_convergence needs architecture='spikingbert', got {type(model).__name__} of "
            f"{getattr(model.config, 'architecture', model.config.model_type)!r}"
        )
    config = model.config
    names = ("num_timesteps", "settle_tolerance")
    saved = {name: getattr(config, name) for name in names}
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    real = inputs.get("attention_mask")
    real = None if real is None or real.dim() != 2 else real
    captured: list[tuple[Tensor, Tensor | None]] = []
    found: dict[IF, tuple[list[float], list[float]]] = {}

    def each_step(state: Stepping) -> None:
        means = state.means()
        at_rates = _Distances(means)
        encoder.populations(*captured[0], at_rates)
        for neuron, mean in means.items():
            rates, distances = found.setdefault(neuron, ([], []))
            rates.append(mean_of_samples(mean.abs(), neuron, real).mean().item())
            distances.append(
                mean_of_samples(at_rates.distances[neuron], neuron, real).mean().item()
            )

    with ExitStack() as stack:
        for name, value in saved.items():
            stack.callback(setattr, config, name, value)
        stack.enter_context(evaluating(model))
        hook = encoder.register_forward_pre_hook(lambda module, args: captured.append(args[:2]))
        stack.callback(hook.remove)
        config.settle_tolerance = None
        config.num_timesteps = 1
        base(**inputs)  # for what the encoder gets
        config.num_timesteps = saved["num_timesteps"]
        encoder.run(*captured[0], each_step=each_step)
    return {
        name: RateConvergence(*(np.array(values) for values in found[neuron]))
        for name, neuron in base.named_modules()
        if isinstance(neuron, IF) and neuron in found
    }
