"""The three vision models as transformers models: sizes, time, saving, losses, errors."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, pipeline
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from spikenlp import (
    QKFormerConfig,
    QKFormerForImageClassification,
    SpikingResNetConfig,
    SpikingResNetForImageClassification,
    SpikingTrainer,
    SpikingTrainingArguments,
    SpikingVGGConfig,
    SpikingVGGForImageClassification,
)
from spikenlp.neurons import LIF, SpikingNeuron
from tests.models.vision_references import ClockDrivenLif, IntegrateAndFire, TetLif

CLASSES = {
    "vgg": (SpikingVGGConfig, SpikingVGGForImageClassification),
    "resnet": (SpikingResNetConfig, SpikingResNetForImageClassification),
    "qkformer": (QKFormerConfig, QKFormerForImageClassification),
}
TINY = {
    "vgg": {"hidden_sizes": [6, 8, 8], "depths": [2, 1], "image_size": 8, "num_timesteps": 3},
    "resnet": {
        "embedding_size": 6,
        "hidden_sizes": [6, 8],
        "depths": [1, 1],
        "head_size": 12,
        "image_size": 8,
        "num_timesteps": 3,
    },
    "qkformer": {
        "patch_embedding": "cifar",
        "hidden_sizes": [8, 12, 16],
        "depths": [1, 1, 1],
        "num_attention_heads": 4,
        "image_size": 16,
        "num_timesteps": 3,
    },
}
KINDS = [
    ("vgg", {}),
    ("vgg", {"neuron": "rounding", "batch_norm": False}),
    ("vgg", {"neuron": "relu"}),
    ("resnet", {}),
    ("resnet", {"neuron": "if", "residual": "sew", "stem": "imagenet", "image_size": 32}),
    (
        "resnet",
        {
            "neuron": "rounding",
            "layer_type": "bottleneck",
            "hidden_sizes": [8, 8],
            "head_size": None,
        },
    ),
    ("resnet", {"neuron": "relu"}),
    ("qkformer", {}),
    ("qkformer", {"neuron": "if", "patch_embedding": "imagenet", "image_size": 32}),
]
SPIKING = [kind for kind in KINDS if kind[1].get("neuron") != "relu"]


def make(name, **fields):
    """A tiny model, its batch norms as after some training."""
    torch.manual_seed(0)
    config_class, model_class = CLASSES[name]
    model = model_class(config_class(**{**TINY[name], "num_labels": 10, **fields}))
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data *= 4
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.fill_(0.3)
            module.bias.data.fill_(1.0 if name == "qkformer" else 0.5)
    return model.eval()


def images(model, batch=4, seed=0):
    config = model.config
    shape = (batch, config.num_channels, config.image_size, config.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def copies(pixel_values, steps):
    return pixel_values[:, None].repeat(1, steps, 1, 1, 1)


def parameters_of(model_class, config):
    with torch.device("meta"):
        return sum(p.numel() for p in model_class(config).parameters())


@pytest.mark.parametrize(
    ("classes", "expected"), [(10, 9271498), (11, 9276107), (19, 9312979), (101, 9690917)]
)
def test_vggsnn_has_its_published_size(classes, expected):
    config = SpikingVGGConfig(num_labels=classes)
    assert parameters_of(SpikingVGGForImageClassification, config) == expected


@pytest.mark.parametrize(
    ("preset", "fields", "expected"),
    [
        ("resnet-19", {}, 12630858),
        ("resnet-19", {"num_labels": 100}, 12653988),
        ("sew-resnet-34", {}, 21797672),
        ("sew-resnet-101", {}, 44549160),
        ("spiking-resnet-34", {}, 21797672),
        ("spiking-resnet-101", {}, 44549160),
    ],
)
def test_resnets_have_their_published_sizes(preset, fields, expected):
    config = SpikingResNetConfig.preset(preset, **fields)
    assert parameters_of(SpikingResNetForImageClassification, config) == expected


@pytest.mark.parametrize(
    ("preset", "fields", "expected"),
    [
        ("hst-10-384", {}, 16473688),
        ("hst-10-512", {}, 29079336),
        ("hst-10-768", {}, 64962760),
        ("cifar", {"num_labels": 100}, 6740884),
        ("dvs-cifar10", {}, 1504138),
        ("dvs-gesture", {}, 1999371),
    ],
)
def test_qkformers_have_their_published_sizes(preset, fields, expected):
    config = QKFormerConfig.preset(preset, **fields)
    assert parameters_of(QKFormerForImageClassification, config) == expected


def test_defaults_are_the_published_networks():
    assert SpikingVGGConfig() == SpikingVGGConfig(num_labels=10)
    assert SpikingResNetConfig().to_dict() == SpikingResNetConfig.preset("resnet-19").to_dict()
    assert QKFormerConfig().to_dict() == QKFormerConfig.preset("hst-10-384").to_dict()
    assert QKFormerConfig().num_labels == 1000


@pytest.mark.parametrize(("name", "fields"), SPIKING, ids=str)
def test_an_image_is_its_copies(name, fields):
    model = make(name, **fields)
    x, steps = images(model), model.config.num_timesteps
    once, repeated = model(x), model(copies(x, steps))
    assert once.timestep_logits.shape == (4, steps, 10)
    assert once.timestep_logits.std(1).max() > 0
    torch.testing.assert_close(once.timestep_logits, repeated.timestep_logits)
    model.train()
    other = copy.deepcopy(model)
    grads = []
    for m, given in ((model, x), (other, copies(x, steps))):
        m(given, labels=torch.arange(4)).loss.backward()
        grads.append({n: p.grad for n, p in m.named_parameters()})
    for key in grads[0]:
        torch.testing.assert_close(grads[0][key], grads[1][key], rtol=1e-3, atol=1e-4, msg=key)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[key], rtol=1e-5, atol=1e-6, msg=key)


def test_what_comes_before_the_first_neuron_is_computed_once():
    model = make("resnet")
    seen = []
    model.resnet.embedder.conv.register_forward_hook(lambda m, args, out: seen.append(len(out)))
    x = images(model)
    model(x)
    model(copies(x, 5))
    assert seen == [4, 4 * 5]


@pytest.mark.parametrize(("name", "fields"), SPIKING, ids=str)
def test_the_first_steps_of_a_longer_run_are_a_shorter_run(name, fields):
    model = make(name, **fields)
    model.config.num_timesteps = 5
    long = model(images(model)).timestep_logits
    model.config.num_timesteps = 2
    short = model(images(model)).timestep_logits
    torch.testing.assert_close(long[:, :2], short, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "fields"), KINDS, ids=str)
def test_save_load_save_gives_the_same_model(name, fields, tmp_path):
    model = make(name, **fields, num_labels=2)
    model.save_pretrained(tmp_path / "a")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "a")
    assert type(loaded) is type(model)
    loaded.save_pretrained(tmp_path / "b")
    again = type(model).from_pretrained(tmp_path / "b")
    assert again.config.to_dict().items() >= fields.items()
    x = images(model)
    for other in (loaded, again):
        assert other.config.num_labels == 2
        for key, value in model.state_dict().items():
            assert torch.equal(other.state_dict()[key], value), key
        assert torch.equal(other(x).logits, model(x).logits)
    base = AutoModel.from_pretrained(tmp_path / "a")
    features = base(x)
    expected = model.base_model(x)
    assert torch.equal(features.pooler_output, expected.pooler_output)
    assert type(AutoConfig.from_pretrained(tmp_path / "a")) is type(model.config)


def test_a_checkpoint_without_neurons_gets_their_constants(tmp_path):
    model = make("qkformer")
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {k: v for k, v in weights.items() if not k.endswith(("v_threshold", "amplitude"))}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = QKFormerForImageClassification.from_pretrained(tmp_path)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert loaded.qkformer.stages[0][0].attention.neuron.v_threshold.item() == 0.5


def test_a_threshold_that_is_given_takes_the_place_of_the_saved_one(tmp_path):
    make("qkformer").save_pretrained(tmp_path)
    for kind in (QKFormerForImageClassification, AutoModelForImageClassification):
        loaded = kind.from_pretrained(tmp_path, v_threshold=0.25)
        stage = loaded.qkformer.stages[0][0]
        assert loaded.config.v_threshold == 0.25
        assert stage.attention.neuron.v_threshold.item() == 0.5, "of its own"
        others = [n.v_threshold.item() for n in loaded.modules() if isinstance(n, SpikingNeuron)]
        assert set(others) == {0.25, 0.5}
    model = make("vgg", neuron="rounding", batch_norm=False)
    model.save_pretrained(tmp_path / "rounding")
    again = type(model).from_pretrained(tmp_path / "rounding", v_threshold=0.25)
    assert torch.equal(again(images(model)).logits, model(images(model)).logits)


@pytest.mark.parametrize("name", CLASSES)
def test_a_config_may_ask_for_tuples(name):
    model = make(name)
    model.config.return_dict = False
    logits, by_step = model(images(model))[:2]
    assert logits.shape == (4, 10)
    assert by_step.shape == (4, 3, 10)


def test_the_classes_of_the_data_take_the_place_of_a_presets():
    names = {0: "cat", 1: "dog", 2: "owl"}
    for config_class, preset in ((SpikingResNetConfig, "sew-resnet-34"), (QKFormerConfig, "cifar")):
        assert config_class.preset(preset, id2label=names).id2label == names
        assert config_class.preset(preset, num_labels=5).num_labels == 5


def test_a_checkpoint_becomes_one_of_other_classes(tmp_path):
    make("vgg").save_pretrained(tmp_path)
    names = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    for options in ({"num_labels": 3}, {"num_labels": 3, **names}, names):
        loaded = AutoModelForImageClassification.from_pretrained(
            tmp_path, ignore_mismatched_sizes=True, **options
        )
        assert loaded(images(loaded)).logits.shape == (4, 3)


def test_labels_give_the_loss_of_the_mean_logits():
    model = make("vgg")
    x, labels = images(model), torch.tensor([3, 1, 0, 9])
    outputs = model(x, labels=labels)
    torch.testing.assert_close(outputs.logits, outputs.timestep_logits.mean(1))
    torch.testing.assert_close(outputs.loss, F.cross_entropy(outputs.logits, labels))
    regression = make("vgg", num_labels=1)
    values = torch.linspace(0, 1, 4)
    expected = (regression(x).logits[:, 0] - values).square().mean()
    torch.testing.assert_close(regression(x, labels=values).loss, expected)
    several = make("vgg", num_labels=3)
    targets = torch.rand(4, 3)
    expected = F.binary_cross_entropy_with_logits(several(x).logits, targets)
    torch.testing.assert_close(several(x, labels=targets).loss, expected)
    assert model.accepts_loss_kwargs is False


@pytest.mark.parametrize(("name", "fields"), KINDS, ids=str)
def test_hidden_states_are_means_over_time(name, fields):
    model = make(name, **fields)
    x = images(model)
    outputs = model(x, output_hidden_states=True)
    base = model.base_model(x, output_hidden_states=True)
    assert len(outputs.hidden_states) == len(model.config.depths) + (name == "resnet")
    assert torch.equal(outputs.hidden_states[-1], base.last_hidden_state)
    torch.testing.assert_close(base.pooler_output, base.timestep_pooler_output.mean(1))
    assert base.timestep_pooler_output.shape[:2] == (4, outputs.timestep_logits.shape[1])
    assert model(x).hidden_states is None
    assert len(model(x, return_dict=False)) == 2


@pytest.mark.parametrize(("name", "fields"), KINDS, ids=str)
def test_samples_and_calls_do_not_see_each_other(name, fields):
    model = make(name, **fields)
    x = images(model)
    before = model(x).logits
    model(images(model, seed=1))
    assert torch.equal(model(x).logits, before)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(model(x[order]).logits, before[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "fields"), KINDS, ids=str)
def test_every_parameter_learns(name, fields):
    model = make(name, **fields).train()
    for seed in range(4):
        model(images(model, 8, seed), labels=torch.arange(8)).loss.backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@pytest.mark.parametrize(
    ("name", "fields", "as_torch"),
    [
        ("vgg", {}, False),
        ("resnet", {}, True),
        ("resnet", {"residual": "sew", "stem": "imagenet", "head_size": None}, False),
        ("qkformer", {}, True),
    ],
)
def test_convolutions_start_as_in_their_authors_code(name, fields, as_torch):
    """As torch's, uniform within 1 / sqrt(fan-in), or normal with a variance of 2 / fan-out."""
    config_class, model_class = CLASSES[name]
    torch.manual_seed(0)
    model = model_class(config_class(**{**TINY[name], **fields}))
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            out_channels, *inner = module.weight.shape
            fan_in, fan_out = math.prod(inner), out_channels * math.prod(inner[1:])
            expected = (1 / (3 * fan_in) if as_torch else 2 / fan_out) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.4)
            if as_torch:
                assert module.weight.abs().max() <= fan_in**-0.5


