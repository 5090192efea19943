"""Spikes: how many, where, when, and whether they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikenlp.analysis.tracing import trace
from spikenlp.analysis.watching import Sent, configs_of, watch_neurons


@dataclass
class SpikeCounts:
    """Spikes of one layer of neurons over everything that a monitor saw."""

    positive: Tensor
    """int64 [T, C], by time step and channel."""
    negative: Tensor
    """int64 [T, C]; 0 for binary neurons."""
    sites: int
    """Real positions (tokens, pixels) that each of the C channels was seen at."""
    burst: int = 1
    """The most spikes of a neuron in one step."""

    @property
    def rate_by_step(self) -> Tensor:
        """Spikes of either sign per neuron at each step, [T] in [0, burst]."""
        return (self.positive + self.negative).double().mean(1) / max(self.sites, 1)

    @property
    def neurons(self) -> int:
        """One a channel at each real position."""
        return self.sites * self.positive.shape[1]

    @property
    def rate(self) -> float:
        """Spikes of either sign per neuron and step, in [0, burst]."""
        return float(self.rate_by_step.mean())

    @property
    def spikes_per_neuron(self) -> float:
        """Spikes per neuron and inference: T times the rate."""
        return float(self.rate_by_step.sum())

    @property
    def silent(self) -> float:
        """Share of channels that never fired."""
        return float(((self.positive + self.negative).sum(0) == 0).double().mean())

    @property
    def saturated(self) -> float:
        """Share of channels that fired at each step of each position; with bursts, whose sum is one spike a step at
        most, of those that all of theirs add up to that."""
        sent = self.positive + self.negative if self.burst == 1 else self.positive - self.negative
        most = self.sites * len(self.positive)
        return float((sent.sum(0).abs() == most).double().mean())

    @property
    def sign_balance(self) -> float:
        """(positive - negative) / all spikes, in [-1, 1]; 0 where there are none."""
        positive, negative = int(self.positive.sum()), int(self.negative.sum())
        return (positive - negative) / max(positive + negative, 1)

    def rate_by_head(self, heads: int) -> Tensor:
        """Rates [T, heads] of neurons whose channels are `heads` blocks of equal size."""
        spikes = (self.positive + self.negative).double().unflatten(1, (heads, -1))
        return spikes.mean(2) / max(self.sites, 1)


class SpikeMonitor:
    """Counts the spikes of a model's neurons in every forward pass inside the context.

    Padding is left out: positions where the attention_mask [B, L] is 0 that the model, or a transformers
    model inside it, is called with. Outside the context
    nothing is hooked. `layers` maps each neuron's name to its `SpikeCounts`. Steps that a model with
    `settle_tolerance` does not run count as silent.

    >>> with SpikeMonitor(model) as monitor:
    ...     model(**batch)
    >>> print(monitor.table())

    Raises:
        ValueError: the model holds no neuron; a pass with another T than the one before, or with an
            attention mask that is not [B, L].
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.layers: dict[str, SpikeCounts] = {}

    def __enter__(self) -> SpikeMonitor:
        self._watching = watch_neurons(self.model, self._count)
        self._watching.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._watching.__exit__(*error)

    @torch.no_grad()
    def _count(self, sent: Sent) -> None:
        channel = sent.neuron.channel_dim % sent.levels.dim()
        others = [d for d in range(1, sent.levels.dim()) if d != channel]
        spikes = sent.spikes().nan_to_num()  # of a NaN no whole number can be made
        positive, negative = (
            (of_sign.sum(others, dtype=torch.int64) if others else of_sign.long()).cpu()
            for of_sign in (spikes.clamp_min(0), -spikes.clamp_max(0))
        )
        sites = int(sent.sites().sum())
        if sent.step is not None:
            # One step of T, or of more: the others are zeros here, and the positions count once.
            given = [getattr(config, "num_timesteps", 1) for config in configs_of(self.model)]
            steps = max(*given, sent.step + 1)
            positive, negative = (
                F.pad(x, (0, 0, sent.step, steps - 1 - sent.step)) for x in (positive, negative)
            )
            sites = sites if sent.step == 0 else 0
        seen = self.layers.get(sent.name)
        if seen is not None and sent.step is not None:
            further = len(positive) - len(seen.positive)
            seen.positive, seen.negative = (
                F.pad(x, (0, 0, 0, max(further, 0))) for x in (seen.positive, seen.negative)
            )
            positive, negative = (
                F.pad(x, (0, 0, 0, max(-further, 0))) for x in (positive, negative)
            )
        if seen is None:
            self.layers[sent.name] = SpikeCounts(positive, negative, sites, sent.neuron.burst)
            return
        if seen.positive.shape != positive.shape:
            raise ValueError(
                f"{sent.name} ran with [T, C] = {list(positive.shape)} after "
                f"{list(seen.positive.shape)}: use one monitor for each number of time steps"
            )
        seen.positive += positive
        seen.negative += negative
        seen.sites += sites

    @property
    def rate_by_step(self) -> Tensor:
        """Spikes of either sign per neuron at each step, [T] in [0, 1]: their sum is `spikes_per_neuron`."""
        counts = self.layers.values()
        return torch.stack([c.rate_by_step * c.neurons for c in counts]).sum(0) / self.neurons

    @property
    def spikes_per_neuron(self) -> float:
        """Spikes per neuron and inference over all layers, where a channel is a neuron at each of its
        real positions."""
        spikes = sum(int((c.positive + c.negative).sum()) for c in self.layers.values())
        return spikes / self.neurons

    @property
    def neurons(self) -> int:
        """Neurons of all layers, one a channel at each real position; at least 1."""
        return max(sum(counts.neurons for counts in self.layers.values()), 1)

    def table(self) -> str:
        """One row a layer: rate at each step, silent and saturated shares, balance of signs."""
        steps = max((len(counts.positive) for counts in self.layers.values()), default=0)
        width = max((len(name) for name in self.layers), default=5)
        by_step = "".join(f"{f't={t}':>7}" for t in range(1, steps + 1))
        lines = [f"{'layer':{width}}{by_step}   silent  saturated  balance"]
        for name, counts in self.layers.items():
            rates = "".join(f"{rate:7.3f}" for rate in counts.rate_by_step.tolist())
            lines.append(
                f"{name:{width}}{rates}{100 * counts.silent:8.1f}%{100 * counts.saturated:10.1f}%"
                f"{counts.sign_balance:+9.2f}"
            )
        return "\n".join(lines)


