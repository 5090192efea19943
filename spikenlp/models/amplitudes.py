"""Amplitudes by calibration: what a spiking model converted from a dense one has to choose.

The network runs densely (each neuron passes on what its dense counterpart would) over a few batches,
and each channel of each neuron gets the amplitude that minimises the mean squared error between those
activations and their (2T + 1)-level rounding (binary: T + 1 levels, and an offset), over a grid of
fractions of the channel's range. A position counts as much as the model's decision depends on it
there: its error is weighted by the norm of the gradient of the margin between the two best scores.
It is deterministic.

A spike cost asks for fewer spikes: what is minimised is then, with D the weighted mean squared error of a
channel, P the weighted mean square of what the channels of its layer send, and n its mean spikes at a position,

    D / P + spike_cost * n

as a quantizer is chosen under a bound on its rate (Chou, Lookabaugh & Gray, IEEE Trans. ASSP 37(1), 1989), and the
grid goes on beyond the range, to where a channel sends no spike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from spikenlp.models.modes import evaluating
from spikenlp.neurons import RoundingIF, SpikingNeuron

GRID = torch.arange(2, 41) / 40
"""Candidate ranges, as fractions of a channel's range on the calibration data."""
BEYOND = torch.arange(5, 33) / 4
"""Further ones where spikes have a cost; the last is doubled until it exceeds 2 T, where nothing is sent."""
SMALLEST_AMPLITUDE = 1e-3
SMALLEST_WEIGHT = 1e-3
"""Of a position in the calibration error, as a fraction of the mean weight."""

Batch = TypeVar("Batch")
Rows = dict[SpikingNeuron, tuple[Tensor, Tensor]]
"""Of each neuron, the activations of N positions [N, C] and the weights of their errors [N, 1]."""


def neurons_of(model: nn.Module) -> list[tuple[str, SpikingNeuron]]:
    return [(n, m) for n, m in model.named_modules() if isinstance(m, SpikingNeuron)]


@contextmanager
def dense_neurons(
    model: PreTrainedModel, observe: Callable[[SpikingNeuron, Tensor], Tensor | None]
):
    """The dense network inside `model`: a neuron sends `observe(neuron, input [1, ...])`, or its input
    where that is None. In eval mode, with one time step."""
    dense = {
        "num_timesteps": 1,
        "collapsed": False,
        "gradient": "bptt",
        "settle_tolerance": None,
    }
    saved = {name: getattr(model.config, name) for name in dense if hasattr(model.config, name)}

    def send(neuron: SpikingNeuron, args: tuple[Tensor, ...], _: Tensor) -> Tensor:
        sent = observe(neuron, args[0])
        return args[0] if sent is None else sent

    hooks = [neuron.register_forward_hook(send) for _, neuron in neurons_of(model)]
    for name in saved:
        setattr(model.config, name, dense[name])
    try:
        with evaluating(model):
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for name, value in saved.items():
            setattr(model.config, name, value)


