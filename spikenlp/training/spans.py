"""Question answering for temporal losses: start and end are two tokens whose classes are the positions.

Logits [B, T, 2, L] and labels [B, 2] are what `spikenlp.losses` take of tokens, so that a loss is the mean
over starts and ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spikenlp.losses.temporal import IGNORE_INDEX

POSITIONS = ("start_positions", "end_positions")
TIMESTEP_LOGITS = ("timestep_start_logits", "timestep_end_logits")


def span_logits(outputs: Any) -> Tensor | None:
    """[B, T, 2, L] of a model's outputs, None where it has none."""
    found = [outputs.get(name) for name in TIMESTEP_LOGITS]
    return None if None in found else torch.stack(found, 2)


def span_labels(positions: Sequence[Tensor], length: int) -> Tensor:
    """Labels [B, 2] of start and end positions [B]; as in transformers' heads those beyond the sequence are
    ignored (-100), and those below 0 are 0."""
    labels = torch.stack([p.reshape(-1) for p in positions], 1).clamp_min(0)
    return labels.where(labels < length, IGNORE_INDEX)


class SpansAsLabels:
    """A data collator that makes `labels` of start and end positions."""

    def __init__(self, collator: Any):
        self.collator = collator

    def __call__(self, rows: Sequence[Any]) -> Any:
        batch = self.collator(rows)
        if all(name in batch for name in POSITIONS):
            found = [batch.pop(name) for name in POSITIONS]
            batch["labels"] = span_labels(found, batch["input_ids"].shape[1])
        return batch
