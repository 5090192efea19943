"""GLUE's metrics against their definitions, without a hub."""

import math

import numpy as np
import pytest

from spikenlp.data import GLUE_TASKS, TOPIC_TASKS
from spikenlp.metrics import GlueMetric, glue_metrics

REFERENCES = np.array([0, 1, 1, 0, 1, 0, 0, 1])
PREDICTIONS = np.array([0, 1, 0, 0, 1, 1, 0, 0])
TP, FP, FN, TN = 2, 1, 2, 3
MCC = (TP * TN - FP * FN) / math.sqrt((TP + FP) * (TP + FN) * (TN + FP) * (TN + FN))
EXTRA = {"cola": {"mcc": MCC}, "qqp": {"f1": 2 * TP / (2 * TP + FP + FN)}}
EXTRA["mrpc"] = EXTRA["qqp"]


@pytest.mark.parametrize("task", sorted(set(GLUE_TASKS) - {"stsb"}))
def test_classification(task):
    expected = {"accuracy": 5 / 8, **EXTRA.get(task, {})}
    logits = np.eye(len(GLUE_TASKS[task].labels))[PREDICTIONS]
    assert glue_metrics(task)(logits, REFERENCES) == pytest.approx(expected)
    computed = GlueMetric(task).compute(predictions=PREDICTIONS, references=REFERENCES)
    assert computed == pytest.approx(expected)


@pytest.mark.parametrize("task", TOPIC_TASKS)
def test_topics_have_the_mean_f1_of_the_topics_that_occur(task):
    references = np.array([0, 0, 0, 1, 1, 4, 4, 6])
    predictions = np.array([0, 0, 1, 1, 1, 4, 5, 0])
    f1 = []
    for topic in (0, 1, 4, 5, 6):
        hits = sum((references == topic) & (predictions == topic))
        f1.append(2 * hits / (sum(references == topic) + sum(predictions == topic)))
    expected = {"accuracy": 5 / 8, "macro_f1": sum(f1) / 5}
    logits = np.eye(len(TOPIC_TASKS[task].labels))[predictions]
    assert glue_metrics(task)(logits, references) == pytest.approx(expected)
    computed = GlueMetric(task).compute(predictions=predictions, references=references)
    assert computed == pytest.approx(expected)


def test_correlations():
    x, y = np.array([1.0, 2.5, 2.0, 4.0]), np.array([0.0, 2.0, 3.0, 5.0])
    dx, dy = x - x.mean(), y - y.mean()
    pearson = (dx * dy).sum() / math.sqrt((dx**2).sum() * (dy**2).sum())
    ranks = 1 - 6 * 2 / (4 * 15)
    expected = {"pearson": pearson, "spearman": ranks}
    assert glue_metrics("stsb")(x[:, None], y) == pytest.approx(expected)
    assert GlueMetric("stsb").compute(predictions=x, references=y) == pytest.approx(expected)


def test_constant_predictions_correlate_with_nothing():
    scores = glue_metrics("stsb")(np.ones((3, 1)), np.array([1.0, 2.0, 3.0]))
    assert scores == {"pearson": 0.0, "spearman": 0.0}


def test_logits_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        glue_metrics("rte")(np.array([[0.0, np.nan]]), np.array([0]))


def test_what_has_no_label_is_left_out():
    logits = np.array([[0.0, 1.0], [0.0, 1.0], [2.0, 1.0]])
    assert glue_metrics("qqp")(logits, np.array([-100, 1, 0])) == {"accuracy": 1.0, "f1": 1.0}


@pytest.mark.parametrize(
    ("task", "shape", "labels", "message"),
    [
        ("sst2", (2, 3), [0, 1], "sst2 has 2 classes, the logits have 3"),
        ("stsb", (1, 1), [3.0], "stsb needs 2 labelled samples or more, got 1"),
        ("sst2", (2, 2), [-100, -100], "sst2 needs 1 labelled samples or more, got 0"),
    ],
)
def test_logits_and_labels_that_do_not_fit_the_task_are_named(task, shape, labels, message):
    with pytest.raises(ValueError, match=message):
        glue_metrics(task)(np.zeros(shape), np.array(labels))
