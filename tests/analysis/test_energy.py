"""Counts against loops, SpikingJelly's counter and the closed form of DESIGN."""

import pytest
import torch
from torch import nn

from spikenlp import SpikingBertConfig, SpikingBertForSequenceClassification
from spikenlp.analysis import EnergyConstants, SpikeMonitor, energy_report
from spikenlp.neurons import IF, RoundingIF, SpikingLinear
from tests.conftest import TINY_DENSE

TINY = {**TINY_DENSE, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def bert(**fields):
    torch.manual_seed(0)
    return SpikingBertForSequenceClassification(SpikingBertConfig(**TINY, **fields)).eval()


@pytest.mark.parametrize("fields", [{}, {"nonlinearity": "step"}, {"num_timesteps": 7}])
def test_counts_of_a_bert(fields, batches):
    """MACs from the sizes, SOPs from a monitor's spikes; both at true lengths."""
    model, batch = bert(**fields), batches[0]
    found = energy_report(model, batch)
    with SpikeMonitor(model) as monitor, torch.no_grad():
        model(**batch)
    lengths = batch["attention_mask"].sum(1).tolist()
    tokens, samples, steps = sum(lengths), len(lengths), model.config.num_timesteps
    width, inner = model.config.hidden_size, model.config.intermediate_size
    macs = {
        "attention.self.query": tokens * width * width,
        "intermediate.dense": tokens * width * inner,
        "output.dense": tokens * inner * width,
        "attention.self.scores": sum(n * n for n in lengths) * width,
        "attention.self.context": sum(n * n for n in lengths) * width,
    }
    layers = {layer.name: layer for layer in found.layers}
    for name, expected in macs.items():
        layer = layers[f"bert.encoder.layer.1.{name}"]
        assert layer.dense_macs * samples == expected
        assert layer.steps == steps
    assert layers["bert.pooler.dense"].float_macs == steps * width * width
    assert layers["classifier"].dense_macs == width * 2
    counts = monitor.layers["bert.encoder.layer.1.intermediate.neuron"]
    spikes = int(counts.positive.sum() + counts.negative.sum())
    layer = layers["bert.encoder.layer.1.intermediate.dense"]
    assert layer.sops * samples == spikes * inner
    assert layer.rate == pytest.approx(counts.rate)
    floats, streams = found.elementwise, tokens * width * steps
    assert floats["layer norm"] * samples == 2 * 2 * streams
    assert floats["GELU"] * samples == 2 * tokens * inner * steps
    heads = model.config.num_attention_heads
    assert floats["softmax"] * samples == 2 * sum(n * n for n in lengths) * heads * steps
    assert floats["residual"] * samples == 2 * 2 * streams
    # Three embeddings are added, then normalised, once.
    assert floats["input"] * samples == 3 * tokens * width
    running = model.config.nonlinearity == "running"
    assert ("running means" in floats) == running
    neurons = 2 * (5 * width + inner)
    assert found.membrane_updates * samples == neurons * tokens * steps


def test_attention_of_spikes_counts_each_key_and_value_once_a_query(batches):
    model, batch = bert(nonlinearity="step"), batches[0]
    kept = {}
    for name in ("key_neuron", "value_neuron"):
        neuron = getattr(model.bert.encoder.layer[0].attention.self, name)
        neuron.register_forward_hook(
            lambda m, a, sent, name=name: kept.__setitem__(name, sent != 0)
        )
    layers = {
        layer.name.rpartition(".")[2]: layer for layer in energy_report(model, batch).layers[:8]
    }
    mask = batch["attention_mask"].bool()
    for product, name in (("scores", "key_neuron"), ("context", "value_neuron")):
        expected = sum(
            int(kept[name][:, b, mask[b]].sum()) * int(mask[b].sum()) for b in range(len(mask))
        )
        assert layers[product].sops * len(mask) == expected > 0


@pytest.mark.parametrize("fields", [{}, {"nonlinearity": "step", "ternary": False}])
def test_the_closed_form(fields, batches):
    """E_spiking / E_dense = T (rho f r + 1 - f) for the products."""
    found = energy_report(bert(**fields), batches[0])
    r = found.constants.float_ac / found.constants.float_mac
    steps, f, rho = found.num_timesteps, found.driven_share, found.rate
    assert 0 < f < 1
    assert found.products_ratio() == pytest.approx(steps * (rho * f * r + 1 - f), rel=1e-12)


def test_padding_changes_no_figure(batches):
    model = bert()
    padded = {k: v[-2:-1] for k, v in batches[0].items()}
    length = int(padded["attention_mask"].sum())
    cut = {k: v[:, :length] for k, v in padded.items()}
    assert length < padded["input_ids"].shape[1]
    assert energy_report(model, padded).to_dict() == energy_report(model, cut).to_dict()
    without_mask = {"input_ids": cut["input_ids"]}
    assert energy_report(model, cut).to_dict() == energy_report(model, without_mask).to_dict()


class Small(nn.Module):
    def __init__(self, current: float, rounding: bool = False):
        super().__init__()
        self.neuron = RoundingIF() if rounding else IF()
        self.linear = SpikingLinear(10, 20)
        self.current = current

    def forward(self, x):
        return self.linear(self.neuron(self.current * torch.ones_like(x)))


def test_energy_by_hand_and_constants_that_can_be_set():
    """10 neurons at rate 1/2 over 4 steps into 20 outputs: 400 accumulations."""
    constants = EnergyConstants(float_ac=1.0, float_mac=5.0, int8_multiply=0.4, int32_add=0.2)
    found = energy_report(Small(0.5), torch.rand(4, 3, 10), constants=constants)
    assert found.layers[0].sops == 400
    assert found.energies["spiking, float32"] == pytest.approx(400 + 40)
    assert found.energies["spiking, int8"] == pytest.approx(80 + 40)
    assert found.energies["dense, float32"] == pytest.approx(200 * 5)
    assert found.spikes_per_neuron == 2


def test_a_model_that_loses_is_told_so():
    always, seldom = (energy_report(Small(c), torch.rand(8, 3, 10)) for c in (1.0, 0.125))
    assert always.ratios()["spiking, float32 / dense, float32"] > 1
    assert "float32 against dense, float32" in always.verdict()
    assert "times MORE" in always.verdict().split(";")[0]
    assert "times less" in seldom.verdict().split(";")[0]
    assert always.verdict() in always.table()


def test_spikingjelly_counts_the_same():
    op_counter = pytest.importorskip("spikingjelly.activation_based.op_counter")
    torch.manual_seed(0)
    model = nn.Sequential(
        IF(),
        _OverTime(nn.Conv2d(3, 6, 3, padding=1, stride=2, bias=False)),
        IF(0.2),
        _OverTime(nn.Conv2d(6, 4, 3, bias=False, groups=2)),
        nn.Flatten(2),
        IF(0.1),
        SpikingLinear(4 * 2 * 2, 5, bias=False),
    )
    x = 2 * torch.rand(4, 2, 3, 8, 8)
    counter = op_counter.SynOpCounter()
    with op_counter.DispatchCounterMode([counter]), torch.no_grad():
        model(x)
    found = energy_report(model, x)
    assert sum(layer.sops for layer in found.layers) * found.samples == counter.get_total() > 0


class _OverTime(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
