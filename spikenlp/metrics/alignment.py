"""How alike two representations of the same tokens are, whatever their widths."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NO_SPREAD = 1e-12
"""Of the mean square: a variance that is no more than this share of it is what rounding left of none."""


class LinearCKA:
    """Linear centred kernel alignment, gathered batch by batch in float64.

    With the columns of X [N, D] and Y [N, E] centred, ||Y^T X||^2 / (||X^T X|| ||Y^T Y||) in Frobenius norms:
    in [0, 1], and 1 where one is the other, rotated and scaled.

    Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, section 3.

    >>> cka = LinearCKA()
    >>> cka.update(student, teacher)  # [N, 384] and [N, 768]
    >>> cka.compute()
    0.97
    """

    def __init__(self) -> None:
        self._rows = 0
        self._width = 0
        self._sums: Tensor | None = None
        self._products: Tensor | None = None

    def update(self, first: Tensor, second: Tensor) -> None:
        """Adds N rows of each.

        Args:
            first, second: [N, D] and [N, E]; D and E the same in every call.

        Raises:
            ValueError: tensors of other dimensions, of other numbers of rows, or of other widths than before.
        """
        if first.dim() != 2 or second.dim() != 2 or len(first) != len(second):
            raise ValueError(
                "first and second must be [N, D] and [N, E] of the same N, got "
                f"{list(first.shape)} and {list(second.shape)}"
            )
        both = torch.cat([first, second], dim=1).detach().double().cpu()
        products, sums = both.T @ both, both.sum(0)
        if self._products is not None and (
            (first.shape[1], len(products)) != (self._width, len(self._products))
        ):
            raise ValueError(
                f"first and second had widths {self._width} and {len(self._products) - self._width}, now they have "
                f"{first.shape[1]} and {second.shape[1]}"
            )
        if self._products is None or self._sums is None:
            self._width, self._products, self._sums = first.shape[1], products, sums
        else:
            self._products += products
            self._sums += sums
        self._rows += len(both)

    def compute(self) -> float:
        """Of all rows so far; nan where one of the two is the same in every row.

        Raises:
            ValueError: no row was added.
        """
        if self._products is None or self._sums is None:
            raise ValueError("no row was added: call update first")
        centred = self._products - torch.outer(self._sums, self._sums) / self._rows
        width = self._width
        for own in (slice(width), slice(width, None)):  # what cancellation leaves of no spread
            if centred[own, own].trace() <= NO_SPREAD * self._products[own, own].trace():
                return math.nan
        within = centred[:width, :width].norm() * centred[width:, width:].norm()
        return float(centred[:width, width:].square().sum() / within)
