"""The bridge from a temporal loss to a Trainer's `compute_loss_func`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from spikenlp.losses import get_temporal_loss
from spikenlp.losses.temporal import IGNORE_INDEX
from spikenlp.training.several_labels import label_distributions, label_logits
from spikenlp.training.spans import span_logits


class TemporalLossFunction:
    """A temporal loss in the form that transformers' plain Trainer takes.

    The mean over this micro-batch is weighted by its share of `num_items_in_batch`, so that
    accumulated or distributed batches give the gradient of one large batch (for SDT, TET, TRT and
    TMC-sample exactly; TMC-batch takes its odds within each micro-batch, with theta_scope="global" in
    those of all processes). Tokens of which none has a label have the loss 0; with theta_scope="global",
    where the other processes would wait for this one, they are an error.

    Args:
        name: "sdt", "tet", "tmc" or "trt" (of which a plain Trainer lacks the penalty on weights,
            `spikenlp.losses.trt_weight_penalty`, that SpikingTrainer adds); options: as in
            `get_temporal_loss`.
        several_labels: a sample may have several labels at once, labels [B, C] of zeros and ones
            (`spikenlp.training.several_labels`).

    >>> compute_loss = TemporalLossFunction("tmc", theta_weight="auto")
    >>> # Trainer(model=model, compute_loss_func=compute_loss, ...)
    """

    non_finite: Literal["raise", "nan"] = "raise"
    """What logits or labels that are not finite give: an error, or a NaN loss and gradient."""
    observer: Callable[[Tensor, Tensor], None] | None = None
    """Called with the logits and labels of each batch."""

    def __init__(self, name: str, *, several_labels: bool = False, **options: Any):
        self.loss = get_temporal_loss(name, **options)
        self.several_labels = several_labels
        self._joins_processes = options.get("theta_scope") == "global"

    def __call__(
        self, outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Of question answering `labels` are [B, 2], start and end (`spikenlp.training.spans`).

        Raises:
            ValueError: outputs without `timestep_logits`, no labels, or labels of another shape.
        """
        timestep_logits = timestep_logits_of(outputs)
        if timestep_logits is None:
            raise ValueError(
                "a temporal loss needs timestep_logits in the model's outputs, got "
                f"{sorted(outputs.keys())}. A collapsed model (config.collapsed=True) and a dense one "
                "give none to the Trainer: train these with their own loss (transformers' Trainer), and "
                "masked language models with MaskedLMTrainer"
            )
        if labels is None:
            raise ValueError("a temporal loss needs labels: the batch has no 'labels'")
        count = (labels != IGNORE_INDEX).sum()
        of_tokens = timestep_logits.dim() == 4
        if of_tokens and not self._joins_processes and not (labels != IGNORE_INDEX).any():
            return 0 * timestep_logits.sum()
        broken = None
        if self.non_finite == "nan":
            timestep_logits, labels, broken = _without_non_finite(timestep_logits, labels)
        if self.several_labels:
            labels = label_distributions(labels, timestep_logits.shape[-1])
            timestep_logits = label_logits(timestep_logits)
        if self.observer is not None:
            self.observer(timestep_logits.detach(), labels)
        loss = self.loss(timestep_logits, labels)
        if broken is not None:
            loss = loss * torch.where(broken, math.nan, 1.0)
        if num_items_in_batch is None:
            return loss
        return loss * count / num_items_in_batch


def timestep_logits_of(outputs: Any) -> Any:
    """[B, T, C], [B, T, L, C] of tokens and of the starts and ends of spans; None of a model that has none."""
    logits = outputs.get("timestep_logits")
    return span_logits(outputs) if logits is None else logits


def _without_non_finite(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [B, T, C] or [B, T, L, C] and labels with 0 for what is not finite, and whether a sample
    that counts had any: a boolean tensor, so that no device has to be asked."""
    bad_logits, bad_labels = ~logits.isfinite(), ~labels.isfinite()
    bad = bad_logits.any(-1).any(1)
    bad = bad | bad_labels.reshape(*bad.shape, -1).any(-1)
    counts = (labels != IGNORE_INDEX).reshape(*bad.shape, -1).any(-1)
    return (
        logits.masked_fill(bad_logits, 0),
        labels.masked_fill(bad_labels, 0),
        (bad & counts).any(),
    )
