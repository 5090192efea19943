"""Watching a forward pass: what neurons send, and what every matrix product reads.

Which neuron an operand comes from is seen from its memory, not from the module's class: a layer that
claims to read spikes and gets something else is found out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from spikenlp.models.over_time import increments
from spikenlp.neurons import NeuronState, RoundingIF
from spikenlp.neurons.dynamics import SMALLEST_SCALE, sent_amplitude
from spikenlp.neurons.modules import SpikingNeuron
from spikenlp.neurons.streaming import carrier_of

TOLERANCE = 0.1
"""Distance from a whole number, in amplitudes, up to which a value is a spike: rounding of running
means in half precision stays below, other values do not."""


@dataclass
class Sent:
    """What one neuron sent in one forward pass."""

    name: str
    neuron: SpikingNeuron
    levels: Tensor
    """What each step sent in units of the amplitude, [T, ...] float32; spikes are -1, 0 and 1."""
    running: bool
    mask: Tensor | None
    """Real positions [B, L], where `levels` is [T, B, L, C] and the batch has an attention mask."""

    def spikes(self) -> Tensor:
        """{-1, 0, 1} as float32 [T, ...], 0 at padding."""
        spikes = self.levels.round()
        return spikes if self.mask is None else spikes * self.mask[None, :, :, None]

    def sites(self) -> int:
        """Real positions of a channel and step, over the batch."""
        channels = self.levels.shape[self.neuron.channel_dim]
        if self.mask is None:
            return self.levels[0].numel() // channels
        return int(self.mask.sum())

    def wrong_values(self) -> bool:
        """Whether a real position holds what this neuron cannot send."""
        allowed = self.levels.round().clamp(-1 if self.neuron.ternary else 0, 1)
        wrong = (self.levels - allowed).abs() > TOLERANCE
        return bool((wrong if self.mask is None else wrong & self.mask[None, :, :, None]).any())


@contextmanager
def watch_neurons(model: nn.Module, observe: Callable[[Sent], None], *, real: Tensor | None = None):
    """Calls `observe` with what each neuron of `model` sends, while the context is open.

    Args:
        real: positions [B, L] that count, where parts of the model are called by themselves; a call
            of the model reads its attention mask.

    Raises:
        ValueError: the model has no neuron.
    """
    neurons = {name: m for name, m in model.named_modules() if isinstance(m, SpikingNeuron)}
    if not neurons:
        raise ValueError(f"{type(model).__name__} holds no spiking neuron (spikenlp.neurons)")
    mask: list[Tensor | None] = [real]

    def read_mask(module, args, kwargs):
        given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
        found = given.get("attention_mask", given.get("kwargs", {}).get("attention_mask"))
        mask[0] = found.bool() if isinstance(found, Tensor) and found.dim() == 2 else None

    def hook(name):
        def sent(neuron, args, kwargs, output):
            running, carrier = kwargs.get("running", False), carrier_of(neuron)
            before = None if carrier is None else carrier.before[neuron]
            real = mask[0]
            fits = real is not None and output.dim() == 4 and output.shape[1:3] == real.shape
            levels = _levels(neuron, output, running, before)
            observe(Sent(name, neuron, levels, running, real if fits else None))

        return sent

    with ExitStack() as stack:
        handles = [model.register_forward_pre_hook(read_mask, with_kwargs=True)]
        handles += [n.register_forward_hook(hook(k), with_kwargs=True) for k, n in neurons.items()]
        for handle in handles:
            stack.callback(handle.remove)
        yield


@torch.no_grad()
def _levels(
    neuron: SpikingNeuron, output: Tensor, running: bool, before: NeuronState | None
) -> Tensor:
    """`before`: the state that a neuron which runs one step at a time went on from."""
    sent = output.float()
    if running and before is None:
        sent = increments(sent)
    elif running and before is not None and before.sent is not None:
        sent = (before.step + 1) * sent - before.sent
    if isinstance(neuron, RoundingIF):
        amplitude = sent_amplitude(neuron._broadcast(neuron.amplitude, sent[0]), output.dtype)
        if neuron.offset is not None:
            sent = sent + neuron._broadcast(neuron.offset, sent[0])
        return sent / amplitude
    amplitude = neuron._broadcast(neuron.amplitude, sent[0])
    return sent / amplitude.clamp_min(SMALLEST_SCALE)


@dataclass
class Product:
    """One matrix product of a forward pass, counted over all time steps."""

    name: str
    kind: str
    """linear, conv2d, attention scores or attention context."""
    source: Sent | None
    """The neuron whose spikes it reads, if it does."""
    macs: Tensor
    """Multiply-accumulates of a dense machine, real positions only; int64 [B], by sample."""
    steps: int
    """Time steps that it runs at."""
    sops: Tensor
    """Synaptic operations: accumulations that spikes cause, int64 [B] (0 without a source)."""
    weights: int
    """Numbers in its weight; 0 for a product of two activations."""


class _Recorder(TorchFunctionMode):
    def __init__(self, model: nn.Module, samples: int, mask: Tensor | None):
        super().__init__()
        self.products: list[Product] = []
        self.elementwise: dict[str, Tensor] = {}
        self.neurons: list[Sent] = []
        self._origins: dict[int, Sent] = {}
        self._alive: list[Tensor] = []
        self._inside: list[str] = []
        self._names = {module: name for name, module in model.named_modules()}
        self.samples = samples
        self.mask = mask
        self.lengths = None if mask is None else mask.sum(1).cpu()
        self._in_neuron = False

    # --- where a tensor comes from -------------------------------------------------------------

    def enter(self, module, args):
        self._inside.append(self._names[module])

    def leave(self, module, args, output):
        self._inside.pop()

    def enter_neuron(self, neuron, args):
        self._in_neuron = True

    def sent(self, sent: Sent) -> None:
        self.neurons.append(sent)
        self._last_sent = sent

    def neuron_output(self, neuron, args, output):
        self._origins[output.untyped_storage().data_ptr()] = self._last_sent
        self._alive.append(output)
        self._in_neuron = False

    def origin(self, x: Tensor) -> Sent | None:
        return self._origins.get(x.untyped_storage().data_ptr())

    # --- counting ------------------------------------------------------------------------------

    def positions(self, shape: torch.Size) -> Tensor:
        """Real positions of an activation [..., C] by sample, those of each time step counted."""
        if self.mask is not None and self.lengths is not None:
            if len(shape) == 4 and shape[1:3] == self.mask.shape:
                return shape[0] * self.lengths
            if len(shape) == 3 and shape[:2] == self.mask.shape:
                return self.lengths
        return torch.full((self.samples,), shape[:-1].numel() // self.samples)

    def passes(self, positions: int) -> int:
        """How many times a product of so many positions ran: at each time step, or once."""
        tokens = self.samples if self.lengths is None else int(self.lengths.sum())
        steps = len(self.neurons[0].levels) if self.neurons else 1
        return steps if positions in (steps * self.samples, steps * tokens) else 1

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._in_neuron:
            return result
        if func is F.linear:
            self._linear(*args, **kwargs)
        elif func in (F.conv2d, torch.conv2d):
            self._conv2d(result, *args, **kwargs)
        elif func is F.scaled_dot_product_attention:
            self._attention(*args[:3])
        elif (kind := _ELEMENTWISE.get(func)) and isinstance(result, Tensor) and result.dim() > 2:
            count = self.positions(result.shape) * result.shape[-1]
            self._elementwise(kind, count, (0 if kind == "residual" else 2) * count)
        return result

    def _elementwise(self, kind: str, count: Tensor, running_means: Tensor) -> None:
        """Adds `count` evaluations; a running model makes the mean of what a float function reads
        and the difference that it sends besides. Before the first neuron there is no time yet."""
        kind = kind if self.neurons else "input"
        self.elementwise[kind] = self.elementwise.get(kind, 0) + count
        if self.neurons and self.neurons[0].running:
            made = self.elementwise.get("running means", 0) + running_means
            self.elementwise["running means"] = made

    def _add(self, kind, source, macs, steps, sops, weights, suffix=""):
        name = (self._inside[-1] if self._inside else "") + suffix
        self.products.append(Product(name, kind, source, macs, steps, sops, weights))

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        source = self.origin(x)
        rows = self.positions(x.shape)
        steps = self.passes(int(rows.sum()))
        sops = _spikes_by_sample(source, rows) * weight.shape[0]
        self._add("linear", source, rows * weight.numel(), steps, sops, weight.numel())

    def _conv2d(
        self, result, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1
    ) -> None:
        source = self.origin(x)
        macs = torch.full((self.samples,), result.numel() * weight[0].numel() // self.samples)
        sops = torch.zeros_like(macs)
        if source is not None:
            fired = source.spikes().abs().reshape(x.shape).double()
            ones = torch.ones_like(weight, dtype=torch.float64)
            reached = F.conv2d(fired, ones, None, stride, padding, dilation, groups)
            by_step = reached.flatten(1).sum(1).view(-1, self.samples)
            sops = by_step.sum(0).long().cpu()
        self._add("conv2d", source, macs, self.passes(len(x)), sops, weight.numel())

    def _attention(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Query [T B, heads, L, d]: each query of a sample meets each real key of it."""
        steps = len(query) // self.samples
        lengths = self.lengths
        if lengths is None:
            lengths = torch.full((self.samples,), query.shape[2])
        macs = steps * lengths**2 * query.shape[1] * query.shape[3]
        for operand, kind in ((key, "attention scores"), (value, "attention context")):
            source = self.origin(operand)
            # The running mean of spikes is no spike: the product multiplies.
            if source is not None and source.running:
                source = None
            sops = _spikes_by_sample(source, lengths) * lengths
            self._add(kind, source, macs, steps, sops, 0, "." + kind.split()[1])
        streams = 4 * steps * lengths * query.shape[1] * query.shape[3]
        self._elementwise("softmax", steps * lengths**2 * query.shape[1], streams)


