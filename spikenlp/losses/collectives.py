"""Sums over the processes of a distributed run, with gradients.

Where no process group is initialised there is one process, and each function is its local part.

When every process backpropagates a loss that contains such a sum, the gradient of a process's input is the
sum of what all of them send back. DistributedDataParallel then averages over processes: a term that all
have in common counts once, as in a single process.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _reduced(x, dist.ReduceOp.SUM)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _reduced(gradients[0], dist.ReduceOp.SUM)


def several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of `x`, of one shape everywhere, over processes, each of which must call this."""
    return _Sum.apply(x) if several_processes() else x


def logsumexp_over_processes(x: Tensor) -> Tensor:
    """log of the sum of exp(x) over processes, elementwise; finite where any process's x is."""
    if not several_processes():
        return x
    largest = _reduced(x.detach(), dist.ReduceOp.MAX)
    largest = largest.where(largest.isfinite(), 0)
    return largest + sum_over_processes((x - largest).exp()).log()


def _reduced(x: Tensor, operation: Any) -> Tensor:
    x = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x, op=operation)
    return x
