"""A dense BERT made spiking: weights by name, amplitudes by calibration, spikes that flow."""

import copy
import math

import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
)

from spikenlp import (
    SpikingBertForMaskedLM,
    SpikingBertForQuestionAnswering,
    SpikingBertForSequenceClassification,
    SpikingBertForTokenClassification,
    SpikingBertModel,
)
from spikenlp.analysis import SpikeMonitor
from spikenlp.models.over_time import increments
from spikenlp.models.spiking_bert.conversion_spiking_bert import _tokens_of_neurons, neurons_of
from tests.conftest import TINY_DENSE


def convert(dense, batches, **fields):
    return SpikingBertForSequenceClassification.from_dense(dense, calibration=batches, **fields)


@torch.no_grad()
def distance(model, dense, batches):
    pairs = [(model(**b).logits, dense(**b).logits) for b in batches]
    found, expected = (torch.cat(x) for x in zip(*pairs, strict=True))
    return ((found - expected).norm() / expected.norm()).item()


def test_weights_are_those_of_the_dense_model(dense, batches):
    model = convert(dense, batches)
    state = model.state_dict()
    for name, value in dense.state_dict().items():
        assert torch.equal(state[name], value), name


def test_many_steps_come_close_to_the_dense_model(dense, batches):
    errors = [
        distance(convert(dense, batches, num_timesteps=t), dense, batches) for t in (2, 8, 64)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.05


def test_collapsed_with_many_levels_is_the_dense_model(dense, batches):
    model = convert(dense, batches, num_timesteps=500, collapsed=True)
    assert distance(model, dense, batches) < 0.01


@torch.no_grad()
def test_what_the_collapsed_twin_and_the_unrolled_network_have_in_common(dense, batches):
    def outputs_of_neurons(model):
        seen = {}
        for name, neuron in neurons_of(model):
            neuron.register_forward_hook(lambda m, i, out, name=name: seen.update({name: out[-1]}))
        model(**batches[0])
        return seen

    unrolled = convert(dense, batches, num_timesteps=8)
    twin = convert(dense, batches, num_timesteps=8, collapsed=True)
    assert unrolled.state_dict().keys() == twin.state_dict().keys()
    spikes, rounded = outputs_of_neurons(unrolled), outputs_of_neurons(twin)
    assert spikes.keys() == rounded.keys()
    first, *later = spikes
    # The first neuron's input does not change over time; what comes after it is late and saturates.
    same = (spikes[first] - rounded[first]).abs() <= 1e-4
    assert same.float().mean() > 0.98
    assert all((spikes[name] - rounded[name]).abs().max() > 1e-2 for name in later)

    def between(steps):
        pair = [convert(dense, batches, num_timesteps=steps, collapsed=c) for c in (False, True)]
        return distance(*pair, batches)

    assert between(64) < 0.5 * between(4)


@torch.no_grad()
def test_unrolled_is_collapsed_where_no_neuron_saturates(dense, batches):
    """Amplitudes that no step's current exceeds: a neuron then ends within half of one of what it got."""
    batch = batches[0]
    unrolled, twin = (convert(dense, batches, num_timesteps=4, collapsed=c) for c in (False, True))
    assert (unrolled(**batch).logits - twin(**batch).logits).abs().max() > 0.01, "they saturate"
    order = []
    for _, neuron in neurons_of(unrolled):
        neuron.register_forward_pre_hook(lambda neuron, args: order.append((neuron, args[0])))
    unrolled(**batch)
    for i in range(len(order)):
        order.clear()
        unrolled(**batch)
        neuron, means = order[i]
        steps = torch.arange(1, len(means) + 1).view(-1, *[1] * (means.dim() - 1))
        currents = (steps * means).diff(dim=0, prepend=torch.zeros_like(means[:1]))
        neuron.amplitude.copy_(currents.abs().flatten(0, -2).amax(0).clamp_min(1e-6))
    twin.load_state_dict(unrolled.state_dict())
    found, expected = unrolled(**batch), twin(**batch)
    assert torch.allclose(found.logits, expected.logits, atol=1e-5)
    assert (found.timestep_logits[:, 0] - found.logits).abs().max() > 0.01, "time does something"


@torch.no_grad()
def test_with_bursts_every_step_is_that_of_the_collapsed_twin(dense, batches, tmp_path):
    """The mean answer of t steps is that of the twin at T = t, amplitudes being the same; neurons saturate all
    the same, in the one as in the other."""
    batch, plain = batches[0], convert(dense, batches, num_timesteps=4)
    plain.save_pretrained(tmp_path)
    model = SpikingBertForSequenceClassification.from_pretrained(tmp_path, burst=16)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True)
    )
    found = model(**batch).timestep_logits
    model.config.collapsed = True
    for t in range(1, 5):
        model.config.num_timesteps = t
        expected = model(**batch).logits
        assert (found[:, :t].mean(1) - expected).abs().max() < 1e-4
    assert (plain(**batch).logits - expected).abs().max() > 0.01, (
        "which they do not with one spike a step"
    )


