"""Where the tensors of a forward pass come from.

Which neuron an operand comes from is seen from its memory, not from the module's class: a layer that claims to
read spikes and gets something else is found out. Memory that was written to since counts as float. Spikes, time,
samples and positions are followed from the inputs and neurons on, through what functions make of them
(`spikenlp.analysis.following`): it does not matter whether sizes are alike.

One product, say: a neuron sends s [T, B, L, C], and its dimensions are placed and its spikes kept. `s[t]` is a view,
the same memory at one time step. A linear layer reads it: the spikes behind it, summed by sample and times the
layer's outputs, are its SOP. What it returns is new memory without spikes, and follows it in axes: it is of step t,
and has samples and positions, so that its real rows are known where the next layer reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from spikenlp.analysis.following import (
    CARRIES,
    CATS,
    INDEXES,
    PICKS,
    Axes,
    Spikes,
    axes_on,
    carry,
    follow_axes,
)


@dataclass
class Memory:
    """What is known of the memory of a tensor."""

    axes: Axes
    at: dict[str, int] = field(default_factory=dict)
    """Of an axis that it has not, the one index that all of it has: a step, if it was made of that step alone."""
    spikes: Spikes | None = None
    """`behind` and `values` are flat and lie as the memory does."""
    values: Tensor | None = None
    """What it held when the spikes were put there."""
    alive: Tensor | None = None
    """The tensor, where nothing else may come to lie in its place."""


def address_of(x: Tensor) -> int | None:
    """None of a tensor that has no memory of its own (inside a `vmap`)."""
    try:
        return x.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return None


def _index_of(x: Tensor, memory: Memory) -> dict[str, int]:
    """The axes of which all of `x` has one index, and this."""
    if not x.numel():
        return {}
    first = x[(0,) * x.dim()]
    spread = {k for k, a in memory.axes.items() if any(a.lies_on(x, d) for d in range(x.dim()))}
    alone = {k: int(a.index(first)) for k, a in memory.axes.items() if k not in spread}
    return memory.at | alone


def _common(indices: Sequence[dict[str, int]]) -> dict[str, int]:
    """Those that are the same in all that have one; of several time steps the last, from which on there is what
    was made of them."""
    names = {name for index in indices for name in index}
    found = {name: {index[name] for index in indices if name in index} for name in names}
    return {k: max(values) for k, values in found.items() if len(values) == 1 or k == "time"}


def _joined(indices: Sequence[dict[str, int]]) -> set[str]:
    """The axes whose entries, one after the other, tensors with these indices are; time steps in any order."""
    names = {name for index in indices for name in index}
    every = list(range(len(indices)))
    found = {name: [index.get(name, -1) for index in indices] for name in names}
    return {k for k, v in found.items() if v == every or (k == "time" and sorted(v) == every)}


def _laid_out(values: Tensor, x: Tensor) -> Tensor:
    """`values` in the shape of `x`, as a flat tensor in which they lie as `x` does in its memory."""
    flat = values.new_zeros(x.untyped_storage().nbytes() // x.element_size())
    flat.as_strided(x.shape, x.stride(), x.storage_offset()).copy_(values)
    return flat


def tensors_in(values: Any) -> list[Tensor]:
    """Those among arguments, or in what a function returned."""
    nested = (v if isinstance(v, (tuple, list)) else (v,) for v in values)
    return [v for group in nested for v in group if isinstance(v, Tensor)]


class Origins:
    """What is known of the memory of tensors, by its address."""

    def __init__(self) -> None:
        self._memory: dict[int | None, Memory] = {}

    def place(self, x: Tensor, **dims: int) -> None:
        """Tells which dimension of `x` each axis is."""
        self._memory[address_of(x)] = Memory(axes_on(x, **dims), alive=x)

    def keep(self, x: Tensor, spikes: Spikes) -> None:
        memory = self._memory[address_of(x)]
        dtype = torch.uint8 if spikes.form == "spikes" else torch.float32
        memory.spikes = replace(spikes, behind=_laid_out(spikes.behind.to(dtype), x))
        memory.values, memory.alive = _laid_out(x, x), x

    def known(self, x: Tensor) -> Memory | None:
        address = address_of(x)
        return None if address is None else self._memory.get(address)

    def spikes_behind(self, x: Tensor) -> Spikes | None:
        """The spikes behind `x`, a view of what was sent that still holds it. The running mean of one
        step is no spike, nor a sum of those of its step."""
        memory = self.known(x)
        if memory is None or memory.spikes is None or memory.values is None:
            return None
        spikes, layout = memory.spikes, (x.shape, x.stride(), x.storage_offset())
        if x.dtype != memory.values.dtype or not x.equal(memory.values.as_strided(*layout)):
            return None
        source = spikes.source
        if source.running and len(self.at_steps(x)) < len(source.levels) > 1:
            return None
        return replace(spikes, behind=spikes.behind.as_strided(*layout).float())

    def follow(self, func: Any, args: tuple, kwargs: dict, result: Any) -> None:
        """Notes what is known of the memory that `func` returned."""
        operands = tensors_in(args[:1] if func in INDEXES or func in PICKS else args)
        addresses = {address_of(x) for x in operands}
        made = [y for y in tensors_in([result]) if address_of(y) not in addresses]
        known = [(x, memory) for x in operands if (memory := self.known(x)) is not None]
        if known and args and result is args[0] is known[0][0]:  # in place
            _, changed = known[0]
            changed.at |= _common([_index_of(x, m) for x, m in known if "time" not in m.axes])
        carried = None
        if func in CARRIES and isinstance(result, Tensor) and made:
            carried = carry(func, args, kwargs, [self.spikes_behind(x) for x in operands])
        for y in made:
            address = address_of(y)
            if address is None:
                continue
            self._memory.pop(address, None)
            if not known or not isinstance(result, Tensor):
                continue
            axes: Axes = {}
            for x, memory in known:
                axes = follow_axes(func, args, kwargs, x, memory.axes, y) | axes
            fixed = [_index_of(x, memory) for x, memory in known]
            dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            singles = func in CATS and all(x.shape[dim] == 1 for x in operands)
            if (func is torch.stack or singles) and len(fixed) == len(operands):
                axes |= axes_on(y, **dict.fromkeys(_joined(fixed) - axes.keys(), dim))
            at = {name: i for name, i in _common(fixed).items() if name not in axes}
            self._memory[address] = Memory(axes, at)
            if carried is not None:
                self.keep(y, carried)

    def at_steps(self, x: Tensor) -> frozenset[int]:
        """The time steps that `x` holds; none where nothing says that it has any."""
        memory = self.known(x)
        if memory is None:
            return frozenset()
        if "time" in memory.axes:
            return frozenset(memory.axes["time"].along(x)[1].unique().tolist())
        return frozenset([memory.at["time"]] if "time" in memory.at else [])