def test_the_neurons_are_those_of_the_papers():
    for name, decay_input, detach, surrogate in (
        ("vgg", False, False, "triangle"),
        ("resnet", False, False, "triangle"),
        ("qkformer", True, True, "sigmoid"),
    ):
        neurons = [m for m in make(name).modules() if isinstance(m, SpikingNeuron)]
        for neuron in neurons:
            assert isinstance(neuron, LIF)
            assert neuron.beta == 0.5
            assert neuron.decay_input is decay_input
            assert neuron.detach_reset is detach
            assert neuron.surrogate.__name__ == surrogate
            assert neuron.reset == "hard"
            assert not neuron.ternary


SEW = {"neuron": "if", "residual": "sew", "v_threshold": 1.0, "detach_reset": True}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "fields", "reference", "at_threshold"),
    [
        ("vgg", {}, TetLif, 0),
        ("resnet", {}, TetLif, 0),
        ("resnet", {**SEW, "surrogate": "arctan"}, IntegrateAndFire, 1),
        ("qkformer", {}, ClockDrivenLif, 1),
    ],
)
def test_what_a_membrane_exactly_at_the_threshold_does(
    name, fields, reference, at_threshold, precision
):
    """TET and TMC want u > 1; SpikingJelly, and so QKFormer and SEW-ResNet, u >= 1."""
    model = make(name, **fields)
    neuron = next(m for m in model.modules() if isinstance(m, SpikingNeuron))
    neuron.state_dtype = torch.float32
    generator = torch.Generator().manual_seed(0)
    shape = (4, 1, neuron.channels or 6, 50, 1)
    # Halves and quarters add up to the threshold without rounding.
    x = (torch.randint(-2, 7, shape, generator=generator) / 4).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        found = neuron(x.to(precision)).float()
    weight = torch.randn(found.shape, generator=generator)
    (gradient,) = torch.autograd.grad((found * weight).sum(), x)
    expected = reference()(x)
    assert torch.equal(found, expected)
    if precision == torch.float32:
        (theirs,) = torch.autograd.grad((expected * weight).sum(), x)
        torch.testing.assert_close(gradient, theirs, rtol=1e-4, atol=1e-5)
    at = 2.0 if model.config.decay_input else 1.0
    assert neuron(torch.full(shape, at))[0].eq(at_threshold).all()


