"""A linear layer that reads spikes and does not keep them.

For the gradient of its weight a linear layer keeps its input: 4 bytes a neuron and step in float32.
The neuron before it keeps its membrane potential, from which the spikes follow. So the neuron's
output remembers that state, and `SpikingLinear` keeps the state in place of the spikes: the pair
keeps 2 bytes a neuron and step. Whatever comes between the two (dropout, a hook that returns
another tensor, a change in place) makes it an ordinary linear layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikenlp.neurons.compilation import run_compiled
from spikenlp.neurons.first_order import first_order


class SpikeRecord(NamedTuple):
    """How to make a neuron's output again: `again(state, amplitude, offset, **options)`."""

    state: Tensor
    amplitude: Tensor
    offset: Tensor | None
    again: Callable[..., Tensor]
    options: dict[str, Any]
    version: int
    """Of the output when it was sent: what was changed in place since is not made again. Inside a compiled
    model, where nothing tells, it is 0."""


def record_of(sent: Tensor) -> SpikeRecord | None:
    """The record of what a neuron sent; None of another tensor, or once it was changed in place."""
    record: SpikeRecord | None = getattr(sent, "spike_record", None)
    return record if record is not None and record.version == _version(sent) else None


def _version(x: Tensor) -> int:
    return 0 if torch.compiler.is_compiling() else x._version


def remember(
    sent: Tensor,
    state: Tensor | None,
    again: Callable[..., Tensor],
    amplitude: Tensor,
    offset: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    """`sent`, with the record that `SpikingLinear` keeps in its place."""
    if state is not None:
        record = SpikeRecord(state, amplitude, offset, again, options, _version(sent))
        sent.spike_record = record  # type: ignore[attr-defined]
    return sent


def first_token(sent: Tensor) -> Tensor:
    """The first token [..., 1, C] of what a neuron sent, [..., L, C], for a `SpikingLinear` to read."""
    first = sent[..., :1, :]
    record = record_of(sent)
    if record is not None:
        state = record.state[..., :1, :].contiguous()
        first.spike_record = record._replace(state=state, version=_version(first))  # type: ignore[attr-defined]
    return first


class _SpikingLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spikes, weight, bias, state, amplitude, offset, again, options):
        ctx.save_for_backward(weight, state, amplitude, offset)
        ctx.again, ctx.options = again, options
        weight = weight.to(spikes.dtype)
        return F.linear(spikes, weight, None if bias is None else bias.to(spikes.dtype))

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor):
        weight, state, amplitude, offset = ctx.saved_tensors
        needs_spikes, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad = grads[0]
        rows = grad.flatten(0, -2)
        grad_weight = None
        if needs_weight:
            spikes = run_compiled(
                ctx.again, state, amplitude, offset, loop_steps=len(state), **ctx.options
            )
            grad_weight = rows.t() @ spikes.flatten(0, -2).to(rows.dtype)
        return (
            grad @ weight.to(grad.dtype) if needs_spikes else None,
            grad_weight,
            rows.sum(0) if needs_bias else None,
            *[None] * 5,
        )


class SpikingLinear(nn.Linear):
    """`nn.Linear` on what a neuron sent, [T, ..., in_features] to [T, ..., out_features].

    The same function and gradients. In training it keeps the neuron's state in place of its input; in a model
    that torch.compile made, which cannot tell what was changed in place, only where `trusts_input` is True.

    >>> neuron, linear = RoundingIF(3), SpikingLinear(3, 2)
    >>> linear(neuron(torch.randn(4, 5, 3))).shape
    torch.Size([4, 5, 2])
    """

    trusts_input = False
    """Whether the model around it changes nothing in place between the neuron and the layer."""

    def forward(self, input: Tensor) -> Tensor:
        record = record_of(input)
        if record is None or (torch.compiler.is_compiling() and not self.trusts_input):
            return super().forward(input)
        return _SpikingLinear.apply(input, self.weight, self.bias, *record[:-1])
