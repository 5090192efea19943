"""The bridge from a temporal loss to a Trainer's `compute_loss_func`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from spikenlp.losses import get_temporal_loss
from spikenlp.losses.temporal import IGNORE_INDEX


class TemporalLossFunction:
    """A temporal loss in the form that transformers' plain Trainer takes.

    The mean over this micro-batch is weighted by its share of `num_items_in_batch`, so that
    accumulated or distributed batches give the gradient of one large batch (for SDT, TET and
    TMC-sample exactly; TMC-batch takes its odds within each micro-batch, with theta_scope="global" in
    those of all processes).

    Args:
        name: "sdt", "tet" or "tmc"; options: as in `get_temporal_loss`.

    >>> compute_loss = TemporalLossFunction("tmc", theta_weight="auto")
    >>> # Trainer(model=model, compute_loss_func=compute_loss, ...)
    """

    def __init__(self, name: str, **options: Any):
        self.loss = get_temporal_loss(name, **options)

    def __call__(
        self, outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Raises ValueError: outputs without `timestep_logits`, or no labels."""
        timestep_logits = outputs.get("timestep_logits")
        if timestep_logits is None:
            raise ValueError(
                "a temporal loss needs timestep_logits in the model's outputs, got "
                f"{sorted(outputs.keys())}. A collapsed model (config.collapsed=True), a dense one, "
                "and the head for question answering give none to the Trainer: train these with "
                "their own loss (transformers' Trainer), and masked language models with "
                "MaskedLMTrainer"
            )
        if labels is None:
            raise ValueError("a temporal loss needs labels: the batch has no 'labels'")
        loss = self.loss(timestep_logits, labels)
        if num_items_in_batch is None:
            return loss
        return loss * (labels != IGNORE_INDEX).sum() / num_items_in_batch