def test_published_sew_networks_fire_at_one():
    for preset, strict in (("resnet-19", True), ("sew-resnet-34", False)):
        assert (SpikingResNetConfig.preset(preset).v_threshold > 1) is strict


def test_the_dense_network_sees_an_image_once_and_each_frame():
    model = make("resnet", neuron="relu")
    x = images(model)
    once = model(x)
    assert once.timestep_logits.shape == (4, 1, 10)
    frames = torch.stack([x, images(model, seed=1)], 1)
    several = model(frames).timestep_logits
    torch.testing.assert_close(several[:, 0], once.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(several[:, 1], model(frames[:, 1]).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "fields"), KINDS, ids=str)
def test_bfloat16_and_autocast(name, fields):
    model = make(name, **fields)
    x = images(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).logits.isfinite().all()
    outputs = model.bfloat16()(x.bfloat16(), labels=torch.arange(4))
    assert outputs.logits.dtype == torch.bfloat16
    assert outputs.loss.dtype == torch.float32


def test_trains_with_a_temporal_loss(tmp_path):
    model = make("resnet").train()
    data = [{"pixel_values": x, "labels": i % 2} for i, x in enumerate(images(model, 16))]
    args = SpikingTrainingArguments(
        str(tmp_path),
        temporal_loss="tmc",
        max_steps=12,
        per_device_train_batch_size=16,
        learning_rate=5e-3,
        use_cpu=True,
        report_to="none",
        logging_steps=1,
    )
    trainer = SpikingTrainer(model, args, train_dataset=data, eval_dataset=data)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss_t3"] < before["eval_loss_t3"]
    assert {"eval_loss_t1", "eval_ece_t3"} <= set(after)


