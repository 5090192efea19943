"""Entity F1: published examples, and what begins and ends an entity."""

import numpy as np
import pytest

from spikenlp.data.own import OwnTask
from spikenlp.metrics import glue_metrics
from spikenlp.metrics.entities import are_entity_tags, entities_in, entity_f1


def test_the_example_of_seqeval():
    """Of seqeval's README: F1 0.50."""
    given = [
        ["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"],
        ["B-PER", "I-PER", "O"],
    ]
    predicted = [
        ["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"],
        ["B-PER", "I-PER", "O"],
    ]
    assert entity_f1(given, predicted) == 0.5


@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        ("B-A B-A", {("A", 0, 1), ("A", 1, 2)}),
        ("B-A I-A I-B", {("A", 0, 2), ("B", 2, 3)}),
        ("I-A I-A O I-A", {("A", 0, 2), ("A", 3, 4)}),
        ("O O", set()),
        ("B-per-son I-per-son", {("per-son", 0, 2)}),
    ],
)
def test_where_entities_begin_and_end(tags, entities):
    assert entities_in(tags.split()) == entities


def test_which_labels_are_tags_of_entities():
    assert are_entity_tags(["O", "B-PER", "I-PER"])
    assert not are_entity_tags(["O"])
    assert not are_entity_tags(["O", "B-PER", "NOUN"])
    assert entity_f1([["O"]], [["O"]]) == 0.0


def test_tokens_without_a_label_belong_to_no_word():
    """The second sentence is one word shorter, and each word's further tokens have no label."""
    task = OwnTask(("words",), ("O", "B-X", "I-X"), kind="tokens")
    labels = np.array([[-100, 1, -100, 2, 0], [-100, 0, 1, -100, -100]])
    right = np.eye(3)[np.maximum(labels, 0)]
    found = glue_metrics(task)(right, labels)
    assert found == {"accuracy": 1.0, "macro_f1": 1.0, "entity_f1": 1.0}
    wrong = right.copy()
    wrong[0, 2] = wrong[1, 3] = [0.0, 0.0, 5.0]  # tokens without a label
    assert glue_metrics(task)(wrong, labels) == found
    wrong[0, 3] = [5.0, 0.0, 0.0]  # the first entity is too short
    found = glue_metrics(task)(wrong, labels)
    assert found["entity_f1"] == 0.5
    assert found["accuracy"] == 0.8


def test_several_labels_are_right_together_or_one_by_one():
    task = OwnTask(("text",), ("a", "b"), kind="several_labels")
    logits, labels = np.array([[2.0, -1.0], [1.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    found = glue_metrics(task)(logits, labels)
    assert found == pytest.approx(
        {"subset_accuracy": 0.5, "micro_f1": 0.8, "macro_f1": (2 / 3 + 1) / 2}
    )


def test_labels_that_occur_nowhere_are_left_out_of_macro_f1():
    task = OwnTask(("text",), ("a", "b", "c"), kind="several_labels")
    labels = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    found = glue_metrics(task)(labels - 0.5, labels)
    assert found == {"subset_accuracy": 1.0, "micro_f1": 1.0, "macro_f1": 1.0}
    assert glue_metrics(task)(labels - 2, 0 * labels)["macro_f1"] == 0.0
