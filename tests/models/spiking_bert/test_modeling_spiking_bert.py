"""Spiking BERT in the ecosystem: what transformers' own suite does not notice."""

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from spikenlp import (
    SpikingBertConfig,
    SpikingBertForMaskedLM,
    SpikingBertForQuestionAnswering,
    SpikingBertForSequenceClassification,
    SpikingBertForTokenClassification,
    SpikingBertModel,
)
from tests.conftest import TINY_DENSE

HEADS = {
    SpikingBertModel: AutoModel,
    SpikingBertForMaskedLM: AutoModelForMaskedLM,
    SpikingBertForSequenceClassification: AutoModelForSequenceClassification,
    SpikingBertForTokenClassification: AutoModelForTokenClassification,
    SpikingBertForQuestionAnswering: AutoModelForQuestionAnswering,
}
KINDS = [
    {},
    {"nonlinearity": "step"},
    {"ternary": False},
    {"neuron": "lif", "nonlinearity": "step"},
    {"neuron": "plif"},
    {"architecture": "spikingbert"},
    {"architecture": "spikingbert", "gradient": "bptt", "nonlinearity": "step", "ternary": True},
    {"collapsed": True},
]


def make(model_class=SpikingBertForSequenceClassification, **fields):
    torch.manual_seed(0)
    options = {"hidden_dropout_prob": 0.0, "num_timesteps": 3}
    return model_class(SpikingBertConfig(**{**TINY_DENSE, **options, **fields})).eval()


def first(outputs):
    return outputs[0]


@pytest.mark.parametrize("fields", KINDS, ids=str)
@pytest.mark.parametrize("model_class", HEADS)
def test_save_load_save_gives_the_same_model(model_class, fields, batches, tmp_path):
    model = make(model_class, **fields)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.rand_like(parameter))
    model.save_pretrained(tmp_path / "a")
    loaded = HEADS[model_class].from_pretrained(tmp_path / "a")
    assert type(loaded) is model_class
    loaded.save_pretrained(tmp_path / "b")
    again = model_class.from_pretrained(tmp_path / "b")
    assert again.config.to_dict().items() >= fields.items()
    for other in (loaded, again):
        for name, value in model.state_dict().items():
            assert torch.equal(other.state_dict()[name], value), name
        assert torch.equal(first(other(**batches[0])), first(model(**batches[0])))


@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_padding_never_changes_a_real_token(fields, batches):
    model = make(SpikingBertForTokenClassification, **fields).double()  # float32 flips spikes
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        batch = batches[0]
        together = model(**batch).logits
        for i, length in enumerate(batch["attention_mask"].sum(1).tolist()):
            alone = model(input_ids=batch["input_ids"][i : i + 1, :length]).logits[0]
            torch.testing.assert_close(together[i, :length], alone, rtol=1e-6, atol=1e-6)


def test_what_is_in_the_padding_does_not_matter(batches):
    model, batch = make(), batches[0]
    other = {**batch, "input_ids": batch["input_ids"] + 7 * (1 - batch["attention_mask"])}
    assert not torch.equal(other["input_ids"], batch["input_ids"])
    torch.testing.assert_close(model(**other).logits, model(**batch).logits)
    without_mask = model(input_ids=batch["input_ids"]).logits
    assert not torch.allclose(without_mask, model(**batch).logits, atol=1e-3)


