"""Calibration: how far a classifier's confidence is from its accuracy, also at every time step.

With p the probabilities of a sample, y its label, conf = max_c p_c, correct = 1 where
argmax_c p_c = y (else 0), and B_1 ... B_bins a partition of the N samples:

    ECE     sum_b |B_b| / N * |mean_{B_b}(correct) - mean_{B_b}(conf)|, over bins of equal width,
            conf in ((b - 1) / bins, b / bins]                         Guo et al., ICML 2017
    AdaECE  the same over bins of equal mass, N / bins samples each in the order of conf
                      Nguyen & O'Connor, EMNLP 2015; Nixon et al., CVPR Workshops 2019
    Brier   mean_N sum_c (p_c - [c = y]) ** 2                 Brier, Monthly Weather Review 1950
    NLL     mean_N -log p_y

Both calibration errors are of the predicted class (Nixon et al. also average over all classes).
Every function takes numpy arrays or torch tensors of any floating dtype, computes in float64 and
leaves out the samples whose label is -100.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax, softmax
from torch import Tensor

from spikenlp.losses.temporal import IGNORE_INDEX

Array = np.ndarray | Tensor

SUM_TOLERANCE = 1e-2
"""How far a row of probabilities may be from the sum 1: what a softmax in bfloat16 needs."""


@dataclass(frozen=True)
class ReliabilityCurve:
    """Accuracy against confidence; bin b is (edges[b], edges[b + 1]].

    Attributes:
        edges: [bins + 1], from 0 to 1.
        confidence: [bins], the mean in each bin, in [0, 1]; NaN in an empty bin.
        accuracy: [bins], likewise.
        count: int64 [bins], samples.
    """

    edges: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray


def reliability_curve(probabilities: Array, labels: Array, *, bins: int = 15) -> ReliabilityCurve:
    """Accuracy and mean confidence in `bins` bins of equal width (a reliability diagram).

    Args, Raises: as `expected_calibration_error`.

    >>> p = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]])
    >>> reliability_curve(p, np.array([0, 1, 1]), bins=4).count
    array([0, 0, 1, 2])
    """
    confidence, correct = _confidence(probabilities, labels, bins)
    edges = np.arange(bins + 1) / bins
    bin_of = np.searchsorted(edges[1:-1], confidence)
    count = np.bincount(bin_of, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence, accuracy = (
            np.bincount(bin_of, x, minlength=bins) / count for x in (confidence, correct)
        )
    return ReliabilityCurve(edges, mean_confidence, accuracy, count)


def expected_calibration_error(probabilities: Array, labels: Array, *, bins: int = 15) -> float:
    """ECE over bins of equal width (Guo et al., ICML 2017).

    Args:
        probabilities: p, [N, C] with C >= 2, rows that sum to 1.
        labels: y, integers [N] in [0, C), -100 is ignored.
        bins: >= 1.

    Returns:
        In [0, 1]; 0 is calibrated.

    Raises:
        ValueError: shapes that do not fit, labels out of range or all -100, NaN, rows that are not
            probabilities, `bins` < 1.

    >>> expected_calibration_error(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1]))
    0.5
    """
    curve = reliability_curve(probabilities, labels, bins=bins)
    gaps = np.abs(curve.accuracy - curve.confidence)
    return float(np.nansum(curve.count * gaps) / curve.count.sum())


def adaptive_calibration_error(probabilities: Array, labels: Array, *, bins: int = 15) -> float:
    """AdaECE, over bins of equal mass (Nguyen & O'Connor, EMNLP 2015; Nixon et al., 2019).

    The samples, sorted by confidence, are cut into `bins` groups whose sizes differ by at most one.
    Where a cut goes through samples of equal confidence, each of them counts as correct to the
    extent that they are on average: the result does not depend on the order of the samples.

    Args, Returns, Raises: as `expected_calibration_error`.

    >>> p = np.array([[0.8, 0.2]] * 4)
    >>> round(adaptive_calibration_error(p, np.array([0, 0, 1, 1]), bins=2), 6)
    0.3
    """
    confidence, correct = _confidence(probabilities, labels, bins)
    values, value_of, count = np.unique(confidence, return_inverse=True, return_counts=True)
    accuracy = np.bincount(value_of, correct) / count
    gaps = np.repeat(accuracy - values, count)
    return float(sum(abs(group.sum()) for group in np.array_split(gaps, bins)) / len(gaps))


def brier_score(probabilities: Array, labels: Array) -> float:
    """Squared error of the probabilities, summed over classes (Brier, 1950).

    Args, Raises: as `expected_calibration_error`.

    Returns:
        In [0, 2]; 0 is sure and right, 1 - 1 / C is uniform.

    >>> brier_score(np.array([[0.5, 0.5], [0.5, 0.5]]), np.array([0, 1]))
    0.5
    """
    p, y = _probabilities(probabilities, labels)
    return float(np.square(p - np.eye(p.shape[1])[y]).sum(1).mean())


def negative_log_likelihood(logits: Array, labels: Array) -> float:
    """Mean of -log softmax(logits)[y]: the cross entropy.

    Args:
        logits: [N, C] with C >= 2.
        labels: y, integers [N] in [0, C), -100 is ignored.

    Returns:
        In nats, >= 0.

    Raises:
        ValueError: shapes that do not fit, labels out of range or all -100, NaN or infinite logits.

    >>> negative_log_likelihood(np.array([[1000.0, 0.0]]), np.array([1]))
    1000.0
    """
    z, y = _kept("logits", logits, labels, "NC")
    return float(-log_softmax(z, axis=1)[np.arange(len(y)), y].mean())


def calibration_by_timestep(
    timestep_logits: Array, labels: Array, *, bins: int = 15
) -> dict[str, float]:
    """Accuracy and calibration at every time step, of softmax(mean of the logits of steps 1 ... t).

    Args:
        timestep_logits: [B, T, C] with C >= 2.
        labels: integers [B] in [0, C), -100 is ignored.
        bins: of the calibration errors, >= 1.

    Returns:
        `accuracy_t1` ... `accuracy_tT`, likewise `ece_t*`, `ada_ece_t*`, `nll_t*`, `brier_t*` and
        `confidence_t*`, and each of them without `_t*`, which is that of step T. `confidence` is the mean
        of max_c p_c: above the accuracy the model is overconfident, below it underconfident.

    Raises:
        ValueError: as `negative_log_likelihood`; `bins` < 1.

    >>> scores = calibration_by_timestep(np.zeros((2, 3, 2)), np.array([0, 1]))
    >>> scores["ece_t1"], scores["brier"]
    (0.0, 0.5)
    """
    z, y = _kept("timestep_logits", timestep_logits, labels, "BTC")
    by_step: dict[str, float] = {}
    for t in range(1, z.shape[1] + 1):
        logits = z[:, :t].mean(1)
        probabilities = softmax(logits, axis=1)
        scores = {
            "accuracy": float((probabilities.argmax(1) == y).mean()),
            "ece": expected_calibration_error(probabilities, y, bins=bins),
            "ada_ece": adaptive_calibration_error(probabilities, y, bins=bins),
            "nll": negative_log_likelihood(logits, y),
            "brier": brier_score(probabilities, y),
            "confidence": float(probabilities.max(1).mean()),
        }
        by_step |= {f"{name}_t{t}": score for name, score in scores.items()}
    return scores | by_step


def _confidence(probabilities: Array, labels: Array, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Confidence [N] of the predicted class, and whether it is the label [N]."""
    if not isinstance(bins, (int, np.integer)) or bins < 1:
        raise ValueError(f"bins must be an integer >= 1, got {bins!r}")
    p, y = _probabilities(probabilities, labels)
    return p.max(1), p.argmax(1) == y


def _probabilities(probabilities: Array, labels: Array) -> tuple[np.ndarray, np.ndarray]:
    p, y = _kept("probabilities", probabilities, labels, "NC")
    sums = p.sum(1)
    worst = np.abs(sums - 1).argmax()
    if p.min() < 0 or abs(sums[worst] - 1) > SUM_TOLERANCE:
        raise ValueError(
            f"probabilities must be >= 0 and each row sum to 1, got a minimum of {p.min():g} and a "
            f"row that sums to {sums[worst]:g}: apply softmax to logits"
        )
    return p, y


def _kept(name: str, values: Array, labels: Array, axes: str) -> tuple[np.ndarray, np.ndarray]:
    """Checked values in float64 and labels in int64, without the samples labelled -100."""
    x, y = to_numpy(values).astype(np.float64), to_numpy(labels)
    expected = f"[{', '.join(axes)}]"
    if x.ndim != len(axes) or x.shape[-1] < 2 or 0 in x.shape:
        raise ValueError(
            f"{name} must have shape {expected}, not empty and with C >= 2, got {x.shape}"
        )
    if y.shape != x.shape[:1]:
        raise ValueError(
            f"labels of shape {y.shape} do not fit {name} of shape {x.shape}: expected {x.shape[:1]}"
        )
    if not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"labels must be integers, got {y.dtype}")
    kept = y != IGNORE_INDEX
    if not kept.any():
        raise ValueError(f"no sample to evaluate: all labels are {IGNORE_INDEX}")
    x, y = x[kept], y[kept].astype(np.int64)
    if not np.isfinite(x).all():
        raise ValueError(f"{name} contain NaN or infinity")
    if y.min() < 0 or y.max() >= x.shape[-1]:
        raise ValueError(
            f"labels must lie in [0, {x.shape[-1]}), or be {IGNORE_INDEX} to be ignored, got "
            f"{y.min()} ... {y.max()}"
        )
    return x, y


def to_numpy(values: Array) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    return np.asarray(values)
