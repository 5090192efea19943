"""A dense image classifier made spiking: batch norm folded, amplitudes by calibration."""

import copy

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError

from spikenlp import (
    SpikingResNetModel,
    SpikingVGGForImageClassification,
)
from spikenlp.models.amplitudes import neurons_of
from spikenlp.models.vision import ConvNorm
from spikenlp.models.vision_reconstruction import reconstruct
from spikenlp.neurons import RoundingIF
from tests.models.test_vision import copies, images, make


@pytest.fixture(autouse=True)
def eager():
    """Compiling the neurons' loops for so many T takes longer than running them."""
    with torch.compiler.set_stance("force_eager"):
        yield


DENSE = [
    ("vgg", {}),
    ("resnet", {}),
    ("resnet", {"layer_type": "bottleneck", "hidden_sizes": [8, 8], "head_size": None}),
    ("resnet", {"residual": "sew"}),
]


@pytest.fixture(params=DENSE, ids=str)
def dense(request):
    """Batch norms with the statistics of the images below, gains and biases of their own."""
    name, fields = request.param
    model = make(name, neuron="relu", **fields).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.copy_(0.5 + torch.rand(module.weight.shape, generator=generator))
                module.bias.copy_(0.3 * torch.randn(module.bias.shape, generator=generator))
                module.momentum = 0.5
        for seed in range(10):
            model(images(model, 32, seed))
    return model.eval()


def calibration(model, batches=2):
    return [{"pixel_values": images(model, 32, seed)} for seed in range(batches)]


@torch.no_grad()
def distance(model, dense):
    x = images(dense, 32, seed=9)
    found, expected = model(x).logits, dense(x).logits
    return ((found - expected).norm() / (expected - expected.mean(0)).norm()).item()


@pytest.mark.parametrize("neuron", ["relu", "lif"])
def test_folding_batch_norm_changes_no_output(dense, neuron):
    dense.config.neuron = neuron
    fresh = type(dense)(dense.config)
    fresh.load_state_dict(dense.state_dict(), strict=False)
    fresh.eval()
    drawn_from = torch.get_rng_state()
    folded = fresh.fold_batch_norm()
    assert torch.equal(torch.get_rng_state(), drawn_from)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    assert folded.config.batch_norm is False
    assert fresh.config.batch_norm is True
    x = images(dense)
    torch.testing.assert_close(folded(x).logits, fresh(x).logits, rtol=1e-3, atol=1e-4)


