"""Validation sets: disjoint, stratified or by group, the same for a seed."""

from collections import Counter

import pytest

from spikenlp.data import carve_validation


def test_without_groups_each_class_gives_its_share():
    labels = [0] * 50 + [1] * 20 + [2] * 3 + [3]
    train, validation = carve_validation(labels, 0.1, seed=3)
    assert sorted(train + validation) == list(range(74))
    assert Counter(labels[i] for i in validation) == {0: 5, 1: 2, 2: 1}
    assert carve_validation(labels, 0.1, seed=3) == (train, validation)
    assert carve_validation(labels, 0.1, seed=4) != (train, validation)


def test_labels_are_read_once():
    class Column(list):
        reads = 0

        def __iter__(self):
            self.reads += 1
            return super().__iter__()

    labels = Column(i % 20 for i in range(100))
    assert carve_validation(labels, 0.2) == carve_validation(list(labels), 0.2)
    assert labels.reads == 2, "one of them is the line above"


def test_with_groups_no_group_is_on_both_sides():
    groups = [f"user{i // 12}" for i in range(120)]
    labels = [i % 12 for i in range(120)]
    train, validation = carve_validation(labels, 0.15, groups=groups)
    assert sorted(train + validation) == list(range(120))
    assert not {groups[i] for i in train} & {groups[i] for i in validation}
    assert len(validation) == 24, "the first whole number of groups at or above 18"


def test_groups_of_one_sample_are_stratified():
    labels = [0] * 50 + [1] * 50
    assert carve_validation(labels, 0.1, groups=list(range(100))) == carve_validation(labels, 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 1], 0.0), r"must lie in \(0, 1\), got 0.0"),
        (([0, 0], 0.5, ["a"]), "one entry a label, got 1, 2"),
        (([0, 1], 0.5), "leaves 2 to train and 0 to validate"),
        (([0, 0, 1], 0.5, ["a", "a", "a"]), "leaves 0 to train"),
    ],
)
def test_what_cannot_be_carved_is_refused(arguments, message):
    labels, fraction, *groups = arguments
    with pytest.raises(ValueError, match=message):
        carve_validation(labels, fraction, groups=groups[0] if groups else None)
