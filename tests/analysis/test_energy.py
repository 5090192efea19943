"""Counts against loops, SpikingJelly's counter and the closed form of the energy ratio."""

import dataclasses

import pytest
import torch
from torch import nn

from spikenlp import (
    SpikingBertConfig,
    SpikingBertForMaskedLM,
    SpikingBertForSequenceClassification,
    SpikingBertForTokenClassification,
)
from spikenlp.analysis import (
    EnergyConstants,
    SpikeMonitor,
    assert_spiking,
    describe_spikes,
    energy_by_step,
    energy_report,
)
from spikenlp.analysis.watching import watch_neurons
from spikenlp.neurons import IF, RoundingIF, SpikingLinear
from tests.conftest import TINY_DENSE
from tests.models.test_vision import copies, images
from tests.models.test_vision import make as vision

TINY = {**TINY_DENSE, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def bert(**fields):
    torch.manual_seed(0)
    return SpikingBertForSequenceClassification(SpikingBertConfig(**TINY, **fields)).eval()


@pytest.mark.parametrize("fields", [{}, {"nonlinearity": "step"}, {"num_timesteps": 7}])
def test_counts_of_a_bert(fields, batches):
    """MACs from the sizes, SOPs from a monitor's spikes; both at true lengths. The last of the two layers
    makes keys and values for all tokens, the rest for the first."""
    model, batch = bert(**fields), batches[0]
    found = energy_report(model, batch)
    with SpikeMonitor(model) as monitor, torch.no_grad():
        model(**batch)
    lengths = batch["attention_mask"].sum(1).tolist()
    tokens, samples, steps = sum(lengths), len(lengths), model.config.num_timesteps
    width, inner = model.config.hidden_size, model.config.intermediate_size
    pairs = sum(n * n for n in lengths)
    layers = {layer.name: layer for layer in found.layers}
    for index, read, met in ((0, tokens, pairs), (1, samples, tokens)):
        macs = {
            "attention.self.query": read * width * width,
            "attention.self.key": tokens * width * width,
            "attention.self.value": tokens * width * width,
            "attention.output.dense": read * width * width,
            "intermediate.dense": read * width * inner,
            "output.dense": read * inner * width,
            "attention.self.scores": met * width,
            "attention.self.context": met * width,
        }
        for name, expected in macs.items():
            layer = layers[f"bert.encoder.layer.{index}.{name}"]
            assert layer.dense_macs * samples == expected
            assert layer.steps == steps
    assert layers["bert.pooler.dense"].float_macs == steps * width * width
    assert layers["classifier"].dense_macs == width * 2
    counts = monitor.layers["bert.encoder.layer.1.intermediate.neuron"]
    spikes = int(counts.positive.sum() + counts.negative.sum())
    layer = layers["bert.encoder.layer.1.intermediate.dense"]
    assert layer.sops * samples == spikes * inner
    assert layer.rate == pytest.approx(counts.rate)
    floats, streams = found.elementwise, (tokens + samples) * width * steps
    assert floats["layer norm"] * samples == 2 * streams
    assert floats["GELU"] * samples == (tokens + samples) * inner * steps
    heads = model.config.num_attention_heads
    assert floats["softmax"] * samples == (pairs + tokens) * heads * steps
    assert floats["residual"] * samples == 2 * streams
    # Three embeddings are added, then normalised, once.
    assert floats["input"] * samples == 3 * tokens * width
    running = model.config.nonlinearity == "running"
    assert ("running means" in floats) == running
    keys_and_values, others = 3 * width, 2 * width + inner
    neurons = 2 * keys_and_values * tokens + others * (tokens + samples)
    assert found.membrane_updates * samples == neurons * steps


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


def test_a_mask_beside_embeddings_is_read(batches):
    model, batch = bert(), batches[0]
    embedded = {
        "inputs_embeds": model.get_input_embeddings()(batch["input_ids"]).detach(),
        "attention_mask": batch["attention_mask"],
    }
    assert energy_report(model, embedded).to_dict() == energy_report(model, batch).to_dict()


def tokens(samples, length, lengths):
    ids = torch.randint(5, 120, (samples, length), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(length) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize("nonlinearity", ["running", "step"])
@pytest.mark.parametrize("samples", [1, 3, 4])
def test_steps_samples_and_positions_of_one_size(samples, nonlinearity):
    """T = L = 4, and B = 4: each product runs at T steps, and the head of the mean once."""
    lengths = [4, 2, 3, 1][-samples:]
    batch = tokens(samples, 4, lengths)
    fields = {**TINY, "nonlinearity": nonlinearity, "num_timesteps": 4}
    torch.manual_seed(0)
    layers = {
        layer.name: layer
        for made in (
            SpikingBertForSequenceClassification,
            SpikingBertForTokenClassification,
            SpikingBertForMaskedLM,
        )
        for layer in energy_report(made(SpikingBertConfig(**fields)), batch).layers
        if made is SpikingBertForSequenceClassification or "encoder" not in layer.name
        for layer in [dataclasses.replace(layer, name=f"{made.__name__}.{layer.name}")]
    }
    read = {
        "SpikingBertForSequenceClassification.bert.pooler.dense": (samples, 32 * 32, 4),
        "SpikingBertForSequenceClassification.classifier": (samples, 32 * 2, 4),
        "SpikingBertForSequenceClassification.bert.encoder.layer.0.intermediate.dense": (
            sum(lengths),
            32 * 64,
            4,
        ),
        "SpikingBertForTokenClassification.classifier": (sum(lengths), 32 * 2, 4),
        "SpikingBertForMaskedLM.cls.predictions.transform.dense": (
            sum(lengths),
            32 * 32,
            1 if nonlinearity == "running" else 4,
        ),
        "SpikingBertForMaskedLM.cls.predictions.decoder": (sum(lengths), 32 * 120, 1),
    }
    for name, (rows, weights, steps) in read.items():
        assert layers[name].steps == steps, name
        assert layers[name].dense_macs * samples == pytest.approx(rows * weights), name


def test_masked_lm_of_rates_reads_the_mean_once():
    model = SpikingBertForMaskedLM(
        SpikingBertConfig(**TINY, architecture="spikingbert", num_timesteps=5)
    )
    batch = tokens(2, 4, [4, 3])
    found, without = energy_report(model, batch), energy_report(model.bert, batch)
    layers = {layer.name: layer for layer in found.layers}
    head = layers["cls.predictions.transform.dense"]
    assert (head.driver, head.steps, head.float_macs * 2) == ("float", 1, 7 * 32 * 32)
    # A dense model makes the head's products, GELU and layer norm once as well.
    dense = found.energies["dense, float32"] - without.energies["dense, float32"]
    assert dense * 2 == pytest.approx(4.6 * 7 * (32 * 32 + 32 * 120 + 32 + 32))


def test_the_spikes_per_neuron_are_the_monitor_s(batches):
    model, batch = bert(), batches[0]
    with SpikeMonitor(model) as monitor, torch.no_grad():
        model(**batch)
    assert energy_report(model, batch).spikes_per_neuron == monitor.spikes_per_neuron


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


def test_a_convolution_of_a_permuted_view():
    class Permuted(nn.Module):
        def __init__(self):
            super().__init__()
            self.neuron, self.conv = IF(), nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x):
            return self.conv(self.neuron(x).permute(0, 1, 4, 2, 3).flatten(0, 1))

    torch.manual_seed(0)
    model, x = Permuted(), torch.rand(4, 2, 6, 5, 3)
    maps = model.neuron(x).permute(0, 1, 4, 2, 3).reshape(-1, 6, 5)
    (layer,) = energy_report(model, x).layers
    assert layer.sops * 2 == 4 * sum(fan_out(m, 6, 5) for m in maps) > 0
    assert (layer.steps, layer.dense_macs) == (4, 4 * 3 * fan_out(torch.ones(6, 5), 6, 5))


def test_the_rate_of_neurons_that_always_fire_is_one_whatever_is_padded():
    model = nn.Sequential(IF(), _OverTime(nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2)))
    (layer,) = energy_report(model, torch.ones(4, 2, 4, 3, 5)).layers
    assert layer.rate == 1
    assert layer.dense_macs == 4 * 3 * fan_out(torch.ones(3, 5), 2, 3, stride=2)


