"""Layer-wise reconstruction against transformers' own BERT and its normal equations in float64."""

import copy

import pytest
import torch

from spikenlp import SpikingBertConfig, SpikingBertForSequenceClassification, SpikingBertModel
from spikenlp.models.quantization import Int8Config
from spikenlp.models.spiking_bert.reconstruction import reconstruct

RIDGE = 0.05
READERS = {
    "attention.self.query": None,
    "attention.self.key": None,
    "attention.self.value": None,
    "attention.output.dense": "attention.output.LayerNorm",
    "intermediate.dense": None,
    "output.dense": "output.LayerNorm",
}


def observe(model, batches):
    """Of each linear layer and LayerNorm of the encoder: inputs and outputs at the real tokens."""
    seen = {}

    def keep(name):
        def hook(_, args, out):
            seen.setdefault(name, []).append((args[0].detach(), out.detach()))

        return hook

    hooks = []
    for index, layer in enumerate(model.base_model.encoder.layer):
        for name in {*READERS, *filter(None, READERS.values())}:
            hooks.append(layer.get_submodule(name).register_forward_hook(keep((index, name))))
    with torch.no_grad():
        for batch in batches:
            model.base_model(**batch)
    for hook in hooks:
        hook.remove()
    masks = [batch["attention_mask"].bool() for batch in batches]

    def tokens(x, mask):
        if x.dim() == 4:  # time steps of a spiking model
            running = model.config.nonlinearity == "running"
            x = x[-1] if running else x.mean(0)
        return x[mask].double()

    return {
        name: tuple(
            torch.cat([tokens(pair[k], m) for pair, m in zip(pairs, masks, strict=True)])
            for k in (0, 1)
        )
        for name, pairs in seen.items()
    }


def hidden_error(model, dense, batches):
    with torch.no_grad():
        pairs = [
            (model.base_model(**b)[0], dense.base_model(**b)[0], b["attention_mask"].bool())
            for b in batches
        ]
    return sum(float((x[m] - y[m]).square().sum()) for x, y, m in pairs)


@pytest.mark.parametrize("nonlinearity", ["running", "step"])
@pytest.mark.parametrize("ternary", [True, False])
@pytest.mark.parametrize("target", ["dense", "collapsed"])
def test_each_weight_solves_its_normal_equations(dense, batches, nonlinearity, ternary, target):
    fields = {"nonlinearity": nonlinearity, "ternary": ternary, "num_timesteps": 3}
    before = SpikingBertForSequenceClassification.from_dense(dense, calibration=batches, **fields)
    after = copy.deepcopy(before)
    reconstruct(after, batches, ridge=RIDGE, target=target)
    twin = copy.deepcopy(before)
    twin.config.collapsed = True
    exact = observe(dense if target == "dense" else twin, batches)
    found = observe(after, batches)
    assert not after.config.collapsed
    for index in range(2):
        for name, norm in READERS.items():
            old = before.base_model.encoder.layer[index].get_submodule(name)
            new = after.base_model.encoder.layer[index].get_submodule(name)
            spikes, sent = found[index, name]
            lacking = (
                exact[index, norm][0] - found[index, norm][0]
                if norm
                else exact[index, name][1] - sent
            )
            penalty = RIDGE * spikes.square().sum(0).mean()
            change = (new.weight - old.weight).double()
            if target == "collapsed" and index == 0 and name.startswith("attention.self"):
                assert change.abs().max() < 1e-6  # of a constant current the twin makes the same
                continue
            assert change.abs().max() > 1e-3
            gradient = lacking.t() @ spikes - penalty * change
            scale = (lacking.abs().t() @ spikes.abs()).max()
            assert gradient.abs().max() < 1e-4 * scale, (index, name)
            assert lacking.sum(0).abs().max() < 1e-4 * lacking.abs().sum(0).max(), (index, name)


@pytest.mark.parametrize("nonlinearity", ["running", "step"])
def test_the_hidden_states_come_nearer_to_the_dense_ones(dense, batches, nonlinearity):
    model = SpikingBertForSequenceClassification.from_dense(
        dense, calibration=batches, nonlinearity=nonlinearity
    )
    before = hidden_error(model, dense, batches)
    reconstruct(model, batches)
    assert hidden_error(model, dense, batches) < 0.6 * before


@pytest.mark.parametrize("nonlinearity", ["running", "step"])
def test_the_hidden_states_come_nearer_to_those_of_the_twin(dense, batches, nonlinearity):
    model = SpikingBertForSequenceClassification.from_dense(
        dense, calibration=batches, nonlinearity=nonlinearity, num_timesteps=3
    )
    twin = copy.deepcopy(model)
    twin.config.collapsed = True
    before = hidden_error(model, twin, batches)
    reconstruct(model, batches, target="collapsed")
    assert hidden_error(model, twin, batches) < 0.8 * before


def test_only_weights_that_read_spikes_change(dense, batches):
    model = SpikingBertForSequenceClassification.from_dense(dense, calibration=batches)
    before = copy.deepcopy(model.state_dict())
    model.train()
    reconstruct(model, batches)
    assert model.training
    assert no_hooks(model)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {
        f"bert.encoder.layer.{index}.{name}.{kind}"
        for index in range(2)
        for name in READERS
        for kind in ("weight", "bias")
    }


