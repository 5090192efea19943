"""The `spikingbert` encoder: layers that send spikes only, and rates that settle.

Populations of integrate-and-fire neurons (soft reset): the embedding h, and in each layer

    k = IF(W_k h)    v = IF(W_v h)    c = IF(softmax(W_q h k^T / sqrt(d)) v)
    o = IF(LayerNorm(W_o c + h))      m = IF(GELU(W_1 o))      h' = IF(LayerNorm(W_2 m + o))

The query, softmax, LayerNorm and GELU are float and lie before the membrane: what they send is a
current. With nonlinearity "step", as published, they act on the spikes of each step; with "running"
on the mean of the spikes so far (`spikenlp.models.over_time`).

The average spiking rate of a population after T steps is a = (s_1 + ... + s_T) / T. Each population
is one function of those before it, and its rates approach the equilibrium

    a_i = clamp(f_i(a_1, ..., a_{i-1}) / v_th, 0, 1)      (ternary: clamp to [-1, 1])

With "running" the distance falls as 1 / T; with "step" f of single spikes has another mean than f of
the rate, and a distance remains. No population feeds back on an earlier one, so the linear system
of the implicit gradient is triangular, and one backward pass through the equations above, at the
rates that the spikes had, solves it. `gradient="implicit"` does that; the T steps before it keep no
graph. What a population sends, and so each hidden state, is its amplitude times its rate; both the
amplitude and v_th are 1 unless they were calibrated or learned.

Source: Bal & Sengupta, SpikingBERT, AAAI 2024 (arXiv 2308.10873). Ours are "running", the amplitudes
and `settle_tolerance`; the feedback connections of the paper's general form are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from spikenlp.models.over_time import NONLINEARITIES, increments, running_mean
from spikenlp.models.spiking_bert.configuration_spiking_bert import SpikingBertConfig
from spikenlp.models.spiking_bert.parts import (
    InitialHiddenState,
    SpikingBlock,
    SpikingSelfAttention,
    TimeSharedDropout,
)
from spikenlp.neurons import IF, SpikingLinear
from spikenlp.neurons.dynamics import floored

_LOOKED_AT = {k << n for k in (1, 2, 3) for n in range(16)}
"""Steps t at which rates are compared with those at t / 2."""

Readout = Callable[[Tensor], Tensor]
"""A head: hidden states [B, L, D] -> [B, ...]."""


def equilibrium_rate(neuron: IF, current: Tensor) -> Tensor:
    """What `neuron` sends on average under a constant `current` [..., C], for T -> infinity."""
    dtype = torch.promote_types(current.dtype, torch.float32)
    threshold = floored(neuron.v_threshold.to(dtype))
    rate = (current.to(dtype) / threshold).clamp(-1.0 if neuron.ternary else 0.0, 1.0)
    return (floored(neuron.amplitude.to(dtype)) * rate).to(current.dtype)


class Firing(Protocol):
    """How the encoder's populations answer their currents; all tensors are [T or 1, B, L, C]."""

    def __call__(self, neuron: IF, current: Tensor) -> Tensor: ...

    def time_mean(self, sent: Tensor) -> Tensor | None:
        """[T or 1, ...] -> its mean over time [...]; None where there is none to be recorded yet."""


class Unrolled:
    """All T steps at once, through the neurons and their surrogate gradients."""

    def __init__(self, config: SpikingBertConfig):
        self.steps = config.num_timesteps
        self.over_time = NONLINEARITIES[config.nonlinearity]

    def __call__(self, neuron: IF, current: Tensor) -> Tensor:
        return neuron(current, num_timesteps=self.steps, running=self.over_time.running)

    def time_mean(self, sent: Tensor) -> Tensor:
        return self.over_time.time_mean(sent)