class Multiplies(nn.Module):
    """Keys [T, B, L, C] with themselves, by `product`."""

    def __init__(self, product):
        super().__init__()
        self.neuron, self.product = IF(), product
        self.weight = nn.Parameter(torch.randn(3, 7))

    def forward(self, x):
        return self.product(self.neuron(x), x, self.weight)


@pytest.mark.parametrize(
    ("product", "meets"),
    [
        (lambda s, x, w: s @ x.transpose(-1, -2), 6),
        (lambda s, x, w: x @ s.transpose(-1, -2), 6),
        (lambda s, x, w: torch.bmm(s.flatten(0, 1), x.flatten(0, 1).mT), 6),
        (lambda s, x, w: torch.mm(s.flatten(0, 2), w), 7),
        (lambda s, x, w: torch.matmul(s, w), 7),
        (lambda s, x, w: torch.addmm(w[0], s.flatten(0, 2), w), 7),
        (lambda s, x, w: torch.baddbmm(x.new_zeros(1), s.flatten(0, 1), x.flatten(0, 1).mT), 6),
        (lambda s, x, w: torch.nn.functional.conv1d(s.flatten(0, 1).mT, w.T[..., None]), 7),
    ],
)
def test_products_outside_of_layers(product, meets):
    torch.manual_seed(0)
    model, x = Multiplies(product), torch.rand(4, 5, 6, 3)
    (layer,) = energy_report(model, x).layers
    assert (layer.driver, layer.steps) == ("binary", 4)
    assert layer.dense_macs == 6 * 3 * meets
    assert layer.sops * 5 == int(model.neuron(x).sum()) * meets > 0