@torch.no_grad()
def test_a_dense_model_becomes_one_of_rates(dense, batches):
    """Ternary populations of spikingbert hold what binary ones lose, the negative half."""
    model = convert(dense, batches, architecture="spikingbert", ternary=True, num_timesteps=64)
    state = model.state_dict()
    for name, value in dense.state_dict().items():
        assert torch.equal(state[name], value), name
    assert (model.config.gradient, model.config.num_timesteps) == ("implicit", 64)
    assert distance(model, dense, batches) < 0.1
    binary = convert(dense, batches, architecture="spikingbert", num_timesteps=16)
    assert binary.config.ternary is False
    assert distance(binary, dense, batches) > 0.3
    for name, neuron in neurons_of(binary):
        assert torch.equal(neuron.v_threshold, neuron.amplitude), f"{name} sends what it subtracts"
    hidden = binary.bert(**batches[0], output_hidden_states=True).hidden_states
    neurons = [binary.bert.encoder.neuron, *(x.output.neuron for x in binary.bert.encoder.layer)]
    for mean, neuron in zip(hidden, neurons, strict=True):
        rate = mean / neuron.amplitude
        assert ((rate > -1e-5) & (rate < 1 + 1e-5)).all()


def test_calibration_leaves_the_configuration_as_it_is(dense, batches):
    model = convert(dense, batches[:1], architecture="spikingbert", settle_tolerance=0.1)
    assert (model.config.gradient, model.config.settle_tolerance) == ("implicit", 0.1)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"ternary": False},
        {"neuron": "lif", "nonlinearity": "step", "beta": 0.5},
        {"neuron": "if"},
        {"neuron": "plif"},
    ],
    ids=str,
)
def test_spikes_flow_in_every_layer(dense, batches, fields):
    model = convert(dense, batches, **fields)
    rates = {}

    def count(name):
        def hook(neuron, inputs, output):
            offset = getattr(neuron, "offset", None)
            sent = output if model.config.nonlinearity == "step" else increments(output)
            sent = sent if offset is None else sent + offset
            spikes = (sent / neuron.amplitude).round()
            assert set(spikes.unique().tolist()) <= ({-1, 0, 1} if neuron.ternary else {0, 1})
            rates[name] = spikes.abs().mean().item()

        return hook

    for name, neuron in neurons_of(model):
        neuron.register_forward_hook(count(name))
    with torch.no_grad():
        model(**batches[0])
    assert len(rates) == 2 * 6
    for name, rate in rates.items():
        assert 0 < rate < 1, name
        assert rate > 0.05 or "neuron" in fields, f"rounding neurons are busier than that: {name}"


