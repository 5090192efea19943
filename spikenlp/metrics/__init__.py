"""Metrics of tasks and of calibration."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikenlp.metrics.alignment import LinearCKA
from spikenlp.metrics.calibration import (
    ReliabilityCurve,
    adaptive_calibration_error,
    brier_score,
    calibration_by_timestep,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_curve,
)
from spikenlp.metrics.timesteps import scores_by_timestep

if TYPE_CHECKING:
    from spikenlp.metrics.embeddings import accuracy_at, nearest, recall_at, similarity_correlation
    from spikenlp.metrics.glue import GlueMetric, glue_metrics

__all__ = [
    "GlueMetric",
    "LinearCKA",
    "ReliabilityCurve",
    "accuracy_at",
    "adaptive_calibration_error",
    "brier_score",
    "calibration_by_timestep",
    "expected_calibration_error",
    "glue_metrics",
    "metric_path",
    "nearest",
    "negative_log_likelihood",
    "recall_at",
    "reliability_curve",
    "scores_by_timestep",
    "similarity_correlation",
]


def metric_path(name: str) -> str:
    """Folder of the `evaluate` module "ece" or "ada_ece", to be loaded without a hub.

    Raises:
        ValueError: an unknown name.

    >>> import evaluate
    >>> ece = evaluate.load(metric_path("ece"))
    >>> ece.compute(predictions=[[1.0, 0.0], [1.0, 0.0]], references=[0, 1], bins=10)
    {'ece': 0.5}
    """
    if name not in ("ece", "ada_ece"):
        raise ValueError(f"unknown metric {name!r}: choose 'ece' or 'ada_ece'")
    return str(Path(__file__).parent / name)


def __getattr__(name: str) -> Any:
    # Those of tasks are imported on first use: with them come scikit-learn, pandas and datasets.
    if name in ("GlueMetric", "glue_metrics"):
        from spikenlp.metrics import glue

        return getattr(glue, name)
    if name in __all__:
        from spikenlp.metrics import embeddings

        return getattr(embeddings, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
