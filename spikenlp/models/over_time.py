"""How a float function acts over time steps: on each step, or on the running mean of its input.

"step": y_t = f(x_t).

"running": with X_t = (x_1 + ... + x_t) / t, the function sends y_t = t f(X_t) - (t-1) f(X_{t-1}), so
that the mean of what it has sent by step t is exactly f(X_t). It is causal and evaluates f once a
step, as "step" does. A model keeps its float stream as the running means F_t = f(X_t): residual sums
and linear maps act on them as they are, and only what enters a neuron has to become a current again.

Tensors are [T, ...], time first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spikenlp.neurons.compilation import run_compiled


class OverTime(NamedTuple):
    """The four ways in which a stream and the currents that neurons exchange are related."""

    to_stream: Callable[[Tensor], Tensor]
    """Currents x_t -> the input of a float function (running: X_t)."""
    to_current: Callable[[Tensor], Tensor]
    """A float function's output -> what it sends at each step (running: y_t)."""
    time_mean: Callable[[Tensor], Tensor]
    """A float function's output [T, ...] -> the mean over time of what it sends [...]."""


def prefix_mean_forward(x: Tensor, *, dtype: torch.dtype) -> Tensor:
    total = x[0].float()
    out = [total.to(dtype)]
    for t in range(1, x.shape[0]):
        total = total + x[t].float()
        out.append((total / (t + 1)).to(dtype))
    return torch.stack(out)


def prefix_mean_backward(grad: Tensor, *, dtype: torch.dtype) -> Tensor:
    total = torch.zeros_like(grad[0], dtype=torch.float32)
    out = []
    for t in range(grad.shape[0] - 1, -1, -1):
        total = total + grad[t].float() / (t + 1)
        out.append(total.to(dtype))
    return torch.stack(out[::-1])


def increments_forward(y: Tensor, *, dtype: torch.dtype) -> Tensor:
    previous = y[0].float()
    out = [previous.to(dtype)]
    for t in range(1, y.shape[0]):
        current = (t + 1) * y[t].float()
        out.append((current - previous).to(dtype))
        previous = current
    return torch.stack(out)


def increments_backward(grad: Tensor, *, dtype: torch.dtype) -> Tensor:
    last = grad.shape[0] - 1
    out = [((t + 1) * (grad[t].float() - grad[t + 1].float())).to(dtype) for t in range(last)]
    return torch.stack([*out, ((last + 1) * grad[last].float()).to(dtype)])


class _PrefixMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = x.dtype
        return run_compiled(prefix_mean_forward, x.flatten(1), dtype=dtype).view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        grad = grads[0]
        back = run_compiled(prefix_mean_backward, grad.flatten(1), dtype=ctx.dtype)
        return back.view(grad.shape), None


class _Increments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = y.dtype
        return run_compiled(increments_forward, y.flatten(1), dtype=dtype).view(y.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        grad = grads[0]
        back = run_compiled(increments_backward, grad.flatten(1), dtype=ctx.dtype)
        return back.view(grad.shape), None


def running_mean(x: Tensor) -> Tensor:
    """X_t = (x_1 + ... + x_t) / t of x [T, ...]; summed in float32, float32 under autocast."""
    return x if x.shape[0] == 1 else _PrefixMean.apply(x, _stream_dtype(x))


def increments(y: Tensor) -> Tensor:
    """t y_t - (t-1) y_{t-1} of y [T, ...]: the currents whose running mean is y."""
    return y if y.shape[0] == 1 else _Increments.apply(y, _stream_dtype(y))


def _stream_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if torch.is_autocast_enabled(x.device.type) else x.dtype


def _unchanged(x: Tensor) -> Tensor:
    return x


NONLINEARITIES: dict[str, OverTime] = {
    "running": OverTime(running_mean, increments, lambda y: y[-1]),
    "step": OverTime(_unchanged, _unchanged, lambda y: y.mean(0)),
}
