"""Metrics of GLUE, of topic classification and of one's own data, as an `evaluate` module that needs no hub, and
for the Trainer.

Accuracy for every classification; F1 of class 1 beside it for MRPC and QQP; Matthews correlation
(MCC) beside it for CoLA; macro F1 beside it for topics: the mean of F1 over the topics that occur among
references or predictions; Pearson and Spearman correlation for STS-B. Of one's own data with several labels at
once a label is predicted where its logit is above 0, and subset accuracy is the share of texts with all labels right;
of tokens each labelled one counts, and where the labels are entity tags (B-PER, I-PER, O) there is entity F1.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.stats import ConstantInputWarning, pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from spikenlp.data.tasks import TextTask, get_task
from spikenlp.losses.temporal import IGNORE_INDEX
from spikenlp.metrics.entities import entity_f1


class GlueMetric(evaluate.Metric):
    """Scores of one task: `GlueMetric("qqp").compute(predictions=[0, 1], references=[0, 1])`.

    `predictions` and `references` are class ids, for "stsb" numbers. All scores lie in [-1, 1].
    """

    def __init__(self, task_name: str, **kwargs: Any):
        super().__init__(config_name=get_task(task_name).name, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        value = "float32" if get_task(self.config_name).labels is None else "int64"
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="Wang et al., GLUE, ICLR 2019",
            features=datasets.Features(
                {"predictions": datasets.Value(value), "references": datasets.Value(value)}
            ),
            format="numpy",
        )

    def _compute(self, *, predictions: Any, references: Any) -> dict[str, float]:
        return _scores(get_task(self.config_name), np.asarray(predictions), np.asarray(references))


def glue_metrics(task: str | TextTask) -> Callable[[np.ndarray, np.ndarray], dict[str, float]]:
    """Scores of a task as a function of logits [N, C] and labels [N], -100 of which are left out; of tokens of
    logits [N, L, C] and labels [N, L]; of several labels at once of zeros and ones [N, C].

    Raises:
        ValueError: an unknown task; when called, logits that are not finite, of another number of classes
            than the task has, no labels, or for a correlation fewer than two.
    """
    task = get_task(task) if isinstance(task, str) else task
    classes, fewest = (1, 2) if task.labels is None else (len(task.labels), 1)

    def metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        if not np.isfinite(logits).all():
            raise ValueError(f"{task.name}: the logits contain NaN or infinity")
        if task.kind == "several_labels" and np.shape(labels) == logits.shape:
            return _scores(task, (logits > 0).astype(int), np.asarray(labels).astype(int))
        sentences = np.asarray(labels)
        labels = sentences.reshape(-1)
        logits = logits.reshape(len(labels), -1)
        if logits.shape[1] != classes:
            raise ValueError(
                f"{task.name} has {classes} classes, the logits have {logits.shape[1]}"
            )
        kept = labels != IGNORE_INDEX
        if kept.sum() < fewest:
            raise ValueError(
                f"{task.name} needs {fewest} labelled samples or more, got {kept.sum()}"
            )
        logits, labels = logits[kept], labels[kept]
        predictions = logits[:, 0] if task.labels is None else logits.argmax(1)
        if "entity_f1" not in task.metrics:
            return _scores(task, predictions, labels)
        ends = np.cumsum((sentences != IGNORE_INDEX).sum(1))[:-1]
        tags = (np.split(np.array(task.labels)[x], ends) for x in (predictions, labels))
        of_tokens = _scores(task, predictions, labels, without=("entity_f1",))
        predicted, given = ([list(map(str, row)) for row in rows] for rows in tags)
        return {**of_tokens, "entity_f1": entity_f1(given, predicted)}

    return metrics


def _macro_f1(references: np.ndarray, predictions: np.ndarray) -> float:
    if references.ndim == 2:  # several labels at once
        occur = (references | predictions).any(0)
        if not occur.any():
            return 0.0
        references, predictions = references[:, occur], predictions[:, occur]
    return f1_score(references, predictions, average="macro", zero_division=0.0)


def _micro_f1(references: np.ndarray, predictions: np.ndarray) -> float:
    return f1_score(references, predictions, average="micro", zero_division=0.0)


def _f1(references: np.ndarray, predictions: np.ndarray) -> float:
    return f1_score(references, predictions, zero_division=0.0)


def _correlation(function: Callable[..., Any], x: np.ndarray, y: np.ndarray) -> float:
    """Of constant predictions 0, as MCC has it, where the formula gives 0 / 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        correlation = float(function(x, y).statistic)
    return 0.0 if np.isnan(correlation) else correlation


SCORES: dict[str, Callable[[Any, Any], float]] = {
    "accuracy": accuracy_score,
    "entity_f1": entity_f1,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "micro_f1": _micro_f1,
    "subset_accuracy": accuracy_score,
    "mcc": matthews_corrcoef,
    "pearson": lambda y, x: _correlation(pearsonr, x, y),
    "spearman": lambda y, x: _correlation(spearmanr, x, y),
}
"""Name -> score of (references, predictions)."""


def _scores(
    task: TextTask, predictions: np.ndarray, references: np.ndarray, without: Sequence[str] = ()
) -> dict[str, float]:
    names = [name for name in task.metrics if name not in without]
    return {name: float(SCORES[name](references, predictions)) for name in names}
