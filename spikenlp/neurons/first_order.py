"""Backward passes that have no derivative themselves."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """For the `backward` of an autograd function: with create_graph=True it raises RuntimeError.

    torch's `once_differentiable` leaves second derivatives out in silence where the incoming gradient needs
    none, that of a plain sum, say.
    """

    @wraps(backward)
    def once(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "create_graph=True asks for second derivatives, which spiking neurons, the layers that read "
                "them and their losses do not have: leave gradient penalties and Hessians of them out"
            )
        with torch.no_grad():
            return backward(ctx, *grads)

    return once