def spike_trains(model: nn.Module, batch: Mapping[str, Any] | Tensor) -> dict[str, Tensor]:
    """What each layer of neurons sends in one pass over `batch`, in eval mode: every spike, to be replayed.

    Args:
        batch: inputs as `energy_report` takes them.

    Returns:
        Name of the neurons -> int8 [T, ...] on the CPU, -1, 0 or 1, of a BERT [T, B, L, C]; 0 at padding.
        `train.nonzero()` gives addresses: step, sample, token, channel.

    Raises:
        ValueError: as `describe_spikes`; neurons that run twice in a pass.

    >>> safetensors.torch.save_file(spike_trains(model, batch), "spikes.safetensors")
    """
    trains: dict[str, Tensor] = {}
    for sent in trace(model, batch).neurons:
        if sent.name in trains:
            raise ValueError(f"{sent.name} ran twice in a pass: it has no one train of spikes")
        trains[sent.name] = sent.spikes().to("cpu", torch.int8).contiguous()
    return trains


@dataclass
class Driver:
    """What drives a weight matrix or a product of two activations."""

    name: str
    kind: str
    driver: str
    """binary, ternary, integer (bursts, sums or averages of spikes) or float."""
    alphabet: str
    """The values that it reads, in amplitudes of the neuron; "" for float."""
    neuron: str
    """Name of the neuron that sends them; "" for float."""


def describe_spikes(
    model: nn.Module, batch: Mapping[str, Any] | Tensor | None = None
) -> list[Driver]:
    """What drives each product of the model, seen in a pass over `batch` (default: dummy inputs).

    Raises:
        ValueError: a model without neurons, a collapsed one, one that multiplies matrices by a function
            that is not traced (named: einsum, ...), or one that has no `dummy_inputs` where no batch is
            given; an attention mask that is not [B, L].
    """
    if batch is None:
        batch = getattr(model, "dummy_inputs", None)
        if batch is None:
            raise ValueError(f"{type(model).__name__} has no dummy_inputs: give a batch")
        device = next(model.parameters()).device
        batch = {k: v.to(device) for k, v in batch.items()}
    drivers = []
    for product in trace(model, batch).products:
        source = product.source
        if source is None:
            drivers.append(Driver(product.name, product.kind, product.driver, "", ""))
            continue
        alphabet = source.neuron.alphabet.strip("{}")
        if product.form != "spikes":
            alphabet = f"{product.form} of {alphabet}"
        drivers.append(Driver(product.name, product.kind, product.driver, alphabet, source.name))
    return drivers


def spikes_table(drivers: list[Driver]) -> str:
    """`describe_spikes` as text, one row a product."""
    rows = [("product", "kind", "driven by", "alphabet", "neuron")]
    rows += [(d.name, d.kind, d.driver, d.alphabet, d.neuron) for d in drivers]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def assert_spiking(model: nn.Module, batch: Mapping[str, Any] | Tensor) -> None:
    """Fails unless every neuron runs and sends spikes, and some, and every SpikingLinear reads them
    whenever it runs.

    Raises:
        AssertionError: names the layer and what it got.
        ValueError: as `describe_spikes`.
    """
    from spikenlp.neurons import SpikingLinear, SpikingNeuron

    seen = trace(model, batch)
    ran = {sent.name for sent in seen.neurons}
    for name, module in model.named_modules():
        if isinstance(module, SpikingNeuron) and name not in ran:
            raise AssertionError(f"{name} did not run, and sent nothing")
    for sent in seen.neurons:
        if sent.wrong_values():
            raise AssertionError(
                f"{sent.name} sent values other than its spikes {sent.neuron.alphabet}"
            )
        if not sent.spikes().any():
            raise AssertionError(f"{sent.name} sent no spike at all")
    modules = dict(model.named_modules())
    for product in seen.products:
        name = product.name
        if product.source is None and isinstance(modules.get(name), SpikingLinear):
            raise AssertionError(f"{name} is a SpikingLinear, but what it read came from no neuron")
