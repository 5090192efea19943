"""Spiking neurons as modules: input current [T, ...] in, spikes [T, ...] out, no state in between.

`neuron(x, num_timesteps=T)` takes a current [1, ...] that is the same at each step, and
`neuron(x, running=True)` running means of the current in place of the current, and returns running
means of the spikes. Every neuron also has `step(x, v) -> (out, v)`, one time step with the membrane
potential passed by hand, for T too large to unroll, and `advance(x, state) -> (out, state)`, which
does so for running means too, for inference one step at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spikenlp.neurons.collapsed import collapsed_of_state, collapsed_spike
from spikenlp.neurons.dynamics import (
    floored,
    reset_membrane,
    spike,
    spike_dtype,
    spike_function,
    spikes_of_state,
)
from spikenlp.neurons.linear import remember
from spikenlp.neurons.rounding import (
    integrate_and_round,
    rounding_of_state,
    rounding_spike,
    sent_amplitude,
)
from spikenlp.neurons.streaming import (
    NeuronState,
    carrier_of,
    round_once,
    spike_once,
    stream,
)
from spikenlp.neurons.surrogate import SURROGATES

LARGEST_BURST = 16
"""Up to which bfloat16 tells the sides of every half-integer apart."""


def alphabet(ternary: bool, burst: int = 1) -> str:
    """What a neuron sends in one step, in units of its amplitude: {0, 1}, {-1, 0, 1}, or of bursts {-b, ..., b}."""
    dots = "" if burst == 1 else "..., "
    return f"{{-{burst}, {dots or '0, '}{burst}}}" if ternary else f"{{0, {dots}{burst}}}"


class SpikingNeuron(nn.Module):
    """What all neurons share: per-channel parameters and the checks of the input."""

    ternary: bool
    burst: int = 1
    """The most spikes of one time step."""
    amplitude: Tensor

    def __init__(self, channels: int | None, channel_dim: int, state_dtype: torch.dtype):
        super().__init__()
        if channels is not None and channels < 1:
            raise ValueError(f"channels must be None (one value per layer) or >= 1, got {channels}")
        if state_dtype not in (torch.bfloat16, torch.float32):
            raise ValueError(f"state_dtype must be bfloat16 or float32, got {state_dtype}")
        if channel_dim == 0:
            raise ValueError("channel_dim must not be 0, where the time steps are")
        self.channels = channels
        self.channel_dim = channel_dim
        self.state_dtype = state_dtype

    def _per_channel(self, value: float) -> Tensor:
        return torch.full((self.channels or 1,), float(value))

    def _broadcast(self, parameter: Tensor, step: Tensor) -> Tensor:
        """`parameter` in float32, shaped to broadcast against `step` = x[t]."""
        parameter = parameter.float()
        if self.channels is None or self.channel_dim == -1:
            return parameter
        shape = [1] * step.dim()
        shape[self.step_channel_dim(step)] = self.channels
        return parameter.view(shape)

    def step_channel_dim(self, step: Tensor) -> int:
        """The dimension of x[t] that `channel_dim` of x is."""
        return self.channel_dim if self.channel_dim < 0 else self.channel_dim - 1

    def _check_step(self, step: Tensor) -> None:
        if not step.is_floating_point():
            raise ValueError(f"the input current must be floating point, got {step.dtype}")
        if self.channels is not None:
            dim = self.step_channel_dim(step)
            found = step.shape[dim] if -step.dim() <= dim < step.dim() else "none"
            if found != self.channels:
                raise ValueError(
                    f"channels={self.channels}, but dimension {self.channel_dim} of the input has "
                    f"size {found} (x[t] has shape {tuple(step.shape)})"
                )

    def _steps(self, x: Tensor, num_timesteps: int | None) -> int:
        """T, after the checks of the input."""
        if x.dim() < 2 or x.shape[0] < 1:
            raise ValueError(
                "a neuron needs at least one time step (T >= 1) on dimension 0 and a dimension of "
                f"neurons after it, got shape {tuple(x.shape)}"
            )
        self._check_step(x[0])
        if num_timesteps is None or num_timesteps == x.shape[0]:
            return x.shape[0]
        if x.shape[0] != 1 or num_timesteps < 1:
            raise ValueError(
                f"num_timesteps={num_timesteps} needs an input with as many steps, or with one that "
                f"is the same at each, got shape {tuple(x.shape)}"
            )
        return num_timesteps

    def advance(
        self, x: Tensor, state: NeuronState, *, running: bool = False
    ) -> tuple[Tensor, NeuronState]:
        """One time step, without gradient: the input [1, ...] and a state to the output and a state.

        What T calls send is what one `forward` with T steps sends. The first takes `NeuronState()`,
        or `NeuronState(constant=True)` where the input is a current that is the same at each step.

        Raises:
            ValueError: more than one step; a state of an input of another shape.
        """
        raise NotImplementedError

    @torch.no_grad()
    def _advance(
        self,
        update: Callable[..., Any],
        x: Tensor,
        state: NeuronState,
        running: bool,
        parameters: tuple[Tensor | None, ...],
        **options: Any,
    ) -> tuple[Tensor, NeuronState]:
        if x.shape[0] != 1:
            raise ValueError(
                f"with a state a neuron takes one time step, x [1, ...], got shape {tuple(x.shape)}"
            )
        if state.membrane is not None and state.membrane.shape != x.shape[1:]:
            raise ValueError(
                f"the state belongs to inputs of shape {(1, *state.membrane.shape)}, got "
                f"{tuple(x.shape)}: go on with the inputs that it came from"
            )
        sent, state = stream(
            update,
            x[0],
            parameters,
            state,
            running=running,
            last_dim_only=self.channels is None or self.channel_dim == -1,
            ternary=self.ternary,
            **{"out_dtype": spike_dtype(x), **options},
        )
        return sent[None], state

    @property
    def alphabet(self) -> str:
        return alphabet(self.ternary, self.burst)

    def extra_repr(self) -> str:
        return f"channels={self.channels}"


class IF(SpikingNeuron):
    """Integrate-and-fire: u_t = v_{t-1} + x_t; fires alpha * s_t where u_t reaches the threshold.

    Args:
        v_threshold: v_th > 0; a soft reset subtracts it.
        ternary: spikes {-1, 0, 1} instead of {0, 1}.
        reset: "soft" (subtract v_th) or "hard" (set to `v_reset`).
        surrogate: a key of `SURROGATES`; `surrogate_width` None takes its default.
        detach_reset: no gradient through the spike inside the reset.
        amplitude: alpha, scales the spikes.
        channels: one threshold and amplitude per channel (size of `channel_dim`), or None: one per
            layer. `channel_dim` counts in x, [T, ...]: -1, or e.g. 2 in [T, B, C, H, W].
        state_dtype: precision of what is kept for the backward pass; float32 gives exact gradients.

    Raises:
        ValueError: for an argument outside the above, or an input whose shape does not fit.

    >>> neuron = IF(v_threshold=1.0)
    >>> neuron(torch.full((4, 1), 0.5)).flatten().tolist()
    [0.0, 1.0, 0.0, 1.0]
    """

    v_threshold: Tensor

    def __init__(
        self,
        v_threshold: float = 1.0,
        *,
        ternary: bool = False,
        reset: Literal["soft", "hard"] = "soft",
        v_reset: float = 0.0,
        surrogate: str = "triangle",
        surrogate_width: float | None = None,
        detach_reset: bool = True,
        amplitude: float = 1.0,
        channels: int | None = None,
        channel_dim: int = -1,
        learn_threshold: bool = False,
        learn_amplitude: bool = False,
        state_dtype: torch.dtype = torch.bfloat16,
    ):
        super().__init__(channels, channel_dim, state_dtype)
        if not v_threshold > 0:
            raise ValueError(f"v_threshold must be > 0, got {v_threshold}")
        if not amplitude > 0:
            raise ValueError(f"amplitude must be > 0, got {amplitude}")
        if reset not in ("soft", "hard"):
            raise ValueError(f"reset must be 'soft' or 'hard', got {reset!r}")
        if surrogate not in SURROGATES:
            raise ValueError(f"surrogate must be one of {sorted(SURROGATES)}, got {surrogate!r}")
        self.ternary = ternary
        self.reset = reset
        self.v_reset = v_reset
        self.detach_reset = detach_reset
        self.surrogate, default_width = SURROGATES[surrogate]
        self.surrogate_width = default_width if surrogate_width is None else surrogate_width
        if not self.surrogate_width > 0:
            raise ValueError(f"surrogate_width must be > 0, got {surrogate_width}")
        self.initial_threshold = float(v_threshold)
        self._register("v_threshold", v_threshold, learn_threshold)
        self._register("amplitude", amplitude, learn_amplitude)

    def _register(self, name: str, value: float, learned: bool) -> None:
        """A parameter, or a buffer: what is not learned does not count as a parameter."""
        tensor = self._per_channel(value)
        if learned:
            self.register_parameter(name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor)

    def current(self, x: Tensor) -> Tensor:
        """What is added to the membrane potential at input `x`."""
        return x

    def decay(self) -> Tensor:
        """beta, a tensor that broadcasts against x[t]."""
        return torch.ones((), device=self.v_threshold.device)

    def forward(
        self,
        x: Tensor,
        *,
        num_timesteps: int | None = None,
        running: bool = False,
    ) -> Tensor:
        if (carrier := carrier_of(self)) is not None:
            return carrier.advance(self, x, running)
        steps = self._steps(x, num_timesteps)
        amplitude = self._broadcast(self.amplitude, x[0])
        sent, kept = spike(
            self.current(x),
            self.decay(),
            self._broadcast(self.v_threshold, x[0]),
            amplitude,
            steps=steps,
            running=running,
            ternary=self.ternary,
            hard=self.reset == "hard",
            v_reset=self.v_reset,
            surrogate=self.surrogate,
            width=self.surrogate_width,
            detach_reset=self.detach_reset,
            state_dtype=self.state_dtype,
            out_dtype=spike_dtype(x),
        )
        options = {"ternary": self.ternary, "running": running, "out_dtype": sent.dtype}
        return remember(sent, kept, spikes_of_state, amplitude, None, options)

    def advance(
        self, x: Tensor, state: NeuronState, *, running: bool = False
    ) -> tuple[Tensor, NeuronState]:
        self._check_step(x[0])
        amplitude = self._broadcast(self.amplitude, x[0])
        parameters = (self.decay(), self._broadcast(self.v_threshold, x[0]), amplitude)
        options: dict[str, Any] = {"hard": self.reset == "hard", "v_reset": self.v_reset}
        options["out_dtype"] = spike_dtype(x)  # a current may be in another
        return self._advance(spike_once, self.current(x), state, running, parameters, **options)

    @torch.no_grad()
    def step(
        self, x: Tensor, v: Tensor | None = None, *, active: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One time step, without gradient: x [...] and v [...] (None: 0) to (alpha * s, v).

        `active`: 0 where nothing is sent any more and 1 elsewhere, broadcast against x.
        """
        self._check_step(x)
        threshold = floored(self._broadcast(self.v_threshold, x))
        u = self.current(x.float())
        if v is not None:
            u = self.decay() * v + u
        s = spike_function(u, threshold, self.ternary)
        s = s if active is None else s * active
        v = reset_membrane(u, s, threshold, self.reset == "hard", self.v_reset)
        return (floored(self._broadcast(self.amplitude, x)) * s).to(spike_dtype(x)), v

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ternary={self.ternary}, reset={self.reset!r}"


