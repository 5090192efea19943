"""The spikingbert architecture: its dynamics, its implicit gradient, and what it costs."""

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForSequenceClassification

from spikenlp import (
    SpikingBertConfig,
    SpikingBertForMaskedLM,
    SpikingBertForQuestionAnswering,
    SpikingBertForSequenceClassification,
    SpikingBertForTokenClassification,
    SpikingBertModel,
)
from spikenlp.analysis import SpikeMonitor
from spikenlp.losses import sdt_loss, tet_loss, tmc_loss
from spikenlp.models.spiking_bert.equilibrium import AtRates, equilibrium_rate
from spikenlp.neurons import IF
from tests.conftest import TINY_DENSE

HEADS = [
    SpikingBertForMaskedLM,
    SpikingBertForSequenceClassification,
    SpikingBertForTokenClassification,
    SpikingBertForQuestionAnswering,
]


def make(model_class=SpikingBertForSequenceClassification, **fields):
    torch.manual_seed(0)
    options = {"architecture": "spikingbert", "hidden_dropout_prob": 0.0, "num_timesteps": 8}
    return model_class(SpikingBertConfig(**{**TINY_DENSE, **options, **fields})).eval()


def currents(model, batch):
    """The embedding [1, B, L, D] and the mask that the encoder gets."""
    bert = model.base_model
    mask = torch.zeros_like(batch["attention_mask"], dtype=bert.dtype)
    mask = mask.masked_fill(batch["attention_mask"] == 0, torch.finfo(bert.dtype).min)
    return bert.embeddings(batch["input_ids"])[None], mask[:, None, None]


def settled(model, batch, means=None):
    """Logits of the equilibrium map: at its own values, or at given means."""
    hidden = model.bert.encoder.populations(*currents(model, batch), AtRates(means))
    return model.classifier(model.bert.pooler(hidden)[0])


def one_step_at_a_time(model, input_ids, attention_mask):
    """The published network with "step" (u += f(s); s = [u >= 1]; u -= s), and the same with f acting
    on means of spikes, written out for every population. Returns rates by step [T, B, L, D]."""
    config, mask = model.config, attention_mask.bool()[:, None, None]
    running = config.nonlinearity == "running"
    membranes, sums, before = {}, {}, {}

    def fire(name, value, t):
        current = value
        if running:
            current = t * value - before.get(name, 0)
            before[name] = t * value
        u = membranes.get(name, 0) + current
        spikes = (u >= 1).to(u)
        if config.ternary:
            spikes = spikes - (u <= -1).to(u)
        membranes[name] = u - spikes
        sums[name] = sums.get(name, 0) + spikes
        return sums[name] / t if running else spikes

    def heads(x):
        return x.unflatten(-1, (config.num_attention_heads, -1)).transpose(1, 2)

    embedding = model.bert.embeddings(input_ids)
    rates = []
    for t in range(1, config.num_timesteps + 1):
        h = fire("embedding", embedding, t)
        for i, layer in enumerate(model.bert.encoder.layer):
            own, added = layer.attention.self, layer.attention.output
            k, v = fire((i, "k"), own.key(h), t), fire((i, "v"), own.value(h), t)
            scores = heads(own.query(h)) @ heads(k).transpose(-1, -2) / own.attention_head_size**0.5
            weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
            context = fire((i, "c"), (weights @ heads(v)).transpose(1, 2).flatten(-2), t)
            o = fire((i, "o"), added.LayerNorm(added.dense(context) + h), t)
            m = fire((i, "m"), F.gelu(layer.intermediate.dense(o)), t)
            h = fire((i, "h"), layer.output.LayerNorm(layer.output.dense(m) + o), t)
        rates.append(sums[i, "h"] / t)
    assert len(sums) == 1 + 6 * config.num_hidden_layers
    return torch.stack(rates)