def test_running_means_multiply_where_both_operands_are_activations():
    class Running(Multiplies):
        def forward(self, x):
            sent = self.neuron(x, running=True)
            return self.product(sent, x, self.weight)

    x = torch.rand(4, 5, 6, 3)
    (layer,) = energy_report(Running(lambda s, x, w: s @ x.mT), x).layers
    assert layer.driver == "float"
    (layer,) = energy_report(Running(lambda s, x, w: s @ w), x).layers
    assert layer.driver == "binary"


@pytest.mark.parametrize(
    ("product", "name"),
    [
        (lambda s, x, w: torch.einsum("tblc,cd->tbld", s, w), "einsum"),
        (lambda s, x, w: torch.tensordot(s, w, 1), "tensordot"),
        (lambda s, x, w: s[0, 0].mv(w[:, 0]), "mv"),
        (lambda s, x, w: nn.LSTM(3, 2)(s[0])[0], "lstm"),
        (lambda s, x, w: nn.Bilinear(3, 3, 2)(s, x), "bilinear"),
    ],
)
def test_a_product_that_is_not_counted_is_refused(product, name):
    for look in (energy_report, describe_spikes):
        with pytest.raises(ValueError, match=f"the model calls torch.*{name}, whose products"):
            look(Multiplies(product), torch.rand(4, 5, 6, 3))


def test_a_model_without_products_is_refused():
    with pytest.raises(ValueError, match="IF makes no matrix product"):
        energy_report(IF(), torch.rand(4, 5, 3))


