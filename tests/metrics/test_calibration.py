"""Calibration against loops in float64, sklearn and cases whose answer is known."""

import evaluate
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score
from transformers import EvalPrediction

import spikenlp
from spikenlp import (
    SpikingBertConfig,
    SpikingBertForSequenceClassification,
    SpikingTrainer,
    SpikingTrainingArguments,
)
from spikenlp.metrics import (
    adaptive_calibration_error,
    brier_score,
    calibration_by_timestep,
    expected_calibration_error,
    glue_metrics,
    metric_path,
    negative_log_likelihood,
    reliability_curve,
    scores_by_timestep,
)
from spikenlp.training.trainer import TimestepMetrics
from tests.conftest import TINY_DENSE


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
    found = expected_calibration_error(p, labels, bins=np.int64(bins))
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
    np.testing.assert_array_equal(np.isnan(curve.accuracy), ~filled)
    assert brier_score(p, labels) == pytest.approx(2 * brier_score_loss(labels, p[:, 1]))


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
    for k in (5, 6, 7, 8, 9):
        count = reliability_curve([[k / 10, 1 - k / 10]], [0], bins=10).count
        assert count.tolist() == [int(b == k - 1) for b in range(10)]


def test_equal_confidences_count_as_their_mean():
    p = [[0.8, 0.2]] * 4 + [[0.6, 0.4]] * 2
    found = adaptive_calibration_error(p, [0, 0, 0, 1, 0, 1], bins=2)
    gap_of_first_three = (0.6 - 0.5) * 2 + (0.8 - 0.75)
    gap_of_last_three = (0.8 - 0.75) * 3
    assert found == pytest.approx((gap_of_first_three + gap_of_last_three) / 6)


def test_more_bins_than_samples_judge_each_sample_alone():
    p = [[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]]
    assert adaptive_calibration_error(p, [0, 0, 1]) == pytest.approx((0.1 + 0.6 + 0.7) / 3)


def test_tensors_of_any_dtype():
    logits = torch.randn(60, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.arange(60) % 5
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        p = logits.to(dtype).softmax(-1)
        exact = p.detach().double().numpy()
        for metric in (expected_calibration_error, adaptive_calibration_error, brier_score):
            assert metric(p, labels) == metric(exact, labels.numpy())


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
        assert found[f"confidence_t{t}"] == pytest.approx(np.mean([max(row) for row in p]))
        assert found[f"accuracy_t{t}"] == (p.argmax(1) == labels).mean()
    for name in ("accuracy", "ece", "ada_ece", "nll", "brier", "confidence"):
        assert found[name] == found[f"{name}_t3"]


def test_ignored_labels_are_left_out():
    p, labels = sample(20)
    ignored = np.append(labels, [-100, -100])
    more = np.concatenate([p, p[:1], np.full((1, 3), np.nan)])
    for metric in (expected_calibration_error, adaptive_calibration_error, brier_score):
        assert metric(more, ignored) == metric(p, labels)
    found = calibration_by_timestep(np.log(more)[:, None], ignored)
    assert found == calibration_by_timestep(np.log(p)[:, None], labels)


@pytest.mark.parametrize("name", ["ece", "ada_ece"])
def test_evaluate_loads_the_modules_from_disk(name, tmp_path):
    p, labels = sample(50)
    metric = evaluate.load(metric_path(name), cache_dir=str(tmp_path))
    function = {"ece": expected_calibration_error, "ada_ece": adaptive_calibration_error}[name]
    found = metric.compute(predictions=p, references=labels, bins=7)
    assert found == {name: pytest.approx(function(p, labels, bins=7))}


def test_the_trainer_reports_calibration_at_every_time_step(tmp_path):
    torch.manual_seed(0)
    model = SpikingBertForSequenceClassification(
        SpikingBertConfig(**{**TINY_DENSE, "num_hidden_layers": 1}, num_timesteps=3, num_labels=3)
    )
    torch.nn.init.normal_(model.classifier.weight)
    ids, labels = torch.randint(5, 120, (24, 10)), torch.arange(24) % 3
    args = SpikingTrainingArguments(output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True)
    data = Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})
    found = SpikingTrainer(model, args, eval_dataset=data).evaluate()
    with torch.no_grad():
        z = model.eval()(input_ids=ids).timestep_logits
    for t in (1, 2, 3):
        p = z[:, :t].mean(1).softmax(-1)
        for name, metric in (
            ("ece", expected_calibration_error),
            ("ada_ece", adaptive_calibration_error),
            ("brier", brier_score),
        ):
            assert found[f"eval_{name}_t{t}"] == pytest.approx(metric(p, labels), abs=1e-5)
        assert found[f"eval_nll_t{t}"] == pytest.approx(found[f"eval_loss_t{t}"], rel=1e-5)
    for name in ("ece", "ada_ece", "nll", "brier"):
        assert found[f"eval_{name}"] == found[f"eval_{name}_t3"]