def _spikes_by_sample(source: Sent | None, like: Tensor) -> Tensor:
    """Spikes that `source` sent, int64 [B] on the CPU; zeros as `like` without one."""
    if source is None:
        return torch.zeros_like(like)
    spikes = source.spikes()
    return spikes.count_nonzero([0, *range(2, spikes.dim())]).cpu()


_ELEMENTWISE = {
    F.layer_norm: "layer norm",
    F.batch_norm: "batch norm",
    F.gelu: "GELU",
    F.relu: "ReLU",
    torch.tanh: "tanh",
    torch.Tensor.add: "residual",
    torch.Tensor.__add__: "residual",
}


@dataclass
class Trace:
    """One forward pass."""

    products: list[Product]
    elementwise: dict[str, Tensor]
    """Float operations between products, element evaluations over all steps, int64 [B] by sample;
    those before the first neuron run once and are the "input"."""
    neurons: list[Sent]
    samples: int


@contextmanager
def record(model: nn.Module, samples: int, mask: Tensor | None) -> Iterator[Trace]:
    """A trace that fills with what `model`, or a part of it, does while the context is open.

    Args:
        samples: B, of what will be run.
        mask: bool [B, L], real positions, or None.
    """
    recorder = _Recorder(model, samples, mask)
    with ExitStack() as stack:
        if isinstance(model, PreTrainedModel):
            stack.callback(model.set_attn_implementation, model.config._attn_implementation)
            model.set_attn_implementation("sdpa")
        stack.enter_context(watch_neurons(model, recorder.sent, real=mask))
        for module in model.modules():
            if isinstance(module, SpikingNeuron):
                handles = [
                    module.register_forward_pre_hook(recorder.enter_neuron),
                    module.register_forward_hook(recorder.neuron_output),
                ]
            else:
                handles = [
                    module.register_forward_pre_hook(recorder.enter),
                    module.register_forward_hook(recorder.leave),
                ]
            for handle in handles:
                stack.callback(handle.remove)
        stack.enter_context(recorder)
        yield Trace(recorder.products, recorder.elementwise, recorder.neurons, samples)


@torch.no_grad()
def trace(model: nn.Module, batch: Mapping[str, Any] | Tensor) -> Trace:
    """Runs `model` in eval mode on `batch`: a dict of its inputs [B, ...], or its one input [T, B, ...].

    Raises:
        ValueError: a model without neurons; a collapsed one, which has no time steps.
    """
    if getattr(getattr(model, "config", None), "collapsed", False):
        raise ValueError(
            "the model is collapsed: it rounds, and does not spike. Set model.config.collapsed = "
            "False to look at its spiking twin"
        )
    inputs = {k: v for k, v in batch.items() if k != "labels"} if isinstance(batch, Mapping) else {}
    real = None
    if "input_ids" in inputs:
        mask = inputs.get("attention_mask")
        real = torch.ones_like(inputs["input_ids"]).bool() if mask is None else mask.bool()
    samples = batch.shape[1] if isinstance(batch, Tensor) else len(next(iter(inputs.values())))
    training = model.training
    model.eval()
    try:
        with record(model, samples, real) as seen:
            model(**inputs) if inputs else model(batch)
    finally:
        model.train(training)
    return seen