def test_calibration_is_deterministic_and_depends_on_its_data(dense, batches):
    first, again, other = (convert(dense, b) for b in (batches, batches, batches[:1]))
    for (name, a), (_, b), (_, c) in zip(*map(neurons_of, (first, again, other)), strict=True):
        assert torch.equal(a.amplitude, b.amplitude), name
        assert not torch.equal(a.amplitude, c.amplitude), name


def test_tokens_count_by_what_the_decision_depends_on(dense, batches):
    """Of the last layer's output only the first token is read, and no other is looked at."""
    model = convert(dense, batches)
    batch = batches[0]
    found = _tokens_of_neurons(model, batch, weighted=True)
    x, weight = found[model.bert.encoder.layer[-1].output.neuron]
    assert len(x) == len(weight) == len(batch["input_ids"])
    assert (weight > 0).all()
    _, of_values = found[model.bert.encoder.layer[-1].attention.self.value_neuron]
    assert len(of_values) == batch["attention_mask"].sum()
    assert of_values.max() > 2 * of_values.min()
    _, spread = found[model.bert.encoder.layer[0].attention.self.neuron]
    assert (spread > 1e-3 * spread.mean()).all()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    "kind",
    [
        SpikingBertForSequenceClassification,
        SpikingBertForTokenClassification,
        SpikingBertForQuestionAnswering,
        SpikingBertForMaskedLM,
        SpikingBertModel,
    ],
)
def test_calibration_leaves_padding_out(dense, batches, kind):
    padded = [
        {k: torch.nn.functional.pad(v, (0, 8)) for k, v in batch.items()} for batch in batches
    ]
    found = []
    for data in (batches, padded):
        torch.manual_seed(0)  # of a new head
        found.append(neurons_of(kind.from_dense(dense, calibration=data)))
    for (name, a), (_, b) in zip(*found, strict=True):
        torch.testing.assert_close(a.amplitude, b.amplitude, rtol=1e-4, atol=1e-5, msg=name)


def test_classes_are_not_taken_for_positions(batches):
    """Where there are as many."""
    torch.manual_seed(0)
    length = batches[0]["input_ids"].shape[1]
    dense = BertForSequenceClassification(BertConfig(**TINY_DENSE, num_labels=length)).eval()
    wider = [{k: torch.nn.functional.pad(v, (0, 1)) for k, v in b.items()} for b in batches]
    found = [neurons_of(convert(dense, data)) for data in (batches, wider)]
    for (name, a), (_, b) in zip(*found, strict=True):
        torch.testing.assert_close(a.amplitude, b.amplitude, rtol=1e-4, atol=1e-5, msg=name)


def test_amplitudes_minimise_the_rounding_error(dense, batches):
    """No other amplitude on a fine grid is much better for the activations that a neuron sees."""
    model = convert(dense, batches, num_timesteps=4)
    name, neuron = neurons_of(model)[0]
    seen = []
    neuron.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0]))
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    masks = [batch["attention_mask"].bool() for batch in batches]
    # The first neuron sees the embedding, the same at each step.
    values = torch.cat([x[mask] for x, mask in zip(seen, masks, strict=True)]).double()

    def error(alpha):
        return (((values / alpha * 4).round().clamp(-4, 4) * alpha / 4) - values).square().mean(0)

    largest = values.abs().amax(0)
    best = torch.stack([error(f * largest) for f in torch.linspace(0.05, 1.2, 200)]).amin(0)
    calibrated = error(neuron.amplitude.double())
    assert (calibrated < 1.5 * best).all(), name