def fit_amplitudes(
    batches: Sequence[Batch],
    rows_of: Callable[[Batch, bool], Rows],
    steps: int,
    spike_cost: float = 0.0,
) -> None:
    """Sets the amplitudes (and offsets, thresholds) of the neurons to what fits `batches` best.

    Classic neurons take the same amplitude as threshold and as amplitude, i.e. they fire at what
    they send.

    Args:
        rows_of: `rows_of(batch, weighted)` runs the dense network on a batch; with `weighted` False
            its weights are not looked at.
        steps: T of the rounding.
        spike_cost: the squared error, relative to the layer's mean square, that a spike less is worth. Of the
            order of 0.1.

    Raises:
        ValueError: no batch; activations that are not finite; a spike cost below 0, or of neurons that do not round.
    """
    if not batches:
        raise ValueError("calibration data is empty: give at least one batch")
    if not spike_cost >= 0:
        raise ValueError(f"spike_cost must be >= 0, got {spike_cost}")
    fractions = GRID.tolist()
    if spike_cost:
        fractions += BEYOND.tolist()
        while fractions[-1] <= 2 * steps:
            fractions.append(2 * fractions[-1])
    low: dict[SpikingNeuron, Tensor] = {}
    high: dict[SpikingNeuron, Tensor] = {}
    errors: dict[SpikingNeuron, Tensor] = {}
    spikes: dict[SpikingNeuron, Tensor] = {}
    squares: dict[SpikingNeuron, Tensor] = {}
    samples: dict[SpikingNeuron, int] = {}
    for batch in batches:
        for neuron, (x, _) in rows_of(batch, False).items():
            if spike_cost and not isinstance(neuron, RoundingIF):
                raise ValueError(
                    f"spike_cost is for rounding neurons, got {type(neuron).__name__}: classic ones fire at what "
                    "they send, and with a high threshold never"
                )
            lowest, highest = x.amin(0), x.amax(0)
            if not bool(torch.isfinite(lowest + highest).all()):
                raise ValueError(
                    "calibration meets NaN or infinite activations: look at the dense model's weights (and its "
                    "dtype, half precision may overflow)"
                )
            low[neuron] = torch.minimum(low.get(neuron, lowest), lowest)
            high[neuron] = torch.maximum(high.get(neuron, highest), highest)
    for batch in batches:
        for neuron, (x, weight) in rows_of(batch, True).items():
            error, sent = [], []
            for alpha, offset in _candidates(neuron, low[neuron], high[neuron], fractions):
                levels = _levels(x, alpha, offset, steps, neuron.ternary)
                rounded = levels * (alpha / steps) - offset
                error.append((weight * (rounded - x).square()).sum(0))
                sent.append(levels.abs().sum(0))
            errors[neuron] = errors.get(neuron, 0) + torch.stack(error)
            spikes[neuron] = spikes.get(neuron, 0) + torch.stack(sent)
            squares[neuron] = squares.get(neuron, 0) + (weight * x.square()).sum(0).mean()
            samples[neuron] = samples.get(neuron, 0) + len(x)
    with torch.no_grad():
        for neuron, error in errors.items():
            per_spike = spike_cost * squares[neuron] / samples[neuron]
            best = (error + per_spike * spikes[neuron]).argmin(0)
            candidates = _candidates(neuron, low[neuron], high[neuron], fractions)
            alphas, offsets = (torch.stack(x) for x in zip(*candidates, strict=True))
            alpha = alphas.gather(0, best[None])[0]
            neuron.amplitude.copy_(alpha)
            if isinstance(neuron, RoundingIF):
                if neuron.offset is not None:
                    neuron.offset.copy_(offsets.gather(0, best[None])[0])
            else:
                neuron.v_threshold.copy_(alpha)


def position_weights(grad: Tensor) -> Tensor:
    """[N, 1], the norm of a gradient [N, C] over channels, bounded from below."""
    weight = grad.float().norm(dim=-1, keepdim=True)
    return weight.clamp_min(SMALLEST_WEIGHT * weight.mean())


def margin(outputs: ModelOutput, mask: Tensor | None = None) -> Tensor:
    """How decided the model is: best score less the second best, summed; without scores, a fixed
    random projection of each hidden state.

    Args:
        mask: [B, L], 0 at padding, whose scores do not count where there is one a position.
    """
    names = [n for n in ("logits", "start_logits", "end_logits") if n in outputs]
    if names and outputs[names[0]].shape[-1] > 1:
        scores = [outputs[name].float() for name in names]
        if mask is not None and "logits" not in outputs:  # the positions are what is chosen from
            scores = [x.masked_fill(mask == 0, torch.finfo(x.dtype).min) for x in scores]
        best = [x.topk(2).values for x in scores]
        return torch.stack([_of_real(b[..., 0] - b[..., 1], mask).sum() for b in best]).sum()
    scores = outputs[0].float()
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, scores.shape[-1:], generator=generator).to(scores.device) * 2 - 1
    return _of_real((signs * scores).sum(-1), mask).sum()


def _of_real(values: Tensor, mask: Tensor | None) -> Tensor:
    """`values` [B] as they are, or [B, L] without those at padding."""
    return values if mask is None or values.dim() == 1 else values.where(mask.bool(), 0)


def _candidates(
    neuron: SpikingNeuron, low: Tensor, high: Tensor, fractions: Sequence[float]
) -> list[tuple[Tensor, Tensor]]:
    """(amplitude, offset) per channel for each of `fractions` of its range. Where these go beyond it, so that spikes
    have a cost, binary neurons may also do without an offset, with which a silent one sends less than 0."""
    if neuron.ternary:
        largest = torch.maximum(-low, high)
        return [((f * largest).clamp_min(SMALLEST_AMPLITUDE), 0 * low) for f in fractions]
    offset = (-low).clamp_min(0) if isinstance(neuron, RoundingIF) else 0 * low
    shares = [(f, min(f, 1.0)) for f in fractions]
    if fractions[-1] > 1:
        shares += [(f, 0.0) for f in fractions]
    return [
        ((f * (high + offset)).clamp_min(SMALLEST_AMPLITUDE), share * offset) for f, share in shares
    ]


def _levels(x: Tensor, alpha: Tensor, offset: Tensor, steps: int, ternary: bool) -> Tensor:
    """How many spikes send the rounded `x`, signed."""
    levels = ((x + offset) / alpha * steps).round()
    return levels.clamp_(-steps if ternary else 0, steps)