@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_the_order_of_a_batch_does_not_matter(fields, batches):
    model, batch = make(**fields), batches[0]
    order = torch.tensor([3, 0, 7, 1, 2, 6, 5, 4])
    shuffled = model(**{k: v[order] for k, v in batch.items()}).logits
    torch.testing.assert_close(shuffled, model(**batch).logits[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_no_state_is_left_between_calls(fields, batches):
    model = make(**fields)
    before = first(model(**batches[0]))
    model(**batches[1])
    assert torch.equal(first(model(**batches[0])), before)


@pytest.mark.parametrize("fields", KINDS[:-1], ids=str)
def test_logits_are_the_mean_over_time(fields, batches):
    outputs = make(**fields)(**batches[0])
    assert outputs.timestep_logits.shape == (8, 3, 2)
    torch.testing.assert_close(outputs.logits, outputs.timestep_logits.mean(1))
    tokens = make(SpikingBertForTokenClassification, **fields)(**batches[0])
    assert tokens.timestep_logits.shape == (8, 3, 12, 2)
    torch.testing.assert_close(tokens.logits, tokens.timestep_logits.mean(1))


@pytest.mark.parametrize("nonlinearity", ["running", "step"])
def test_hidden_states_are_means_over_time(nonlinearity, batches):
    model = make(SpikingBertModel, nonlinearity=nonlinearity)
    outputs = model(**batches[0], output_timesteps=True, output_hidden_states=True)
    assert outputs.timestep_hidden_state.shape == (8, 3, 12, 32)
    mean = outputs.timestep_hidden_state.mean(1)
    torch.testing.assert_close(outputs.last_hidden_state, mean, rtol=1e-4, atol=1e-5)
    assert len(outputs.hidden_states) == 3
    torch.testing.assert_close(outputs.hidden_states[-1], outputs.last_hidden_state)
    assert "timestep_hidden_state" not in model(**batches[0])


def test_the_first_steps_of_a_longer_run_are_a_shorter_run(batches):
    """Causality: what step t sends does not depend on how many follow."""
    model = make(num_timesteps=6)
    long = model(**batches[0]).timestep_logits
    model.config.num_timesteps = 2
    short = model(**batches[0]).timestep_logits
    torch.testing.assert_close(long[:, :2], short, rtol=1e-4, atol=1e-5)


def one_step_at_a_time(model, input_ids, attention_mask):
    """The running network as a chip would run it: each weight matrix reads the spikes of one step,
    a float function keeps the sum of what it got and sends what its value at the mean has gained."""
    received, sent, membranes = {}, {}, {}

    def mean(key, current, t):
        received[key] = received.get(key, 0) + current
        return received[key] / t

    def fire(neuron, value, t):
        current = t * value - sent.get(neuron, 0)
        sent[neuron] = t * value
        spikes, membranes[neuron] = neuron.step(current, membranes.get(neuron))
        assert set((spikes / neuron.amplitude).unique().tolist()) <= {-1, 0, 1}
        return spikes

    def heads(x):
        return x.unflatten(-1, (config.num_attention_heads, -1)).transpose(1, 2)

    config, mask = model.config, attention_mask.bool()[:, None, None]
    embedding = model.bert.embeddings(input_ids)
    logits, before = [], 0
    for t in range(1, config.num_timesteps + 1):
        x = embedding
        for layer in model.bert.encoder.layer:
            attention, added = layer.attention.self, layer.attention.output
            spikes = fire(attention.neuron, x, t)
            q, k, v = (
                mean(linear, linear(spikes), t)
                for linear in (attention.query, attention.key, attention.value)
            )
            k = mean(attention.key_neuron, fire(attention.key_neuron, k, t), t)
            v = mean(attention.value_neuron, fire(attention.value_neuron, v, t), t)
            context = F.scaled_dot_product_attention(heads(q), heads(k), heads(v), mask)
            context = context.transpose(1, 2).flatten(-2)
            update = mean(added.dense, added.dense(fire(added.neuron, context, t)), t)
            x = added.LayerNorm(x + update)
            wide, out = layer.intermediate, layer.output
            current = wide.dense(fire(wide.neuron, x, t))
            activation = F.gelu(mean(wide.dense, current, t))
            x = out.LayerNorm(x + mean(out.dense, out.dense(fire(out.neuron, activation, t)), t))
        pooled = t * model.bert.pooler.dense(x[:, 0]).tanh()
        logits.append(model.classifier(pooled - before))
        before = pooled
    return torch.stack(logits, 1)


@torch.no_grad()
def test_the_running_network_is_one_of_spikes(dense, batches):
    model = SpikingBertForSequenceClassification.from_dense(
        dense, calibration=batches, num_timesteps=4
    )
    found = model(**batches[0]).timestep_logits
    expected = one_step_at_a_time(model, **batches[0])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_compiles_whole_and_exports(batches):
    model = make(num_hidden_layers=1).train()
    results = []
    for run in (model, torch.compile(model, fullgraph=True)):
        model.zero_grad()
        run(**batches[0]).timestep_logits.square().sum().backward()
        results.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    for name, grad in results[0].items():
        torch.testing.assert_close(results[1][name], grad, rtol=1e-3, atol=1e-3)

    model.eval()
    sizes = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("length", max=40)}
    exported = torch.export.export(
        model, (), batches[0], dynamic_shapes=dict.fromkeys(batches[0], sizes)
    )
    fewer = {k: v[:3, :7] for k, v in batches[1].items()}
    torch.testing.assert_close(exported.module()(**fewer).logits, model(**fewer).logits)


@pytest.mark.parametrize("fields", [f for f in KINDS if "architecture" not in f], ids=str)
def test_the_last_layer_answers_for_the_first_token(fields, batches):
    """The same logits and gradients as with all tokens, which whoever asks for hidden states gets."""
    model, tokens, found = make(**fields).double().train(), {}, []  # sums of float32 flip levels
    for index, layer in enumerate(model.bert.encoder.layer):
        layer.intermediate.register_forward_hook(
            lambda module, args, out, index=index: tokens.setdefault(index, []).append(out.shape[2])
        )
    for asked in ({}, {"output_hidden_states": True}, {"output_attention_scores": True}):
        model.zero_grad()
        outputs = model(**batches[0], **asked, labels=torch.arange(8) % 2)
        outputs.loss.backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append((outputs.logits.detach(), grads))
        if "output_hidden_states" in asked:
            assert [tuple(h.shape) for h in outputs.hidden_states] == 3 * [(8, 12, 32)]
    assert tokens == {0: [12, 12, 12], 1: [1, 12, 12]}
    for logits, grads in found[1:]:
        torch.testing.assert_close(logits, found[0][0])
        for name, grad in grads.items():
            torch.testing.assert_close(grad, found[0][1][name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_mask_with_a_row_for_each_query(attention, batches):
    """The first token may look at the first half alone, the others at all tokens."""
    model = make(attn_implementation=attention)
    mask = torch.ones(8, 1, 12, 12, dtype=torch.bool)
    mask[:, :, 0, 6:] = False
    if attention == "eager":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    ids = batches[0]["input_ids"]
    expected = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).logits
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, expected)
    assert not torch.allclose(model(input_ids=ids).logits, expected)


def test_spikingbert_computes_all_tokens(batches):
    with pytest.raises(ValueError, match="first_token_only is for the architecture 'default'"):
        make(SpikingBertModel, architecture="spikingbert")(**batches[0], first_token_only=True)


def test_collapsed_has_no_time_axis(batches):
    outputs = make(collapsed=True)(**batches[0])
    assert outputs.get("timestep_logits") is None
    assert outputs.logits.shape == (8, 2)


@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_every_parameter_learns(fields, batches):
    torch.manual_seed(0)
    model = make(**fields).train()
    for _ in range(3):
        for batch in batches:
            model(**batch, labels=torch.arange(8) % 2).loss.backward()
    dead = [n for n, p in model.named_parameters() if p.requires_grad and not p.grad.any()]
    # The key's bias adds the same number to every score of a query, which softmax ignores.
    assert [name for name in dead if not name.endswith("key.bias")] == []


def test_gradient_checkpointing_changes_no_gradient(batches):
    model = make().train()
    checkpointed = copy.deepcopy(model)
    checkpointed.gradient_checkpointing_enable()
    for m in (model, checkpointed):
        m(**batches[0], labels=torch.arange(8) % 2).loss.backward()
    for (name, p), q in zip(model.named_parameters(), checkpointed.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, msg=name)


def test_dropout_draws_one_mask_for_all_steps(batches):
    """With "running", masks that differed between steps would be amplified by their number."""
    model = make(hidden_dropout_prob=0.3, num_timesteps=8).train()
    torch.manual_seed(0)
    logits = model(**batches[0]).timestep_logits
    assert logits.isfinite().all()
    assert logits.abs().max() < 100


def test_mlm_weights_are_tied_after_resizing_the_embedding(batches):
    model = make(SpikingBertForMaskedLM)
    model.resize_token_embeddings(130)
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert model(**batches[0]).logits.shape == (8, 12, 130)


@pytest.mark.parametrize("tied", [True, False])
def test_a_masked_lm_with_added_tokens_is_saved_and_loaded(batches, tmp_path, tied):
    model = make(SpikingBertForMaskedLM, tie_word_embeddings=tied)
    model.resize_token_embeddings(130)
    torch.nn.init.normal_(model.cls.predictions.decoder.bias)
    model.save_pretrained(tmp_path)
    loaded = SpikingBertForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(**batches[0]).logits, model(**batches[0]).logits)