@pytest.mark.parametrize("steps", [1, 4, 8])
@pytest.mark.parametrize("ternary", [True, False])
def test_amplitudes_weigh_error_against_spikes(dense, batches, ternary, steps):
    """Of the first neuron, which sees the embedding: no other amplitude costs less, by a slow search."""
    cost = 0.6
    plain = convert(dense, batches, num_timesteps=steps, ternary=ternary)
    model = convert(dense, batches, num_timesteps=steps, ternary=ternary, spike_cost=cost)
    values, weights = [], []
    for batch in batches:
        ((x, weight),) = list(_tokens_of_neurons(model, batch, True).values())[:1]
        values.append(x.double())
        weights.append(weight.double())
    x, weight = torch.cat(values), torch.cat(weights)
    lowest = x.amin(0)
    offset = torch.zeros_like(lowest) if ternary else -lowest.clamp_max(0)
    reach = x.abs().amax(0) if ternary else x.amax(0) + offset

    def price(alpha, offset):
        levels = ((x + offset) / alpha * steps).round().clamp(-steps if ternary else 0, steps)
        error = (weight * (levels * alpha / steps - offset - x).square()).sum(0)
        return error / (weight * x.square()).sum(0).mean() + cost * levels.abs().mean(0)

    grid = torch.logspace(-1.3, 2, 500, dtype=torch.float64)
    shares = (1.0,) if ternary else (1.0, 0.0)
    prices = [price(f * reach, s * f.clamp_max(1) * offset) for f in grid for s in shares]
    best = torch.stack(prices).amin(0)
    (_, sparse), (_, usual) = neurons_of(model)[0], neurons_of(plain)[0]
    found, before = (
        price(n.amplitude.double(), offset if n.offset is None else n.offset.double())
        for n in (sparse, usual)
    )
    assert (found < 1.1 * best + 1e-3).all()
    assert found.mean() < 0.95 * before.mean()
    dear = convert(dense, batches, num_timesteps=steps, ternary=ternary, spike_cost=1e4)
    _, silent = neurons_of(dear)[0]
    shift = 0 if ternary else silent.offset.double()
    levels = ((x + shift) / silent.amplitude.double() * steps).round()
    assert not levels.clamp_min(-steps if ternary else 0).any(), "too dear to send"


def test_a_spike_cost_leaves_fewer_spikes(dense, batches):
    spikes = []
    for cost in (0.0, 0.1, 1.0):
        model = convert(dense, batches, num_timesteps=4, spike_cost=cost)
        with SpikeMonitor(model) as monitor, torch.no_grad():
            for batch in batches:
                model(**batch)
        spikes.append(float(monitor.spikes_per_neuron))
    assert spikes[0] > 1.1 * spikes[1] > 1.1 * spikes[2]
    with pytest.raises(ValueError, match="spike_cost must be >= 0"):
        convert(dense, batches, spike_cost=-0.1)
    with pytest.raises(ValueError, match="for rounding neurons, got LIF"):
        convert(dense, batches, neuron="lif", spike_cost=0.1)


def test_from_a_path_and_without_calibration(dense, tmp_path):
    dense.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="without calibration"):
        model = SpikingBertForSequenceClassification.from_dense(str(tmp_path), num_timesteps=2)
    assert model.config.num_timesteps == 2
    assert torch.equal(model.classifier.weight, dense.classifier.weight)


def test_a_headless_dense_model_serves_any_head(dense, batches, caplog):
    headless = BertModel(dense.config)
    model = convert(headless, batches)
    assert torch.equal(model.bert.pooler.dense.weight, headless.pooler.dense.weight)
    assert "classifier.weight" in caplog.text
    base = SpikingBertModel.from_dense(dense, calibration=batches)
    assert torch.equal(base.pooler.dense.weight, dense.bert.pooler.dense.weight)
    SpikingBertForMaskedLM.from_dense(headless, calibration=batches)


def test_the_converted_model_survives_saving(dense, batches, tmp_path):
    model = convert(dense, batches)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.config.model_type == "spiking_bert"
    assert torch.equal(loaded(**batches[0])[0], model.bert(**batches[0])[0])


