"""Weights fitted to the spikes that reach them: layer-wise reconstruction, without training.

With the weights of a dense network a layer makes of spikes what the dense one makes of activations, and in it
carries on the errors of its input: rounding, and what neurons that saturated on the way still held back at
step T. Reconstruction goes through a converted network from the first layer to the last and fits each
weight that reads spikes by ridge regression on a few batches,

    min_{W, b}  sum_n || W s_n + b - y_n ||^2 + lambda || W - W_0 ||^2 .

s_n is the mean over time of the spikes that are read at token or pixel n, as the layers before it, fitted
already, send them; W_0 the weight before; lambda `ridge` times the mean over inputs of sum_n s_n^2. y_n is
what the network without rounding computes there, or the collapsed twin, where that was trained; where the result is added to a residual stream, y_n is
what that sum lacks, so that a layer also makes good errors of the stream. There are no labels and no
gradient steps, and amplitudes stay as they are.

Layer-wise reconstruction is known from quantization (AdaRound, Nagel et al., ICML 2020) and from spiking
convolutional networks (Li et al., ICML 2021, arXiv 2106.06984), there by gradient descent.
`reconstruct` is in `spikenlp.models.spiking_bert.reconstruction` and `spikenlp.models.vision_reconstruction`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from spikenlp.models.modes import evaluating

RIDGE = 0.1


class RidgeFit:
    """The normal equations of one layer, batch by batch: (S'S + lambda) d = S' lacking, d the change of
    [W b]; the bias is free."""

    def __init__(self) -> None:
        self.gram: Tensor | None = None
        self.cross: Tensor | None = None

    def add(self, spikes: Tensor, lacking: Tensor) -> None:
        """`spikes` [N, inputs], means over time; `lacking` [N, outputs], y_n less what the layer makes."""
        rows = torch.cat([spikes, torch.ones_like(spikes[:, :1])], 1).float()
        gram, cross = rows.t() @ rows, rows.t() @ lacking.float()
        self.gram = gram if self.gram is None else self.gram + gram
        self.cross = cross if self.cross is None else self.cross + cross

    def change(self, ridge: float) -> tuple[Tensor, Tensor]:
        """What to add to the weight [outputs, inputs] and the bias [outputs].

        Raises:
            ValueError: it is not finite.
        """
        assert self.gram is not None
        assert self.cross is not None
        gram = self.gram.double()
        scale = float(gram.diagonal()[:-1].mean()) or 1.0  # 0 of silent neurons: the bias alone
        penalty = torch.full_like(gram[0], ridge * scale)
        penalty[-1] = 0
        change = torch.linalg.solve(gram + penalty.diag(), self.cross.double()).t()
        if not change.isfinite().all():
            raise ValueError(
                "what the layers compute on the reconstruction data is not finite: check the dense model "
                "and the data, or reconstruct in float32"
            )
        return change[:, :-1], change[:, -1]


@contextmanager
def fitting(model: PreTrainedModel, ridge: float) -> Iterator[PreTrainedModel]:
    """The twin of `model` that keeps its weights while they are fitted. Both in eval mode, without
    gradients and autocast.

    Raises:
        ValueError: `ridge` not above 0; weights in int8.
    """
    if not ridge > 0:
        raise ValueError(f"ridge must be > 0, got {ridge}")
    if getattr(model, "is_quantized", False):
        raise ValueError(
            "reconstruct fits float weights, these are int8: reconstruct, then quantize"
        )
    with evaluating(model), torch.no_grad(), torch.autocast(model.device.type, enabled=False):
        yield copy.deepcopy(model)


class Seen(Exception):
    """A hook has what it is there for."""


@contextmanager
def until_seen(hooks: Sequence[RemovableHandle]) -> Iterator[None]:
    """A forward pass that ends where one of its `hooks` raises `Seen`; they are removed in any case."""
    try:
        with suppress(Seen):
            yield
    finally:
        for hook in hooks:
            hook.remove()