def test_image_classification_pipeline(tmp_path):
    model = make("resnet", num_labels=3)
    model.save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    classify = pipeline("image-classification", model=str(tmp_path))
    (answer,) = classify([Image.new("RGB", (20, 12), "red")])
    assert {found["label"] for found in answer} == {"LABEL_0", "LABEL_1", "LABEL_2"}
    assert sum(found["score"] for found in answer) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("resnet", (2, 1, 8, 8), r"\[B, 3, H, W\].*got shape \(2, 1, 8, 8\)"),
        ("resnet", (2, 3, 8), "got shape"),
        ("resnet", (2, 4, 1, 8, 8), r"\[B, T, 3, H, W\]"),
        ("resnet", (2, 0, 3, 8, 8), "at least one frame"),
        ("vgg", (2, 2, 16, 16), "image_size=8"),
    ],
)
def test_pixels_that_do_not_fit_are_refused(name, shape, message):
    with pytest.raises(ValueError, match=message):
        make(name)(torch.zeros(shape))


def test_integer_pixels_are_refused():
    with pytest.raises(ValueError, match=r"floating point, got torch\.uint8"):
        make("resnet")(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("config_class", "fields", "message"),
    [
        (SpikingVGGConfig, {"num_timesteps": 0}, "num_timesteps must be >= 1, got 0"),
        (SpikingVGGConfig, {"beta": 0.0}, "beta must be in"),
        (SpikingVGGConfig, {"beta": 1.0, "decay_input": True}, "beta must be < 1"),
        (SpikingVGGConfig, {"v_threshold": 0}, "v_threshold must be > 0, got 0"),
        (SpikingVGGConfig, {"depths": (2, 2)}, "must add up"),
        (SpikingVGGConfig, {"image_size": 8}, "cannot be halved 4 times"),
        (SpikingVGGConfig, {"neuron": "izhikevich"}, "neuron"),
        (SpikingVGGConfig, {"hidden_sizes": (), "depths": ()}, "hidden_sizes"),
        (SpikingResNetConfig, {"depths": (2, 2)}, "equally long"),
        (SpikingResNetConfig, {"layer_type": "bottleneck", "hidden_sizes": (4, 6, 8)}, "of 4"),
        (SpikingResNetConfig, {"head_size": 0}, "head_size must be >= 1"),
        (QKFormerConfig, {"neuron": "rounding"}, "neuron must be 'if' or 'lif'"),
        (QKFormerConfig, {"num_attention_heads": 5}, "multiples of num_attention_heads=5"),
        (QKFormerConfig, {"patch_embedding": "dvs", "hidden_sizes": (12, 24, 48)}, "multiple of 8"),
        (QKFormerConfig, {"mlp_ratio": 0}, "mlp_ratio must be > 0"),
    ],
)
def test_bad_configs_say_what_is_wrong(config_class, fields, message):
    with pytest.raises(Exception, match=message):
        config_class(**fields)


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ValueError, match=r"presets \['cifar'.*got 'hst'"):
        QKFormerConfig.preset("hst")