def test_regression_and_multi_label_losses(batches):
    regression = make(num_labels=1)
    loss = regression(**batches[0], labels=torch.linspace(0, 5, 8)).loss
    expected = (regression(**batches[0]).logits[:, 0] - torch.linspace(0, 5, 8)).square().mean()
    torch.testing.assert_close(loss, expected)
    many = make(num_labels=3)
    assert many(**batches[0], labels=torch.rand(8, 3)).loss.isfinite()
    assert many.config.problem_type == "multi_label_classification"


def test_bfloat16(batches):
    model = make().bfloat16()
    outputs = model(**batches[0])
    assert outputs.logits.dtype == torch.bfloat16
    assert outputs.logits.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_on_cpu_attention_is_trained_in_float32_whatever_the_precision(
    batches, training, autocast, monkeypatch
):
    fused, seen = torch.nn.functional.scaled_dot_product_attention, []

    def watched(query, key, value, **kwargs):
        seen.append(
            torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else key.dtype
        )
        return fused(query, key, value, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    model = make().train(training)
    model = model if autocast else model.bfloat16()
    mask = torch.zeros(8, 1, 12, 12, dtype=torch.bfloat16)
    mask[:, :, :, -2:] = torch.finfo(torch.bfloat16).min
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(batches[0]["input_ids"], attention_mask=mask).timestep_logits
    logits.float().sum().backward()
    assert set(seen) == {torch.float32 if training else torch.bfloat16}
    gradient = model.bert.encoder.layer[0].attention.self.key.weight.grad
    assert gradient.isfinite().all()
    assert gradient.any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_timesteps": 0}, "num_timesteps must be >= 1"),
        ({"hidden_size": 30}, "not a multiple"),
        ({"collapsed": True, "neuron": "lif"}, "collapsed"),
        ({"attention_probs_dropout_prob": 0.1}, "attention_probs_dropout_prob"),
        ({"beta": 0.0}, "beta"),
        ({"neuron": "izhikevich"}, "neuron"),
        ({"burst": 0}, r"burst must be in \[1, 16\], got 0"),
        ({"burst": 2, "neuron": "lif"}, "burst=2 is for rounding neurons, not 'lif'"),
    ],
)
def test_bad_configs_say_what_is_wrong(fields, message):
    with pytest.raises(Exception, match=message):
        SpikingBertConfig(**fields)