class LIF(IF):
    """Leaky integrate-and-fire: u_t = beta * v_{t-1} + x_t, 0 < beta <= 1; the rest as in `IF`.

    In SpikingJelly's terms beta = 1 - 1 / tau.

    Args:
        decay_input: the input decays as well, u_t = beta * v_{t-1} + (1 - beta) * x_t, which in
            SpikingJelly's terms is v + (x - v) / tau, its default. Then beta < 1.

    >>> LIF()(torch.full((3, 1), 0.7)).flatten().tolist()
    [0.0, 1.0, 0.0]
    >>> LIF(decay_input=True)(torch.full((3, 1), 1.5)).flatten().tolist()
    [0.0, 1.0, 0.0]
    """

    def __init__(
        self,
        beta: float = 0.5,
        v_threshold: float = 1.0,
        *,
        decay_input: bool = False,
        **kwargs,
    ):
        super().__init__(v_threshold, **kwargs)
        if not 0 < beta <= 1:
            raise ValueError(f"beta must be in (0, 1], got {beta}")
        if decay_input and beta == 1:
            raise ValueError(
                "beta must be < 1 with decay_input=True, where 1 takes no input: got 1"
            )
        self.beta = beta
        self.decay_input = decay_input

    def current(self, x: Tensor) -> Tensor:
        return x.float() * (1 - self.beta) if self.decay_input else x

    def decay(self) -> Tensor:
        return torch.full((), self.beta, device=self.v_threshold.device)

    def extra_repr(self) -> str:
        scaled = ", decay_input=True" if self.decay_input else ""
        return f"beta={self.beta}{scaled}, {super().extra_repr()}"