def fan_out(spikes, height, width, kernel=3, stride=1, pad=1):
    """Outputs that the spikes {row: column} of one channel reach, by a loop over kernel offsets."""
    reached = 0
    for row, column in spikes.nonzero().tolist():
        for i in range(kernel):
            for j in range(kernel):
                up, left = row + pad - i, column + pad - j
                inside = 0 <= up < height * stride and 0 <= left < width * stride
                reached += inside and up % stride == 0 and left % stride == 0
    return reached


def sent_by(model, batch):
    seen = {}
    with (
        torch.no_grad(),
        watch_neurons(model, lambda sent: seen.update({sent.name: sent.spikes()})),
    ):
        model(**batch)
    return seen


@pytest.mark.parametrize("frames", [False, True])
def test_counts_of_a_vgg(frames):
    """A convolution after average pooling by 2 is one of stride 2 with a kernel twice as large."""
    model = vision("vgg")
    x = images(model, 2)
    batch = {"pixel_values": copies(x, 3) if frames else x}
    found = energy_report(model, batch)
    layers = {layer.name: layer for layer in found.layers}
    spikes = sent_by(model, batch)
    stem = layers["vgg.stages.0.layers.0.conv"]
    assert stem.driver == "float"
    inside = fan_out(torch.ones(8, 8), 8, 8)
    assert stem.dense_macs == 2 * 6 * inside < 2 * 6 * 9 * 64
    assert stem.float_macs == stem.dense_macs * (3 if frames else 1)
    assert layers["vgg.stages.0.layers.1.conv"].dense_macs == 6 * 8 * inside
    maps = spikes["vgg.stages.0.layers.0.neuron"].flatten(0, 2)
    expected = 8 * sum(fan_out(m, 8, 8) for m in maps)
    assert layers["vgg.stages.0.layers.1.conv"].sops * 2 == expected > 0
    maps = spikes["vgg.stages.0.layers.1.neuron"].flatten(0, 2)
    expected = 8 * sum(fan_out(m, 4, 4, kernel=6, stride=2, pad=2) for m in maps)
    assert layers["vgg.stages.1.layers.0.conv"].sops * 2 == expected > 0
    pooled = int(spikes["vgg.stages.1.layers.0.neuron"].sum())
    assert layers["classifier"].sops * 2 == pooled * 10 > 0
    assert found.driven_share < 1
    folded = energy_report(model.fold_batch_norm(), batch)
    assert found.elementwise == folded.elementwise == {}, "a norm goes into the weights before it"
    assert found.energies == folded.energies
    dense = found.constants.float_mac * found.dense_macs
    assert found.energies["dense, float32"] == pytest.approx(dense * (3 if frames else 1))
    assert found.products_ratio() == pytest.approx(
        sum(layer.energy for layer in found.layers) / found.energies["dense, float32"]
    )
    pixels = batch["pixel_values"]
    assert energy_report(model, pixels).to_dict() == found.to_dict()
    by_step = [report.to_dict() for report in energy_by_step(model, pixels)]
    assert by_step == [report.to_dict() for report in energy_by_step(model, batch)]
    assert [report["num_timesteps"] for report in by_step] == list(
        range(1, found.num_timesteps + 1)
    )


def test_sums_of_spikes_are_billed_by_their_spikes():
    model = vision("resnet", neuron="if", residual="sew", depths=(2, 1))
    batch = {"pixel_values": images(model, 2)}
    layers = {layer.name: layer for layer in energy_report(model, batch).layers}
    spikes = sent_by(model, batch)
    stem, branch = (spikes[f"resnet.{n}.neuron"].flatten(0, 2) for n in ("embedder", "stages.0.0"))
    expected = 6 * sum(fan_out(m, 8, 8) for m in (*stem, *branch))
    assert layers["resnet.stages.0.1.layers.0.conv"].sops * 2 == expected > 0
    drivers = {d.name: d for d in describe_spikes(model, batch)}
    assert drivers["resnet.stages.0.1.layers.0.conv"].alphabet == "sums of 0, 1"
    assert drivers["resnet.stages.0.1.layers.0.conv"].driver == "integer"
    assert drivers["resnet.stages.0.1.last.conv"].alphabet == "0, 1"
    assert drivers["classifier.dense"].driver == "float"
    assert drivers["classifier.out"].neuron == "classifier.neuron"