def test_many_steps_come_close_to_the_dense_model(dense):
    data = calibration(dense)
    errors = [
        distance(type(dense).from_dense(dense, calibration=data, num_timesteps=t), dense)
        for t in (2, 8, 128)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.3


def test_what_a_converted_model_is(dense, tmp_path):
    dense.save_pretrained(tmp_path)
    data = calibration(dense)
    model = type(dense).from_dense(str(tmp_path), calibration=data, num_timesteps=5)
    assert not model.training
    assert model.config.num_timesteps == 5
    assert model.config.neuron == "rounding"
    for _, neuron in neurons_of(model):
        assert isinstance(neuron, RoundingIF)
        assert not neuron.ternary
        assert neuron.offset.eq(0).all()
        assert neuron.amplitude.shape == (neuron.channels,)
        assert neuron.amplitude.gt(0).all()
    outputs = model(images(dense))
    assert outputs.timestep_logits.shape == (4, 5, 10)
    model.save_pretrained(tmp_path / "spiking")
    again = type(dense).from_pretrained(tmp_path / "spiking")
    assert torch.equal(again(images(dense)).logits, outputs.logits)


@torch.no_grad()
def test_amplitudes_of_the_first_layer_are_the_best_of_a_grid():
    """One neuron at a time, by a loop over the grid, errors weighted by the gradient of the margin."""
    dense = make("vgg", neuron="relu")
    x, steps = images(dense, 8), 3
    model = type(dense).from_dense(dense, calibration=[{"pixel_values": x}], num_timesteps=steps)
    kept = []
    layer = dense.vgg.stages[0].layers[0]
    handle = layer.neuron.register_forward_hook(lambda m, args, out: kept.append(out))
    with torch.enable_grad():
        best = dense(x).logits.topk(2).values
        (grad,) = torch.autograd.grad((best[:, 0] - best[:, 1]).sum(), kept)
    handle.remove()
    activation = kept[0].detach()[0].double()
    weight = grad[0].double().norm(dim=1, keepdim=True)
    weight = weight.clamp(min=1e-3 * weight.mean())
    amplitudes = model.vgg.stages[0].layers[0].neuron.amplitude
    for channel, found in enumerate(amplitudes.tolist()):
        values = activation[:, channel : channel + 1]
        errors = {}
        for step in range(2, 41):
            alpha = step / 40 * values.max()
            rounded = (values / alpha * steps).round().clamp(0, steps) / steps * alpha
            errors[float(alpha)] = float((weight * (rounded - values) ** 2).sum())
        assert found == pytest.approx(min(errors, key=errors.get), rel=1e-5)


def test_frames_calibrate_and_run():
    dense = make("vgg", neuron="relu")
    frames = copies(images(dense, 8), 4)
    model = type(dense).from_dense(dense, calibration=[{"pixel_values": frames}], num_timesteps=4)
    assert model(frames).timestep_logits.shape == (8, 4, 10)


def test_without_calibration_it_says_so():
    dense = make("vgg", neuron="relu")
    with pytest.warns(UserWarning, match="without calibration"):
        model = type(dense).from_dense(dense, num_timesteps=16)
    assert distance(model, dense) < 0.5


def test_a_base_model_converts_as_well():
    dense = make("resnet", neuron="relu")
    model = SpikingResNetModel.from_dense(
        dense.resnet, calibration=calibration(dense, 1), num_timesteps=64
    )
    found, expected = (m(images(dense)).pooler_output for m in (model, dense.resnet))
    assert (found - expected).norm() < 0.1 * expected.norm()


def test_what_cannot_be_converted_is_named():
    data = [{"pixel_values": torch.zeros(2, 2, 8, 8)}]
    convert = SpikingVGGForImageClassification.from_dense
    with pytest.raises(ValueError, match="neuron='lif'"):
        convert(make("vgg"), calibration=data)
    with pytest.raises(ValueError, match="SpikingResNetForImageClassification with"):
        convert(make("resnet", neuron="relu"), calibration=data)
    dense = make("vgg", neuron="relu")
    with pytest.raises(ValueError, match="neuron must be 'rounding'"):
        convert(dense, calibration=data, neuron="lif")
    with pytest.raises(ValueError, match="no field 'timesteps'"):
        convert(dense, calibration=data, timesteps=3)
    with pytest.raises(StrictDataclassError, match="num_timesteps"):
        convert(dense, calibration=data, num_timesteps=0)
    with pytest.raises(ValueError, match="empty"):
        convert(dense, calibration=[])
    with pytest.raises(ValueError, match=r"'pixel_values', a tensor in a dict, got \['pixels'\]"):
        convert(dense, calibration=[{"pixels": torch.zeros(1)}])
    with pytest.raises(ValueError, match="a tensor in a dict, got Tensor"):
        convert(dense, calibration=[torch.zeros(1)])
    rounded = make("vgg", neuron="relu")
    rounded.is_quantized = True
    with pytest.raises(ValueError, match="int8 cannot be folded"):
        rounded.fold_batch_norm()


RIDGE = 0.05


def means_of_convolutions(model, batches):
    """Of each convolution, by its own loop over time: means of input, output, and of the next sum."""
    seen = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, ConvNorm):
            last = module.conv if module.norm is None else module.norm
            hooks.append(
                module.conv.register_forward_hook(
                    lambda _, a, o, key=name: seen.setdefault((key, "in"), []).append(a[0])
                )
            )
            hooks.append(
                last.register_forward_hook(
                    lambda _, a, o, key=name: seen.setdefault((key, "out"), []).append(o)
                )
            )
        if name.endswith("neuron"):
            hooks.append(
                module.register_forward_pre_hook(
                    lambda _, a, key=name: seen.setdefault((key, "in"), []).append(
                        a[0].flatten(0, 1)
                    )
                )
            )
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for hook in hooks:
        hook.remove()

    def mean(steps):
        size = len(batches[0]["pixel_values"])
        return sum(steps.split(size)) / (len(steps) // size)

    return {k: torch.cat([mean(x) for x in v]).double() for k, v in seen.items()}


def test_each_convolution_but_the_first_solves_its_normal_equations(dense):
    data = calibration(dense)
    before = type(dense).from_dense(dense, calibration=data, num_timesteps=3)
    after = copy.deepcopy(before)
    reconstruct(after, data, ridge=RIDGE)
    exact = means_of_convolutions(dense, data)
    residual = dense.config.model_type == "spiking_resnet" and dense.config.residual != "sew"
    first, *others = [n for n, m in after.named_modules() if isinstance(m, ConvNorm)]
    assert torch.equal(
        after.get_submodule(first).conv.weight, before.get_submodule(first).conv.weight
    )
    for name in others:
        block, _, part = name.rpartition(".")
        then = copy.deepcopy(after)  # the network when this convolution was fitted
        if residual and part == "last" and after.get_submodule(block).shortcut is not None:
            then.get_submodule(block).shortcut = before.get_submodule(block).shortcut
        found = means_of_convolutions(then, data)
        key = (
            (f"{block}.neuron", "in")
            if residual and part in ("last", "shortcut")
            else (name, "out")
        )
        lacking = (exact[key] - found[key]).movedim(1, -1).flatten(0, -2)
        conv, old = after.get_submodule(name).conv, before.get_submodule(name).conv
        patches = F.unfold(
            found[name, "in"], conv.kernel_size, padding=conv.padding, stride=conv.stride
        )
        patches = patches.movedim(1, -1).flatten(0, -2)
        change = (conv.weight - old.weight).double().flatten(1).detach()
        assert change.abs().max() > 1e-3, name
        penalty = RIDGE * patches.square().sum(0).mean()
        gradient = lacking.t() @ patches - penalty * change
        scale = (lacking.abs().t() @ patches.abs()).max()
        assert gradient.abs().max() < 1e-3 * scale, name
        assert lacking.sum(0).abs().max() < 1e-3 * lacking.abs().sum(0).max(), name


def test_reconstruction_brings_the_logits_nearer(dense):
    data = calibration(dense)
    plain = type(dense).from_dense(dense, calibration=data, num_timesteps=4)
    fitted = type(dense).from_dense(
        dense, calibration=iter(data), num_timesteps=4, reconstruct=True
    )
    assert distance(fitted, dense) < distance(plain, dense)
    changed = {
        k for k, v in fitted.state_dict().items() if not torch.equal(v, plain.state_dict()[k])
    }
    assert changed
    assert all(".conv." in name for name in changed)


def test_frames_are_fitted_and_an_interrupted_fit_leaves_a_model_that_runs(monkeypatch):
    dense = make("vgg", neuron="relu")
    frames = torch.stack([images(dense, 8, seed) for seed in range(3)], 1)
    model = type(dense).from_dense(dense, calibration=[{"pixel_values": frames}], num_timesteps=3)
    before = copy.deepcopy(model.state_dict())
    reconstruct(model.train(), [{"pixel_values": frames}])
    assert model.training
    assert any(not torch.equal(v, before[k]) for k, v in model.state_dict().items())

    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model.vgg.stages[0].layers[-1].neuron, "forward", stopped)
        with pytest.raises(KeyboardInterrupt):
            reconstruct(model, [{"pixel_values": frames}])
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_what_cannot_be_reconstructed_is_refused():
    dense = make("vgg", neuron="relu")
    model = type(dense).from_dense(dense, calibration=calibration(dense))
    with pytest.raises(ValueError, match="reconstruct=True needs calibration data"):
        type(dense).from_dense(dense, reconstruct=True)
    with pytest.raises(ValueError, match="neuron='relu', batch_norm=True"):
        reconstruct(dense, calibration(dense))
    with pytest.raises(ValueError, match="ridge must be > 0, got -1"):
        reconstruct(model, calibration(dense), ridge=-1)
    with pytest.raises(ValueError, match="at least one batch"):
        reconstruct(model, [])
    with pytest.raises(ValueError, match="needs 'pixel_values'"):
        reconstruct(model, [{"labels": torch.zeros(2)}])


def test_a_half_precision_network_is_calibrated_with_images_in_float32():
    dense = make("vgg", neuron="relu").bfloat16()
    data = [{"pixel_values": torch.randn(4, *dense.dummy_inputs["pixel_values"].shape[1:])}]
    assert dense.dummy_inputs["pixel_values"].dtype == torch.bfloat16
    for calibration in (data, None):
        model = type(dense).from_dense(dense, calibration=calibration, num_timesteps=2)
        assert model(model.dummy_inputs["pixel_values"]).logits.dtype == torch.bfloat16