class PLIF(IF):
    """LIF whose beta = sigmoid(w) is learned, one per layer (Fang et al., ICCV 2021).

    Args:
        beta: its value at the start, in (0, 1).
    """

    def __init__(self, beta: float = 0.5, v_threshold: float = 1.0, **kwargs):
        super().__init__(v_threshold, **kwargs)
        if not 0 < beta < 1:
            raise ValueError(f"beta must be in (0, 1), got {beta}")
        self.decay_logit = nn.Parameter(torch.tensor([math.log(beta / (1 - beta))]))

    def decay(self) -> Tensor:
        return self.decay_logit.float().sigmoid()


class RoundingIF(SpikingNeuron):
    """IF that fires at alpha / 2 and subtracts the alpha it sends: T steps round the mean input.

    Its mean output over T steps is its mean input rounded to 2T + 1 levels between -alpha and alpha
    (binary: T + 1 levels between -c and alpha - c), as long as the input stays within them.
    `amplitude` (alpha, learned) is 1 at the start; `offset` (c, learned, binary only) is 0.

    Args:
        channels: one amplitude per channel (size of `channel_dim` of x, [T, ...]), or None.
        ternary: spikes {-1, 0, 1}; otherwise {0, 1}.
        burst: the most spikes of one time step, in [1, 16]. With more than one, what came too late is made up for at
            once, and the total by step t stays what one a step could have sent (`spikenlp.neurons.rounding`):
            the answer of a model of running means approaches that of its collapsed twin, at somewhat more
            spikes.

    Raises:
        ValueError: a burst out of range.

    >>> RoundingIF()(torch.full((4, 1), 0.5)).flatten().tolist()
    [1.0, 0.0, 1.0, 0.0]
    """

    def __init__(
        self,
        channels: int | None = None,
        ternary: bool = True,
        *,
        burst: int = 1,
        channel_dim: int = -1,
        state_dtype: torch.dtype = torch.bfloat16,
    ):
        super().__init__(channels, channel_dim, state_dtype)
        if not 1 <= burst <= LARGEST_BURST:
            raise ValueError(f"burst must be in [1, {LARGEST_BURST}], got {burst}")
        self.ternary = ternary
        self.burst = burst
        self.amplitude = nn.Parameter(self._per_channel(1.0))
        self.offset = None if ternary else nn.Parameter(self._per_channel(0.0))

    def _parameters_for(self, step: Tensor) -> tuple[Tensor, Tensor | None]:
        offset = None if self.offset is None else self._broadcast(self.offset, step)
        return self._broadcast(self.amplitude, step), offset

    def forward(
        self,
        x: Tensor,
        *,
        num_timesteps: int | None = None,
        running: bool = False,
        collapsed: bool = False,
    ) -> Tensor:
        """x [T, ...] to spikes times amplitude, [T, ...].

        `collapsed`: what T = `num_timesteps` steps of a constant x [1, ...] send on average, [1, ...]: the
        (2T + 1)-level rounding (binary: T + 1) without a time axis (`spikenlp.neurons.collapsed`). It is
        not spiking.

        Raises:
            ValueError: x and `num_timesteps` do not fit, or not the channels.
        """
        if (carrier := carrier_of(self)) is not None:
            return carrier.advance(self, x, running)
        steps = self._steps(x, num_timesteps)
        amplitude, offset = self._parameters_for(x[0])
        if collapsed:
            return self._collapsed(x, amplitude, offset, steps)
        sent, kept = rounding_spike(
            x,
            amplitude,
            offset,
            steps=steps,
            running=running,
            ternary=self.ternary,
            burst=self.burst,
            state_dtype=self.state_dtype,
        )
        options = {
            "ternary": self.ternary,
            "burst": self.burst,
            "running": running,
            "out_dtype": sent.dtype,
        }
        return remember(sent, kept, rounding_of_state, amplitude, offset, options)

    def _collapsed(self, x: Tensor, amplitude: Tensor, offset: Tensor | None, steps: int) -> Tensor:
        if x.shape[0] != 1:
            raise ValueError(
                f"collapsed, a neuron takes a current that is constant over time, x [1, ...], got shape "
                f"{tuple(x.shape)}"
            )
        sent, state = collapsed_spike(
            x, amplitude, offset, steps=steps, ternary=self.ternary, state_dtype=self.state_dtype
        )
        options = {"steps": steps, "ternary": self.ternary, "out_dtype": sent.dtype}
        return remember(sent, state, collapsed_of_state, amplitude, offset, options)

    def advance(
        self, x: Tensor, state: NeuronState, *, running: bool = False
    ) -> tuple[Tensor, NeuronState]:
        self._check_step(x[0])
        parameters = self._parameters_for(x[0])
        return self._advance(round_once, x, state, running, parameters, burst=self.burst)

    @torch.no_grad()
    def step(self, x: Tensor, v: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One time step, without gradient: x [...] and v [...] (None: 0) to (output, v).

        Raises:
            ValueError: a neuron that sends bursts, which needs more than v (see `advance`).
        """
        if self.burst > 1:
            raise ValueError(f"with burst={self.burst} a step needs more than v: call advance")
        self._check_step(x)
        amplitude, offset = self._parameters_for(x)
        dtype = spike_dtype(x)
        alpha = sent_amplitude(amplitude, dtype)
        _, _, _, sent, v = integrate_and_round(v, x.float(), alpha, offset, self.ternary, dtype)
        return sent.to(dtype), v

    def extra_repr(self) -> str:
        bursts = f", burst={self.burst}" if self.burst > 1 else ""
        return f"{super().extra_repr()}, ternary={self.ternary}{bursts}"