def test_counts_of_spiking_attention():
    model = vision("qkformer")
    batch = {"pixel_values": images(model, 2)}
    assert_spiking(model, batch)
    found = energy_report(model, batch)
    spikes = sent_by(model, batch)
    name = "qkformer.stages.2.0.attention"
    values, queries = (int(spikes[f"{name}.{n}.neuron"].sum()) for n in ("value", "query"))
    products = [layer for layer in found.layers if layer.name == f"{name}.matmul"]
    width, pixels = 16 // 4, 4 * 4
    assert [p.dense_macs for p in products] == [16 * width * pixels] * 2
    assert [p.sops * 2 for p in products] == [values * width, queries * width]
    assert min(values, queries) > 0
    # Token attention: a key's spike passes where its head's neuron fired.
    name = "qkformer.stages.0.0.attention"
    gates = spikes[f"{name}.neuron"].repeat_interleave(2, 2)
    passed = int((gates * spikes[f"{name}.key.neuron"]).sum())
    layer = next(layer for layer in found.layers if layer.name == f"{name}.projection.conv")
    assert layer.sops * 2 == passed * 8 > 0
    assert passed < spikes[f"{name}.key.neuron"].sum()


def test_max_pooled_spikes_are_spikes():
    model = vision("resnet", neuron="if", residual="sew", stem="imagenet", image_size=16)
    batch = {"pixel_values": images(model, 2)}
    layers = {layer.name: layer for layer in energy_report(model, batch).layers}
    stem = sent_by(model, batch)["resnet.embedder.neuron"]
    pooled = torch.nn.functional.max_pool2d(stem.flatten(0, 1), 3, 2, 1)
    expected = 6 * sum(fan_out(m, 4, 4) for m in pooled.flatten(0, 1))
    assert layers["resnet.stages.0.0.layers.0.conv"].sops * 2 == expected > 0


def test_a_monitor_counts_channels_of_feature_maps():
    model = vision("vgg")
    batch = {"pixel_values": images(model, 2)}
    with SpikeMonitor(model) as monitor, torch.no_grad():
        model(**batch)
    counts = monitor.layers["vgg.stages.0.layers.1.neuron"]
    spikes = sent_by(model, batch)["vgg.stages.0.layers.1.neuron"]
    assert torch.equal(counts.positive, spikes.sum((1, 3, 4)).long())
    assert counts.sites == 2 * 64


def test_padding_at_the_token_that_a_classifier_reads_is_refused(batches):
    batch = {
        "input_ids": batches[0]["input_ids"],
        "attention_mask": batches[0]["attention_mask"].flip(1),
    }
    model = bert()
    with pytest.raises(ValueError, match="pad on the right"):
        energy_report(model, batch)
    with pytest.raises(ValueError, match="pad on the right"):
        next(model.anytime(batch))
    next(model.anytime(batch, energy=False))


@pytest.mark.parametrize("first", [True, False])
def test_inputs_of_the_whole_batch_may_stand_beside_it(batches, first):
    model, batch = bert(), dict(batches[0])
    positions = {"position_ids": torch.arange(batch["input_ids"].shape[1])[None]}
    given = {**positions, **batch} if first else {**batch, **positions}
    assert energy_report(model, given).energies == energy_report(model, batch).energies


def test_a_compiled_model_is_refused(batches):
    with pytest.raises(ValueError, match="compiled"):
        energy_report(torch.compile(bert()), batches[0])


