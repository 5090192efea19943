"""Spikes per neuron and inference as a differentiable quantity, for a penalty on what a model spends.

    n = sum_t |s_t|,   s_t = (out_t + c) / alpha        a neuron that sends out_t = alpha s_t - c
    n = |level|                                         its collapsed twin, which sends alpha level / T - c

The gradient of out_t and alpha is what the neuron makes of it: straight through for a rounding neuron, so
that a penalty lowers membrane potentials and widens amplitudes. Only the neuron's state is kept, not its
spikes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spikenlp.neurons import SpikingNeuron
from spikenlp.neurons.collapsed import collapsed_of_state
from spikenlp.neurons.compilation import run_compiled
from spikenlp.neurons.dynamics import floored, grad_of_currents, spike_function
from spikenlp.neurons.first_order import first_order
from spikenlp.neurons.linear import record_of
from spikenlp.neurons.rounding import kept_spikes, level_of, rounding_of_state


def spikes_per_neuron(sent: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Mean over neurons of their spikes in one inference (T times the firing rate).

    Args:
        sent: what a neuron of `spikenlp.neurons` returned in training, [T, B, ...] or of a collapsed
            one [1, B, ...], unchanged.
        attention_mask: [B, L] for `sent` [T, B, L, C]: positions where it is 0 are left out.

    Returns:
        float32 scalar in [0, T] (with bursts above), differentiable. 0 where nothing is real.

    Raises:
        ValueError: `sent` is not what a neuron returned, no gradient was asked for, or a mask of other
            positions.

    >>> neuron = RoundingIF()
    >>> spikes_per_neuron(neuron(torch.full((4, 1, 1), 0.5, requires_grad=True))).item()
    2.0
    """
    count, neurons = _count(sent, attention_mask)
    return count / neurons.clamp_min(1)


def _count(sent: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Spikes of what a neuron sent, differentiable, and the neurons that could have sent them."""
    record = record_of(sent)
    if record is None:
        raise ValueError(
            "spikes_per_neuron needs what a spiking neuron returned with gradients on, untouched: "
            "this tensor has no record of its spikes (gradient checkpointing leaves none either)"
        )
    if attention_mask is None:
        mask = None
        neurons = sent.new_full((), sent[0].numel(), dtype=torch.float32)
    elif attention_mask.shape != sent.shape[1:-1]:
        raise ValueError(
            f"attention_mask {list(attention_mask.shape)} must be [B, L] of a neuron that sent [T, B, L, C], "
            f"got {list(sent.shape)}"
        )
    else:
        mask = attention_mask.to(sent.device, torch.float32)[..., None]
        neurons = mask.sum() * sent.shape[-1]
    count = _SpikeCount.apply(
        sent, record.state, record.amplitude, record.offset, mask, _options(record)
    )
    return count, neurons


class CountedSpikes:
    """What the neurons of a model sent in one forward pass."""

    def __init__(self) -> None:
        self._counts: list[Tensor] = []
        self._neurons: list[Tensor] = []

    def add(self, count: Tensor, neurons: Tensor) -> None:
        self._counts.append(count)
        self._neurons.append(neurons)

    def mean(self) -> Tensor:
        """Spikes per neuron and inference over all neurons, float32 scalar, differentiable."""
        return torch.stack(self._counts).sum() / torch.stack(self._neurons).sum().clamp_min(1)


@contextmanager
def count_spikes(model: nn.Module, attention_mask: Tensor | None = None) -> Iterator[CountedSpikes]:
    """Counts the spikes of one training forward pass of `model` inside the context, differentiably.

    Args:
        model: any module that holds neurons of `spikenlp.neurons`, in training mode.
        attention_mask: [B, L] of the batch: padding is left out. What is computed for the first token
            alone, [T, B, 1, C], counts whole.

    Raises:
        ValueError: a model without spiking neurons; a mask of other positions than a neuron's; see
            `spikes_per_neuron`.

    >>> with count_spikes(model, batch["attention_mask"]) as counted:
    ...     loss = model(**batch).loss
    >>> loss = loss + 0.5 * counted.mean()
    """
    neurons = [m for m in model.modules() if isinstance(m, SpikingNeuron)]
    if not neurons:
        raise ValueError(f"{type(model).__name__} holds no spiking neuron (spikenlp.neurons)")
    counted = CountedSpikes()

    def count(module: nn.Module, args: Any, sent: Tensor) -> None:
        of_first_token = attention_mask is not None and sent.shape[1:-1] == (len(attention_mask), 1)
        counted.add(*_count(sent, None if of_first_token else attention_mask))

    with ExitStack() as stack:
        for neuron in neurons:
            hook = neuron.register_forward_pre_hook(_with_gradient, with_kwargs=True)
            stack.callback(hook.remove)
            stack.callback(neuron.register_forward_hook(count).remove)
        yield counted


def _with_gradient(
    neuron: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a neuron is given, so that it keeps its state: below all that learns, nothing has a gradient."""
    x = args[0] if args else kwargs["x"]
    learns = x.requires_grad or any(p.requires_grad for p in neuron.parameters())
    if learns or not torch.is_grad_enabled():
        return args, kwargs
    x = x.detach().requires_grad_()
    return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "x": x})


