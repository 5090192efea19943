"""Sentences without labels; duplicates of duplicates."""

import random

import pytest
from datasets import Dataset

from spikenlp.data import DuplicateQuestions, distinct_sentences


def test_each_sentence_comes_once_and_those_held_out_not_at_all():
    splits = [
        Dataset.from_dict({"sentence1": ["A", "B ", "A"], "sentence2": ["C", "", "D"], "label": [0.0] * 3}),
        Dataset.from_dict({"sentence1": ["E"], "sentence2": ["B"], "label": [0.0]}),
    ]  # fmt: skip
    assert distinct_sentences("stsb", splits) == ["A", "B", "C", "D", "E"]
    assert distinct_sentences("STS-B", splits, without=["d ", "a"]) == ["B", "C", "E"]


def reached(start, links):
    """All that is linked to `start`, one link after another."""
    seen, todo = {start}, [start]
    while todo:
        at = todo.pop()
        for a, b in links:
            for here, there in ((a, b), (b, a)):
                if here == at and there not in seen:
                    seen.add(there)
                    todo.append(there)
    return seen - {start}


def test_duplicates_of_duplicates_are_relevant():
    draw = random.Random(0)
    pairs = [(f"q{draw.randrange(40)}", f"q{draw.randrange(40)}") for _ in range(60)]
    labels = [draw.randrange(2) for _ in pairs]
    first, second = zip(*pairs, strict=True)
    found = DuplicateQuestions.from_pairs(first, second, labels)
    assert len(set(found.questions)) == len(found.questions)
    assert set(found.questions) == {*first, *second}
    links = [pair for pair, same in zip(pairs, labels, strict=True) if same]
    named = {
        found.questions[query]: {found.questions[i] for i in relevant}
        for query, relevant in found.relevant.items()
    }
    assert named == {a: reached(a, links) for a, b in links if a != b}
    assert any(len(relevant) > 2 for relevant in named.values())


def test_pairs_without_a_duplicate_are_refused():
    with pytest.raises(ValueError, match="no pair is a duplicate"):
        DuplicateQuestions.from_pairs(["a", "b"], ["c", "b"], [0, 1])
    with pytest.raises(ValueError, match=r"first \(1\) as second \(2\) questions and labels \(1\)"):
        DuplicateQuestions.from_pairs(["a"], ["b", "c"], [1])
