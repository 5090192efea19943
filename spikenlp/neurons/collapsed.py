"""The rounding neuron without a time axis: what T steps of a constant input send on average.

    r = T (x + c) / alpha           the input in levels
    level = round(r), within [-T, T] (binary: [0, T])
    output = alpha level / T - c

Gradient as LSQ (Esser et al., ICLR 2020), without its factor 1 / sqrt(samples) of the amplitude's, which AdamW does
not see: straight through while r is within half a level of the
range; alpha gets level / T, less r / T inside. It keeps r, by default in bfloat16 and truncated
towards zero: half-integers are exact there (T < 127), so that no level changes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from spikenlp.neurons.compilation import run_compiled
from spikenlp.neurons.dynamics import drop_bits, floored, kept_dtype, spike_dtype, sum_to
from spikenlp.neurons.first_order import first_order
from spikenlp.neurons.rounding import level_of

LARGEST_BFLOAT16_STEPS = 126


def pack_state(r: Tensor, dtype: torch.dtype) -> Tensor:
    """`r` (float32) in `dtype`, rounded towards zero, which carries nothing across a half-integer."""
    return r if dtype == torch.float32 else drop_bits(r, 16).to(torch.bfloat16)


def collapsed_forward(
    x: Tensor,
    amplitude: Tensor,
    offset: Tensor | None,
    *,
    steps: int,
    ternary: bool,
    state_dtype: torch.dtype | None,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    alpha = floored(amplitude)
    shifted = x.float() if offset is None else x.float() + offset
    r = shifted / alpha * steps
    # An infinite input may not pass as the largest level.
    r = torch.where(r.abs() < math.inf, r.clamp(-steps - 1, steps + 1), math.nan)
    sent = alpha * (level_of(r, steps, ternary) / steps)
    out = (sent if offset is None else sent - offset).to(out_dtype)
    return out, None if state_dtype is None else pack_state(r, state_dtype)


def collapsed_of_state(
    state: Tensor,
    amplitude: Tensor,
    offset: Tensor | None,
    *,
    steps: int,
    ternary: bool,
    out_dtype: torch.dtype,
) -> Tensor:
    """What was sent, from the state that was kept."""
    alpha = floored(amplitude)
    sent = alpha * (level_of(state.float(), steps, ternary) / steps)
    return (sent if offset is None else sent - offset).to(out_dtype)


def collapsed_backward(
    state: Tensor, grad: Tensor, *, steps: int, ternary: bool, x_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, and of alpha and c before they are summed."""
    r, g = state.float(), grad.float()
    lowest = -steps if ternary else 0
    inside = ((r > lowest - 0.5) & (r < steps + 0.5)).float()
    of_alpha = g * ((level_of(r, steps, ternary) - inside * r) / steps)
    return (g * inside).to(x_dtype), of_alpha, g * (inside - 1)


class _Collapsed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, amplitude, offset, options, state_dtype, dtype):
        needs_grad = state_dtype is not None and any(ctx.needs_input_grad)
        out, state = run_compiled(
            collapsed_forward,
            x,
            amplitude,
            offset,
            loop_steps=1,
            **options,
            state_dtype=state_dtype if needs_grad else None,
            out_dtype=dtype,
        )
        if needs_grad:
            ctx.save_for_backward(state, amplitude, offset)
            ctx.mark_non_differentiable(state)
            ctx.options = {**options, "x_dtype": x.dtype}
        return out, state

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor):
        state, *parameters = ctx.saved_tensors
        grad_x, *grads_in = run_compiled(
            collapsed_backward, state, grads[0], loop_steps=1, **ctx.options
        )
        needed = ctx.needs_input_grad[1:3]
        return grad_x, *map(sum_to, grads_in, parameters, needed), None, None, None


def collapsed_spike(
    x: Tensor,
    amplitude: Tensor,
    offset: Tensor | None = None,
    *,
    steps: int,
    ternary: bool,
    state_dtype: torch.dtype = torch.bfloat16,
) -> tuple[Tensor, Tensor | None]:
    """The equations above on x of any shape [1, ...].

    Returns:
        The mean of what would be sent, in the autocast dtype if autocast is on, else in that of `x`;
        and the state kept for the backward pass, or None where nothing needs a gradient.
    """
    if steps > LARGEST_BFLOAT16_STEPS:
        state_dtype = torch.float32
    options = {"steps": steps, "ternary": ternary}
    kept = kept_dtype(state_dtype)
    return _Collapsed.apply(x, amplitude, offset, options, kept, spike_dtype(x))