class Stepping:
    """One time step after the other, without a graph: membranes and sums of spikes are all it keeps."""

    def __init__(self, running: bool):
        self.running = running
        self.t = 0
        self.active: Tensor | None = None
        """Samples that still spike, [1, B, 1, 1] of 0 and 1; None: all."""
        self.steps: Tensor | int = 0
        """Steps that counted, of all samples or [1, B, 1, 1]."""
        self.totals: dict[IF, Tensor] = {}
        self._membranes: dict[IF, Tensor] = {}
        self._received: dict[IF, Tensor] = {}
        self._earlier: dict[int, dict[IF, Tensor]] = {}

    def begin(self) -> None:
        self.t += 1
        self.steps = self.steps + (1 if self.active is None else self.active)

    def __call__(self, neuron: IF, current: Tensor) -> Tensor:
        value = current
        if self.running:
            # `current` is what its function is at the mean so far; it sends what that has gained.
            total = current.float() * self.t
            current = total - self._received[neuron] if neuron in self._received else total
            self._received[neuron] = total
        before = self._membranes.get(neuron)
        sent, self._membranes[neuron] = neuron.step(current, before, active=self.active)
        total = self.totals.get(neuron)
        self.totals[neuron] = sent.float() if total is None else total + sent.float()
        return self.mean(neuron).to(value.dtype) if self.running else sent

    def time_mean(self, sent: Tensor) -> None:
        return None

    def mean(self, neuron: IF) -> Tensor:
        """What `neuron` has sent on average so far, [1, B, L, C]: amplitude times rate."""
        return self.totals[neuron] / self.steps

    def means(self) -> dict[IF, Tensor]:
        return {neuron: self.mean(neuron) for neuron in self.totals}

    def stop_settled(self, tolerance: float, real: Tensor | None) -> bool:
        """Whether all samples have settled; those that have spike no further. `real` [B, L]."""
        if self.t not in _LOOKED_AT:
            return False
        means = self._earlier[self.t] = self.means()
        earlier = self._earlier.pop(self.t // 2, None) if self.t % 2 == 0 else None
        if earlier is None:
            return False
        moved = torch.stack(
            [
                mean_of_samples((mean - earlier[neuron]).abs(), neuron, real)
                for neuron, mean in means.items()
            ]
        )
        moving = (moved.amax(0) > tolerance).float()[None, :, None, None]
        self.active = moving if self.active is None else self.active * moving
        return not self.active.any()


class AtRates:
    """The equilibrium map, and its gradient, at given means of what each population sends.

    Without them the map acts on its own values: that is the equilibrium itself.
    """

    def __init__(self, means: dict[IF, Tensor] | None = None):
        self.means = means

    def __call__(self, neuron: IF, current: Tensor) -> Tensor:
        rate = equilibrium_rate(neuron, current)
        if self.means is None:
            return rate
        return self.means[neuron].to(rate.dtype) + (rate - rate.detach())

    def time_mean(self, sent: Tensor) -> Tensor:
        return sent[0]


class SpikingBertRateSelfAttention(SpikingSelfAttention):
    """`neuron` is the population of the attention context."""

    def forward(
        self, sent: Tensor, attention_mask: Tensor | None, fire: Firing, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        query = self.query(sent)
        key = fire(self.key_neuron, self.key(sent))
        value = fire(self.value_neuron, self.value(sent))
        if kwargs.get("output_attention_scores"):
            means = fire.time_mean(query), fire.time_mean(key)
            if means[0] is not None:
                self.scores(*means)
        context, weights = self.attend(query, key, value, attention_mask, **kwargs)
        return fire(self.neuron, context), None if weights is None else fire.time_mean(weights)


class SpikingBertRateResidual(SpikingBlock):
    """IF(LayerNorm(dense(spikes of the branch) + spikes)): attention.output and output."""

    def __init__(self, config: SpikingBertConfig, in_features: int):
        super().__init__(config)
        self.dense = SpikingLinear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = TimeSharedDropout(config.hidden_dropout_prob)
        self.neuron = self.make_neuron(config.hidden_size)

    def forward(self, branch: Tensor, sent: Tensor, fire: Firing) -> Tensor:
        return fire(self.neuron, self.LayerNorm(self.dropout(self.dense(branch)) + sent))


class SpikingBertRateAttention(nn.Module):
    def __init__(self, config: SpikingBertConfig):
        super().__init__()
        self.self = SpikingBertRateSelfAttention(config)
        self.output = SpikingBertRateResidual(config, config.hidden_size)

    def forward(
        self, sent: Tensor, attention_mask: Tensor | None, fire: Firing, **kwargs: Any
    ) -> Tensor:
        context, _ = self.self(sent, attention_mask, fire, **kwargs)
        return self.output(context, sent, fire)


class SpikingBertRateIntermediate(SpikingBlock):
    def __init__(self, config: SpikingBertConfig):
        super().__init__(config)
        self.dense = SpikingLinear(config.hidden_size, config.intermediate_size)
        self.intermediate_act_fn = ACT2FN[config.hidden_act]
        self.neuron = self.make_neuron(config.intermediate_size)

    def forward(self, sent: Tensor, fire: Firing) -> Tensor:
        return fire(self.neuron, self.intermediate_act_fn(self.dense(sent)))


class SpikingBertRateLayer(GradientCheckpointingLayer):
    """Maps what the layer before sends to (what this one sends, its mean over time [B, L, D])."""

    def __init__(self, config: SpikingBertConfig):
        super().__init__()
        self.attention = SpikingBertRateAttention(config)
        self.intermediate = SpikingBertRateIntermediate(config)
        self.output = SpikingBertRateResidual(config, config.intermediate_size)

    def forward(
        self, sent: Tensor, attention_mask: Tensor | None, fire: Firing, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        sent = self.attention(sent, attention_mask, fire, **kwargs)
        sent = self.output(self.intermediate(sent, fire), sent, fire)
        return sent, fire.time_mean(sent)


class SpikingBertRateEncoder(SpikingBlock):
    """The encoder of architecture "spikingbert"; `neuron` is the population of the embedding."""

    def __init__(self, config: SpikingBertConfig):
        super().__init__(config)
        config.validate_spiking()
        self.neuron = self.make_neuron(config.hidden_size)
        self.initial = InitialHiddenState()
        self.layer = nn.ModuleList(
            SpikingBertRateLayer(config) for _ in range(config.num_hidden_layers)
        )

    def populations(
        self, embedding: Tensor, mask: Tensor | None, fire: Firing, **kwargs: Any
    ) -> Tensor:
        """All populations in turn, from the embedding [1, B, L, D] to what the last layer sends."""
        sent = fire(self.neuron, embedding)
        first = fire.time_mean(sent)
        if first is not None:
            self.initial(first)
        for layer in self.layer:
            sent, _ = layer(sent, mask, fire, **kwargs)
        return sent

    def forward(
        self,
        embedding: Tensor,
        mask: Tensor | None,
        real: Tensor | None = None,
        readouts: dict[str, Readout] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What the last layer sends, as running means [T, B, L, D] or, with gradient="implicit", as its
        mean [1, B, L, D] with the `readouts` of each time step (see `implicit`)."""
        if self.config.gradient == "implicit":
            return self.implicit(embedding, mask, real, readouts or {}, **kwargs)
        sent = self.populations(embedding, mask, Unrolled(self.config), **kwargs)
        return sent if self.over_time.running else running_mean(sent), {}

    @torch.no_grad()
    def run(
        self,
        embedding: Tensor,
        mask: Tensor | None,
        real: Tensor | None = None,
        each_step: Callable[[Stepping], None] | None = None,
    ) -> Stepping:
        """The time steps, one by one, until T or until all samples have settled.

        Args:
            embedding: the float current [1, B, L, D] of each step.
            real: attention mask [B, L]; what is padding has no say in whether rates have settled.
            each_step: called after each step.
        """
        state = Stepping(self.over_time.running)
        tolerance = self.config.settle_tolerance
        for _ in range(self.config.num_timesteps):
            state.begin()
            with self._same_dropout(embedding):
                self.populations(embedding, mask, state)
                if each_step is not None:
                    each_step(state)
            if tolerance is not None and state.stop_settled(tolerance, real):
                break
        return state

    def implicit(
        self,
        embedding: Tensor,
        mask: Tensor | None,
        real: Tensor | None,
        readouts: dict[str, Readout],
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean of what the last layer sends [1, B, L, D], and `readouts` by time step [B, T, ...].

        A readout z_t = t f(X_t) - (t-1) f(X_{t-1}), X_t the mean so far, has the mean f(X_T); where f
        is linear z_t is f of the spikes of step t. After a sample has settled z_t is f(X). Values are
        those of the steps; the gradient of each is that of f at the final rates.
        """
        last: Any = (
            self.layer[-1].get_submodule("output.neuron") if len(self.layer) else self.neuron
        )
        read: dict[str, list[Tensor]] = {name: [] for name in readouts}

        def each_step(state: Stepping) -> None:
            for name, readout in readouts.items():
                read[name].append(_read(readout, state.mean(last)[0].to(embedding.dtype)))

        state = self.run(embedding, mask, real, each_step)
        hidden = self.populations(embedding, mask, AtRates(state.means()), **kwargs)
        by_step = {}
        for name, readout in readouts.items():
            values = read[name] + read[name][-1:] * (self.config.num_timesteps - state.t)
            at_rates = _read(readout, hidden[0])
            currents = increments(torch.stack(values)) + (at_rates - at_rates.detach())
            by_step[name] = currents.transpose(0, 1)
        return hidden, by_step

    def _same_dropout(self, x: Tensor) -> AbstractContextManager:
        """Inside, random numbers are those that the code after it will draw again."""
        if not self.training:
            return nullcontext()
        if x.device.type == "cpu":
            return torch.random.fork_rng([])
        return torch.random.fork_rng([x.device], device_type=x.device.type)


def _read(readout: Readout, hidden: Tensor) -> Tensor:
    """Without autocast: differences between steps would multiply its rounding by t."""
    with torch.autocast(hidden.device.type, enabled=False):
        return readout(hidden)


def mean_of_samples(x: Tensor, neuron: IF, real: Tensor | None) -> Tensor:
    """Mean of x [1, B, L, C], in amplitudes, over channels and the real tokens of each sample: [B]."""
    by_token = (x[0] / floored(neuron.amplitude.float())).mean(-1)
    if real is None:
        return by_token.mean(-1)
    weight = real.to(by_token.dtype)
    return (by_token * weight).sum(-1) / weight.sum(-1).clamp_min(1)
