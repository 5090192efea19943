"""Rounding neurons over T steps: integrate, fire at half of what is sent, subtract what is sent.

The case beta = 1, v_th = alpha / 2, reset by alpha of `spikenlp.neurons.dynamics`, with a straight-through
gradient. It sends what it subtracts, so its mean output over T steps is its mean input rounded to 2T + 1
levels (binary: T + 1), a first-order sigma-delta modulator. With one spike a step its gradient is local in time. One
spike a step may come too late, where the current changes; in bursts of up to b (Li & Zeng, IJCAI 2022) it is made
up for:

    n_t = u_t / alpha to the nearest whole number, within [-b, b]; binary [0, b]
    s_t = n_t as far as S_t = s_1 + ... + s_t stays within [-t, t]; binary [0, t]

With b = 1 this is the neuron above. Without a limit to b the mean of a ternary neuron is at every step t that of
the sum of its input rounded to 2t + 1 levels.

What is kept for the backward pass is u in units of alpha.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from spikenlp.neurons.compilation import run_compiled
from spikenlp.neurons.dynamics import (
    SMALLEST_SCALE,
    drop_bits,
    grad_of_currents,
    grad_of_sent,
    keep_state,
    kept_dtype,
    read_currents,
    spike_dtype,
    spike_function,
    sum_to,
    write_sent,
)
from spikenlp.neurons.first_order import first_order


def level_of(r: Tensor, steps: int, ternary: bool) -> Tensor:
    """The level nearest to r, ties away from zero."""
    nearest = torch.where(r < 0, -(0.5 - r).floor(), (r + 0.5).floor())
    return nearest.clamp(-steps if ternary else 0, steps)


def rounding_of_state(
    state: Tensor,
    amplitude: Tensor,
    offset: Tensor | None,
    *,
    ternary: bool,
    burst: int,
    running: bool,
    out_dtype: torch.dtype,
) -> Tensor:
    """What a rounding neuron sent, [T, ...], from the state that it kept."""
    alpha = sent_amplitude(amplitude, out_dtype)
    sent = [sent_spikes(alpha, s, burst, out_dtype) for s in kept_spikes(state, ternary, burst)]
    if offset is not None:
        sent = [s - offset for s in sent]
    return write_sent(sent, running, out_dtype)


def kept_spikes(state: Tensor, ternary: bool, burst: int) -> list[Tensor]:
    """The spikes of each step, from the state that a rounding neuron kept."""
    if burst == 1:
        return [spike_function(state[t].float(), 0.5, ternary) for t in range(len(state))]
    spikes: list[Tensor] = []
    total = torch.zeros_like(state[0], dtype=torch.float32)
    for t in range(len(state)):
        spikes.append(limited(level_of(state[t].float(), burst, ternary), total, t + 1, ternary))
        total = total + spikes[-1]
    return spikes


def integrate_and_round(
    v: Tensor | None,
    current: Tensor,
    alpha: Tensor,
    offset: Tensor | None,
    ternary: bool,
    dtype: torch.dtype,
    burst: int = 1,
    total: Tensor | None = None,
    step: float | Tensor = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """u_t, n_t, s_t, what is sent and v_t of a rounding neuron.

    Args:
        v, total: v_{t-1} and S_{t-1}; None: 0. step: t. dtype: of what is sent.
    """
    u = current if v is None else v + current
    if offset is not None:
        u = u + offset
    if burst == 1:
        n = s = spike_function(u, alpha / 2, ternary)
    else:
        n = torch.where(u.abs() < math.inf, level_of(u / alpha, burst, ternary), math.nan)
        s = limited(n, total, step, ternary)
    sent = sent_spikes(alpha, s, burst, dtype)
    return u, n, s, sent if offset is None else sent - offset, u - sent


def limited(n: Tensor, total: Tensor | None, step: float | Tensor, ternary: bool) -> Tensor:
    """s_t of n_t and S_{t-1}."""
    if total is None:
        total = torch.zeros_like(n)
    return (total + n).clamp_max(step).clamp_min(-step if ternary else 0) - total


def keep_burst(z: Tensor, n: Tensor, burst: int, ternary: bool, dtype: torch.dtype) -> Tensor:
    """Membrane potential `z`, in amplitudes, in `dtype`, which still rounds to `n`."""
    below = (n.abs() + 0.5) * (1 - torch.finfo(dtype).eps / 2)  # the number of `dtype` before it
    below = torch.where(n.abs() < burst, below, math.inf)
    z = z.clamp_max(below)
    return (z.clamp_min(-below) if ternary else z).to(dtype)


def rounding_forward(
    x: Tensor,
    amplitude: Tensor,
    offset: Tensor | None,
    *,
    steps: int,
    running: bool,
    ternary: bool,
    burst: int,
    state_dtype: torch.dtype | None,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    alpha = sent_amplitude(amplitude, out_dtype)
    scale = 1 / alpha
    v = torch.zeros_like(x[0], dtype=torch.float32)
    total = v
    out, state = [], []
    for t, current in enumerate(read_currents(x, steps, running), 1):
        u, n, s, sent, v = integrate_and_round(
            v, current, alpha, offset, ternary, out_dtype, burst, total, t
        )
        out.append(sent)
        if burst > 1:
            total = total + s
        if state_dtype is None:
            continue
        if burst == 1:
            state.append(keep_state(u * scale, s, 0.5, ternary, state_dtype))
        else:
            state.append(keep_burst(u / alpha, n, burst, ternary, state_dtype))
    return write_sent(out, running, out_dtype), None if not state else torch.stack(state)


def rounding_backward(
    state: Tensor,
    grad: Tensor,
    amplitude: Tensor,
    offset: Tensor | None,
    *,
    constant: bool,
    running: bool,
    ternary: bool,
    burst: int,
    needs_parameters: tuple[bool, bool],
    x_dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    needs_amplitude, needs_offset = needs_parameters
    grad_sent = grad_of_sent(grad, running)
    backward = step_gradients if burst == 1 else sum_gradients
    grad_currents, grad_amplitude = backward(state, grad_sent, ternary, burst)
    grad_offset = torch.zeros_like(grad_amplitude)
    for of_current, of_sent in zip(grad_currents, grad_sent, strict=True):
        grad_offset = grad_offset + (of_current - of_sent)
    return (
        grad_of_currents(grad_currents, constant, running, x_dtype),
        grad_amplitude if needs_amplitude else None,
        grad_offset if needs_offset else None,
    )


def step_gradients(
    state: Tensor, grad_sent: list[Tensor], ternary: bool, burst: int
) -> tuple[list[Tensor], Tensor]:
    """Of the currents, and of alpha before it is summed: with one spike a step, local in time."""
    grad_currents = []
    grad_amplitude = torch.zeros_like(state[0], dtype=torch.float32)
    v = torch.zeros_like(grad_amplitude)
    for t, g in enumerate(grad_sent):
        z = state[t].float()
        s = spike_function(z, 0.5, ternary)
        window = _inside(z, 1, ternary).float()
        grad_currents.append(g * window)
        grad_amplitude = grad_amplitude + g * (s - window * (z - v))
        v = z - s
    return grad_currents, grad_amplitude


def sum_gradients(
    state: Tensor, grad_sent: list[Tensor], ternary: bool, burst: int
) -> tuple[list[Tensor], Tensor]:
    """The same with bursts, where S_t follows the sum of the currents: straight through while it is rounded, that of
    S_{t-1} where it takes more than a burst, 0 at its bound."""
    spikes = kept_spikes(state, ternary, burst)
    totals = [torch.zeros_like(spikes[0])]
    for s in spikes:
        totals.append(totals[-1] + s)
    grad_current = later = torch.zeros_like(totals[0])
    carried = grad_amplitude = later
    grad_currents = []
    for t in range(len(spikes) - 1, -1, -1):
        z, s = state[t].float(), spikes[t]
        of_total = grad_sent[t] - later + carried  # of alpha S_t
        bounded = level_of(z, burst, ternary) != s
        rounded = _inside(z, burst, ternary) & ~bounded
        grad_current = grad_current + of_total * rounded
        passed = torch.where(rounded, s - z, torch.where(bounded, totals[t + 1], s))
        grad_amplitude = grad_amplitude + of_total * passed
        carried = of_total * ~(rounded | bounded)
        later = grad_sent[t]
        grad_currents.append(grad_current)
    return grad_currents[::-1], grad_amplitude


def _inside(z: Tensor, most: int, ternary: bool) -> Tensor:
    """Whether z rounds to a number within [-most, most] (binary: [0, most]) without a limit."""
    return (z < most + 0.5) & (z > (-most if ternary else 0) - 0.5)


DROPPED_BITS = {torch.bfloat16: 16, torch.float16: 13}
"""Of a float32, which these cannot hold."""


def sent_amplitude(amplitude: Tensor, dtype: torch.dtype) -> Tensor:
    """The amplitude as spikes of `dtype` carry it: what is subtracted must be what was sent."""
    floor = max(SMALLEST_SCALE, torch.finfo(dtype).tiny)
    return drop_bits(amplitude.float().clamp_min(floor), DROPPED_BITS.get(dtype, 0))


def sent_spikes(alpha: Tensor, s: Tensor, burst: int, dtype: torch.dtype) -> Tensor:
    """alpha s as `dtype` carries it."""
    return alpha * s if burst == 1 else drop_bits(alpha * s, DROPPED_BITS.get(dtype, 0))


class _RoundingSpike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, amplitude, offset, options, state_dtype, dtype):
        needs_grad = state_dtype is not None and any(ctx.needs_input_grad)
        out, state = run_compiled(
            rounding_forward,
            x,
            amplitude,
            offset,
            loop_steps=options["steps"],
            **options,
            state_dtype=state_dtype if needs_grad else None,
            out_dtype=dtype,
        )
        if needs_grad:
            ctx.save_for_backward(state, amplitude, offset)
            ctx.mark_non_differentiable(state)
            ctx.options = {**options, "constant": len(x) == 1, "x_dtype": x.dtype}
            del ctx.options["steps"]
        return out, state

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor):
        state, *parameters = ctx.saved_tensors
        needed = ctx.needs_input_grad[1:3]
        grad_x, *grads_in = run_compiled(
            rounding_backward,
            state,
            grads[0],
            *parameters,
            loop_steps=len(state),
            needs_parameters=tuple(needed),
            **ctx.options,
        )
        return grad_x, *map(sum_to, grads_in, parameters, needed), None, None, None


def rounding_spike(
    x: Tensor,
    amplitude: Tensor,
    offset: Tensor | None = None,
    *,
    steps: int,
    running: bool = False,
    ternary: bool,
    burst: int = 1,
    state_dtype: torch.dtype = torch.bfloat16,
) -> tuple[Tensor, Tensor | None]:
    """Rounding dynamics: integrates x + c, fires at alpha / 2, sends and subtracts alpha.

    Args:
        x: input current [T, ...], or [1, ...]: the same at each of the `steps`.
        amplitude: alpha, float32, broadcasts against `x[0]`.
        offset: c of a binary neuron (sends alpha s - c), or None for 0.
        running: `x` holds running means, and so will what is returned.
        burst: b, the most spikes of a step.

    Returns:
        What is sent, [T, ...], in the autocast dtype if autocast is on, else in that of `x`; and the
        state kept for the backward pass, [T, ...], or None where nothing needs a gradient.

    The gradient passes unchanged inside the window |u_t| < 1.5 alpha (binary: -0.5 alpha < u_t <
    1.5 alpha) and is 0 outside; d out_t / d alpha = s_t - [in window] x_t / alpha. With bursts it is that of the sums,
    which equals the collapsed twin's where no burst is too small (`sum_gradients`).
    """
    options = {"steps": steps, "running": running, "ternary": ternary, "burst": burst}
    kept = kept_dtype(state_dtype)
    return _RoundingSpike.apply(x, amplitude, offset, options, kept, spike_dtype(x))
