"""The membrane update over T steps, and its gradient.

    u_t = beta * v_{t-1} + x_t                  membrane potential before firing
    s_t = H(u_t - v_th)                         binary, H(0) = 1
    s_t = H(u_t - v_th) - H(-u_t - v_th)        ternary
    v_t = u_t - v_th * s_t                      soft reset
    v_t = u_t * (1 - |s_t|) + v_reset * |s_t|   hard reset
    output = alpha * s_t

`spike` is this op with a surrogate gradient through time (BPTT); `spikenlp.neurons.rounding` has the case of
rounding neurons.

One number per neuron and step is kept for the backward pass, u in units of the threshold, by default in
bfloat16. It stays on its side of the threshold whatever the rounding, so the spikes recomputed from it are
the spikes that were sent. `spikes_of_state` does that, for whatever reads the spikes and would have to keep
them.

It also works on running means, X_t = (x_1 + ... + x_t) / t in place of x_t and likewise for what
is sent, so that the float functions between neurons may act on the means as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spikenlp.neurons.compilation import run_compiled
from spikenlp.neurons.first_order import first_order

SMALLEST_SCALE = 1e-6
"""Floor of thresholds and amplitudes inside the op; a learned one may not reach zero."""


def floored(scale: Tensor) -> Tensor:
    """A threshold or an amplitude, `SMALLEST_SCALE` at least. Its gradient passes below it as above."""
    return scale.detach().clamp_min(SMALLEST_SCALE) + (scale - scale.detach())


def spike_function(u: Tensor, threshold: Tensor | float, ternary: bool) -> Tensor:
    """Spikes {0, 1}, or {-1, 0, 1} where `ternary`, of the membrane potential `u`, in float32.

    NaN where `u` or the threshold is NaN or infinite: a comparison alone would make silence of it.
    """
    s = (u >= threshold).float()
    if ternary:
        s = s - (u <= -threshold).float()
    return torch.where((u - threshold).abs() < math.inf, s, math.nan)


def reset_membrane(
    u: Tensor, s: Tensor, threshold: Tensor | float, hard: bool, v_reset: float
) -> Tensor:
    """Membrane potential after the reset that spikes `s` cause."""
    if hard:
        fired = s.abs()
        return u * (1 - fired) + v_reset * fired
    return u - threshold * s


def keep_state(z: Tensor, s: Tensor, threshold: float, ternary: bool, dtype: torch.dtype) -> Tensor:
    """Membrane potential `z` in `dtype`, no rounding across the `threshold` that spikes `s` obeyed."""
    below = threshold * (1 - torch.finfo(dtype).eps / 2)  # the number of `dtype` before it
    silent = z.clamp(-below if ternary else None, below)
    return torch.where(s == 0, silent, s * (s * z).clamp_min(threshold)).to(dtype)


def drop_bits(x: Tensor, count: int) -> Tensor:
    """`x` (float32) without the last `count` bits of its mantissa.

    Bits are masked, not cast to a shorter dtype and back: Inductor leaves such a pair of casts out.
    """
    return (x.view(torch.int32) & -(1 << count)).view(torch.float32) if count else x


def sum_to(grad: Tensor | None, parameter: Tensor | None, needed: bool) -> Tensor | None:
    """The gradient of a broadcast parameter from those of each element (None: they are zero).

    Outside the compiled loops: Inductor's sum over rows walks memory column by column.
    """
    if not needed or parameter is None:
        return None
    return torch.zeros_like(parameter) if grad is None else grad.sum_to_size(parameter.shape)


# --- the border of the loops: currents, or running means of them ----------------------------------


def read_currents(x: Tensor, steps: int, running: bool) -> list[Tensor]:
    """x_1 ... x_T in float32 of x [T, ...], or of x [1, ...], a current that does not change."""
    if len(x) == 1:
        return [x[0].float()] * steps
    if not running:
        return [x[t].float() for t in range(steps)]
    return [x[0].float()] + [(t + 1) * x[t].float() - t * x[t - 1].float() for t in range(1, steps)]


def grad_of_currents(grads: list[Tensor], constant: bool, running: bool, dtype) -> Tensor:
    """Adjoint of `read_currents`: [T, ...], or [1, ...] where the current was `constant`."""
    steps = len(grads)
    if constant:
        return sum(grads[1:], grads[0]).to(dtype)[None]
    if running:
        later = [*grads[1:], torch.zeros_like(grads[0])]
        grads = [(t + 1) * (grads[t] - later[t]) for t in range(steps)]
    return torch.stack([g.to(dtype) for g in grads])


def write_sent(sent: list[Tensor], running: bool, dtype: torch.dtype) -> Tensor:
    """What was sent, or its running mean, [T, ...]."""
    if running:
        total, means = sent[0], [sent[0]]
        for t in range(1, len(sent)):
            total = total + sent[t]
            means.append(total / (t + 1))
        sent = means
    return torch.stack([s.to(dtype) for s in sent])


def grad_of_sent(grad: Tensor, running: bool) -> list[Tensor]:
    """Adjoint of `write_sent`, one gradient a step, in float32."""
    steps = len(grad)
    grads = [grad[t].float() for t in range(steps)]
    if running:
        grads[-1] = grads[-1] / steps
        for t in range(steps - 2, -1, -1):
            grads[t] = grads[t] / (t + 1) + grads[t + 1]
    return grads


def spikes_of_state(
    state: Tensor,
    amplitude: Tensor,
    offset: None,
    *,
    ternary: bool,
    running: bool,
    out_dtype: torch.dtype,
) -> Tensor:
    """What a neuron sent, [T, ...], from the state that it kept."""
    alpha = floored(amplitude)
    sent = [alpha * spike_function(state[t].float(), 1.0, ternary) for t in range(len(state))]
    return write_sent(sent, running, out_dtype)


def spike_forward(
    x: Tensor,
    beta: Tensor,
    v_threshold: Tensor,
    amplitude: Tensor,
    *,
    steps: int,
    running: bool,
    ternary: bool,
    hard: bool,
    v_reset: float,
    state_dtype: torch.dtype | None,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    threshold, alpha = floored(v_threshold), floored(amplitude)
    scale = 1 / threshold
    v = torch.zeros_like(x[0], dtype=torch.float32)
    sent, state = [], []
    for current in read_currents(x, steps, running):
        u = beta * v + current
        s = spike_function(u, threshold, ternary)
        v = reset_membrane(u, s, threshold, hard, v_reset)
        sent.append(alpha * s)
        if state_dtype is not None:
            state.append(keep_state(u * scale, s, 1.0, ternary, state_dtype))
    out = write_sent(sent, running, out_dtype)
    return out, torch.stack(state) if state_dtype is not None else None


def spike_backward(
    state: Tensor,
    grad: Tensor,
    beta: Tensor,
    v_threshold: Tensor,
    amplitude: Tensor,
    *,
    surrogate: Callable[[Tensor, float], Tensor],
    width: float,
    constant: bool,
    running: bool,
    ternary: bool,
    hard: bool,
    v_reset: float,
    detach_reset: bool,
    needs_parameters: tuple[bool, bool, bool],
    x_dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    needs_beta, needs_threshold, needs_amplitude = needs_parameters
    threshold, alpha = floored(v_threshold), floored(amplitude)
    steps = state.shape[0]
    z = state[steps - 1].float()
    grad_v = torch.zeros_like(z)
    grad_beta = grad_threshold = grad_amplitude = None
    grad_sent = grad_of_sent(grad, running)
    grad_currents = []
    for t in range(steps - 1, -1, -1):
        u = z * threshold
        s = spike_function(z, 1.0, ternary)
        g = grad_sent[t]
        up = surrogate(u - threshold, width)
        down = surrogate(-u - threshold, width) if ternary else torch.zeros_like(up)
        grad_s = g * alpha
        grad_fired = torch.zeros_like(g)
        if hard:
            carry = grad_v * (1 - s.abs())
            if not detach_reset:
                grad_fired = grad_v * (v_reset - u)
        else:
            carry = grad_v
            if not detach_reset:
                grad_s = grad_s - grad_v * threshold
        grad_u = grad_s * (up + down) + grad_fired * (up - down) + carry
        if needs_threshold:
            term = grad_s * (down - up) - grad_fired * (up + down)
            if not hard:
                term = term - grad_v * s
            grad_threshold = term if grad_threshold is None else grad_threshold + term
        if needs_amplitude:
            term = g * s
            grad_amplitude = term if grad_amplitude is None else grad_amplitude + term
        if t > 0:
            z = state[t - 1].float()
            if needs_beta:
                previous = spike_function(z, 1.0, ternary)
                term = grad_u * reset_membrane(z * threshold, previous, threshold, hard, v_reset)
                grad_beta = term if grad_beta is None else grad_beta + term
        grad_v = beta * grad_u
        grad_currents.append(grad_u)
    grad_x = grad_of_currents(grad_currents[::-1], constant, running, x_dtype)
    return grad_x, grad_beta, grad_threshold, grad_amplitude


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, beta, v_threshold, amplitude, options, gradient, state_dtype, dtype):
        needs_grad = state_dtype is not None and any(ctx.needs_input_grad)
        out, state = run_compiled(
            spike_forward,
            x,
            beta,
            v_threshold,
            amplitude,
            loop_steps=options["steps"],
            **options,
            state_dtype=state_dtype if needs_grad else None,
            out_dtype=dtype,
        )
        if needs_grad:
            ctx.save_for_backward(state, beta, v_threshold, amplitude)
            ctx.mark_non_differentiable(state)
            ctx.options = {**options, **gradient, "constant": len(x) == 1, "x_dtype": x.dtype}
            del ctx.options["steps"]
        return out, state

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor):
        state, *parameters = ctx.saved_tensors
        needed = ctx.needs_input_grad[1:4]
        grad_x, *grads_in = run_compiled(
            spike_backward,
            state,
            grads[0],
            *parameters,
            loop_steps=len(state),
            needs_parameters=tuple(needed),
            **ctx.options,
        )
        return grad_x, *map(sum_to, grads_in, parameters, needed), None, None, None, None


def spike(
    x: Tensor,
    beta: Tensor,
    v_threshold: Tensor,
    amplitude: Tensor,
    *,
    steps: int,
    running: bool = False,
    ternary: bool,
    hard: bool,
    v_reset: float,
    surrogate: Callable[[Tensor, float], Tensor],
    width: float,
    detach_reset: bool,
    state_dtype: torch.dtype = torch.bfloat16,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Classic spiking dynamics with BPTT (equations above).

    Args:
        x: input current [T, ...], any floating dtype, or [1, ...]: the same at each of the `steps`;
            the dynamics run in float32.
        beta, v_threshold, amplitude: float32 tensors that broadcast against `x[0]`.
        running: `x` holds running means, and so will what is returned.
        out_dtype: of what is returned; None: the autocast dtype if autocast is on, else that of `x`.

    Returns:
        alpha * s_t, [T, ...], and the
        state kept for the backward pass, [T, ...], or None where nothing needs a gradient.
    """
    return _Spike.apply(
        x,
        beta,
        v_threshold,
        amplitude,
        {"steps": steps, "running": running, "ternary": ternary, "hard": hard, "v_reset": v_reset},
        {"surrogate": surrogate, "width": width, "detach_reset": detach_reset},
        kept_dtype(state_dtype),
        out_dtype or spike_dtype(x),
    )


def kept_dtype(state_dtype: torch.dtype) -> torch.dtype | None:
    """None without gradients. Inside an autograd function nothing tells: it asks its inputs only."""
    return state_dtype if torch.is_grad_enabled() else None


def spike_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
