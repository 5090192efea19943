"""Each vision model equals a plain reference with loops over time, whose checkpoint it converts."""

import argparse
import itertools

import pytest
import torch
from torch import nn

from spikenlp import (
    QKFormerForImageClassification,
    SpikingResNetForImageClassification,
    SpikingVGGForImageClassification,
)
from spikenlp.models.original_checkpoints import WRAPPERS
from spikenlp.models.qkformer import original_qkformer
from spikenlp.models.spiking_resnet import original_spiking_resnet
from spikenlp.models.spiking_vgg import original_spiking_vgg
from spikenlp.neurons import SpikingNeuron
from tests.models.vision_references import (
    QkFormer,
    SewResNet,
    TetResNet19,
    VggSnn,
    randomise,
)


def vgg(**options):
    return VggSnn([4, 6, 8, 8], classes=5, size=12, **options)


def resnet19(**options):
    return TetResNet19(4, [6, 8], [2, 1], hidden=48, classes=5, **options)


REFERENCES = {
    "vgg": (vgg, SpikingVGGForImageClassification, {}),
    "resnet19": (resnet19, SpikingResNetForImageClassification, {"image_size": 8}),
    "sew": (
        lambda: SewResNet([8, 12], [2, 1]),
        SpikingResNetForImageClassification,
        {"image_size": 32},
    ),
    "sew bottleneck": (
        lambda: SewResNet([8, 16], [1, 2], bottleneck=True),
        SpikingResNetForImageClassification,
        {"image_size": 32},
    ),
    "spiking bottleneck": (
        lambda: SewResNet([8, 16], [1, 2], bottleneck=True, sew=False),
        SpikingResNetForImageClassification,
        {"image_size": 32},
    ),
    "qkformer imagenet": (
        lambda: QkFormer("imagenet", 32, 2, [1, 1, 2]),
        QKFormerForImageClassification,
        {"image_size": 32, "num_attention_heads": 2},
    ),
    "qkformer cifar": (
        lambda: QkFormer("cifar", 32, 8, [1, 1, 1]),
        QKFormerForImageClassification,
        {"image_size": 16},
    ),
    "qkformer dvs": (
        lambda: QkFormer("dvs", 32, 16, [1, 1], ratio=1, channels=2),
        QKFormerForImageClassification,
        {"image_size": 32},
    ),
}
STEPS, BATCH = 3, 2


@pytest.fixture(params=REFERENCES)
def pair(request):
    """(reference, our model converted from its state dict, binary frames [B, T, C, H, W])."""
    make, model_class, fields = REFERENCES[request.param]
    reference = randomise(make())
    model = model_class.from_original(reference.state_dict(), num_timesteps=STEPS, **fields)
    for module in model.modules():
        if isinstance(module, SpikingNeuron):
            module.state_dtype = torch.float32
    size, channels = model.config.image_size, model.config.num_channels
    generator = torch.Generator().manual_seed(1)
    shape = (BATCH, STEPS, channels, size, size)
    return reference, model, (torch.rand(shape, generator=generator) < 0.4).float()


def logits_of(reference, frames):
    """[B, T, classes]."""
    return reference(frames.transpose(0, 1)).transpose(0, 1)


def vary(logits):
    """Not the biases alone, and not the same at each step."""
    return logits.std(0).max() > 0.02 and logits.std(1).max() > 0.02


@torch.no_grad()
def test_forward_in_eval_mode(pair):
    reference, model, frames = pair
    reference.eval()
    expected = logits_of(reference, frames)
    outputs = model(frames)
    torch.testing.assert_close(outputs.timestep_logits, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs.logits, expected.mean(1), rtol=1e-4, atol=1e-5)
    assert vary(expected)
    images = frames[:, 0]
    expected = logits_of(reference, images[:, None].repeat(1, STEPS, 1, 1, 1))
    torch.testing.assert_close(model(images).timestep_logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["frames", "images"])
