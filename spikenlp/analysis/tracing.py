"""Watching a forward pass: what neurons send, and what every matrix product reads.

Which neuron an operand comes from is seen from its memory, not from the module's class: a layer that
claims to read spikes and gets something else is found out.

Spikes that were added, averaged, or of which the largest was taken before they reach a product are
still spikes: W (s + s') = W s + W s', and average pooling folds into the convolution after it. Each
spike behind the operand is then one accumulation for each output that it reaches. The mean over all
pixels is a float.
"""

from __future__ import annotations

import inspect
import math
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
    step: int | None = None
    """Of a model that runs its time steps one by one: the step that `levels` [1, ...] belongs to,
    from 0. None: `levels` holds all steps."""

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


def refuse_collapsed(model: nn.Module) -> None:
    if getattr(getattr(model, "config", None), "collapsed", False):
        raise ValueError(
            "the model is collapsed: it rounds, and does not spike. Set model.config.collapsed = "
            "False to look at its spiking twin"
        )


@contextmanager
def unrolled(model: nn.Module):
    """In here the forward pass of `model` has a time axis: gradient="implicit" gives way to "bptt",
    which sends the same spikes and, whatever `settle_tolerance` is, runs all steps."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "gradient", None) != "implicit":
        yield
        return
    config.gradient = "bptt"
    try:
        yield
    finally:
        config.gradient = "implicit"


@contextmanager
def watch_neurons(model: nn.Module, observe: Callable[[Sent], None], *, real: Tensor | None = None):
    """Calls `observe` with what each neuron of `model` sends, while the context is open.

    Once a forward pass and neuron, or once a step where the model runs its steps one by one.

    Args:
        real: positions [B, L] that count, where parts of the model are called by themselves; a call
            of the model reads its attention mask.

    Raises:
        ValueError: the model has no neuron, or is collapsed.
    """
    refuse_collapsed(model)
    neurons = {name: m for name, m in model.named_modules() if isinstance(m, SpikingNeuron)}
    if not neurons:
        raise ValueError(f"{type(model).__name__} holds no spiking neuron (spikenlp.neurons)")
    mask: list[Tensor | None] = [real]
    next_step: dict[SpikingNeuron, int] = {}

    def begin(module, args, kwargs):
        given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
        found = given.get("attention_mask", given.get("kwargs", {}).get("attention_mask"))
        mask[0] = found.bool() if isinstance(found, Tensor) and found.dim() == 2 else None
        next_step.clear()

    def report(name, neuron, output, running, step=None, before=None):
        real = mask[0]
        fits = real is not None and output.dim() == 4 and output.shape[1:3] == real.shape
        levels = _levels(neuron, output, running, before)
        observe(Sent(name, neuron, levels, running, real if fits else None, step))

    def hook(name):
        def sent(neuron, args, kwargs, output):
            carrier = carrier_of(neuron)
            before = None if carrier is None else carrier.before[neuron]
            report(name, neuron, output, kwargs.get("running", False), before=before)

        return sent

    def watched_step(name, neuron):
        step = neuron.step

        def watched(x, v=None):
            sent, v = step(x, v)
            report(name, neuron, sent, False, next_step.get(neuron, 0))
            next_step[neuron] = next_step.get(neuron, 0) + 1
            return sent, v

        return watched

    with ExitStack() as stack:
        handles = [model.register_forward_pre_hook(begin, with_kwargs=True)]
        handles += [n.register_forward_hook(hook(k), with_kwargs=True) for k, n in neurons.items()]
        for handle in handles:
            stack.callback(handle.remove)
        if getattr(getattr(model, "config", None), "gradient", None) == "implicit":
            for name, neuron in neurons.items():
                neuron.step = watched_step(name, neuron)
                stack.callback(delattr, neuron, "step")
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
class Carried:
    """The spikes behind a tensor."""

    source: Sent
    """The neuron, or one of the neurons, that sent them."""
    form: str = "spikes"
    """"spikes", or "sums" or "averages" of them."""
    sums: Tensor | None = None
    """How many spikes are behind each element, in the tensor's shape; None: `source`'s own."""

    def behind(self) -> Tensor:
        return self.source.spikes().abs() if self.sums is None else self.sums

    def like(self, x: Tensor) -> Tensor:
        """`behind`, of a view `x` of the tensor."""
        return self.behind().reshape(x.shape)


def carry(func: Any, args: tuple, kwargs: dict, operands: list[Carried | None]) -> Carried | None:
    """The spikes behind the result of `func`, of those behind its tensor arguments; None where its
    values are no sums, averages or single spikes."""
    first = operands[0]
    if first is None:
        return None
    behind = first.like(args[0])
    if func in _ADD and len(operands) == 2 and operands[1] is not None:
        return Carried(first.source, "sums", behind + operands[1].like(args[1]))
    if func in _MULTIPLY and len(operands) == 2 and operands[1] is not None:
        if first.form == operands[1].form == "spikes":
            return Carried(first.source, "spikes", behind * operands[1].like(args[1]))
    elif func is F.max_pool2d and first.form == "spikes" and not first.source.neuron.ternary:
        return Carried(first.source, "spikes", F.max_pool2d(behind, *args[1:], **kwargs))
    elif func is F.avg_pool2d:
        kernel = args[1] if len(args) > 1 else kwargs["kernel_size"]
        area = kernel**2 if isinstance(kernel, int) else math.prod(kernel)
        return Carried(first.source, "averages", area * F.avg_pool2d(behind, *args[1:], **kwargs))
    return None


_ADD = (torch.Tensor.add, torch.Tensor.__add__)
_MULTIPLY = (torch.Tensor.mul, torch.Tensor.__mul__)


@dataclass
class Product:
    """One matrix product of a forward pass, counted over all time steps."""

    name: str
    kind: str
    """linear, conv2d, matmul, attention scores or attention context."""
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
    form: str = "spikes"
    """Whether it reads spikes, or sums or averages of them."""


class _Recorder(TorchFunctionMode):
    def __init__(self, model: nn.Module, samples: int, mask: Tensor | None):
        super().__init__()
        self.products: list[Product] = []
        self.elementwise: dict[str, Tensor] = {}
        self.neurons: list[Sent] = []
        self._origins: dict[int, Carried] = {}
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
        self._keep(output, Carried(self._last_sent))
        self._in_neuron = False

    def _keep(self, x: Tensor, carried: Carried) -> None:
        self._origins[x.untyped_storage().data_ptr()] = carried
        self._alive.append(x)

    def origin(self, x: Tensor) -> Carried | None:
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
        elif func in (torch.matmul, torch.Tensor.matmul):
            self._matmul(result, *args)
        elif (kind := _ELEMENTWISE.get(func)) and isinstance(result, Tensor) and result.dim() > 2:
            count = self.positions(result.shape) * result.shape[-1]
            # Frames have a time axis before the first neuron, folded into the batch.
            timeless = not self.neurons and not (result.dim() == 4 and len(result) > self.samples)
            self._elementwise(
                "input" if timeless else kind, count, (0 if kind == "residual" else 2) * count
            )
        if func in _CARRIES:
            operands = [self.origin(a) for a in args if isinstance(a, Tensor)]
            if carried := carry(func, args, kwargs, operands):
                self._keep(result, carried)
        return result

    def _elementwise(self, kind: str, count: Tensor, running_means: Tensor) -> None:
        """Adds `count` evaluations; a running model makes the mean of what a float function reads
        and the difference that it sends besides. Before the first neuron there is no time yet, but
        in frames."""
        self.elementwise[kind] = self.elementwise.get(kind, 0) + count
        if self.neurons and self.neurons[0].running:
            made = self.elementwise.get("running means", 0) + running_means
            self.elementwise["running means"] = made

    def _add(self, kind, origin, macs, steps, sops, weights, suffix=""):
        name = (self._inside[-1] if self._inside else "") + suffix
        source, form = (None, "spikes") if origin is None else (origin.source, origin.form)
        self.products.append(Product(name, kind, source, macs, steps, sops, weights, form))

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        origin = self.origin(x)
        rows = self.positions(x.shape)
        steps = self.passes(int(rows.sum()))
        sops = self._spikes_by_sample(origin, x) * weight.shape[0]
        self._add("linear", origin, rows * weight.numel(), steps, sops, weight.numel())

    def _conv2d(
        self, result, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1
    ) -> None:
        origin = self.origin(x)
        macs = torch.full((self.samples,), result.numel() * weight[0].numel() // self.samples)
        sops = torch.zeros_like(macs)
        if origin is not None:
            # One output channel of each group stands for all.
            ones = torch.ones_like(weight[:groups], dtype=torch.float64)
            fired = origin.like(x).double()
            reached = F.conv2d(fired, ones, None, stride, padding, dilation, groups)
            by_step = reached.flatten(1).sum(1).view(-1, self.samples)
            sops = by_step.sum(0).round().long().cpu() * (len(weight) // groups)
        steps = 1 if len(x) % self.samples else len(x) // self.samples
        self._add("conv2d", origin, macs, steps, sops, weight.numel())

    def _matmul(self, result: Tensor, a: Tensor, b: Tensor) -> None:
        """[..., m, k] times [..., k, n]: a spike of one operand meets a row or column of the other."""
        origins = self.origin(a), self.origin(b)
        meets = b.shape[-1] if origins[0] else a.shape[-2]
        origin = origins[0] or origins[1]
        sops = self._spikes_by_sample(origin, a if origins[0] else b) * meets
        macs = torch.full((self.samples,), result.numel() * a.shape[-1] // self.samples)
        steps = len(self.neurons[0].levels) if self.neurons else 1
        self._add("matmul", origin, macs, steps, sops, 0, ".matmul")

    def _attention(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Query [T B, heads, L, d], or of the first token alone [T B, heads, 1, d]: each real query
        of a sample meets each real key of it."""
        steps = len(query) // self.samples
        lengths = self.lengths
        if lengths is None:
            lengths = torch.full((self.samples,), key.shape[2])
        queries = lengths if query.shape[2] == key.shape[2] else torch.ones_like(lengths)
        macs = steps * queries * lengths * query.shape[1] * query.shape[3]
        for operand, kind in ((key, "attention scores"), (value, "attention context")):
            origin = self.origin(operand)
            # The running mean of spikes is no spike: the product multiplies.
            if origin is not None and origin.source.running:
                origin = None
            sops = self._spikes_by_sample(origin, operand) * queries
            self._add(kind, origin, macs, steps, sops, 0, "." + kind.split()[1])
        streams = 2 * steps * (queries + lengths) * query.shape[1] * query.shape[3]
        self._elementwise("softmax", steps * queries * lengths * query.shape[1], streams)

    def _spikes_by_sample(self, carried: Carried | None, x: Tensor) -> Tensor:
        """Spikes behind `x`, whose first dimensions are time and batch, int64 [B] on the CPU."""
        if carried is None:
            return torch.zeros(self.samples, dtype=torch.int64)
        behind = carried.behind()
        if x.numel() != behind.numel():  # a part of what was sent, e.g. its first token
            behind = behind.as_strided(x.shape, x.stride(), x.storage_offset())
        by_step = behind.double().reshape(len(carried.source.levels), self.samples, -1)
        return by_step.sum((0, 2)).round().long().cpu()


_ELEMENTWISE = {
    F.layer_norm: "layer norm",
    F.batch_norm: "batch norm",
    F.gelu: "GELU",
    F.relu: "ReLU",
    torch.tanh: "tanh",
    torch.Tensor.add: "residual",
    torch.Tensor.__add__: "residual",
}


_CARRIES = (*_ADD, *_MULTIPLY, F.max_pool2d, F.avg_pool2d)


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
        stack.enter_context(unrolled(model))
        if isinstance(model, PreTrainedModel) and model._supports_sdpa:
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
    refuse_collapsed(model)
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
