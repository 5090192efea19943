"""Batches whose random parts, augmentation say, do not depend on what was drawn before.

A loader draws ahead of the step that is trained, and its workers are seeded anew when a run resumes: what a
sample looks like would depend on when, and in which process, it was drawn. Here the numbers of a batch come
from the seed, the epoch and the indices of its samples alone.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from spikenlp.data.masking import ReproducibleMasking


def draws_samples(data: Any) -> bool:
    """Whether samples are drawn by their indices, so that what is random in them and in their collator may be too."""
    return hasattr(data, "__len__") and not isinstance(data, IterableDataset)


class Indices(Dataset):
    """Stands for a data set where only indices are wanted: `[i]` is i."""

    def __init__(self, data: Any):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> int:
        return index


class CollatorOfEpoch(TrainerCallback):
    """A collator that, as a callback, knows the epoch, which processes that load share."""

    def __init__(self) -> None:
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self._epoch.fill_(int(state.epoch or 0))


class MaskedByEpoch(CollatorOfEpoch):
    """`masking`, otherwise in each epoch."""

    def __init__(self, masking: ReproducibleMasking):
        super().__init__()
        self.masking = masking

    def __call__(self, examples: list[Any]) -> Any:
        return self.masking.in_epoch(examples, int(self._epoch))


class SeededBatches(CollatorOfEpoch):
    """A collator of indices: takes the samples and collates them, torch, numpy and `random` seeded for that."""

    def __init__(self, data: Any, collator: Callable[[list[Any]], Any], seed: int):
        super().__init__()
        self.data, self.collator, self.seed = data, collator, seed

    def __call__(self, indices: Sequence[int]) -> Any:
        drawn_from = np.array([self.seed, int(self._epoch), *indices], np.int64)
        with seeded(zlib.crc32(drawn_from.tobytes())):
            several = getattr(self.data, "__getitems__", None)
            return self.collator(
                [self.data[index] for index in indices]
                if several is None
                else several(list(indices))
            )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """In here torch (on the CPU), numpy and `random` draw from `seed`; outside as if nothing had been drawn."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