def test_ece_of_the_shipped_checkpoint_is_that_of_a_loop():
    """Real weights, sentences of random words with labels that follow its answers nine times in ten."""
    model = spikenlp.pretrained("sst2-small").model
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, model.config.vocab_size, (90, 12), generator=generator)
    with torch.no_grad():
        z = model(input_ids=ids).timestep_logits
    labels = ((z.mean(1).argmax(-1) + (torch.arange(90) % 10 == 0)) % 2).numpy()
    found = TimestepMetrics()(EvalPrediction((z.mean(1).numpy(), z.numpy()), labels))
    for t in (1, 2, 3, 4):
        p = z[:, :t].double().mean(1).softmax(-1).numpy()
        assert found[f"ece_t{t}"] == pytest.approx(ece_by_hand(p, labels, 15), abs=1e-6)
        assert found[f"ece_t{t}"] > 0.01
        assert found[f"accuracy_t{t}"] == (p.argmax(1) == labels).mean()


def test_any_metric_at_every_step():
    rng = np.random.default_rng(0)
    z, labels = rng.standard_normal((50, 3, 2)), np.arange(50) % 2
    found = scores_by_timestep(glue_metrics("qqp"), torch.tensor(z), labels)
    assert list(found) == [f"{name}_t{t}" for t in (1, 2, 3) for name in ("accuracy", "f1")]
    for t in (1, 2, 3):
        predictions = z[:, :t].mean(1).argmax(1)
        assert found[f"accuracy_t{t}"] == accuracy_score(labels, predictions)
        assert found[f"f1_t{t}"] == f1_score(labels, predictions)
    with pytest.raises(ValueError, match=r"\[B, T, ..., C\]"):
        scores_by_timestep(glue_metrics("qqp"), z[:, 0], labels)


@pytest.mark.parametrize("task", ["regression", "tokens"])
def test_the_trainer_reports_calibration_of_one_label_a_sequence_only(task):
    rng = np.random.default_rng(0)
    if task == "regression":
        z, labels = rng.standard_normal((30, 4, 1)), rng.standard_normal(30)
    else:
        z, labels = rng.standard_normal((30, 4, 6, 3)), rng.integers(3, size=(30, 6))
    found = TimestepMetrics()(EvalPrediction((z.mean(1), z), labels))
    assert set(found) == {f"loss_t{t}" for t in range(1, 5)}


@pytest.mark.parametrize(
    ("p", "labels", "bins", "message"),
    [
        ([[2.0, -1.0]], [0], 15, "apply softmax"),
        ([[0.5, 0.6]], [0], 15, "apply softmax"),
        ([[0.5, 0.5]], [2], 15, r"labels must lie in \[0, 2\)"),
        ([[0.5, 0.5]], [0, 1], 15, "labels of shape"),
        ([[1.0]], [0], 15, "C >= 2"),
        ([0.5, 0.5], [0, 1], 15, r"shape \[N, C\]"),
        ([[0.5, 0.5]], [-1], 15, r"labels must lie in \[0, 2\)"),
        ([[0.5, 0.5]], [0], 2.5, "bins must be an integer >= 1"),
        ([[0.5, np.nan]], [0], 15, "NaN"),
        ([[0.5, 0.5]], [0.0], 15, "integers"),
        ([[0.5, 0.5]], [-100], 15, "no sample"),
        ([[0.5, 0.5]], [0], 0, "bins must be an integer >= 1"),
    ],
)
def test_bad_input_is_named(p, labels, bins, message):
    for metric in (expected_calibration_error, adaptive_calibration_error, reliability_curve):
        with pytest.raises(ValueError, match=message):
            metric(p, labels, bins=bins)
    with pytest.raises(ValueError, match="choose 'ece' or 'ada_ece'"):
        metric_path("accuracy")


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((2, 3)), [0, 1], r"timestep_logits must have shape \[B, T, C\]"),
        (np.full((2, 1, 3), np.inf), [0, 1], "NaN or infinity"),
        (np.zeros((2, 1, 3)), [0, 3], r"\[0, 3\)"),
    ],
)
def test_bad_logits_are_named(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        calibration_by_timestep(logits, labels)
