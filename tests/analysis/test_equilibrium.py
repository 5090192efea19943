"""The diagnostics on the spikingbert architecture, whose time steps run one by one."""

import numpy as np
import pytest
import torch

from spikenlp import SpikingBertConfig, SpikingBertForSequenceClassification
from spikenlp.analysis import (
    SpikeMonitor,
    assert_spiking,
    describe_spikes,
    energy_report,
    rate_convergence,
    temporal_similarity,
)
from tests.conftest import TINY_DENSE


def make(**fields):
    torch.manual_seed(0)
    options = {"architecture": "spikingbert", "hidden_dropout_prob": 0.0, "num_timesteps": 12}
    return SpikingBertForSequenceClassification(
        SpikingBertConfig(**{**TINY_DENSE, **options, **fields})
    ).eval()


@torch.no_grad()
def counted(model, batches):
    with SpikeMonitor(model) as monitor:
        for batch in batches:
            model(**batch)
    return monitor.layers


@pytest.mark.parametrize("ternary", [False, True])
def test_a_monitor_counts_single_steps_as_it_counts_an_unrolled_pass(ternary, batches):
    model = make(ternary=ternary)
    stepped = counted(model, batches[:2])
    assert model.config.gradient == "implicit"
    assert "step" not in vars(model.bert.encoder.neuron)
    model.config.gradient = "bptt"
    unrolled = counted(model, batches[:2])
    assert len(stepped) == len(unrolled) == 1 + 2 * 6
    for name, counts in unrolled.items():
        assert stepped[name].positive.shape == counts.positive.shape
        assert (
            stepped[name].sites
            == counts.sites
            == sum(int(b["attention_mask"].sum()) for b in batches[:2])
        )
        moved = (stepped[name].positive - counts.positive).abs().sum()
        assert moved <= 0.01 * counts.positive.sum() + 2, name
        assert counts.negative.any() == ternary
    assert 0.05 < stepped["bert.encoder.neuron"].rate < 0.9


def test_a_monitor_inside_another_counts_the_same(batches):
    model = make()
    with SpikeMonitor(model) as outer, torch.no_grad():
        with SpikeMonitor(model) as inner:
            model(**batches[0])
        model(**batches[0])
    assert "step" not in vars(model.bert.encoder.neuron)
    for name, counts in inner.layers.items():
        assert torch.equal(outer.layers[name].positive, 2 * counts.positive)


@pytest.mark.parametrize("look", [temporal_similarity, rate_convergence])
def test_parts_in_another_mode_stay_in_it(look, batches):
    model = make().train()
    model.bert.embeddings.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    look(model, batches[0])
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_a_monitor_leaves_the_gradient_as_it_is(batches):
    model = make()
    gradients = []
    for watched in (False, True):
        model.zero_grad()
        with SpikeMonitor(model) if watched else torch.enable_grad():
            model(**batches[0]).logits.square().sum().backward()
        gradients.append(model.bert.encoder.layer[0].output.dense.weight.grad.clone())
    assert torch.equal(*gradients)


def test_steps_after_a_sample_has_settled_count_as_silent(batches):
    model = make(num_timesteps=60, settle_tolerance=0.2)
    counts = counted(model, batches[:1])["bert.encoder.neuron"]
    assert counts.positive.shape[0] == 60
    assert counts.rate_by_step[0] > 0
    assert counts.rate_by_step[-1] == 0


@pytest.mark.parametrize("nonlinearity", ["step", "running"])
def test_energy_counts_the_spikes_of_each_population(nonlinearity, batches):
    model, batch = make(nonlinearity=nonlinearity), batches[0]
    found = energy_report(model, batch)
    assert model.config.gradient == "implicit"
    model.config.gradient = "bptt"
    spikes = {
        name: int((counts.positive + counts.negative).sum())
        for name, counts in counted(model, [batch]).items()
    }
    layers = {layer.name: layer for layer in found.layers}
    prefix = "bert.encoder.layer.1"
    for product, neuron, outputs in [
        ("attention.self.query", "bert.encoder.layer.0.output.neuron", 32),
        ("attention.self.value", "bert.encoder.layer.0.output.neuron", 32),
        ("attention.output.dense", f"{prefix}.attention.self.neuron", 32),
        ("intermediate.dense", f"{prefix}.attention.output.neuron", 64),
        ("output.dense", f"{prefix}.intermediate.neuron", 32),
    ]:
        layer = layers[f"{prefix}.{product}"]
        assert layer.sops * 8 == spikes[neuron] * outputs, product
        assert layer.steps == 12
    if nonlinearity == "running":
        # The pooler reads the first token of each of the 8 samples, not all tokens.
        with torch.no_grad():
            first = model.bert(**batch, output_timesteps=True).timestep_hidden_state[:, :, 0]
        pooler = layers["bert.pooler.dense"]
        assert pooler.sops * 8 == int(first.round().count_nonzero()) * 32
        assert pooler.rate <= 1


def test_each_product_is_driven_by_the_population_before_it(batches):
    drivers = describe_spikes(make(nonlinearity="step"), batches[0])
    read = {d.name.removeprefix("bert.encoder.layer.1."): d for d in drivers}
    assert len(drivers) == 2 * 8 + 2
    for name in ("query", "key", "value"):
        assert read[f"attention.self.{name}"].neuron == "bert.encoder.layer.0.output.neuron"
    assert read["attention.self.scores"].neuron.endswith("key_neuron")
    assert read["attention.self.context"].neuron.endswith("value_neuron")
    assert {d.driver for d in drivers[:16]} == {"binary"}


def test_every_population_spikes(batches):
    assert_spiking(make(num_timesteps=30), batches[0])


def test_similarity_between_time_steps(batches):
    found = temporal_similarity(make(num_timesteps=30), batches[0])
    assert [m.shape for m in found.values()] == [(30, 30)] * 2
    np.testing.assert_allclose(np.diag(found["bert.encoder.layer.1"])[10:], 1)


def test_rates_converge_to_the_equilibrium_with_running_means_alone(batches):
    model = make(num_timesteps=128, num_hidden_layers=1)
    batch = {k: v[:2] for k, v in batches[0].items()}
    running = rate_convergence(model, batch)
    assert model.config.num_timesteps == 128
    assert len(running) == 1 + 6
    for name, curve in running.items():
        assert curve.rate.shape == curve.distance.shape == (128,)
        assert ((curve.rate >= 0) & (curve.rate <= 1)).all()
        ratio = curve.distance[127] / curve.distance[15]
        assert ratio < 0.35, f"{name}: 1 / 8 where the distance falls as 1 / T"
        assert curve.distance[127] < 0.03
    model.config.nonlinearity = "step"
    step = rate_convergence(model, batch)["encoder.layer.0.output.neuron"]
    assert step.distance[127] > 0.5 * step.distance[15]


def test_the_last_rate_is_the_monitor_s(batches):
    """Of one sample: curves are means over samples, a monitor's over tokens."""
    model, batch = make(), {k: v[:1] for k, v in batches[0].items()}
    curves = rate_convergence(model, batch)
    for name, counts in counted(model, [batch]).items():
        curve = curves[name.removeprefix("bert.")]
        assert curve.rate[-1] == pytest.approx(counts.rate, abs=1e-6)
        assert curve.rate[0] == pytest.approx(float(counts.rate_by_step[0]), abs=1e-6)


def test_other_architectures_have_no_equilibrium(batches):
    with pytest.raises(ValueError, match=r"architecture='spikingbert', got .* 'default'"):
        rate_convergence(make(architecture="default"), batches[0])
