"""One time step of a neuron whose state goes in and comes out.

    x_t = input                                  a current
    x_t = t X_t - (t-1) X_{t-1}                  of running means X_t
    u_t, s_t, v_t                                as in `spikenlp.neurons.dynamics` and `rounding`
    output = alpha s_t, or the mean of those of steps 1 ... t

The arithmetic is that of the multi-step loops, operation by operation: T steps one at a time give
what one call with T steps gives, bit for bit. There is no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spikenlp.neurons.compilation import MIN_COMPILED_NUMEL, run_compiled
from spikenlp.neurons.dynamics import (
    floored,
    reset_membrane,
    spike_function,
)
from spikenlp.neurons.rounding import integrate_and_round, sent_amplitude


class NeuronState(NamedTuple):
    """What a neuron knows after `step` steps; `NeuronState()` is the start.

    Tensors have the shape of one step of the neuron's input, and None stands for zeros.
    """

    step: int = 0
    constant: bool = False
    """The input is a current that is the same at each step, running means or not."""
    membrane: Tensor | None = None
    """v_t, float32."""
    received: Tensor | None = None
    """X_t, with running means."""
    sent: Tensor | None = None
    """The sum of what steps 1 ... t sent, float32, with running means."""
    fired: Tensor | None = None
    """S_t, the spikes of steps 1 ... t with their signs, float32, of a neuron that sends bursts."""

    def select(self, rows: Tensor) -> NeuronState:
        """The state of `rows` (indices on dimension 0 of its tensors)."""
        kept = (x if x is None else x.index_select(0, rows) for x in self[2:])
        return NeuronState(self.step, self.constant, *kept)


class Carrier:
    """The neurons of a model in one time step: each goes on from its state in `before` and leaves the
    next in `after`. An input that lies where `constant` lies does not change over time.

    Inside `with carrier:` a neuron's `forward` is that one step, in this thread and task alone. `real`:
    positions, bool [B, L], that are not padding.
    """

    def __init__(self, before: Mapping[nn.Module, NeuronState], constant: Tensor, real: Tensor):
        self.before, self.real = before, real
        self.after: dict[nn.Module, NeuronState] = {}
        self._constant = constant.data_ptr()

    def advance(self, neuron: Any, x: Tensor, running: bool) -> Tensor:
        state = self.before[neuron]
        if state.step == 0:
            state = NeuronState(constant=x.data_ptr() == self._constant)
        sent, self.after[neuron] = neuron.advance(x, state, running=running)
        return sent

    def __enter__(self) -> Carrier:
        self._token = _CARRIER.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _CARRIER.reset(self._token)


_CARRIER: ContextVar[Carrier | None] = ContextVar("carrier", default=None)


def carrier_of(neuron: nn.Module) -> Carrier | None:
    """What carries the state of `neuron` just now, if anything does."""
    if torch.compiler.is_compiling():
        return None
    carrier = _CARRIER.get()
    return carrier if carrier is not None and neuron in carrier.before else None


def stream(
    update: Callable[..., Any],
    x: Tensor,
    parameters: tuple[Tensor | None, ...],
    state: NeuronState,
    *,
    running: bool,
    last_dim_only: bool,
    **options: Any,
) -> tuple[Tensor, NeuronState]:
    """Runs `update` (`round_once` or `spike_once`) on one step's input x [...].

    `last_dim_only`: parameters broadcast along the last dimension at most, so that the others may be
    joined into one, whose size then never is a case of its own for the compiler.
    """
    means = running and not state.constant
    step: float | Tensor = float(state.step + 1)
    before = (state.membrane, state.received if means else None, state.sent, state.fired)
    if x.numel() < MIN_COMPILED_NUMEL:
        out, membrane, sent, fired = update(
            x, *before, step, *parameters, running=running, **options
        )
    else:

        def flat(value: Tensor) -> Tensor:
            return value.flatten(0, -2) if last_dim_only and value.dim() > 1 else value

        # A tensor, because a number would be compiled into the loop, once for each step.
        step = torch.tensor(step)
        tensors = (value if value is None else flat(value) for value in before)
        found = run_compiled(
            update,
            flat(x),
            *tensors,
            step,
            *parameters,
            loop_steps=1,
            running=running,
            **options,
        )
        out, membrane, sent, fired = (y if y is None else y.view(x.shape) for y in found)
    received = x if means else None
    return out, NeuronState(state.step + 1, state.constant, membrane, received, sent, fired)


def read_current(x: Tensor, received: Tensor | None, step: float | Tensor) -> Tensor:
    """x_t in float32 of a current, or of its running means."""
    if received is None:
        return x.float()
    return step * x.float() - (step - 1) * received.float()


def write_sent(
    now: Tensor, before: Tensor | None, step: float | Tensor, running: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """The output, and the sum of what was sent where that is a running mean."""
    if not running:
        return now.to(dtype), None
    total = now if before is None else before + now
    return (now if before is None else total / step).to(dtype), total


def round_once(
    x: Tensor,
    membrane: Tensor | None,
    received: Tensor | None,
    sent: Tensor | None,
    fired: Tensor | None,
    step: float | Tensor,
    amplitude: Tensor,
    offset: Tensor | None,
    *,
    running: bool,
    ternary: bool,
    burst: int,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    alpha = sent_amplitude(amplitude, out_dtype)
    current = read_current(x, received, step)
    _, _, s, now, v = integrate_and_round(
        membrane, current, alpha, offset, ternary, out_dtype, burst, fired, step
    )
    out, total = write_sent(now, sent, step, running, out_dtype)
    if burst == 1:
        return out, v, total, None
    return out, v, total, s if fired is None else fired + s


def spike_once(
    x: Tensor,
    membrane: Tensor | None,
    received: Tensor | None,
    sent: Tensor | None,
    fired: None,
    step: float | Tensor,
    beta: Tensor,
    v_threshold: Tensor,
    amplitude: Tensor,
    *,
    running: bool,
    ternary: bool,
    hard: bool,
    v_reset: float,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor | None, None]:
    threshold = floored(v_threshold)
    current = read_current(x, received, step)
    u = current if membrane is None else beta * membrane + current
    s = spike_function(u, threshold, ternary)
    v = reset_membrane(u, s, threshold, hard, v_reset)
    out, total = write_sent(floored(amplitude) * s, sent, step, running, out_dtype)
    return out, v, total, None
