"""Surrogate gradients: what stands in for the derivative of the Heaviside step in the backward pass.

Each function maps the distance of the membrane potential from the threshold, d = u - v_th, and a
width to a non-negative density that integrates to 1 over d. To add one, write the function and
name it in `SURROGATES` with its default width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor


def triangle(distance: Tensor, width: float) -> Tensor:
    """max(0, g - |d|) / g^2 with g = `width`; g = 1 in TET (Deng et al., ICLR 2022) and TMC."""
    return (width - distance.abs()).clamp_min(0) / width**2


def rectangle(distance: Tensor, width: float) -> Tensor:
    """1 / width where |d| < width / 2, else 0 (STBP, Wu et al., 2018; SpikeLM)."""
    return (distance.abs() < width / 2).to(distance.dtype) / width


def sigmoid(distance: Tensor, width: float) -> Tensor:
    """Derivative of sigmoid(a d) with a = `width`; a = 4 is SpikingJelly's default."""
    s = (width * distance).sigmoid()
    return width * s * (1 - s)


def arctan(distance: Tensor, width: float) -> Tensor:
    """(a / 2) / (1 + (pi a d / 2)^2) with a = `width` (Fang et al., ICCV 2021)."""
    return (width / 2) / (1 + (math.pi / 2 * width * distance) ** 2)


SURROGATES: dict[str, tuple[Callable[[Tensor, float], Tensor], float]] = {
    "triangle": (triangle, 1.0),
    "rectangle": (rectangle, 1.0),
    "sigmoid": (sigmoid, 4.0),
    "arctan": (arctan, 2.0),
}
"""Name -> (function, default width)."""
