"""Several labels at once for temporal losses: each label is a token of two classes, absent and present.

A logit z becomes (0, z), whose cross entropy with (1 - y, y) is the binary cross entropy of z with y, so that a
loss is the mean over samples and labels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spikenlp.losses.temporal import require


def label_logits(logits: Tensor) -> Tensor:
    """[..., C, 2] of logits [..., C]."""
    return torch.stack([torch.zeros_like(logits), logits], -1)


def label_distributions(labels: Tensor, classes: int) -> Tensor:
    """[B, C, 2] of `labels` [B, C], for each class 1 where the sample has it, else 0, or a probability.

    Raises:
        ValueError: labels of another shape, or outside [0, 1].
    """
    if labels.dim() != 2 or labels.shape[1] != classes:
        raise ValueError(
            "several labels at once (problem_type='multi_label_classification') are one row of "
            f"{classes} zeros and ones a sample, got labels of shape {list(labels.shape)}"
        )
    labels = labels.float()
    require(
        ((labels >= 0) & (labels <= 1)).all(),
        "several labels at once must be zeros and ones (or probabilities): some lie outside [0, 1]",
    )
    return torch.stack([1 - labels, labels], -1)
