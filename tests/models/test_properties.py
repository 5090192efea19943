"""What holds of tiny models, over drawn configurations, shapes, masks and dtypes."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from spikenlp import (
    SpikingBertConfig,
    SpikingBertForSequenceClassification,
    SpikingVGGConfig,
    SpikingVGGForImageClassification,
)
from tests.conftest import TINY_DENSE

KINDS = [
    {},
    {"nonlinearity": "step", "neuron": "lif"},
    {"ternary": False},
    {"collapsed": True},
    {"neuron": "plif", "surrogate": "sigmoid"},
    {"architecture": "spikingbert", "gradient": "bptt"},
]


def bert(fields, steps, **options):
    torch.manual_seed(0)
    sizes = {**TINY_DENSE, "num_hidden_layers": 1, "num_timesteps": steps}
    config = SpikingBertConfig(**{**sizes, **fields, **options})
    return SpikingBertForSequenceClassification(config).eval()


@st.composite
def inputs(draw):
    """Ids [B, L] and a mask with one real token at least in each row, anywhere."""
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    ids = torch.randint(5, 120, (batch, length), generator=generator)
    mask = (
        torch.rand(batch, length, generator=generator) < draw(st.sampled_from([0.4, 1.0]))
    ).long()
    mask[torch.arange(batch), torch.randint(length, (batch,), generator=generator)] = 1
    return ids, mask


@settings(max_examples=12)
@given(drawn=inputs(), kind=st.sampled_from(KINDS), steps=st.integers(1, 3), half=st.booleans())
def test_logits_are_finite_the_mean_over_time_and_blind_to_padding(drawn, kind, steps, half):
    ids, mask = drawn
    model = bert(kind, steps).to(torch.bfloat16 if half else torch.float32)
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask)
        other = torch.where(mask.bool(), ids, (ids + 7) % 120)
        # The first position is what the pooler reads, real or not.
        other[:, 0] = ids[:, 0]
        blind = model(input_ids=other, attention_mask=mask)
    assert bool(found.logits.isfinite().all())
    if kind != {"collapsed": True}:
        assert found.timestep_logits.shape == (len(ids), steps, 2)
        mean = found.timestep_logits.float().mean(1)
        tolerance = {"rtol": 0.02, "atol": 0.05} if half else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(found.logits.float(), mean, **tolerance)
    torch.testing.assert_close(blind.logits, found.logits)


@settings(max_examples=12)
@given(kind=st.sampled_from(KINDS), bad=st.sampled_from([math.nan, math.inf]), data=st.data())
def test_a_weight_that_is_not_finite_shows_in_the_logits(kind, bad, data):
    """Eager attention: torch's fused one on CPU gives 0 for a query that is NaN."""
    model = bert(kind, 2, attn_implementation="eager")
    parameters = dict(model.named_parameters())
    name = data.draw(st.sampled_from(sorted(parameters)))
    # tanh(inf) = 1 and sigmoid(inf) = 1 are numbers; an id that does not occur reads no row.
    assume(not (bad == math.inf and ("pooler" in name or "LayerNorm" in name or "decay" in name)))
    assume("_embeddings" not in name)
    parameters[name].data.view(-1)[0] = bad
    ids = torch.randint(5, 120, (2, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    assert not bool(logits.isfinite().all()), name


@settings(max_examples=40)
@given(
    ids=st.lists(st.sampled_from([0, 5, 60, 119, -1, 120]), max_size=4),
    extra=st.sampled_from([0, 0, 0, 1, -1]),
    dtype=st.sampled_from([torch.int64, torch.int64, torch.int32, torch.float32]),
)
def test_any_tokens_give_logits_or_a_value_error(ids, extra, dtype):
    model = bert({}, 1)
    tokens = torch.tensor([ids], dtype=dtype).reshape(1, -1)
    valid = dtype != torch.float32 and ids and min(ids) >= 0 and max(ids) < 120
    masked = max(len(ids) + extra, 0)
    if valid and masked == len(ids):
        assert bool(model(tokens, attention_mask=torch.ones(1, masked)).logits.isfinite().all())
    else:
        with pytest.raises(ValueError, match=r"input_ids (must|are)|attention_mask of shape"):
            model(tokens, attention_mask=torch.ones(1, masked))


def test_a_row_without_a_real_token_changes_no_other_row():
    model = bert({}, 2)
    ids = torch.randint(5, 120, (3, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    expected = model(ids, attention_mask=mask).logits
    mask[1] = 0
    found = model(ids, attention_mask=mask).logits
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]])


@settings(max_examples=8)
@given(
    bad=st.sampled_from([math.nan, math.inf, -math.inf]),
    neuron=st.sampled_from(["lif", "if", "rounding"]),
    row=st.integers(0, 2),
)
def test_a_pixel_that_is_not_finite_shows_in_its_row_alone(bad, neuron, row):
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [4, 4], "depths": [1, 1], "image_size": 8, "num_channels": 3}
    config = SpikingVGGConfig(**sizes, neuron=neuron, num_timesteps=2)
    model = SpikingVGGForImageClassification(config).eval()
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(images).logits
        images[row, 0, 3, 3] = bad
        found = model(images).logits
    others = [i for i in range(3) if i != row]
    assert bool(expected.isfinite().all())
    assert not bool(found[row].isfinite().any())
    torch.testing.assert_close(found[others], expected[others])