def test_forward_gradients_and_statistics_in_training_mode(pair, kind):
    """Batch norm over T * B, as the reference has it, and every gradient through time."""
    reference, model, frames = pair
    reference.train()
    model.train()
    given = frames
    if kind == "images":
        given = frames[:, 0]
        frames = given[:, None].repeat(1, STEPS, 1, 1, 1)
    expected = logits_of(reference, frames)
    found = model(given).timestep_logits
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert vary(expected)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    in_theirs = reference.state_dict(keep_vars=True)
    gradients = {k: v.grad if isinstance(v, nn.Parameter) else v for k, v in in_theirs.items()}
    in_ours = type(model).from_original(gradients, **_same_fields(model))
    largest = max(q.abs().max() for q in in_ours.parameters())
    for (name, p), q in zip(model.named_parameters(), in_ours.parameters(), strict=True):
        scale = q.abs().max().clamp_min(0.05 * largest)  # a bias before a norm has gradient 0
        torch.testing.assert_close(
            p.grad / scale, q / scale, rtol=1e-3, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )
    for (name, found), expected in zip(model.named_buffers(), in_ours.buffers(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=name)


def _same_fields(model):
    names = ("image_size", "num_timesteps", "residual", "num_attention_heads")
    return {name: getattr(model.config, name) for name in names if hasattr(model.config, name)}


# --- converters ------------------------------------------------------------------------------------


def names_of(model):
    """Which tensor of ours has which names in its authors' code."""
    config = model.config
    if isinstance(model, QKFormerForImageClassification):
        return original_qkformer.original_names(config)
    if isinstance(model, SpikingResNetForImageClassification):
        tet = config.head_size is not None
        names = original_spiking_resnet._tet_names if tet else original_spiking_resnet._sew_names
        return names(config)
    ends = itertools.accumulate(depth + 1 for depth in config.depths)
    numbers = sorted(
        set(range(sum(config.depths) + len(config.depths))) - {end - 1 for end in ends}
    )
    return original_spiking_vgg.original_names(config.depths, numbers)


ROUND_TRIPS = {
    **{
        name: (lambda make=make: make().state_dict(), *rest)
        for name, (make, *rest) in REFERENCES.items()
    },
    "vgg of tmc": (lambda: vgg(wrapped=True).state_dict(), *REFERENCES["vgg"][1:]),
    "resnet19 of tmc": (lambda: resnet19(wrapped=True).state_dict(), *REFERENCES["resnet19"][1:]),
    "sew of spikingjelly": (
        lambda: SewResNet([8, 12], [2, 1]).spikingjelly_state_dict(),
        *REFERENCES["sew"][1:],
    ),
    "spiking of spikingjelly": (
        lambda: SewResNet([8, 12], [2, 1], sew=False).spikingjelly_state_dict(),
        SpikingResNetForImageClassification,
        {"image_size": 32, "residual": "spiking"},
    ),
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_our_weights_under_their_names_come_back_as_they_were(name):
    make_state, model_class, fields = ROUND_TRIPS[name]
    theirs = make_state()
    model = randomise(model_class.from_original(theirs, **fields), seed=7)
    for i, (key, value) in enumerate(model.state_dict().items()):
        if key.endswith(("running_var", "num_batches_tracked")):
            value.fill_(i + 1)
    exported = {}
    for module, names in names_of(model).items():
        for key, value in model.state_dict().items():
            if key.rpartition(".")[0] == module:
                keys = [f"{n}.{w}{key.rpartition('.')[2]}" for n in names for w in WRAPPERS]
                exported |= {k: value.reshape(theirs[k].shape) for k in keys if k in theirs}
    assert exported.keys() == theirs.keys()
    again = model_class.from_original(exported, **fields)
    assert again.config.to_dict() == model.config.to_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def authors_file(state, tmp_path, **beside):
    """A file as the authors' training code writes it."""
    args = argparse.Namespace(epochs=300, lr=6e-4, output_dir="here", amp=True, resume=None)
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}
    path = tmp_path / "checkpoint-199.pth"
    torch.save({"model": state, "optimizer": optimizer, "epoch": 199, "args": args, **beside}, path)
    return path


@torch.no_grad()
def test_qkformer_file_with_its_arguments(tmp_path):
    reference = randomise(QkFormer("imagenet", 128, 2, [1, 1, 1], classes=7)).eval()
    path = authors_file(reference.state_dict(), tmp_path, scaler={"scale": 65536.0})
    model = QKFormerForImageClassification.from_original(path, image_size=32, num_timesteps=2)
    assert model.config.num_attention_heads == 2
    assert model.config.num_labels == 7
    assert model.config.hidden_sizes == [32, 64, 128]
    frames = (torch.rand(2, 2, 3, 32, 32) < 0.5).float()
    expected = logits_of(reference, frames)
    torch.testing.assert_close(model(frames).timestep_logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("make", [vgg, resnet19])
@torch.no_grad()
def test_tmc_files_have_two_copies_of_each_layer(make, prefix, tmp_path):
    reference = randomise(make(wrapped=True)).train()
    channels, size = (2, 12) if make is vgg else (3, 16)
    frames = (torch.rand(4, STEPS, channels, size, size) < 0.4).float()
    logits_of(
        reference, frames
    )  # `op_` takes the parameters of `op`, and has statistics of its own
    reference.eval()
    expected = logits_of(reference, frames)
    state = {prefix + key: value for key, value in reference.state_dict().items()}
    assert any(".op_." in key for key in state)
    torch.save(state, tmp_path / "best.pth.tar")
    model_class = (
        SpikingVGGForImageClassification if make is vgg else SpikingResNetForImageClassification
    )
    model = model_class.from_original(tmp_path / "best.pth.tar", num_timesteps=STEPS)
    torch.testing.assert_close(model(frames).timestep_logits, expected, rtol=1e-4, atol=1e-5)


def test_a_file_from_which_tmc_goes_on(tmp_path):
    """`checkpoint.pth.tar` of TMC's training code."""
    state = {f"module.{key}": value for key, value in vgg(wrapped=True).state_dict().items()}
    file = {"epoch": 3, "net": state, "optimizer": {}, "scheduler": {"T_max": 300}}
    torch.save(file, tmp_path / "checkpoint.pth.tar")
    found = SpikingVGGForImageClassification.from_original(tmp_path / "checkpoint.pth.tar")
    expected = SpikingVGGForImageClassification.from_original(state)
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


@torch.no_grad()
def test_sew_of_its_authors_and_of_spikingjelly(tmp_path):
    reference = randomise(SewResNet([8, 12], [2, 1])).eval()
    path = authors_file(reference.state_dict(), tmp_path, max_test_acc1=63.2, lr_scheduler={})
    images = (torch.rand(2, 3, 32, 32) < 0.5).float()
    expected = logits_of(reference, images[:, None].repeat(1, STEPS, 1, 1, 1))
    for checkpoint in (path, reference.spikingjelly_state_dict()):
        model = SpikingResNetForImageClassification.from_original(
            checkpoint, num_timesteps=STEPS, image_size=32
        )
        assert model.config.residual == "sew"
        assert model.config.neuron == "if"
        assert model.config.v_threshold == 1, "it fires at 1, too"
        torch.testing.assert_close(model(images).timestep_logits, expected, rtol=1e-4, atol=1e-5)


def test_every_key_is_used_or_named():
    state = randomise(resnet19()).state_dict()
    convert = SpikingResNetForImageClassification.from_original
    for key in ("layer1.0.bn1.bn.running_mean", "layer2.0.downsample.layer.module.weight"):
        without = {k: v for k, v in state.items() if k != key}
        if key.endswith("running_mean"):  # one of four names: the others have it still
            convert(without)
            without = {k: v for k, v in without.items() if not _is_first_mean(k)}
        with pytest.raises(ValueError, match=f"missing.*{key}"):
            convert(without)
    with pytest.raises(ValueError, match=r"left over: \['layer1.0.conv9.weight'\]"):
        convert({**state, "layer1.0.conv9.weight": torch.ones(1)})
    with pytest.raises(ValueError, match=r"another shape: \['fc2.bias \(6,\), not \(5,\)'\]"):
        convert({**state, "fc2.bias": torch.ones(6), "fc2_s.layer.module.bias": torch.ones(6)})
    with pytest.raises(ValueError, match=r"different.*conv1_s\.layer"):
        convert({**state, "conv1_s.layer.module.weight": state["conv1.weight"] + 1})


def _is_first_mean(key):
    return key.startswith(("layer1.0.bn1.", "layer1.0.conv1_s.bn.")) and "running_mean" in key


def test_what_is_no_checkpoint_says_so(tmp_path):
    convert = QKFormerForImageClassification.from_original
    with pytest.raises(ValueError, match="no patch_embed1"):
        convert({"conv1.weight": torch.ones(1)})
    with pytest.raises(ValueError, match="no state dict"):
        convert({})
    with pytest.raises(ValueError, match=r"no tensors under \['epoch'\]"):
        convert({"epoch": 3})
    torch.save({"model": {"a": torch.ones(1)}, "args": _Unsafe()}, tmp_path / "unsafe.pth")
    with pytest.raises(ValueError, match="holds more than tensors"):
        convert(tmp_path / "unsafe.pth")
    with pytest.raises(ValueError, match="no ResNet"):
        SpikingResNetForImageClassification.from_original({"a.weight": torch.ones(1)})
    without_pooling = {
        f"features.{n}.fwd.module.0.weight": torch.ones(4, 4, 3, 3) for n in range(8)
    }
    with pytest.raises(ValueError, match="no pooling layer"):
        SpikingVGGForImageClassification.from_original(without_pooling)


class _Unsafe:
    pass
