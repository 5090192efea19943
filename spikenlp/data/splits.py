"""A validation set out of a training set, where a benchmark has none."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np


def carve_validation(
    labels: Sequence[int],
    fraction: float,
    *,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> tuple[list[int], list[int]]:
    """Indices of what is left to train on, and of `fraction` of the samples to validate on.

    Without groups the same share of each class is drawn (at least one of it where it has two or
    more). With groups (a subject or a recording) whole groups are drawn until the fraction is
    reached, so that no group is on both sides.

    Raises:
        ValueError: a fraction outside (0, 1), groups of another length, nothing left on one side.

    >>> carve_validation([0, 0, 1, 1], 0.5)
    ([1, 2], [0, 3])
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the validation fraction must lie in (0, 1), got {fraction}")
    classes = np.asarray(list(labels))  # once: a column of a data set reads its rows each time
    generator = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), bool)
    if groups is None or len(set(groups)) == len(groups) == len(labels):
        for label in np.unique(classes):
            members = np.flatnonzero(classes == label)
            wanted = max(round(fraction * len(members)), 1) if len(members) > 1 else 0
            chosen[generator.permutation(members)[:wanted]] = True
    elif len(groups) != len(labels):
        raise ValueError(f"groups must have one entry a label, got {len(groups)}, {len(labels)}")
    else:
        names = list(dict.fromkeys(groups))
        number = {name: i for i, name in enumerate(names)}
        of_sample = np.array([number[group] for group in groups])
        for group in generator.permutation(len(names)):
            if chosen.sum() >= fraction * len(labels):
                break
            chosen |= of_sample == group
    if chosen.all() or not chosen.any():
        raise ValueError(
            f"{fraction} of {len(labels)} samples leaves {len(labels) - chosen.sum()} to train and "
            f"{chosen.sum()} to validate on"
        )
    return np.flatnonzero(~chosen).tolist(), np.flatnonzero(chosen).tolist()
