"""What a tensor that a function returned has of its operands: time, samples and positions, and spikes.

Spikes that were added, averaged, or of which the largest was taken before they reach a product are
still spikes: W (s + s') = W s + W s', and average pooling folds into the convolution after it. Each
spike behind the operand is then one accumulation for each output that it reaches. The mean over all
pixels is a float.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spikenlp.analysis.watching import Sent

_FORMS = ("spikes", "sums", "averages")
ADD = (torch.add, torch.Tensor.add, torch.Tensor.__add__)
MULTIPLY = (torch.mul, torch.Tensor.mul, torch.Tensor.__mul__)
CATS = (torch.cat, torch.concat, torch.concatenate)
INDEXES = (torch.Tensor.__getitem__,)
PICKS = (torch.index_select, torch.Tensor.index_select)
SUMS = (torch.sum, torch.Tensor.sum)
RESHAPES = (torch.reshape, torch.Tensor.reshape, torch.flatten, torch.Tensor.flatten)
CASTS = (
    *(torch.clone, torch.Tensor.clone, torch.Tensor.contiguous, torch.Tensor.to, torch.Tensor.type),
    *(torch.Tensor.float, torch.Tensor.double, torch.Tensor.half, torch.Tensor.bfloat16),
)
CARRIES = {
    *(*ADD, *MULTIPLY, *CATS, *INDEXES, *PICKS, *SUMS, *RESHAPES, *CASTS),
    *(torch.stack, F.max_pool2d, F.avg_pool2d, F.pad),
}


@dataclass(frozen=True)
class Axis:
    """Where time, samples or positions lie in a tensor's memory: element `o` has the index
    start + step (o // stride % size), of `whole` that there are."""

    stride: int
    size: int
    whole: int
    start: int = 0
    step: int = 1

    def lies_on(self, x: Tensor, dim: int) -> bool:
        """Whether the index changes along dimension `dim` of `x`, which may be several in one."""
        last = x.stride(dim) * (x.shape[dim] - 1)
        if x.stride(dim) >= self.stride:
            return last > 0 and x.stride(dim) % (self.stride * self.size) != 0
        first = x.storage_offset()
        return first // self.stride != (first + last) // self.stride

    def index(self, x: Tensor) -> Tensor:
        """Of each element of `x`, int64 in its shape, on the CPU."""
        offset = torch.tensor(x.storage_offset())
        for size, stride in zip(x.shape, x.stride(), strict=True):
            offset = offset[..., None] + stride * torch.arange(size)
        return self.start + self.step * (offset // self.stride % self.size)

    def along(self, x: Tensor) -> tuple[int | None, Tensor]:
        """The dimension of `x` that it lies on, and the index there; None and one index, [], where all
        of `x` has the same."""
        dim = next((d for d in range(x.dim()) if self.lies_on(x, d)), None)
        return dim, self.index(x[tuple(slice(None) if d == dim else 0 for d in range(x.dim()))])


Axes = dict[str, Axis]
"""By name: "time", "sample" (B) and "position" (L, where padding is)."""


def axes_on(x: Tensor, **dims: int) -> Axes:
    """`dims`: the dimension of `x` that each axis is; of one entry there is nothing to tell apart."""
    sizes = {name: x.shape[d] for name, d in dims.items()}
    return {k: Axis(x.stride(d), sizes[k], sizes[k]) for k, d in dims.items() if sizes[k] > 1}


def move_axes(x: Tensor, axes: Axes, y: Tensor, pairs: Iterable[tuple[int, int]]) -> Axes:
    """Axes of `y`, whose dimension j is dimension i of `x` for each pair (i, j)."""
    moved = {}
    for i, j in pairs if x.numel() else ():
        for name, axis in axes.items():
            if axis.lies_on(x, i) and x.shape[i] == y.shape[j]:
                within = max(axis.stride // x.stride(i), 1)
                size = min(axis.size, x.shape[i] // within)
                start, skipped = int(axis.index(x[(0,) * x.dim()])), x.stride(i) // axis.stride
                step = axis.step * max(skipped, 1)
                moved[name] = Axis(y.stride(j) * within, size, axis.whole, start, step)
    return moved


def _taken(index: Any) -> int:
    """How many dimensions one part of an index takes."""
    if index is None or index is ...:
        return 0
    return index.dim() if isinstance(index, Tensor) and index.dtype == torch.bool else 1


def _dims(given: Any) -> tuple:
    """The dimensions that a function was given, as one or as several."""
    if isinstance(given, int):
        return (given,)
    return tuple(given) if isinstance(given, (tuple, list)) else ()


def follow_axes(func: Any, args: tuple, kwargs: dict, x: Tensor, axes: Axes, y: Tensor) -> Axes:
    """Axes of `y`, what `func` makes of its operand `x`."""
    own, new = x.dim(), y.dim()
    same = [(i, i) for i in range(own)]
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if func is F.embedding:
        return move_axes(x, axes, y, same)
    if func in RESHAPES:
        return move_axes(x, axes, torch.empty(x.shape, device="meta"), same)
    if func in INDEXES:
        index: Any = args[1] if isinstance(args[1], tuple) else (args[1],)
        rest = [slice(None)] * (own - sum(map(_taken, index)))
        index = [at for given in index for at in (rest if given is ... else [given])]
        kept = [isinstance(at, slice) and at == slice(None) for at in index]
        return move_axes(x, axes, y, same[: [*kept, False].index(False)])
    if func in PICKS:
        return move_axes(x, axes, y, [pair for pair in same if pair[0] != dim % own])
    if func in CATS:
        along = (dim or 0) % own
        moved = move_axes(x, axes, y, same[:along] + same[along + 1 :])
        joined = {k for k, a in axes.items() if a.stride == x.stride(along)}
        return moved | axes_on(y, **{k: along for k in joined if x.shape[along] <= axes[k].size})
    if func is torch.stack:
        at = (dim or 0) % new
        return move_axes(x, axes, y, [(i, i + (i >= at)) for i in range(own)])
    if new < own:
        kept = [i for i in range(own) if i not in {d % own for d in _dims(dim)}]
        return move_axes(x, axes, y, zip(kept, range(new), strict=True)) if len(kept) == new else {}
    return move_axes(x, axes, y, [(i, i + new - own) for i in range(own)])


@dataclass
class Spikes:
    """The spikes behind a tensor."""

    source: Sent
    """The neuron, or one of the neurons, that sent them; a ternary one if there is."""
    form: str
    """"spikes", or "sums" or "averages" of them."""
    behind: Tensor
    """How many are behind each element, in the tensor's shape."""


def carry(func: Any, args: tuple, kwargs: dict, operands: list[Spikes | None]) -> Spikes | None:
    """The spikes behind the result of `func`, of those behind its tensor arguments; None where its
    values are no sums, averages or single spikes."""
    known = [operand for operand in operands if operand is not None]
    if not known or len(known) < len(operands) or len({k.source.running for k in known}) > 1:
        return None
    first = max(known, key=lambda k: k.source.neuron.ternary)
    form = max((k.form for k in known), key=_FORMS.index)
    behind, others = known[0].behind, args[1:]
    single = form == "spikes" and not first.source.running
    if func in CASTS:
        return replace(first, behind=behind)
    if func in RESHAPES or func in INDEXES or func in PICKS:
        return replace(first, behind=func(behind, *others, **kwargs))
    # 0 + s, as Python's sum begins.
    if func in ADD and others and isinstance(others[0], int) and not others[0]:
        return replace(first, behind=behind)
    if func in SUMS and not kwargs.get("dtype"):
        return Spikes(
            first.source, max(form, "sums", key=_FORMS.index), func(behind, *others, **kwargs)
        )
    if func in CATS or func is torch.stack:
        return Spikes(first.source, form, func([k.behind for k in known], *others, **kwargs))
    if func in ADD and len(known) == 2 and not kwargs:
        return Spikes(first.source, max(form, "sums", key=_FORMS.index), behind + known[1].behind)
    if func in MULTIPLY and len(known) == 2 and single:
        return Spikes(first.source, form, behind * known[1].behind)
    if func is F.max_pool2d and single and not first.source.neuron.ternary:
        return Spikes(first.source, form, F.max_pool2d(behind, *others, **kwargs))
    if func is F.avg_pool2d:
        names = ("kernel_size", "stride", "padding", "ceil_mode")
        given = {**dict(zip(names, others, strict=False)), **kwargs}
        sums = {k: v for k, v in given.items() if k in names} | {"divisor_override": 1}
        return Spikes(first.source, "averages", F.avg_pool2d(behind, **sums))
    if func is F.pad and _pads_spikes(*others, **kwargs):
        return replace(first, behind=F.pad(behind, *others, **kwargs))
    return None


def _pads_spikes(pad: Any, mode: str = "constant", value: float | None = None) -> bool:
    """With copies of them, or zeros."""
    return mode != "constant" or not value
