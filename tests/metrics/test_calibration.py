"""Calibration against loops in float64, sklearn and cases whose answer is known."""

import evaluate
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.calibration import calibration_curve
from transformers import EvalPrediction

from spikenlp.metrics import (
    adaptive_calibration_error,
    brier_score,
    calibration_by_timestep,
    expected_calibration_error,
    metric_path,
    negative_log_likelihood,
    reliability_curve,
)
from spikenlp.training.trainer import TimestepMetrics


def sample(n=400, classes=3, seed=0, scale=2.0):
    rng = np.random.default_rng(seed)
    logits = scale * rng.standard_normal((n, classes))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return p, rng.integers(classes, size=n)


def ece_by_hand(p, labels, bins):
    total = 0.0
    for b in range(bins):
        inside = [
            (row.max(), row.argmax() == y)
            for row, y in zip(p, labels, strict=True)
            if b / bins < row.max() <= (b + 1) / bins
        ]
        if inside:
            confidence = sum(c for c, _ in inside) / len(inside)
            accuracy = sum(right for _, right in inside) / len(inside)
            total += len(inside) / len(p) * abs(confidence - accuracy)
    return total


def ada_ece_by_hand(p, labels, bins):
    pairs = sorted((row.max(), row.argmax() == y) for row, y in zip(p, labels, strict=True))
    sizes = [len(pairs) // bins + (b < len(pairs) % bins) for b in range(bins)]
    total, start = 0.0, 0
    for size in sizes:
        part = pairs[start : start + size]
        start += size
        total += abs(sum(c for c, _ in part) - sum(right for _, right in part))
    return total / len(pairs)


@pytest.mark.parametrize("bins", [1, 10, 15, 37])
@pytest.mark.parametrize("classes", [2, 7])
def test_against_a_loop(bins, classes):
    p, labels = sample(classes=classes)
    found = expected_calibration_error(p, labels, bins=bins)
    assert found == pytest.approx(ece_by_hand(p, labels, bins), abs=1e-12)
    found = adaptive_calibration_error(p, labels, bins=bins)
    assert found == pytest.approx(ada_ece_by_hand(p, labels, bins), abs=1e-12)


def test_against_sklearn():
    p, labels = sample(classes=2)
    correct = p.argmax(1) == labels
    accuracy, confidence = calibration_curve(correct, p.max(1), n_bins=15)
    curve = reliability_curve(p, labels)
    filled = curve.count > 0
    np.testing.assert_allclose(curve.accuracy[filled], accuracy)
    np.testing.assert_allclose(curve.confidence[filled], confidence)
    assert curve.count.sum() == len(p)


def test_uniform_predictions_at_chance_are_calibrated():
    p, labels = np.full((60, 3), 1 / 3), np.repeat([0, 1, 2], 20)
    assert expected_calibration_error(p, labels) == pytest.approx(0)
    assert adaptive_calibration_error(p, labels) == pytest.approx(0)


def test_always_sure_and_half_right():
    p, labels = np.tile([1.0, 0.0], (40, 1)), np.tile([0, 1], 20)
    assert expected_calibration_error(p, labels) == 0.5
    assert adaptive_calibration_error(p, labels) == 0.5
    assert brier_score(p, labels) == 1.0
    assert brier_score(p, np.zeros(40, dtype=int)) == 0.0


def test_the_edge_of_a_bin_belongs_to_the_bin_below():
    p = [[0.6, 0.4]] * 5
    assert reliability_curve(p, [0] * 5, bins=5).count.tolist() == [0, 0, 5, 0, 0]


def test_the_order_of_samples_does_not_matter():
    p, labels = sample()
    p = p.round(1)  # ties
    p[:, 0] += 1 - p.sum(1)
    p = np.abs(p) / np.abs(p).sum(1, keepdims=True)
    shuffled = np.random.default_rng(1).permutation(len(p))
    for metric in (expected_calibration_error, adaptive_calibration_error, brier_score):
        assert metric(p[shuffled], labels[shuffled]) == pytest.approx(metric(p, labels), abs=1e-12)


def test_likelihood_and_brier_score_against_torch():
    logits = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 4
    expected = F.cross_entropy(1000 * logits, labels).item()
    assert negative_log_likelihood(1000 * logits, labels) == pytest.approx(expected)
    p = logits.softmax(-1)
    expected = (p - F.one_hot(labels, 4)).square().sum(1).mean().item()
    assert brier_score(p, labels) == pytest.approx(expected)


def test_each_step_is_judged_by_the_running_mean():
    z = np.random.default_rng(0).standard_normal((60, 3, 4))
    labels = np.arange(60) % 4
    found = calibration_by_timestep(z, labels)
    for t in (1, 2, 3):
        mean = torch.tensor(z[:, :t].mean(1))
        p = mean.softmax(-1).numpy()
        assert found[f"ece_t{t}"] == pytest.approx(ece_by_hand(p, labels, 15))
        assert found[f"nll_t{t}"] == pytest.approx(
            F.cross_entropy(mean, torch.tensor(labels)).item()
        )
    for name in ("ece", "ada_ece", "nll", "brier"):
        assert found[name] == found[f"{name}_t3"]


def test_ignored_labels_are_left_out():
    p, labels = sample(20)
    ignored = np.append(labels, [-100, -100])
    more = np.concatenate([p, p[:2]])
    assert expected_calibration_error(more, ignored) == expected_calibration_error(p, labels)


@pytest.mark.parametrize("name", ["ece", "ada_ece"])
def test_evaluate_loads_the_modules_from_disk(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path))
    p, labels = sample(50)
    metric = evaluate.load(metric_path(name), cache_dir=str(tmp_path))
    function = {"ece": expected_calibration_error, "ada_ece": adaptive_calibration_error}[name]
    found = metric.compute(predictions=p, references=labels, bins=7)
    assert found == {name: pytest.approx(function(p, labels, bins=7))}


def test_the_trainer_reports_calibration_of_classes_only():
    z = np.random.default_rng(0).standard_normal((30, 4, 3)).astype(np.float32)
    labels = np.arange(30) % 3
    found = TimestepMetrics(None)(EvalPrediction((z.mean(1), z), labels))
    assert calibration_by_timestep(z, labels).items() <= found.items()
    targets = z[:, 0, 0]
    regression = TimestepMetrics(None)(EvalPrediction((z[..., :1].mean(1), z[..., :1]), targets))
    assert not any("ece" in name for name in regression)


@pytest.mark.parametrize(
    ("p", "labels", "bins", "message"),
    [
        ([[2.0, -1.0]], [0], 15, "apply softmax"),
        ([[0.5, 0.6]], [0], 15, "apply softmax"),
        ([[0.5, 0.5]], [2], 15, r"labels must lie in \[0, 2\)"),
        ([[0.5, 0.5]], [0, 1], 15, "got shapes"),
        ([[0.5, np.nan]], [0], 15, "NaN"),
        ([[0.5, 0.5]], [0.0], 15, "integers"),
        ([[0.5, 0.5]], [-100], 15, "no sample"),
        ([[0.5, 0.5]], [0], 0, "bins must be >= 1"),
    ],
)
def test_bad_input_is_named(p, labels, bins, message):
    for metric in (expected_calibration_error, adaptive_calibration_error, reliability_curve):
        with pytest.raises(ValueError, match=message):
            metric(p, labels, bins=bins)
    with pytest.raises(ValueError, match="'ece' and 'ada_ece'"):
        metric_path("accuracy")