@pytest.mark.parametrize("ternary", [False, True])
@pytest.mark.parametrize("nonlinearity", ["step", "running"])
@pytest.mark.parametrize("gradient", ["implicit", "bptt"])
@torch.no_grad()
def test_the_spikes_are_those_of_the_equations(gradient, nonlinearity, ternary, batches):
    model = make(gradient=gradient, nonlinearity=nonlinearity, ternary=ternary)
    expected = one_step_at_a_time(model, **batches[0])
    outputs = model.bert(**batches[0], output_timesteps=True)
    found = outputs.timestep_hidden_state.cumsum(1) / torch.arange(1, 9)[:, None, None]
    same = (found.transpose(0, 1) - expected).abs() < 1e-4
    # A membrane within rounding error of its threshold may fire in one of them, and be heard on.
    assert same.float().mean() > 0.95
    assert expected.std() > 0.05
    torch.testing.assert_close(outputs.last_hidden_state, found[:, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_class", HEADS)
@pytest.mark.parametrize("nonlinearity", ["step", "running"])
def test_both_gradients_have_the_same_forward_pass(model_class, nonlinearity, batches):
    model = make(model_class, nonlinearity=nonlinearity)
    options = {"output_timesteps": True} if model_class is SpikingBertForMaskedLM else {}
    pair = []
    for gradient in ("implicit", "bptt"):
        model.config.gradient = gradient
        pair.append(model(**batches[0], **options))
    assert len(pair[0]) >= 2
    for name, value in pair[1].items():
        torch.testing.assert_close(pair[0][name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("gradient", ["implicit", "bptt"])
@pytest.mark.parametrize("nonlinearity", ["step", "running"])
def test_logits_are_the_head_on_the_average_spiking_rate(gradient, nonlinearity, batches):
    model = make(gradient=gradient, nonlinearity=nonlinearity)
    outputs = model(**batches[0], output_hidden_states=True)
    assert outputs.timestep_logits.shape == (8, 8, 2)
    torch.testing.assert_close(outputs.logits, outputs.timestep_logits.mean(1))
    rates = outputs.hidden_states[-1]
    head = model.classifier(model.bert.pooler(rates[None])[0])
    torch.testing.assert_close(outputs.logits, head, rtol=1e-4, atol=1e-5)
    for rate in outputs.hidden_states:
        assert torch.equal((rate * 8).round() / 8, rate)
        assert ((rate >= 0) & (rate <= 1)).all()
    assert len(outputs.hidden_states) == 3


@pytest.mark.parametrize("ternary", [False, True])
def test_the_implicit_gradient_is_that_of_the_equilibrium_map(ternary, batches):
    """In float64, against central differences of the loss at the equilibrium in random directions."""
    model = make(
        hidden_size=8, intermediate_size=12, num_attention_heads=2, ternary=ternary
    ).double()
    batch = {k: v[:3] for k, v in batches[0].items()}
    parameters = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("amplitude"):
                parameter.uniform_(0.5, 1.5)
            if name.endswith("v_threshold"):
                parameter.uniform_(0.8, 1.2)

    def loss(means=None):
        return (settled(model, batch, means) * torch.tensor([1.0, -2.0])).sum()

    means = {}

    class Noting(AtRates):
        def __call__(self, neuron, current):
            means[neuron] = super().__call__(neuron, current).detach()
            return means[neuron]

    with torch.no_grad():
        model.bert.encoder.populations(*currents(model, batch), Noting())
    value = loss(means)
    torch.testing.assert_close(value, loss(), rtol=1e-12, atol=1e-12)
    gradient = torch.autograd.grad(value, parameters)
    inside = torch.cat(
        [(m.abs() > 0.02) & (m.abs() < 0.4) for m in map(torch.flatten, means.values())]
    )
    assert 0.1 < inside.float().mean() < 0.9, "rates inside and at the border"
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        directions = [
            torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters
        ]
        predicted = sum((g * d).sum() for g, d in zip(gradient, directions, strict=True))
        step, values = 1e-6, []
        for sign in (1, -2):
            with torch.no_grad():
                for p, d in zip(parameters, directions, strict=True):
                    p.add_(sign * step * d)
                values.append(loss())
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.add_(step * d)
        measured = (values[0] - values[1]) / (2 * step)
        torch.testing.assert_close(predicted, measured, rtol=1e-4, atol=1e-6)


def gradient_of(model, batch):
    model.zero_grad()
    model(**batch, labels=torch.arange(8) % 2).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_with_many_steps_bptt_and_the_implicit_gradient_agree(batches):
    """With "running", where rates approach the equilibrium of the map."""
    similarities = []
    for steps in (16, 64, 256):
        model = make(num_timesteps=steps, nonlinearity="running", num_hidden_layers=1)
        implicit = gradient_of(model, batches[0])
        model.config.gradient = "bptt"
        bptt = gradient_of(model, batches[0])
        similarities.append(F.cosine_similarity(implicit, bptt, dim=0).item())
    assert similarities[0] < similarities[1] < similarities[2]
    assert similarities[2] > 0.98
    torch.testing.assert_close(implicit.norm(), bptt.norm(), rtol=0.15, atol=0)


def test_with_many_steps_the_implicit_gradient_is_that_at_the_equilibrium(batches):
    model = make(num_timesteps=16, nonlinearity="running", num_hidden_layers=1)
    labels = torch.arange(8) % 2
    model.zero_grad()
    F.cross_entropy(settled(model, batches[0]), labels).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    errors = []
    for steps in (16, 64, 256):
        model.config.num_timesteps = steps
        found = gradient_of(model, batches[0])
        errors.append(((found - expected).norm() / expected.norm()).item())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.1


def saved_bytes(model, batch):
    """What autograd keeps between forward and backward, each storage once, and the most that is
    alive in the time steps."""
    kept, alive = {}, []

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        alive.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        outputs = model(**batch)
    assert outputs.timestep_logits.shape[1] == model.config.num_timesteps
    for parameter in model.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(kept.values())


@pytest.mark.parametrize("model_class", [HEADS[1], HEADS[2]])
def test_memory_of_the_implicit_gradient_does_not_grow_with_time(model_class, batches):
    model = make(model_class).train()
    sizes = {}
    for gradient in ("implicit", "bptt"):
        for steps in (16, 128):
            model.config.gradient, model.config.num_timesteps = gradient, steps
            sizes[gradient, steps] = saved_bytes(model, batches[0])
    assert sizes["implicit", 128] < 1.02 * sizes["implicit", 16]
    assert sizes["bptt", 128] > 6 * sizes["bptt", 16]


def test_the_time_steps_hold_no_more_memory_the_more_they_are(batches):
    """Peak of all tensors alive during the forward pass."""
    from torch.profiler import ProfilerActivity, profile

    model, peaks = make(SpikingBertForTokenClassification, num_hidden_layers=1), {}
    for steps in (8, 32):
        model.config.num_timesteps = steps
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            model(**batches[0])
        events = profiler.profiler.kineto_results.events()
        now = highest = 0
        for event in sorted(
            (e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()
        ):
            now += event.nbytes()
            highest = max(highest, now)
        peaks[steps] = highest
    assert peaks[32] < 1.05 * peaks[8]


@pytest.mark.parametrize("fields", [{}, {"nonlinearity": "step"}, {"gradient": "bptt"}], ids=str)
@pytest.mark.parametrize("model_class", HEADS[1:3])
def test_every_parameter_learns(model_class, fields, batches):
    model = make(model_class, num_timesteps=16, **fields).train()
    for batch in batches:
        labels = torch.arange(8) % 2
        if model_class is SpikingBertForTokenClassification:
            labels = (batch["input_ids"] % 2).masked_fill(batch["attention_mask"] == 0, -100)
        model(**batch, labels=labels).loss.backward()
    dead = [n for n, p in model.named_parameters() if p.requires_grad and not p.grad.any()]
    # The key's bias adds nothing that softmax sees, but for the clamp of the rates.
    assert [n for n in dead if not n.endswith("key.bias")] == []


def test_temporal_losses_reach_the_weights_through_the_rates(batches):
    """SDT's gradient is that of the mean logits; TET and TMC weigh the steps, and differ from it."""
    model, labels = make(num_timesteps=16), torch.arange(8) % 2
    expected = gradient_of(model, batches[0])
    found = {}
    for loss in (sdt_loss, tet_loss, tmc_loss):
        model.zero_grad()
        loss(model(**batches[0]).timestep_logits, labels).backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        found[loss] = torch.cat(gradients)
    torch.testing.assert_close(found[sdt_loss], expected, rtol=1e-3, atol=1e-5)
    for loss in (tet_loss, tmc_loss):
        assert found[loss].isfinite().all()
        assert (found[loss] - expected).norm() > 1e-3 * expected.norm()


def test_autocast_and_bfloat16(batches):
    model = make(num_timesteps=32)
    expected = model(**batches[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(**batches[0], labels=torch.arange(8) % 2)
    assert outputs.timestep_logits.dtype == torch.float32
    difference = (outputs.logits - expected.logits).abs().max()
    assert difference < 0.3
    seen = []

    def readout(hidden):
        seen.append(model.classifier(hidden[:, 0]).dtype)
        return hidden[:, 0]

    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.bert(**batches[0], timestep_readout=readout)
    assert seen == [torch.float32] * 33, "differences between steps multiply rounding by t"
    outputs.loss.backward()
    low = model.bfloat16()(**batches[0])
    assert low.logits.dtype == torch.bfloat16
    assert (low.logits.float() - expected.logits).abs().max() < 0.5


@pytest.mark.parametrize("gradient", ["implicit", "bptt"])
def test_training_lowers_the_loss(gradient, batches):
    model = make(gradient=gradient, num_timesteps=8).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    labels, losses = torch.arange(8) % 2, []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(**batches[0], labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_one_dropout_mask_serves_all_time_steps_and_the_gradient(batches):
    model = make(hidden_dropout_prob=0.3, classifier_dropout=0.4, num_timesteps=16).train()
    torch.manual_seed(1)
    outputs = model(**batches[0])
    torch.testing.assert_close(outputs.logits, outputs.timestep_logits.mean(1))
    torch.manual_seed(1)
    assert torch.equal(model(**batches[0]).logits, outputs.logits)
    assert not torch.equal(model(**batches[0]).logits, outputs.logits), "masks are drawn anew"
    # The same masks unrolled: where they differed between steps, so would the logits.
    model.config.gradient = "bptt"
    torch.manual_seed(1)
    bptt = model.bert(**batches[0]).last_hidden_state
    model.config.gradient = "implicit"
    torch.manual_seed(1)
    torch.testing.assert_close(model.bert(**batches[0]).last_hidden_state, bptt, rtol=0, atol=0.05)


def test_settled_samples_stop(batches):
    model = make(num_timesteps=100, settle_tolerance=0.07)
    ran = []
    step = IF.step

    def counted(neuron, x, v=None, **options):
        ran.append(neuron)
        return step(neuron, x, v, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IF, "step", counted)
        outputs = model(**batches[0])
    steps = ran.count(model.bert.encoder.neuron)
    assert steps in (24, 32, 48, 64)
    assert outputs.timestep_logits.shape == (8, 100, 2)
    torch.testing.assert_close(outputs.timestep_logits.mean(1), outputs.logits)
    after = outputs.timestep_logits[:, steps:]
    torch.testing.assert_close(after, after[:, :1].expand_as(after), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tolerance", [None, 0.07])
@pytest.mark.parametrize("nonlinearity", ["step", "running"])
def test_a_sample_has_the_same_result_alone_and_in_a_padded_batch(nonlinearity, tolerance, batches):
    model = make(
        SpikingBertForTokenClassification,
        nonlinearity=nonlinearity,
        num_timesteps=48,
        settle_tolerance=tolerance,
    )
    batch = batches[0]
    lengths = batch["attention_mask"].sum(1).tolist()
    assert min(lengths[:3]) < 12
    together = model(**batch).logits
    for i, length in enumerate(lengths[:3]):
        alone = model(input_ids=batch["input_ids"][i : i + 1, :length]).logits[0]
        torch.testing.assert_close(together[i, :length], alone, rtol=0.02, atol=0.02)


def test_an_amplitude_below_its_floor_can_come_back():
    neuron = IF(learn_amplitude=True, channels=2)
    with torch.no_grad():
        neuron.amplitude.copy_(torch.tensor([-0.01, 0.5]))
    equilibrium_rate(neuron, torch.tensor([[0.6, 0.6]])).sum().backward()
    assert neuron.amplitude.grad.tolist() == pytest.approx([0.6, 0.6])


@pytest.mark.parametrize("nonlinearity", ["step", "running"])
def test_a_settled_sample_spikes_no_further_whoever_is_beside_it(nonlinearity, batches):
    model = make(nonlinearity=nonlinearity, num_timesteps=100, settle_tolerance=0.07)
    lengths = batches[0]["attention_mask"].sum(1).tolist()

    def spikes(ids, mask):
        with SpikeMonitor(model) as monitor, torch.no_grad():
            model(input_ids=ids, attention_mask=mask)
        return sum(int((c.positive + c.negative).sum()) for c in monitor.layers.values())

    ids, mask = batches[0]["input_ids"], batches[0]["attention_mask"]
    alone = [spikes(ids[i : i + 1, :n], mask[i : i + 1, :n]) for i, n in enumerate(lengths)]
    assert spikes(ids, mask) == pytest.approx(sum(alone), rel=1e-3)


def test_samples_stop_each_on_its_own(batches):
    model = make(num_timesteps=100, settle_tolerance=0.07)
    bert = model.bert
    embedding, mask = currents(model, batches[0])
    state = bert.encoder.run(embedding, mask, batches[0]["attention_mask"])
    steps = torch.as_tensor(state.steps).flatten().tolist()
    assert len(set(steps)) > 1, steps
    found = model(**batches[0]).logits
    model.config.settle_tolerance = None
    for number in set(steps):
        model.config.num_timesteps = int(number)
        chosen = torch.tensor(steps) == number
        expected = model(**batches[0]).logits[chosen]
        torch.testing.assert_close(found[chosen], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("architecture", ["default", "spikingbert"])
@pytest.mark.parametrize("nonlinearity", ["running", "step"])
def test_attention_scores_are_what_softmax_gets(architecture, nonlinearity, batches):
    model = make(SpikingBertModel, architecture=architecture, nonlinearity=nonlinearity)
    model.set_attn_implementation("eager")
    outputs = model(
        **batches[0],
        output_attention_scores=True,
        output_attentions=True,
        output_hidden_states=True,
    )
    assert len(outputs.attention_scores) == 2
    for scores, weights in zip(outputs.attention_scores, outputs.attentions, strict=True):
        assert scores.shape == (8, 4, 12, 12)
        if nonlinearity == "step" and architecture == "default":
            continue  # the maps of single steps have no common score
        hidden = batches[0]["attention_mask"][:, None, None] == 0
        expected = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-5)
    assert model(**batches[0]).get("attention_scores") is None


def test_what_a_distillation_reads_has_a_gradient(batches):
    model = make(num_timesteps=16).train()
    outputs = model(**batches[0], output_attention_scores=True, output_hidden_states=True)
    layer = model.bert.encoder.layer[0]
    (to_query,) = torch.autograd.grad(
        outputs.attention_scores[0].square().sum(),
        layer.attention.self.query.weight,
        retain_graph=True,
    )
    (to_dense,) = torch.autograd.grad(
        outputs.hidden_states[1].square().sum(), layer.output.dense.weight, retain_graph=True
    )
    (to_words,) = torch.autograd.grad(
        outputs.hidden_states[0].square().sum(), model.bert.embeddings.word_embeddings.weight
    )
    for gradient in (to_query, to_dense, to_words):
        assert gradient.any()


@pytest.mark.parametrize("fields", [{}, {"gradient": "bptt", "nonlinearity": "step"}], ids=str)
def test_gradient_checkpointing_changes_no_gradient(fields, batches):
    model = make(hidden_dropout_prob=0.2, **fields).train()
    checkpointed = copy.deepcopy(model)
    checkpointed.activation_checkpointing_enable()
    for m in (model, checkpointed):
        torch.manual_seed(3)
        m(**batches[0], labels=torch.arange(8) % 2).loss.backward()
    for (name, p), q in zip(model.named_parameters(), checkpointed.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, msg=name)


def test_the_configuration_survives_saving(tmp_path, batches):
    model = make(settle_tolerance=0.01, nonlinearity="step", num_timesteps=4)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.to_dict().items() >= {
        "architecture": "spikingbert", "gradient": "implicit", "neuron": "if", "ternary": False,
        "num_timesteps": 4, "settle_tolerance": 0.01, "nonlinearity": "step",
    }.items()  # fmt: skip
    assert torch.equal(loaded(**batches[0]).logits, model(**batches[0]).logits)


def test_fields_that_are_not_given_follow_the_architecture():
    names = ("num_timesteps", "neuron", "ternary", "gradient")
    published = SpikingBertConfig(architecture="spikingbert")
    assert [getattr(published, n) for n in names] == [100, "if", False, "implicit"]
    default = SpikingBertConfig()
    assert [getattr(default, n) for n in names] == [4, "rounding", True, "bptt"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "spikingbert", "neuron": "rounding"}, "neuron must be 'if'"),
        ({"architecture": "spikingbert", "collapsed": True}, "collapsed"),
        ({"gradient": "implicit"}, "architecture='spikingbert'"),
        ({"settle_tolerance": 0.1}, "settle_tolerance"),
        ({"architecture": "spikingbert", "settle_tolerance": 0.0}, "must be > 0"),
        ({"architecture": "spikingbert", "gradient": "rtrl"}, "gradient"),
    ],
)
def test_bad_configs_say_what_is_wrong(fields, message):
    with pytest.raises(Exception, match=message):
        SpikingBertConfig(**fields)


def test_a_readout_needs_the_implicit_gradient(batches):
    model = make(SpikingBertModel, gradient="bptt")
    with pytest.raises(ValueError, match="gradient='implicit'"):
        model(**batches[0], timestep_readout=lambda hidden: hidden)


def test_equilibrium_rate_is_the_mean_of_many_steps():
    torch.manual_seed(0)
    for ternary in (False, True):
        neuron = IF(0.7, ternary=ternary, amplitude=1.3)
        current = torch.linspace(-2, 2, 401)
        mean = neuron(current.expand(4000, -1)).mean(0)
        torch.testing.assert_close(equilibrium_rate(neuron, current), mean, rtol=0, atol=1e-3)