def test_other_architectures_are_refused(batches, tmp_path):
    other = DistilBertModel(DistilBertConfig(dim=32, n_heads=2, n_layers=1, hidden_dim=32))
    with pytest.raises(ValueError, match="distilbert"):
        SpikingBertModel.from_dense(other, calibration=batches)
    other.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="distilbert"):
        SpikingBertModel.from_dense(str(tmp_path), calibration=batches)


def test_a_spiking_checkpoint_is_sent_to_from_pretrained(dense, batches, tmp_path):
    convert(dense, batches).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="from_pretrained"):
        SpikingBertForSequenceClassification.from_dense(str(tmp_path))


def test_bad_calibration_data_and_fields(dense, batches):
    with pytest.raises(ValueError, match="empty"):
        convert(dense, [])
    with pytest.raises(ValueError, match="padding"):
        convert(dense, [{k: torch.zeros_like(v) for k, v in batches[0].items()}])
    with pytest.raises(ValueError, match="num_time_steps"):
        convert(dense, batches, num_time_steps=4)
    with torch.no_grad():
        dense.bert.encoder.layer[0].intermediate.dense.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN or infinite activations"):
        convert(dense, batches)


def test_a_headless_folder_gets_a_head_of_so_many_labels(dense, batches, tmp_path):
    dense.bert.save_pretrained(tmp_path)
    model = SpikingBertForSequenceClassification.from_dense(
        str(tmp_path), calibration=batches, num_labels=5
    )
    assert model(**batches[0]).logits.shape == (len(batches[0]["input_ids"]), 5)
    word = model.bert.embeddings.word_embeddings.weight
    assert torch.equal(word, dense.bert.embeddings.word_embeddings.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_a_finished_model_is_of_the_dtype_that_was_asked_for(dense, batches, dtype):
    convert = SpikingBertForSequenceClassification.from_dense
    found, expected = (
        convert(dense, calibration=batches, dtype=dtype),
        convert(dense, calibration=batches),
    )
    for name, value in expected.state_dict().items():
        cast = value.bfloat16() if value.is_floating_point() else value
        assert torch.equal(found.state_dict()[name], cast), name


def test_the_dtype_may_be_that_of_the_dense_model(dense, batches, tmp_path):
    convert = SpikingBertForSequenceClassification.from_dense
    assert convert(dense, calibration=batches, dtype="auto").dtype == torch.float32
    low = copy.deepcopy(dense).bfloat16()
    assert convert(low, dtype="auto").dtype == torch.bfloat16
    low.save_pretrained(tmp_path)
    assert convert(str(tmp_path), dtype="auto").dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["bf16", "Tensor"])
def test_a_dtype_that_torch_does_not_have_is_named(dense, dtype):
    with pytest.raises(ValueError, match=f"one of torch's, its name or 'auto', got '{dtype}'"):
        SpikingBertForSequenceClassification.from_dense(dense, dtype=dtype)


class Derived(SpikingBertForSequenceClassification):
    """As a user derives one."""


def test_a_derived_class_converts_what_its_base_does(dense, batches, tmp_path):
    dense.save_pretrained(tmp_path)
    for given in (dense, str(tmp_path)):
        found = Derived.from_dense(given, calibration=batches)
        assert type(found) is Derived
        expected = SpikingBertForSequenceClassification.from_dense(given, calibration=batches)
        assert torch.equal(found(**batches[0]).logits, expected(**batches[0]).logits)


@pytest.mark.parametrize(
    ("calibration", "found"),
    [
        ("a text", "one str"),
        (["a text"], "an item that is a str"),
        ({"input_ids": torch.tensor([[5, 6]])}, "one dict"),
        ([{"input_ids": [[5, 6]]}], "an item that is a dict"),
        (torch.tensor([[5, 6]]), "one Tensor"),
    ],
)
def test_calibration_data_that_is_not_tokenised_is_named(dense, calibration, found):
    with pytest.raises(ValueError, match=f"list of tokenised batches.*got {found}"):
        SpikingBertForSequenceClassification.from_dense(dense, calibration=calibration)