def _options(record: Any) -> dict[str, Any]:
    options = {k: v for k, v in record.options.items() if k != "out_dtype"}
    if record.again is collapsed_of_state:
        return {"kind": "collapsed", "running": False, "burst": 1, **options}
    kind = "rounding" if record.again is rounding_of_state else "classic"
    return {"kind": kind, "steps": 1, "burst": 1, **options}


def _levels(state: Tensor, kind: str, steps: int, ternary: bool, burst: int) -> list[Tensor]:
    """Spikes of each step; of a collapsed neuron its level."""
    if kind == "collapsed":
        return [level_of(z.float(), steps, ternary) for z in state.unbind(0)]
    if kind == "rounding":
        return kept_spikes(state, ternary, burst)
    return [spike_function(z.float(), 1.0, ternary) for z in state.unbind(0)]


def _count_forward(
    state: Tensor,
    mask: Tensor | None,
    *,
    kind: str,
    steps: int,
    ternary: bool,
    burst: int,
) -> Tensor:
    levels = _levels(state, kind, steps, ternary, burst)
    count = sum((level.abs() for level in levels[1:]), levels[0].abs())
    return count if mask is None else count * mask


def _count_backward(
    state: Tensor,
    grad: Tensor,
    mask: Tensor | None,
    amplitude: Tensor,
    *,
    kind: str,
    steps: int,
    ternary: bool,
    burst: int,
    running: bool,
    dtype: torch.dtype,
) -> Tensor:
    weight = grad * steps / floored(amplitude)
    if mask is not None:
        weight = weight * mask
    levels = _levels(state, kind, steps, ternary, burst)
    # The count of binary spikes is linear in what is sent: silent steps have a gradient as well.
    signs = [level.sign() if ternary else torch.ones_like(level) for level in levels]
    return grad_of_currents([weight * sign for sign in signs], False, running, dtype)


class _SpikeCount(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sent, state, amplitude, offset, mask, options):
        levels = {k: v for k, v in options.items() if k != "running"}
        counts = run_compiled(_count_forward, state, mask, loop_steps=len(state), **levels)
        by_amplitude = counts.sum_to_size(amplitude.shape)
        ctx.save_for_backward(state, mask, amplitude, by_amplitude)
        ctx.options, ctx.dtype = options, sent.dtype
        return by_amplitude.sum()

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor):
        state, mask, amplitude, by_amplitude = ctx.saved_tensors
        needs_sent, _, needs_amplitude, needs_offset = ctx.needs_input_grad[:4]
        grad = grads[0]
        of_sent = of_offset = None
        if needs_sent:
            of_sent = run_compiled(
                _count_backward,
                state,
                grad,
                mask,
                amplitude,
                loop_steps=len(state),
                **ctx.options,
                dtype=ctx.dtype,
            )
        if needs_offset:  # s_t = (out_t + c) / alpha, of binary spikes: as linear in c as in out_t
            of_offset = _offset_gradient(state, mask, amplitude, grad, ctx.options)
        of_amplitude = None
        if needs_amplitude:
            of_amplitude = -grad * by_amplitude / floored(amplitude)
        return of_sent, None, of_amplitude, of_offset, None, None


def _offset_gradient(
    state: Tensor, mask: Tensor | None, amplitude: Tensor, grad: Tensor, options: dict[str, Any]
) -> Tensor:
    per_site = grad * options["steps"] * len(state) / floored(amplitude)
    weight = torch.ones_like(state[0], dtype=torch.float32) if mask is None else mask
    return (per_site * weight).expand(state.shape[1:]).sum_to_size(amplitude.shape)