def test_a_config_survives_json(tmp_path):
    config = QKFormerConfig.preset("dvs-gesture", num_timesteps=10)
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["hidden_sizes"] == [128, 256]
    assert QKFormerConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg", "resnet"])  # tracing qkformer takes minutes
def test_compiles_whole_and_exports(name):
    model = make(name).train()
    x = images(model)
    results = []
    for m in (model, copy.deepcopy(model)):
        # Traced whole, forward and backward; what Inductor makes of neurons is tested in tests/neurons.
        run = m if not results else torch.compile(m, fullgraph=True, backend="aot_eager")
        run(x).timestep_logits.square().sum().backward()
        results.append({n: p.grad for n, p in m.named_parameters()})
    for key, grad in results[0].items():
        torch.testing.assert_close(results[1][key], grad, rtol=1e-2, atol=1e-3, msg=key)
    model.eval()
    exported = torch.export.export(
        model, (), {"pixel_values": x}, dynamic_shapes={"pixel_values": {0: torch.export.Dim("b")}}
    )
    torch.testing.assert_close(exported.module()(pixel_values=x[:3]).logits, model(x[:3]).logits)


@pytest.mark.parametrize("train", [False, True])
def test_torch_may_put_other_batch_norms_in_place(train):
    """Those that several processes share."""
    model = make("vgg").train(train)
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert any(isinstance(m, torch.nn.SyncBatchNorm) for m in converted.modules())
    x = images(model)
    torch.testing.assert_close(converted(x).logits, model(x).logits)
    frames = copies(x, 3)
    torch.testing.assert_close(converted(frames).logits, model(frames).logits)
