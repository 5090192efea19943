"""What must hold whatever the input: losses, neurons, metrics and models on drawn shapes and values."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from spikenlp import SpikingBertConfig, SpikingBertForSequenceClassification
from spikenlp.losses import TEMPORAL_LOSSES, get_temporal_loss
from spikenlp.metrics import (
    adaptive_calibration_error,
    brier_score,
    calibration_by_timestep,
    expected_calibration_error,
)
from spikenlp.neurons import IF, LIF, PLIF, RoundingIF
from tests.conftest import TINY_DENSE

pytestmark = pytest.mark.filterwarnings("ignore:literal TMC")
settings.register_profile("spikenlp", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("spikenlp")

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
NOT_FINITE = st.sampled_from([math.nan, math.inf, -math.inf])
LOSSES = st.sampled_from(sorted(TEMPORAL_LOSSES))
IGNORED = -100


def normal(shape, seed, scale=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator)).to(dtype)


@st.composite
def labelled_logits(draw):
    """[B, T, C] of any dtype and size of values, labels [B] of which at least one counts."""
    batch, steps, classes = (draw(st.integers(1, n)) for n in (6, 7, 5))
    classes = max(classes, 2)
    z = normal((batch, steps, classes), draw(st.integers(0, 999)), draw(st.floats(0, 1e3)))
    labels = [draw(st.integers(0, classes - 1) | st.just(IGNORED)) for _ in range(batch)]
    assume(any(label != IGNORED for label in labels))
    return z.to(draw(DTYPES)), torch.tensor(labels)


# --- losses ----------------------------------------------------------------------------------------


@given(labelled_logits(), LOSSES)
def test_a_loss_is_finite_and_does_not_see_rows_that_do_not_count(data, name):
    z, labels = data
    z = z.requires_grad_()
    loss = get_temporal_loss(name)(z, labels)
    assert loss.dim() == 0
    assert loss.detach().isfinite()
    loss.backward()
    assert z.grad.isfinite().all()
    ignored = labels == IGNORED
    assert not z.grad[ignored].any()
    alone = get_temporal_loss(name)(z.detach()[~ignored], labels[~ignored])
    assert float(loss) == pytest.approx(float(alone), rel=1e-4, abs=1e-5)


@given(labelled_logits(), LOSSES, st.integers(0, 999))
def test_the_order_of_samples_does_not_matter(data, name, seed):
    z, labels = data
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    loss = get_temporal_loss(name)
    assert float(loss(z[order], labels[order])) == pytest.approx(
        float(loss(z, labels)), rel=1e-4, abs=1e-5
    )


@given(labelled_logits(), LOSSES, NOT_FINITE, st.data())
def test_what_is_not_finite_is_refused_where_it_counts_and_nowhere_else(data, name, value, more):
    z, labels = data
    row = more.draw(st.integers(0, len(labels) - 1))
    z[row, more.draw(st.integers(0, z.shape[1] - 1))] = value
    if int(labels[row]) == IGNORED:
        assert math.isfinite(get_temporal_loss(name)(z, labels))
    else:
        with pytest.raises(ValueError, match="NaN or infinity"):
            get_temporal_loss(name)(z, labels)


@given(labelled_logits(), LOSSES, st.integers(-99, -1) | st.integers(5, 1000))
def test_a_label_out_of_range_is_refused(data, name, label):
    z, labels = data
    with pytest.raises(ValueError, match="labels"):
        get_temporal_loss(name)(z, torch.full_like(labels, label))


# --- neurons ---------------------------------------------------------------------------------------


@st.composite
def neurons(draw):
    ternary = draw(st.booleans())
    kind = draw(st.sampled_from([IF, LIF, PLIF, RoundingIF]))
    if kind is RoundingIF:
        return RoundingIF(ternary=ternary)
    reset = draw(st.sampled_from(["soft", "hard"]))
    return kind(v_threshold=draw(st.floats(0.1, 3)), ternary=ternary, reset=reset)


SHAPES = st.lists(st.integers(0, 5), min_size=0, max_size=3).map(tuple)


@given(neurons(), st.integers(1, 9), SHAPES, DTYPES, st.integers(0, 999), st.floats(0, 100))
def test_a_neuron_sends_its_alphabet_in_the_shape_and_dtype_of_its_input(
    neuron, steps, shape, dtype, seed, scale
):
    x = normal((steps, *shape, 3), seed, scale, dtype)
    sent = neuron(x)
    assert (sent.shape, sent.dtype) == (x.shape, dtype)
    alphabet = {-1.0, 0.0, 1.0} if neuron.ternary else {0.0, 1.0}
    assert set(sent.float().unique().tolist()) <= alphabet


@given(st.booleans(), st.integers(1, 32), st.floats(-1.0, 1.0))
def test_a_rounding_neuron_rounds_a_constant_current(ternary, steps, current):
    sent = RoundingIF(ternary=ternary)(torch.full((steps, 1), current)).mean()
    clipped = current if ternary else max(current, 0.0)
    assert abs(float(sent) - clipped) <= 0.5 / steps + 1e-5


@given(neurons(), st.integers(1, 6), NOT_FINITE, st.integers(0, 5), st.integers(0, 999))
def test_what_is_not_finite_is_passed_on_and_touches_no_other_neuron(
    neuron, steps, value, at, seed
):
    x = normal((steps, 6, 4), seed)
    broken = x.clone()
    first = min(at, steps - 1)
    broken[first, at, 0] = value
    sent, expected = neuron(broken), neuron(x)
    assert sent[first, at, 0].isnan()
    others = torch.ones(6, 4, dtype=torch.bool)
    others[at, 0] = False
    assert torch.equal(sent[:, others], expected[:, others])


# --- metrics ---------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(2, 6), st.integers(0, 999), st.integers(1, 20))
def test_calibration_errors_have_their_range_and_no_order(samples, classes, seed, bins):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(classes, 0.4), samples)
    labels = rng.integers(0, classes, samples)
    order = rng.permutation(samples)
    for metric in (expected_calibration_error, adaptive_calibration_error):
        found = metric(p, labels, bins=bins)
        assert 0 <= found <= 1
        assert metric(p[order], labels[order], bins=bins) == pytest.approx(found, abs=1e-9)
        assert metric(np.eye(classes)[labels], labels, bins=bins) == pytest.approx(0)
    assert 0 <= brier_score(p, labels) <= 2


@given(labelled_logits(), NOT_FINITE)
def test_metrics_refuse_what_is_not_finite_and_take_every_dtype(data, value):
    z, labels = data
    found = calibration_by_timestep(z, labels)
    assert all(math.isfinite(score) for score in found.values())
    z[int((labels != IGNORED).nonzero()[0]), 0, 0] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        calibration_by_timestep(z, labels)


# --- models ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["running", "step"])
def model(request):
    torch.manual_seed(0)
    fields = {**TINY_DENSE, "num_hidden_layers": 1, "nonlinearity": request.param}
    return SpikingBertForSequenceClassification(SpikingBertConfig(**fields, num_labels=3)).eval()


@st.composite
def texts(draw):
    """Token ids [B, L] and a mask with at least one real token a row."""
    lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    ids = torch.randint(5, 120, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return ids, mask


@settings(max_examples=15)
@given(data=texts(), steps=st.integers(1, 5), padding=st.integers(1, 20))
@torch.no_grad()
def test_padding_changes_no_answer_whatever_stands_there(model, data, steps, padding):
    ids, mask = data
    model.config.num_timesteps = steps
    found = model(input_ids=ids, attention_mask=mask).timestep_logits
    assert found.shape == (len(ids), steps, 3)
    assert found.isfinite().all()
    more = torch.full((len(ids), padding), 7)
    longer = {
        "input_ids": torch.cat([torch.where(mask.bool(), ids, 9), more], 1),
        "attention_mask": torch.cat([mask, torch.zeros_like(more)], 1),
    }
    torch.testing.assert_close(model(**longer).timestep_logits, found, atol=2e-4, rtol=0)


@settings(max_examples=15)
@given(data=texts(), wrong=st.sampled_from(["large", "negative", "long", "mask", "flat", "float"]))
def test_tokens_that_the_model_cannot_read_are_refused(model, data, wrong):
    ids, mask = data
    if wrong in ("large", "negative"):
        ids[0, 0] = 120 if wrong == "large" else -1
    elif wrong == "long":
        ids, mask = ids.repeat(1, 41), mask.repeat(1, 41)
    elif wrong == "mask":
        mask = mask[:, :-1] if mask.shape[1] > 1 else mask.repeat(1, 2)
    elif wrong == "flat":
        ids = ids[0]
    else:
        ids = ids.float()
    with pytest.raises(ValueError, match=r"input_ids|attention_mask"):
        model(input_ids=ids, attention_mask=mask)