def test_padding_and_how_sentences_are_batched_change_nothing(dense, batches):
    def weights(given):
        model = SpikingBertForSequenceClassification.from_dense(dense, calibration=batches)
        reconstruct(model, given)
        return torch.cat([p.flatten() for p in model.base_model.encoder.parameters()])

    padded = [
        {key: torch.nn.functional.pad(value, (0, 5), value=0) for key, value in batch.items()}
        for batch in batches
    ]
    halves = [{k: v[i : i + 4] for k, v in b.items()} for b in batches for i in (0, 4)]
    expected = weights(batches)
    torch.testing.assert_close(weights(padded), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(weights(halves), expected, rtol=1e-3, atol=1e-4)


def test_a_large_ridge_leaves_the_weights(dense, batches):
    model = SpikingBertForSequenceClassification.from_dense(dense, calibration=batches)
    before = {n: p.clone() for n, p in model.named_parameters() if n.endswith(".weight")}
    reconstruct(model, batches, ridge=1e9)
    for name, weight in before.items():
        torch.testing.assert_close(model.get_parameter(name), weight, rtol=0, atol=1e-6)


def test_from_dense_reconstructs_when_asked(dense, batches):
    plain = SpikingBertForSequenceClassification.from_dense(dense, calibration=iter(batches))
    reconstruct(plain, batches)
    asked = SpikingBertForSequenceClassification.from_dense(
        dense, calibration=iter(batches), reconstruct=True
    )
    for (name, p), q in zip(plain.named_parameters(), asked.parameters(), strict=True):
        assert torch.equal(p, q), name
    with pytest.raises(ValueError, match="reconstruct=True needs calibration data"):
        SpikingBertForSequenceClassification.from_dense(dense, reconstruct=True)
    for other in ({"collapsed": True}, {"architecture": "spikingbert"}):
        with pytest.raises(ValueError, match="reconstruct fits weights to the spikes of"):
            SpikingBertForSequenceClassification.from_dense(
                dense, calibration=[], reconstruct=True, **other
            )


def test_a_model_without_a_head_and_batches_without_a_mask(dense, batches):
    model = SpikingBertModel.from_dense(dense.bert, calibration=batches)
    full = [{"input_ids": torch.randint(5, 120, (8, 9))} for _ in range(3)]
    before = model.encoder.layer[1].output.dense.weight.clone()
    reconstruct(model, full)
    assert not torch.equal(model.encoder.layer[1].output.dense.weight, before)


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({"architecture": "spikingbert"}, {}, "architecture='spikingbert'"),
        ({"collapsed": True}, {}, "collapsed=True"),
        ({}, {"ridge": 0.0}, "ridge must be > 0, got 0"),
        ({}, {"target": "twin"}, "target must be 'dense' or 'collapsed', got 'twin'"),
        ({"neuron": "lif"}, {"target": "collapsed"}, "needs rounding neurons, got 'lif'"),
    ],
)
def test_what_cannot_be_reconstructed_is_refused(fields, options, message, batches):
    config = SpikingBertConfig(
        vocab_size=120,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
        **fields,
    )
    with pytest.raises(ValueError, match=message):
        reconstruct(SpikingBertModel(config), batches, **options)


def no_hooks(model):
    return not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("part", ["intermediate.dense", "attention.self.neuron"])
def test_an_interrupted_fit_leaves_a_model_that_runs(dense, batches, part, monkeypatch):
    model = SpikingBertForSequenceClassification.from_dense(dense, calibration=batches).train()

    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model.bert.encoder.layer[1].get_submodule(part), "forward", stopped)
        with pytest.raises(KeyboardInterrupt):
            reconstruct(model, batches)
    assert model.training
    assert no_hooks(model)
    assert model(**batches[0]).logits.isfinite().all()


def test_autocast_changes_nothing(dense, batches):
    model = SpikingBertForSequenceClassification.from_dense(dense, calibration=batches)
    inside = copy.deepcopy(model)
    reconstruct(model, batches)
    with torch.autocast("cpu", torch.bfloat16):
        reconstruct(inside, batches)
    for p, q in zip(model.parameters(), inside.parameters(), strict=True):
        assert torch.equal(p, q)


def test_silent_neurons_get_a_bias(dense, batches):
    with torch.no_grad():
        for parameter in dense.bert.encoder.layer[1].attention.self.value.parameters():
            parameter.zero_()
    model = SpikingBertForSequenceClassification.from_dense(dense, calibration=batches)
    reader = model.bert.encoder.layer[1].attention.output.dense
    weight, bias = reader.weight.clone(), reader.bias.clone()
    reconstruct(model, batches)
    assert torch.equal(reader.weight, weight)
    assert not torch.equal(reader.bias, bias)


def test_a_model_in_int8_or_not_finite_is_refused(dense, batches, tmp_path):
    model = SpikingBertForSequenceClassification.from_dense(dense, calibration=batches)
    model.save_pretrained(tmp_path)
    int8 = SpikingBertForSequenceClassification.from_pretrained(
        tmp_path, quantization_config=Int8Config()
    )
    with pytest.raises(ValueError, match="these are int8"):
        reconstruct(int8, batches)
    with torch.no_grad():
        model.bert.encoder.layer[1].intermediate.dense.weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match="not finite"):
        reconstruct(model, batches)


def test_data_without_a_token_is_refused(dense, batches):
    model = SpikingBertModel.from_dense(dense.bert, calibration=batches)
    with pytest.raises(ValueError, match="at least one batch"):
        reconstruct(model, [])
    padding = batches[0] | {"attention_mask": torch.zeros_like(batches[0]["attention_mask"])}
    with pytest.raises(ValueError, match="only padding"):
        reconstruct(model, [padding])