class Convolves(nn.Module):
    def __init__(self, *before):
        super().__init__()
        self.neuron, self.before = IF(), nn.Sequential(*before)
        self.conv = nn.Conv2d(2, 3, 3, padding=1, bias=False)

    def forward(self, x):
        spikes = self.neuron(x)
        return self.conv(self.before(spikes.flatten(0, 1))).unflatten(0, spikes.shape[:2])


def spread(spikes, before):
    """By the definition: each spike reaches the outputs that change when it is taken away."""
    weight = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    reached = 0
    for t, b, c, row, column in spikes.nonzero().tolist():
        alone = torch.zeros_like(spikes[0, 0, 0], dtype=torch.float64)
        alone[row, column] = spikes[t, b, c, row, column]
        seen = torch.nn.functional.conv2d(
            before(alone[None, None]).ne(0).double(), weight, padding=1
        )
        reached += int(seen.round().sum())
    return reached * 3


@pytest.mark.parametrize(
    ("before", "form"),
    [
        (nn.AvgPool2d(2, ceil_mode=True), "integer"),
        (nn.AvgPool2d(3, 2, 1, count_include_pad=False), "integer"),
        (nn.AvgPool2d(2, divisor_override=1), "integer"),
        (nn.AvgPool2d(3, 2, 1), "integer"),
        (nn.ZeroPad2d((0, 1, 2, 0)), "binary"),
        (nn.CircularPad2d(1), "binary"),
    ],
    ids=str,
)
def test_what_lies_between_spikes_and_a_convolution(before, form):
    torch.manual_seed(0)
    model, x = Convolves(before), 3 * torch.rand(3, 1, 2, 7, 7)
    (layer,) = energy_report(model, x).layers
    assert layer.driver == form
    assert layer.sops == spread(model.neuron(x), before) > 0


class Adds(nn.Module):
    def __init__(self, between):
        super().__init__()
        self.neuron, self.first, self.between = IF(), nn.Linear(4, 4), between

    def forward(self, x):
        return self.between(self.first(self.neuron(x)), x)


def add_in_place(y, x):
    y += x
    return y


@pytest.mark.parametrize(
    ("between", "name"),
    [
        (lambda y, x: y + x, "residual"),
        (add_in_place, "residual"),
        (lambda y, x: y.add_(x), "residual"),
        (lambda y, x: torch.relu(y), "ReLU"),
        (lambda y, x: y.relu(), "ReLU"),
        (lambda y, x: y.tanh(), "tanh"),
        (lambda y, x: torch.sigmoid(y), "sigmoid"),
        (lambda y, x: nn.functional.silu(y), "SiLU"),
        (lambda y, x: nn.functional.leaky_relu(y), "ReLU"),
        (lambda y, x: nn.functional.rms_norm(y, [4]), "RMS norm"),
        (lambda y, x: y.softmax(-1), "softmax"),
        (lambda y, x: y.flatten(0, 1).relu(), "ReLU"),
    ],
)
def test_a_function_is_billed_in_whatever_form(between, name):
    report = energy_report(Adds(between), 3 * torch.rand(3, 2, 5, 4))
    assert report.elementwise == {name: 3 * 5 * 4}


def test_frozen_norms_stay_frozen():
    model = vision("vgg").train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.eval()
    energy_report(model, {"pixel_values": images(model, 2)})
    assert model.training
    assert not any(norm.training for norm in norms)


@pytest.mark.parametrize(("inplace", "billed"), [(True, True), (False, True), (None, False)])
def test_a_norm_is_free_right_after_a_layer_alone(inplace, billed):
    between = [] if inplace is None else [nn.ReLU(inplace=inplace)]
    parts = nn.Sequential(IF(), nn.Flatten(0, 1), nn.Conv2d(2, 3, 1), *between, nn.BatchNorm2d(3))
    report = energy_report(parts.eval(), 3 * torch.rand(3, 2, 2, 4, 4))
    assert ("batch norm" in report.elementwise) == billed