@pytest.mark.parametrize("fields", KINDS, ids=str)
@pytest.mark.parametrize("model_class", HEADS)
def test_outputs_may_be_tuples_and_time_steps_asked_for(model_class, fields, batches):
    model = make(model_class, **fields)
    expected = model(**batches[0], output_timesteps=True)
    if not model.config.collapsed:
        assert any(name.startswith("timestep_") for name in expected)
    config_says = make(model_class, **fields, return_dict=False)
    for found in (
        model(**batches[0], output_timesteps=True, return_dict=False),
        config_says(**batches[0], output_timesteps=True),
    ):
        assert isinstance(found, tuple)
        for one, other in zip(found, expected.to_tuple(), strict=True):
            assert torch.equal(one, other)


def test_what_a_call_cannot_do_is_refused(batches):
    with pytest.raises(ValueError, match=r"set model\.config\.num_timesteps"):
        make()(**batches[0], num_timesteps=2)
    positions = torch.tensor([[1, 2]])
    with pytest.raises(ValueError, match=r"masked_positions must be bool.*int64"):
        make(SpikingBertForMaskedLM)(**batches[0], masked_positions=positions)


def test_fields_given_at_loading_are_checked(tmp_path):
    make().save_pretrained(tmp_path)
    loaded = SpikingBertForSequenceClassification.from_pretrained(tmp_path, num_timesteps=8)
    assert loaded.config.num_timesteps == 8
    with pytest.raises(Exception, match="num_timesteps must be >= 1, got 0"):
        SpikingBertForSequenceClassification.from_pretrained(tmp_path, num_timesteps=0)
