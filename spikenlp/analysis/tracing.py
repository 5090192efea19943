"""What every matrix product of a forward pass reads (`spikenlp.analysis.origins`), and how many operations it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import PreTrainedModel

from spikenlp.analysis.following import CASTS, Spikes
from spikenlp.analysis.operations import ELEMENTWISE, LAYERS, MATMULS, UNREGISTERED
from spikenlp.analysis.origins import Origins, address_of, tensors_in
from spikenlp.analysis.watching import (
    Sent,
    named_inputs,
    position_dim,
    refuse_collapsed,
    refuse_padded_first_token,
    samples_of,
    unrolled,
    watch_masks,
    watch_neurons,
)
from spikenlp.models.modes import evaluating, exclusive
from spikenlp.neurons.modules import SpikingNeuron


class _Products(TorchDispatchMode):
    """Sees whether any function in here multiplies matrices."""

    found = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        op = func.overloadpacket
        self.found = self.found or op in flop_registry or op in UNREGISTERED
        return func(*args, **(kwargs or {}))


@dataclass
class Product:
    """One matrix product of a forward pass, counted over all time steps."""

    name: str
    kind: str
    """linear, conv1d, conv2d, conv3d, matmul, attention scores or attention context."""
    source: Sent | None
    """The neuron whose spikes it reads, if it does."""
    macs: Tensor
    """Multiply-accumulates of a dense machine, real positions only; int64 [B], by sample."""
    at_steps: frozenset[int]
    """Time steps that it runs at; none where there is no time."""
    sops: Tensor
    """Synaptic operations: accumulations that spikes cause, int64 [B] (0 without a source)."""
    form: str = "spikes"
    """Whether it reads spikes, or sums or averages of them."""

    @property
    def steps(self) -> int:
        """At how many it runs, at least 1."""
        return max(len(self.at_steps), 1)

    def continues_in(self, later: Product) -> bool:
        """Whether `later` is the same at other steps: a layer that is called once for each step."""
        same = (self.name, self.kind, self.driver) == (later.name, later.kind, later.driver)
        return (
            same and bool(self.at_steps and later.at_steps) and not self.at_steps & later.at_steps
        )

    @property
    def driver(self) -> str:
        """What drives it: binary, ternary, integer (bursts, sums or averages of spikes) or float."""
        if self.source is None:
            return "float"
        if self.form != "spikes" or self.source.neuron.burst > 1:
            return "integer"
        return "ternary" if self.source.neuron.ternary else "binary"


def _continues(calls: list[set[int]], at_steps: frozenset[int]) -> bool:
    """Whether one of `calls`, each known by its steps, goes on at other steps; else there is one more."""
    for steps in calls:
        if steps and at_steps and not steps & at_steps:
            steps |= at_steps
            return True
    calls.append(set(at_steps))
    return False


class _Recorder(TorchFunctionMode):
    def __init__(self, model: nn.Module, samples: int, mask: Tensor | None):
        super().__init__()
        self.products: list[Product] = []
        self.elementwise: dict[str, Tensor] = {}
        self.elementwise_of_one_pass: dict[str, Tensor] = {}
        self.neurons: list[Sent] = []
        self._calls: dict[tuple[str, str], list[set[int]]] = {}
        """Steps of each float function, by where it is called and what it is billed as."""
        self.origins = Origins()
        self._inside: list[str] = []
        self._names = {module: name for name, module in model.named_modules()}
        self.samples = samples
        self._in_neuron = False
        self._made_by_layer: Tensor | None = None
        """What the last layer returned: a batch norm of it goes into the layer's weights."""
        self.use_mask(mask)

    def trace(self) -> Trace:
        return Trace(
            self.products,
            self.elementwise,
            self.elementwise_of_one_pass,
            self.neurons,
            self.samples,
        )

    def use_mask(self, mask: Tensor | None) -> None:
        if mask is not None and len(mask) != self.samples:
            raise ValueError(
                f"an attention_mask of {len(mask)} samples in a batch of {self.samples}: call the "
                "model once for each text of a sample"
            )
        self.mask = None if mask is None else mask.cpu()
        self.lengths = None if self.mask is None else self.mask.sum(1)

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
        dims = {"time": 0}
        if output.dim() > 2 and output.shape[1] == self.samples:
            dims["sample"] = 1
        positions = position_dim(neuron, output, self.mask)
        if positions is not None:
            dims["position"] = positions
        self.origins.place(output, **dims)
        self.origins.keep(output, Spikes(self._last_sent, "spikes", self._last_sent.spikes().abs()))
        self._in_neuron = False

    @property
    def num_timesteps(self) -> int:
        return len(self.neurons[0].levels) if self.neurons else 1

    def rows(self, x: Tensor) -> tuple[Tensor, frozenset[int]]:
        """Real rows [C] of an activation [..., C] by sample, int64 [B], and at which time steps."""
        memory = self.origins.known(x)
        first = x.select(-1, 0) if x.dim() else x
        at_steps = self.origins.at_steps(first)
        known = memory is not None and ("sample" in memory.axes or "sample" in memory.at)
        if memory is None or (not known and self.samples > 1):
            rows, guessed = self._rows_by_shape(first.shape)
            return rows, at_steps or guessed

        def index(name: str) -> Tensor:
            if name in memory.axes:
                return memory.axes[name].index(first)
            return torch.full(first.shape, memory.at.get(name, 0))

        sample, real = index("sample"), torch.ones(first.shape, dtype=torch.int64)
        position = memory.axes.get("position")
        whole = position is None or (self.mask is not None and position.whole == self.mask.shape[1])
        if self.mask is not None and whole and (position or "position" in memory.at):
            real = self.mask[sample, index("position")].long()
        by_sample = torch.zeros(self.samples, dtype=torch.int64)
        by_sample.index_add_(0, sample.flatten(), real.flatten())
        return by_sample, at_steps

    def _rows_by_shape(self, shape: torch.Size) -> tuple[Tensor, frozenset[int]]:
        """Of an activation of which nothing is known."""
        rows = torch.full((self.samples,), shape.numel() // self.samples)
        if self.mask is not None and self.lengths is not None and shape[-2:] == self.mask.shape:
            rows = shape[:-2].numel() * self.lengths
        tokens = self.samples if self.lengths is None else int(self.lengths.sum())
        each_step = [self.num_timesteps * n for n in (self.samples, tokens)]
        timed = int(rows.sum()) in each_step
        return rows, frozenset(range(self.num_timesteps)) if timed else frozenset()

    def _by_sample(self, counts: Tensor, x: Tensor) -> Tensor:
        """Sums of `counts`, in the shape of `x` or of its first dimensions, int64 [B] on the CPU."""
        memory = self.origins.known(x)
        axis = None if memory is None else memory.axes.get("sample")
        if memory is not None and "sample" in memory.at:
            alone = torch.zeros(self.samples, dtype=torch.int64)
            alone[memory.at["sample"]] = round(float(counts.sum()))
            return alone
        if axis is None:
            total = round(float(counts.sum()))
            share = torch.full((self.samples,), total // self.samples)
            share[: total % self.samples] += 1
            return share
        dim, index = axis.along(x)
        others = [d for d in range(counts.dim()) if d != dim]
        totals = counts.sum(others, dtype=torch.float64) if others else counts.double()
        by_sample = torch.zeros(self.samples, dtype=torch.float64)
        return by_sample.index_add_(0, index.reshape(-1), totals.reshape(-1).cpu()).round().long()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self._in_neuron:
            return func(*args, **kwargs)
        counts = _COUNTED.get(func)
        if counts is not None or getattr(func, "__name__", "") == "__get__":
            result = func(*args, **kwargs)
        else:
            with _Products() as seen:
                result = func(*args, **kwargs)
            if seen.found:
                where = self._inside[-1] if self._inside else ""
                raise ValueError(
                    f"{where or 'the model'} calls {resolve_name(func)}, whose products are not "
                    "counted: write it with linear layers, convolutions, torch.matmul or "
                    "scaled_dot_product_attention"
                )
        if not args and "input" in kwargs:
            args, kwargs = (kwargs["input"],), {k: v for k, v in kwargs.items() if k != "input"}
        self.origins.follow(func, args, kwargs, result)
        if args and result is args[0] is self._made_by_layer and func not in CASTS:
            self._made_by_layer = None  # it was changed in place
        if counts is not None:
            counts(self, func, result, *args, **kwargs)
            self._made_by_layer = result if func in LAYERS else None
        elif func is F.batch_norm and self._folds(args[0]):
            return result
        elif (kind := ELEMENTWISE.get(func)) and self._is_billed(result):
            rows, at_steps = self.rows(result)
            count = rows * result.shape[-1]
            means = (0 if kind == "residual" else 2) * count
            timeless = not self.neurons and not at_steps
            self._elementwise("input" if timeless else kind, count, at_steps, means)
        return result

    def _is_billed(self, x: Any) -> bool:
        """Whether `x`, which a float function returned, is of positions or time steps; what prepares a mask is not."""
        if not isinstance(x, Tensor) or not x.dim():
            return False
        return x.dim() > 2 or bool(self.origins.at_steps(x))

    def _folds(self, input: Tensor) -> bool:
        """Whether a batch norm (in eval mode) goes into the weights of the layer before it, as in
        `fold_batch_norm`."""
        made = self._made_by_layer
        return made is not None and address_of(input) == address_of(made)

    def _elementwise(
        self, kind: str, count: Tensor, at_steps: frozenset[int], running_means: Tensor
    ) -> None:
        """Adds `count` evaluations at so many steps; a running model makes the mean of what a float function
        reads and the difference that it sends besides. Before the first neuron there is no time yet,
        but in frames."""
        self.elementwise[kind] = self.elementwise.get(kind, 0) + count
        calls = self._calls.setdefault((self._where(), kind), [])
        if not _continues(calls, at_steps):
            of_one_pass = self.elementwise_of_one_pass.get(kind, 0) + count // max(len(at_steps), 1)
            self.elementwise_of_one_pass[kind] = of_one_pass
        if self.neurons and self.neurons[0].running:
            made = self.elementwise.get("running means", 0) + running_means
            self.elementwise["running means"] = made

    def _where(self) -> str:
        return self._inside[-1] if self._inside else ""

    def _add(self, kind, origin, macs, at_steps, sops, suffix=""):
        name = self._where() + suffix
        source, form = (None, "spikes") if origin is None else (origin.source, origin.form)
        sops = torch.zeros_like(macs) if origin is None else sops
        product = Product(name, kind, source, macs, at_steps, sops, form)
        for before in self.products:
            if before.continues_in(product):
                before.macs, before.sops = before.macs + macs, before.sops + sops
                before.at_steps |= at_steps
                return
        self.products.append(product)

    def _linear(self, func, result, input: Tensor, weight: Tensor, bias: Tensor | None = None):
        origin = self.origins.spikes_behind(input)
        rows, at_steps = self.rows(input)
        sops = None if origin is None else self._by_sample(origin.behind, input) * weight.shape[0]
        self._add("linear", origin, rows * weight.numel(), at_steps, sops)

    def _conv(
        self, func, result, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1
    ) -> None:
        origin, sops = self.origins.spikes_behind(input), None
        rows, at_steps = self.rows(result.movedim(1, -1))
        # One output channel of each group stands for all.
        ones = torch.ones_like(weight[:groups], dtype=torch.float64)

        def reached(x: Tensor) -> Tensor:
            return func(x, ones, None, stride, padding, dilation, groups).flatten(1).sum(1)

        if origin is not None:
            sops = self._by_sample(reached(origin.behind.double()), input) * (len(weight) // groups)
        # Of an input without zeros: what meets padding is no product, for spikes and floats alike.
        products = reached(torch.ones_like(input[:1], dtype=torch.float64))
        each = products * (len(weight) // groups) / (result[0].numel() // len(weight))
        self._add(func.__name__, origin, rows * each.cpu(), at_steps, sops)

    def _matmul(self, func, result: Tensor, *operands: Tensor, **kwargs: Any) -> None:
        """[..., m, k] times [..., k, n]: a spike meets what its element meets."""
        a, b = [*operands, *(kwargs[k] for k in _SECOND if k in kwargs)][-2:]
        macs = result.numel() * a.shape[-1]
        weight = next((x for x in (a, b) if isinstance(x, nn.Parameter)), None)
        origin = sops = None
        for operand in (a, b):
            origin = (
                self.origins.spikes_behind(operand)
                if weight is not None
                else self._of_single(operand)
            )
            if origin is not None:
                sops = self._by_sample(origin.behind, operand) * (macs // operand.numel())
                break
        rows, at_steps = self.rows(result)
        of_weight = weight is not None and weight is b
        each = rows * b.numel() if of_weight else torch.full_like(rows, macs // self.samples)
        self._add("matmul", origin, each, at_steps, sops, ".matmul")

    def _of_single(self, x: Tensor) -> Spikes | None:
        """`origin` of an operand that meets an activation: with a running mean of spikes it multiplies."""
        origin = self.origins.spikes_behind(x)
        return None if origin is None or origin.source.running else origin

    def _attention(self, func, result, query: Tensor, key: Tensor, value: Tensor, *_, **options):
        """Query [..., heads, L, d], or of the first token alone [..., heads, 1, d]: each real query
        of a sample meets each real key of it."""
        found, width = query.shape[-2:]
        units = self._by_sample(torch.ones(query.shape[:-2]), query)  # a head at a step is one
        steps = query.shape[:-3].numel() // self.samples
        at_steps = self.origins.at_steps(query) or frozenset(range(steps))
        lengths = self.lengths
        if lengths is None or self.mask is None or self.mask.shape[1] != key.shape[-2]:
            lengths = torch.full((self.samples,), key.shape[-2])
        queries = lengths if found == key.shape[-2] else torch.full_like(lengths, found)
        macs = units * queries * lengths * width
        for operand, kind in ((key, "attention scores"), (value, "attention context")):
            origin = self._of_single(operand)
            sops = None if origin is None else self._by_sample(origin.behind, operand) * queries
            self._add(kind, origin, macs, at_steps, sops, "." + kind.split()[1])
        streams = 2 * units * (queries + lengths) * width
        self._elementwise("softmax", units * queries * lengths, at_steps, streams)


_SECOND = ("other", "mat1", "mat2", "batch1", "batch2")
_COUNTED: dict[Any, Callable[..., None]] = {
    F.linear: _Recorder._linear,
    F.scaled_dot_product_attention: _Recorder._attention,
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _Recorder._conv),
    **dict.fromkeys(MATMULS, _Recorder._matmul),
}


@dataclass
class Trace:
    """One forward pass."""

    products: list[Product]
    elementwise: dict[str, Tensor]
    """Float operations between products, element evaluations over all steps, int64 [B] by sample;
    those before the first neuron run once and are the "input"."""
    elementwise_of_one_pass: dict[str, Tensor]
    """The same as a dense model makes them: those of one step, without running means."""
    neurons: list[Sent]
    samples: int


@contextmanager
def record(model: nn.Module, samples: int, mask: Tensor | None) -> Iterator[Trace]:
    """A trace that fills with what `model`, or a part of it, does while the context is open.

    Args:
        samples: B, of what will be run.
        mask: bool [B, L], real positions, or None, where parts of the model are called by themselves; a
            call of the model, or of a transformers model inside it, brings its own.

    Raises:
        ValueError: in there, a matrix product by a function that is not counted, named; a mask that is
            not [B, L].
    """
    with _recording(model, samples, mask) as recorder:
        yield recorder.trace()


@contextmanager
def _recording(model: nn.Module, samples: int, mask: Tensor | None) -> Iterator[_Recorder]:
    recorder = _Recorder(model, samples, mask)
    with ExitStack() as stack:
        stack.enter_context(exclusive(model))
        stack.enter_context(unrolled(model))
        for part in model.modules():
            if isinstance(part, PreTrainedModel) and part._supports_sdpa:
                stack.callback(part.set_attn_implementation, part.config._attn_implementation)
                part.set_attn_implementation("sdpa")
        stack.enter_context(watch_masks(model, recorder.use_mask))
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
        yield recorder


@torch.no_grad()
def trace(model: nn.Module, batch: Mapping[str, Any] | Tensor) -> Trace:
    """Runs `model` in eval mode on `batch`: a dict of its inputs [B, ...], or its one input, [B, ...] of a
    transformers model and [T, B, ...] of another module.

    Raises:
        ValueError: an empty batch; a model without neurons, or that calls none; a collapsed one, which has no time
            steps; one that torch.compile made; a classifier of sequences whose first token, which it reads, is padding; what
            `record` refuses.
    """
    refuse_collapsed(model)
    if hasattr(model, "_orig_mod"):
        raise ValueError(
            "operations cannot be followed through a compiled model: give the one that was compiled"
        )
    batch = named_inputs(model, batch)
    given = batch if isinstance(batch, Mapping) else {"": batch}
    inputs = {
        k: v.clone() if isinstance(v, Tensor) else v for k, v in given.items() if k != "labels"
    }
    refuse_padded_first_token(model, inputs.get("attention_mask"))
    samples = batch.shape[1] if isinstance(batch, Tensor) else samples_of(model, inputs)
    if not samples:
        raise ValueError("the batch is empty: give at least one sample")
    with evaluating(model), _recording(model, samples, None) as recorder:
        if isinstance(batch, Tensor):
            recorder.origins.place(inputs[""], time=0, sample=1)
            model(inputs[""])
        else:
            for x in tensors_in(inputs.values()):
                # [B, L], [B, L, D], or frames [B, T, C, H, W]
                dims = {2: {"position": 1}, 3: {"position": 1}, 5: {"time": 1}}.get(x.dim(), {})
                recorder.origins.place(x, sample=0, **dims)
            model(**inputs)
    if not recorder.neurons:
        raise ValueError(
            "no neuron of the model ran in this pass: what `step` and `advance` do is not seen, call the neurons"
        )
    return recorder.trace()
