"""Masking for masked language modelling that a resumed run repeats."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DataCollatorForLanguageModeling

DRAWS = 1000
"""Of masks for a batch, until one masks something."""


@dataclass
class ReproducibleMasking(DataCollatorForLanguageModeling):
    """transformers' collator, whose draws depend on the batch, on `seed` and on the epoch of a training alone.

    A run that is resumed masks what the uninterrupted one does (the Trainer collates a batch ahead, so that
    the global generator of a checkpoint has moved on already), and each evaluation sees the same masks. In
    training by ResumableTrainer, SpikingTrainer and MaskedLMTrainer they change from epoch to epoch. At least one
    token of a batch is masked.

    >>> collate = ReproducibleMasking(tokenizer, mlm_probability=0.15, seed=0)
    >>> sorted(collate([blocks[0], blocks[1]]))
    ['attention_mask', 'input_ids', 'labels']

    Raises:
        ValueError: as transformers' collator; no `seed`; when called, a batch of special tokens only.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed is None:
            raise ValueError("seed must be an integer, got None")

    def torch_call(self, examples: list[Any]) -> dict[str, Any]:
        return self.in_epoch(examples, 0)

    def in_epoch(self, examples: list[Any], epoch: int) -> dict[str, Any]:
        """What a call gives in an epoch of training, from 0; the first is masked as in evaluation."""
        digest = (self.seed + 1_000_003 * epoch) % 2**32
        for example in examples:
            digest = zlib.crc32(torch.tensor(example["input_ids"]).numpy().tobytes(), digest)
        self.generator = torch.Generator().manual_seed(digest)
        for _ in range(DRAWS):
            batch = super().torch_call(examples)
            if (batch["labels"] != -100).any():
                return batch
        raise ValueError(
            f"nothing masked in {DRAWS} draws from a batch of {len(examples)}: it holds special tokens "
            f"only, or mlm_probability={self.mlm_probability} is too small"
        )
