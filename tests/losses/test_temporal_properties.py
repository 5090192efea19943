"""What holds of every temporal loss, over drawn shapes, dtypes, labels and magnitudes."""

import math
import warnings
from functools import partial

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from spikenlp.losses import get_temporal_loss, gradient_scaling_factor
from spikenlp.training import TemporalLossFunction

LOSSES = [
    ("sdt", {}),
    ("tet", {"mse_weight": 0.1}),
    ("tmc", {"theta_reduction": "batch"}),
    ("tmc", {"theta_reduction": "sample", "theta_weight": "auto"}),
    ("tmc", {"theta_odds": False, "theta_lambda": "constant"}),
    ("trt", {}),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BAD = [math.nan, math.inf, -math.inf]

pytestmark = [
    pytest.mark.parametrize(("name", "options"), LOSSES),
    pytest.mark.filterwarnings("ignore:literal TMC"),
]


@st.composite
def batches(draw, tokens=False, scale=1e4):
    """Logits [B, T, C] (`tokens`: [B, T, L, C]) and labels, one at least not ignored."""
    b, t, c = draw(st.integers(1, 5)), draw(st.integers(1, 6)), draw(st.integers(2, 7))
    middle = (draw(st.integers(1, 4)),) if tokens else ()
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    size = draw(st.sampled_from([0.0, 1e-3, 1.0, 30.0, scale]))
    dtype = draw(st.sampled_from(DTYPES))
    logits = (size * torch.randn((b, t, *middle, c), generator=generator)).clamp(-6e4, 6e4)
    labels = torch.randint(c, (b, *middle), generator=generator)
    ignored = torch.rand(labels.shape, generator=generator) < draw(st.sampled_from([0.0, 0.5]))
    ignored.view(-1)[draw(st.integers(0, labels.numel() - 1))] = False
    return logits.to(dtype).requires_grad_(), labels.masked_fill(ignored, -100)


def value_and_gradient(name, options, logits, labels):
    logits = logits.detach().requires_grad_()
    loss = get_temporal_loss(name, **options)(logits, labels)
    return loss, torch.autograd.grad(loss, logits)[0]


@given(batch=batches())
def test_the_loss_and_its_gradient_are_finite(name, options, batch):
    loss, gradient = value_and_gradient(name, options, *batch)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert loss >= 0
    assert bool(loss.isfinite())
    assert gradient.dtype == batch[0].dtype
    assert bool(gradient.isfinite().all())


@given(batch=batches(), value=st.sampled_from([*BAD, 1e4]))
def test_ignored_rows_may_hold_anything_and_get_no_gradient(name, options, batch, value):
    logits, labels = batch
    ignored = labels == -100
    other = torch.where(ignored[:, None, None], value, logits.detach())
    expected, found = (value_and_gradient(name, options, x, labels) for x in (logits, other))
    assert torch.equal(expected[0], found[0])
    assert not found[1][ignored].any()
    assert torch.equal(expected[1], found[1])


@given(batch=batches(scale=10.0), seed=st.integers(0, 1000))
def test_the_order_of_the_batch_does_not_matter(name, options, batch, seed):
    logits, labels = batch
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    loss = get_temporal_loss(name, **options)
    torch.testing.assert_close(loss(logits[order], labels[order]), loss(logits, labels))


@given(batch=batches(tokens=True))
def test_tokens_are_samples(name, options, batch):
    logits, labels = batch
    flat = logits.transpose(1, 2).flatten(0, 1)
    loss = get_temporal_loss(name, **options)
    assert torch.equal(loss(logits, labels), loss(flat, labels.flatten()))


@given(batch=batches(), bad=st.sampled_from(BAD), data=st.data())
def test_a_non_finite_logit_of_a_row_that_counts_is_refused_or_gives_nan(
    name, options, batch, bad, data
):
    logits, labels = (x.detach().clone() for x in batch)
    row = data.draw(st.sampled_from((labels != -100).nonzero()[:, 0].tolist()))
    position = [data.draw(st.integers(0, size - 1)) for size in logits.shape[1:]]
    logits[row, position[0], position[1]] = bad
    with pytest.raises(ValueError, match="timestep_logits contain NaN or infinity"):
        get_temporal_loss(name, **options)(logits, labels)
    function = TemporalLossFunction(name, **options)
    function.non_finite = "nan"
    logits.requires_grad_()
    loss = function({"timestep_logits": logits}, labels)
    assert bool(loss.isnan())
    finite = logits.detach().isfinite() & (labels != -100)[:, None, None]
    gradient = torch.autograd.grad(loss, logits)[0]
    assert bool(gradient[finite].isnan().all())


@given(batch=batches(), wrong=st.sampled_from([-1, -99, 7, 10**9, -(2**40)]), data=st.data())
def test_labels_out_of_range_are_refused(name, options, batch, wrong, data):
    logits, labels = batch
    labels = labels.clone()
    labels[data.draw(st.integers(0, len(labels) - 1))] = wrong
    with pytest.raises(ValueError, match=r"labels must lie in \[0, "):
        get_temporal_loss(name, **options)(logits, labels)


@given(shape=st.lists(st.integers(0, 3), min_size=0, max_size=5), data=st.data())
def test_any_shape_gives_a_loss_or_a_value_error(name, options, shape, data):
    labels_shape = data.draw(st.lists(st.integers(0, 3), min_size=0, max_size=3))
    assume(shape[-1:] != [1])  # regression
    call = partial(get_temporal_loss(name, **options), torch.zeros(shape))
    labels = torch.zeros(labels_shape, dtype=torch.long)
    if len(shape) in (3, 4) and 0 not in shape and labels_shape == shape[:1] + shape[2:-1]:
        assert bool(call(labels).isfinite())
    else:
        with pytest.raises(ValueError, match=r"labels|timestep_logits|sample"):
            call(labels)


@given(batch=batches())
def test_g_t_is_a_number_of_at_most_one(name, options, batch):
    if name != "tmc":
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        g = gradient_scaling_factor(*batch)
    assert g.shape == ((batch[1] != -100).sum(), batch[0].shape[1])
    assert bool((g <= 1).all())  # no NaN
