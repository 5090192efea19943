"""What holds of the calibration metrics, over drawn shapes, dtypes and labels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spikenlp.metrics import glue_metrics
from spikenlp.metrics.calibration import (
    adaptive_calibration_error,
    brier_score,
    calibration_by_timestep,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_curve,
)

ERRORS = [expected_calibration_error, adaptive_calibration_error]


@st.composite
def predictions(draw, scale=1e4):
    """Logits [N, T, C] as a tensor of any dtype, and labels [N], one at least not ignored."""
    n, t, c = draw(st.integers(1, 20)), draw(st.integers(1, 4)), draw(st.integers(2, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    size = draw(st.sampled_from([0.0, 1.0, scale]))
    z = (size * torch.randn(n, t, c, generator=generator)).clamp(-6e4, 6e4)
    labels = torch.randint(c, (n,), generator=generator)
    ignored = torch.rand(n, generator=generator) < draw(st.sampled_from([0.0, 0.5]))
    ignored[draw(st.integers(0, n - 1))] = False
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]))
    return z.to(dtype), labels.masked_fill(ignored, -100)


@given(drawn=predictions(), bins=st.integers(1, 40))
def test_scores_are_in_range_at_every_step(drawn, bins):
    z, labels = drawn
    scores = calibration_by_timestep(z, labels, bins=bins)
    assert len(scores) == 6 * (z.shape[1] + 1)
    for name, score in scores.items():
        highest = {"nll": math.inf, "brier": 2.0}.get(name.split("_t")[0], 1.0)
        assert 0 <= score <= highest + 1e-9, name
        assert math.isfinite(score)


@given(drawn=predictions(), bins=st.integers(1, 20), seed=st.integers(0, 1000))
def test_neither_the_order_nor_ignored_samples_matter(drawn, bins, seed):
    z, labels = drawn
    p = z[:, 0].double().softmax(-1)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    kept = labels != -100
    noisy = torch.where(kept[:, None], p, math.nan)
    for error in ERRORS:
        expected = error(p, labels, bins=bins)
        assert error(p[order], labels[order], bins=bins) == pytest.approx(expected, abs=1e-12)
        assert error(p[kept], labels[kept], bins=bins) == expected
        assert error(noisy, labels, bins=bins) == expected
    assert brier_score(noisy, labels) == brier_score(p[kept], labels[kept])
    curve = reliability_curve(p, labels, bins=bins)
    assert curve.count.sum() == int(kept.sum())


@given(drawn=predictions(scale=5.0), bins=st.integers(1, 20))
def test_ece_is_at_least_the_gap_between_confidence_and_accuracy(drawn, bins):
    z, labels = drawn
    kept = labels != -100
    p, y = z[kept, 0].double().softmax(-1), labels[kept]
    gap = float((p.max(-1).values.mean() - (p.argmax(-1) == y).double().mean()).abs())
    for error in ERRORS:
        assert error(p, y, bins=bins) >= gap - 1e-9
        assert error(p, y, bins=1) == pytest.approx(gap, abs=1e-9)


@given(
    drawn=predictions(scale=3.0),
    bad=st.sampled_from([math.nan, math.inf, -math.inf]),
    data=st.data(),
)
def test_what_is_not_finite_is_refused(drawn, bad, data):
    z, labels = (x.clone() for x in drawn)
    row = data.draw(st.sampled_from((labels != -100).nonzero()[:, 0].tolist()))
    p = z[:, 0].double().softmax(-1)
    z[row, 0, 0] = bad
    p[row, 0] = bad
    for error in (*ERRORS, brier_score):
        with pytest.raises(ValueError, match="probabilities contain NaN or infinity"):
            error(p, labels)
    with pytest.raises(ValueError, match="logits contain NaN or infinity"):
        negative_log_likelihood(z[:, 0], labels)
    with pytest.raises(ValueError, match="timestep_logits contain NaN or infinity"):
        calibration_by_timestep(z, labels)
    for task in ("sst2", "stsb", "cola"):
        with pytest.raises(ValueError, match="NaN or infinity"):
            glue_metrics(task)(z[:, 0].float().numpy(), labels.numpy())


@given(
    shape=st.lists(st.integers(0, 3), max_size=4),
    labels=st.lists(st.integers(-200, 3), max_size=4),
)
def test_any_shape_and_labels_give_a_number_or_a_value_error(shape, labels):
    x, y = np.full(shape, 0.5), np.array(labels, dtype=np.int64)
    in_range = all(label == -100 or 0 <= label < (shape or [0])[-1] for label in labels)
    counted = any(label != -100 for label in labels)
    for score, axes in ((negative_log_likelihood, 2), (calibration_by_timestep, 3)):
        fits = len(shape) == axes and 0 not in shape and shape[-1] > 1 and len(labels) == shape[0]
        if fits and in_range and counted:
            found = score(x, y)
            values = found.values() if isinstance(found, dict) else [found]
            assert all(math.isfinite(value) for value in values)
        else:
            with pytest.raises(ValueError, match=r"shape|labels"):
                score(x, y)
