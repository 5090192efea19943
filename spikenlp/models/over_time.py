"""How a float function acts over time steps: on each step, or on the running mean of its input.

"step": y_t = f(x_t).

"running": with X_t = (x_1 + ... + x_t) / t, the function sends y_t = t f(X_t) - (t-1) f(X_{t-1}), so
that the mean of what it has sent by step t is exactly f(X_t). It is causal and evaluates f once a
step, as "step" does.

A model of running means computes with the means alone: residual sums and weights act on them as they
are, because W mean(s) = mean(W s), and a neuron takes running means and returns those of its spikes
(`running=True`). The currents y_t are made where somebody asks for them, at the output.

Tensors are [T, ...], time first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class OverTime(NamedTuple):
    """What the model's stream [T, ...] is."""

    running: bool
    """Running means, or currents."""
    to_stream: Callable[[Tensor], Tensor]
    """Currents x_t -> stream (running: X_t)."""
    to_current: Callable[[Tensor], Tensor]
    """Stream -> currents, what a float function sends at each step (running: y_t)."""
    time_mean: Callable[[Tensor], Tensor]
    """Stream -> the mean over time of its currents [...]."""


def running_mean(x: Tensor) -> Tensor:
    """X_t = (x_1 + ... + x_t) / t of x [T, ...]; summed in float32, float32 under autocast."""
    sums = _at_least_float32(x).cumsum(0)
    return (sums / _steps(sums)).to(_stream_dtype(x))


def increments(y: Tensor) -> Tensor:
    """t y_t - (t-1) y_{t-1} of y [T, ...]: the currents whose running mean is y."""
    sums = _at_least_float32(y)
    sums = sums * _steps(sums)
    return torch.cat([sums[:1], sums[1:] - sums[:-1]]).to(_stream_dtype(y))


def next_increment(y: Tensor, step: int, before: Tensor | None) -> tuple[Tensor, Tensor]:
    """`increments` one step at a time: y_t [...] to t y_t - (t-1) y_{t-1}, and t y_t.

    Args:
        step: t, from 1.
        before: what the step before gave as second, None at t = 1.
    """
    sums = _at_least_float32(y) * step
    return (sums if before is None else sums - before).to(_stream_dtype(y)), sums


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize < 4 else x


def _stream_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if torch.is_autocast_enabled(x.device.type) else x.dtype


def _steps(x: Tensor) -> Tensor:
    counted = torch.arange(1, x.shape[0] + 1, device=x.device, dtype=x.dtype)
    return counted.view(-1, *[1] * (x.dim() - 1))


def _unchanged(x: Tensor) -> Tensor:
    return x


NONLINEARITIES: dict[str, OverTime] = {
    "running": OverTime(True, running_mean, increments, lambda y: y[-1]),
    "step": OverTime(False, _unchanged, _unchanged, lambda y: y.mean(0)),
}
