"""Diagnostics against loops in float64 and cases whose answer is known."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from spikenlp import SpikingBertConfig, SpikingBertForSequenceClassification
from spikenlp.analysis.spikes import SpikeCounts, SpikeMonitor
from spikenlp.analysis.temporal import (
    QUANTILES,
    gradient_norms,
    loss_oscillation,
    loss_residual,
    mean_off_diagonal,
    rate_by_depth,
    scaling_factor_distribution,
    temporal_similarity,
    weight_rank,
)
from spikenlp.losses import tet_loss, tmc_loss
from spikenlp.models.over_time import running_mean
from spikenlp.neurons import RoundingIF
from tests.conftest import TINY_DENSE
from tests.models.test_vision import images, make

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
    model, batch = bert(nonlinearity=nonlinearity).eval().bert, batches[0]
    with torch.no_grad():
        states = model(**batch, output_timesteps=True).timestep_hidden_state.double()
    layers = [name.removeprefix("bert.") for name in LAYERS]
    found = temporal_similarity(model, batch)
    assert list(found) == layers
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
            assert found[layers[1]][t, s] == pytest.approx(np.mean(cosines), abs=1e-5)


def test_padding_changes_no_similarity_and_the_mode_is_restored(batches):
    model = bert().train()
    model.bert.encoder.layer[0].output.dropout.p = 0.5
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
    pooled = temporal_similarity(model, batches[0], ["bert.pooler", LAYERS[0]])
    assert list(pooled) == ["bert.pooler", LAYERS[0]]
    four = {k: v[:4] for k, v in batches[0].items()}  # as many samples as steps
    with pytest.raises(ValueError, match=r"not \[T, B, ..., D\] with T, B = \(4, 4\)"):
        temporal_similarity(model, four, ["bert.embeddings"])
    with pytest.raises(ValueError, match="does not call"):
        temporal_similarity(model, batches[0], ["bert.encoder.layer"])
    with pytest.raises(ValueError, match="name modules"):
        temporal_similarity(nn.Sequential(RoundingIF()), torch.ones(2, 3, 4))
    with pytest.raises(ValueError, match="collapsed"):
        temporal_similarity(bert(collapsed=True, num_timesteps=1), batches[0])
    mask = batches[0]["attention_mask"]
    with pytest.raises(ValueError, match=r"must be \[B, L\], got shape \(8, 1, 12\)"):
        temporal_similarity(model, {**batches[0], "attention_mask": mask[:, None]})


@pytest.mark.parametrize(
    ("name", "frames"), [("vgg", None), ("vgg", 5), ("resnet", None), ("qkformer", 2)]
)
def test_stages_of_a_vision_model_are_compared_pixel_by_pixel(name, frames):
    model = make(name)
    pixels = images(model, batch=2)
    if frames is not None:
        generator = torch.Generator().manual_seed(1)
        pixels = torch.randn(2, frames, *pixels.shape[1:], generator=generator)
    sent = {}
    last = f"{model.base_model_prefix}.stages.{len(model.config.depths) - 1}"
    handle = model.get_submodule(last).register_forward_hook(lambda m, a, y: sent.update(y=y))
    model(pixels)
    handle.remove()
    stream = sent["y"].detach().double()
    found = temporal_similarity(model, {"pixel_values": pixels})
    for layer, by_tensor in temporal_similarity(model, pixels).items():
        np.testing.assert_array_equal(by_tensor, found[layer])
    assert list(found) == [
        f"{model.base_model_prefix}.stages.{i}" for i in range(len(model.config.depths))
    ]
    steps, samples, _, height, width = stream.shape
    assert steps == (frames or model.config.num_timesteps)
    for t in range(steps):
        for s in range(steps):
            pairs = [
                (stream[t, b, :, y, x], stream[s, b, :, y, x])
                for b in range(samples)
                for y in range(height)
                for x in range(width)
            ]
            cosines = [
                float(u @ v / (u.norm() * v.norm())) for u, v in pairs if u.any() and v.any()
            ]
            expected = np.mean(cosines) if cosines else math.nan
            assert found[last][t, s] == pytest.approx(expected, abs=1e-9, nan_ok=True)


class Recorded(nn.Module):
    """Sends what it was made with, whatever it reads."""

    def __init__(self, stream):
        super().__init__()
        self.stream = stream

    def forward(self, x):
        return self.stream


def test_any_module_and_the_same_at_each_step_is_similar():
    torch.manual_seed(0)
    step = torch.randn(1, 5, 7, 6)
    model = nn.Sequential(Recorded(torch.cat([step, 2 * step, -step])))
    found = temporal_similarity(model, torch.zeros(3, 5, 7, 6), ["0"])
    expected = np.array([[1, 1, -1], [1, 1, -1], [-1, -1, 1]])
    np.testing.assert_allclose(found["0"], expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_nothing_is_sent_there_is_no_direction(dtype):
    """The rounding error of running means is not taken for a spike."""
    generator = torch.Generator().manual_seed(0)
    spikes = 0.3 * (torch.rand(5, 6, 7, 3, generator=generator) < 0.2)
    model = nn.Sequential(Recorded(running_mean(spikes).to(dtype)))
    model.config = SimpleNamespace(nonlinearity="running", num_timesteps=5)
    found = temporal_similarity(model, torch.zeros(5, 6, 7, 3), ["0"])["0"]
    flat = spikes.double().flatten(1, 2)
    for t in range(5):
        for s in range(5):
            cosines = [
                float(a @ b / (a.norm() * b.norm()))
                for a, b in zip(flat[t], flat[s], strict=True)
                if a.any() and b.any()
            ]
            assert 0 < len(cosines) < 42
            assert found[t, s] == pytest.approx(np.mean(cosines), abs=0.03 if t != s else 1e-9)
    quiet = nn.Sequential(Recorded(torch.zeros(2, 3, 4)))
    assert np.isnan(temporal_similarity(quiet, torch.zeros(2, 3, 4), ["0"])["0"]).all()


def test_mean_off_diagonal():
    assert mean_off_diagonal([[1, 0.5], [0.1, 1]]) == pytest.approx(0.3)
    assert mean_off_diagonal(np.ones((3, 3))) == 1
    assert math.isnan(mean_off_diagonal([[1.0]]))
    with pytest.raises(ValueError, match=r"must be \[T, T\], got shape \(1, 2\)"):
        mean_off_diagonal([[1.0, 0.5]])


def test_scaling_factors_are_the_ratio_of_the_gradients_of_tmc_and_cross_entropy():
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 3, 5), torch.tensor([0, 4, -100, 2, 1, 3])
    kept = labels != -100
    found = scaling_factor_distribution(logits, labels, theta_weight=0.7)

    def target_gradient(loss, **options):
        z = logits.clone().requires_grad_()
        loss(z, labels, **options).backward()
        return z.grad[kept].gather(2, labels[kept][:, None, None].expand(-1, 3, 1))[..., 0]

    tmc = target_gradient(tmc_loss, theta_reduction="sample", theta_weight=0.7)
    np.testing.assert_allclose(found.factors, tmc / target_gradient(tet_loss), rtol=1e-4)
    assert found.quantiles.shape == (len(QUANTILES), 3)
    for t in range(3):
        ordered = sorted(found.factors[:, t])  # 5 samples: the quartiles are samples themselves
        assert found.quantiles[1:4, t].tolist() == pytest.approx(ordered[1:4])
    again = scaling_factor_distribution(logits.numpy(), labels.numpy(), theta_weight=0.7)
    np.testing.assert_array_equal(again.factors, found.factors)


def test_rank_of_matrices_whose_rank_is_known():
    model = nn.ModuleDict({"one": nn.Linear(6, 5), "full": nn.Linear(7, 7)})
    with torch.no_grad():
        model["one"].weight.copy_(torch.outer(torch.arange(1.0, 6), torch.arange(1.0, 7)))
        model["full"].weight.copy_(3 * torch.eye(7))
    found = weight_rank(model)
    assert set(found) == {"one.weight", "full.weight"}
    assert found["one.weight"] == pytest.approx(1, abs=1e-5)
    assert found["full.weight"] == pytest.approx(7)


def test_rank_against_a_loop():
    torch.manual_seed(0)
    model = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 2), "embeddings": nn.Embedding(9, 5)})
    found = weight_rank(model)
    for name, rows in (("conv.weight", 4), ("embeddings.weight", 9)):
        matrix = model.get_parameter(name).detach().double().reshape(rows, -1)
        gram = np.linalg.eigvalsh((matrix @ matrix.T).numpy())
        values = [math.sqrt(max(x, 0)) for x in gram]
        shares = [v / sum(values) for v in values]
        expected = math.exp(-sum(p * math.log(p) for p in shares if p > 0))
        assert found[name] == pytest.approx(expected, rel=1e-5)
    nn.init.zeros_(model["embeddings"].weight)
    assert weight_rank(model)["embeddings.weight"] == 0


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
    with pytest.raises(ValueError, match="NaN or infinity, first at 2"):
        loss_oscillation([1.0, 2.0, math.nan], 3)


def test_the_residual_against_a_loop():
    losses = np.random.default_rng(0).random(30).tolist()
    found = loss_residual(losses, 7)
    expected = [losses[i] - sum(losses[i - 3 : i + 4]) / 7 for i in range(3, 27)]
    assert found.tolist() == pytest.approx(expected)
    mean = sum(expected) / 24
    variance = sum((x - mean) ** 2 for x in expected) / 24
    assert loss_oscillation(losses, 7) == pytest.approx(math.sqrt(variance))


def test_rates_by_depth_are_of_all_neurons_of_a_layer(batches):
    model = bert().eval()
    with SpikeMonitor(model) as monitor, torch.no_grad():
        model(**batches[0])
        model(**batches[1])
    found = rate_by_depth(monitor.layers)
    assert list(found) == LAYERS
    for layer, rates in found.items():
        own = [c for name, c in monitor.layers.items() if name.startswith(layer + ".")]
        assert len({(c.sites, c.positive.shape[1]) for c in own}) > 1, "neurons of unequal number"
        neurons = sum(c.sites * c.positive.shape[1] for c in own)
        for t in range(4):
            fired = sum(int(c.positive[t].sum() + c.negative[t].sum()) for c in own)
            assert rates[t] == pytest.approx(fired / neurons)
            assert rates[t] > 0


def test_names_of_depths():
    counts = SpikeCounts(torch.tensor([[1, 0]]), torch.tensor([[0, 1]]), 4)
    names = ("vgg.stages.0.layers.1.neuron", "resnet.embedder.neuron", "resnet.stages.10.0.neuron")
    expected = ["vgg.stages.0", "resnet.embedder.neuron", "resnet.stages.10", "3"]
    found = rate_by_depth(dict.fromkeys([*names, "3.neuron"], counts))
    assert found == {name: [0.25] for name in expected}


def test_gradient_norms_by_layer(batches):
    model = bert()
    assert gradient_norms(model) == {}
    labels = torch.zeros(8, dtype=torch.long)
    model(**batches[0], labels=labels).loss.backward()
    found = gradient_norms(model)
    groups = {name: [] for name in ("bert.embeddings", *LAYERS, "bert.pooler", "classifier")}
    groups["neurons"] = []
    for name, p in model.named_parameters():
        if p.grad is not None:
            of_neuron = isinstance(model.get_submodule(name.rpartition(".")[0]), RoundingIF)
            group = "neurons" if of_neuron else next(g for g in groups if name.startswith(g))
            groups[group].append(p.grad.double())
    assert set(found) == set(groups)
    for name, grads in groups.items():
        expected = math.sqrt(sum(g.square().sum() for g in grads))
        assert found[name] == pytest.approx(expected, rel=1e-5)
        assert expected > 0
    bare = bert().bert
    bare(**batches[0]).pooler_output.sum().backward()
    names = {name.removeprefix("bert.") for name in groups} - {"classifier"}
    assert set(gradient_norms(bare)) == names


def test_gradient_norms_in_half_precision_do_not_overflow():
    model = nn.Linear(100, 100).half()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3e4)
    assert gradient_norms(model) == pytest.approx({"weight": 3e6, "bias": 3e5}, rel=1e-3)
