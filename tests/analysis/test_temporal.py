"""Diagnostics against loops in float64 and cases whose answer is known."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from spikenlp import SpikingBertConfig, SpikingBertForSequenceClassification
from spikenlp.analysis import (
    gradient_norms,
    loss_oscillation,
    mean_off_diagonal,
    temporal_similarity,
    weight_rank,
)
from tests.conftest import TINY_DENSE

LAYERS = ["bert.encoder.layer.0", "bert.encoder.layer.1"]


def bert(**fields):
    torch.manual_seed(0)
    config = SpikingBertConfig(
        **TINY_DENSE, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **fields
    )
    return SpikingBertForSequenceClassification(config)


@pytest.mark.parametrize("nonlinearity", ["running", "step"])
def test_similarity_against_a_loop(nonlinearity, batches):
    """The last layer's features at each step are what the model gives as timestep_hidden_state."""
    model, batch = bert(nonlinearity=nonlinearity).eval(), batches[0]
    with torch.no_grad():
        states = model.bert(**batch, output_timesteps=True).timestep_hidden_state.double()
    found = temporal_similarity(model, batch)
    assert list(found) == LAYERS
    samples, steps, length, _ = states.shape
    for t in range(steps):
        for s in range(steps):
            cosines = [
                (states[b, t, k] @ states[b, s, k]).item()
                / (states[b, t, k].norm() * states[b, s, k].norm()).item()
                for b in range(samples)
                for k in range(length)
                if batch["attention_mask"][b, k]
            ]
            assert found[LAYERS[1]][t, s] == pytest.approx(np.mean(cosines), abs=1e-5)


def test_padding_changes_no_similarity_and_the_mode_is_restored(batches):
    model = bert().train()
    padded = {k: v[-2:-1] for k, v in batches[0].items()}
    length = int(padded["attention_mask"].sum())
    assert length < padded["input_ids"].shape[1]
    cut = {k: v[:, :length] for k, v in padded.items()}
    for name, matrix in temporal_similarity(model, cut).items():
        np.testing.assert_allclose(temporal_similarity(model, padded)[name], matrix, atol=1e-6)
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())


def test_layers_that_fit_and_layers_that_do_not(batches):
    model = bert()
    chosen = temporal_similarity(model, batches[0], ["bert.encoder.layer.0.intermediate"])
    assert chosen["bert.encoder.layer.0.intermediate"].shape == (4, 4)
    with pytest.raises(ValueError, match="no module"):
        temporal_similarity(model, batches[0], ["bert.encoder.layer.7"])
    with pytest.raises(ValueError, match=r"not \[T, B, L, D\]"):
        temporal_similarity(model, batches[0], ["bert.embeddings"])


def test_mean_off_diagonal():
    assert mean_off_diagonal([[1, 0.5], [0.1, 1]]) == pytest.approx(0.3)
    assert mean_off_diagonal(np.ones((3, 3))) == 1
    assert math.isnan(mean_off_diagonal([[1.0]]))


def test_rank_of_matrices_whose_rank_is_known():
    model = nn.ModuleDict({"one": nn.Linear(6, 5), "full": nn.Linear(7, 7)})
    with torch.no_grad():
        model["one"].weight.copy_(torch.outer(torch.arange(1.0, 6), torch.arange(1.0, 7)))
        model["full"].weight.copy_(3 * torch.eye(7))
    found = weight_rank(model)
    assert set(found) == {"one.weight", "full.weight"}
    assert found["one.weight"] == pytest.approx(1, abs=1e-5)
    assert found["full.weight"] == pytest.approx(7)


def test_oscillation_is_what_a_trend_does_not_explain():
    trend = np.linspace(2, 1, 200)
    assert loss_oscillation(trend) == pytest.approx(0, abs=1e-12)
    noise = 0.1 * np.random.default_rng(0).standard_normal(4000)
    # The window's own mean takes 1 / 21 of the variance away.
    expected = 0.1 * math.sqrt(1 - 1 / 21)
    assert loss_oscillation(np.linspace(2, 1, 4000) + noise) == pytest.approx(expected, rel=0.05)
    for losses, window in (([1.0] * 10, 11), ([1.0] * 10, 4), ([1.0] * 10, 1)):
        with pytest.raises(ValueError, match="window"):
            loss_oscillation(losses, window)


def test_gradient_norms_by_layer(batches):
    model = bert()
    assert gradient_norms(model) == {}
    labels = torch.zeros(8, dtype=torch.long)
    model(**batches[0], labels=labels).loss.backward()
    found = gradient_norms(model)
    assert set(LAYERS) <= set(found)
    layer = model.bert.encoder.layer[0]
    expected = math.sqrt(sum(p.grad.double().square().sum() for p in layer.parameters()))
    assert found[LAYERS[0]] == pytest.approx(expected, rel=1e-5)
    total = math.sqrt(sum(p.grad.double().square().sum() for p in model.parameters()))
    assert math.sqrt(sum(n**2 for n in found.values())) == pytest.approx(total, rel=1e-5)
