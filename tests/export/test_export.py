"""Files for other runtimes, run by those runtimes against the model."""

import sys

import pytest
import torch

from spikenlp import (
    Int8Config,
    SpikingBertConfig,
    SpikingBertForMaskedLM,
    SpikingBertForSequenceClassification,
    SpikingVGGConfig,
    SpikingVGGForImageClassification,
)
from spikenlp.cli import main
from spikenlp.data import wordpiece_tokenizer
from spikenlp.export import export, onnx_graph
from spikenlp.export.program import example
from tests.conftest import TINY_DENSE

ONE_LAYER = {**TINY_DENSE, "num_hidden_layers": 1}
VGG = {"hidden_sizes": [4, 6], "depths": [1, 1], "image_size": 8, "num_channels": 3}


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    """In int8: what is stored so must stay so."""
    folder = tmp_path_factory.mktemp("text")
    torch.manual_seed(0)
    SpikingBertForSequenceClassification(
        SpikingBertConfig(**ONE_LAYER, num_timesteps=2)
    ).save_pretrained(folder)
    return SpikingBertForSequenceClassification.from_pretrained(
        folder, quantization_config=Int8Config()
    )


@pytest.fixture
def vgg():
    torch.manual_seed(0)
    model = SpikingVGGForImageClassification(SpikingVGGConfig(**VGG, num_timesteps=2)).eval()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.2)
            elif name.endswith("running_var"):
                buffer.uniform_(0.2, 1.0)
    return model


def sizes(model):
    """Inputs of sizes that nothing was exported with."""
    longest = model.config.max_position_embeddings
    return [example(model, *size) for size in ((1, 5), (6, 3), (2, longest))]


@pytest.mark.slow
def test_a_program_gives_the_bits_of_the_model_for_any_batch_and_length(text_model, tmp_path):
    agreement = export(text_model, tmp_path / "model.pt2", "torch")
    assert (agreement.samples, agreement.timestep_logits_error) == (4, 0.0)
    program = torch.export.load(tmp_path / "model.pt2").module()
    for inputs in sizes(text_model):
        with torch.no_grad():
            expected = text_model(**inputs).timestep_logits
            in_any_order = dict(reversed(inputs.items()))
            assert torch.equal(program(**in_any_order)[0], expected)


@pytest.mark.slow
def test_a_program_of_token_ids_alone(text_model, tmp_path):
    ids = {
        "input_ids": example(text_model, 3, 8)["input_ids"].int()
    }  # as some tokenizers give them
    export(text_model, tmp_path / "model.pt2", "torch", batch=ids)
    program = torch.export.load(tmp_path / "model.pt2").module()
    for inputs in sizes(text_model):
        with torch.no_grad():
            expected = text_model(input_ids=inputs["input_ids"]).timestep_logits
            assert torch.equal(program(input_ids=inputs["input_ids"])[0], expected)


@pytest.mark.slow
def test_onnxruntime_gives_the_models_steps_for_any_batch_and_length(text_model, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="extra `export` is not installed")
    import onnx

    path = tmp_path / "model.onnx"
    batch = {**example(text_model, 5, 11), "labels": torch.zeros(5)}
    agreement = export(text_model, path, "onnx", batch=batch)
    keys_and_values, others = (
        3 * 32,
        2 * 32 + 64,
    )  # of the one layer, others for the first token alone
    tokens = int(batch["attention_mask"].sum())
    assert agreement.neurons == 2 * (keys_and_values * tokens + others * 5)
    assert len(agreement.ties) < 5
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == [k for k in batch if k != "labels"]
    assert [i.shape for i in session.get_inputs()] == [["batch", "length"]] * 3
    assert [o.name for o in session.get_outputs()] == ["timestep_logits"]
    for inputs in sizes(text_model):
        (found,) = session.run(None, {k: v.numpy() for k, v in inputs.items()})
        with torch.no_grad():
            expected = text_model(**inputs).timestep_logits
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5)
    stored = onnx.load(path).graph.initializer
    weights = [w for w in stored if len(w.dims) == 2 and w.dims[-1] in (32, 64)]
    assert {w.data_type for w in weights} == {onnx.TensorProto.INT8}
    assert b"/spikenlp/" not in path.read_bytes()


@pytest.mark.slow
def test_onnxruntime_gives_the_steps_of_nonlinearities_by_step_and_binary_spikes(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="extra `export` is not installed")
    torch.manual_seed(0)
    fields = {**ONE_LAYER, "num_timesteps": 3, "nonlinearity": "step", "ternary": False}
    model = SpikingBertForSequenceClassification(SpikingBertConfig(**fields)).eval()
    assert export(model, tmp_path / "model.onnx", "onnx").samples == 4
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    for inputs in sizes(model):
        (found,) = session.run(None, {k: v.numpy() for k, v in inputs.items()})
        with torch.no_grad():
            expected = model(**inputs).timestep_logits
        assert expected.std(1).max() > 1e-3  # steps differ
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda layer: layer.conv.weight.data[2, 1].mul_(1.01), "reads differs"),
        (lambda layer: layer.neuron.v_threshold.mul_(0.9), r"sends \d+ other spikes"),
    ],
    ids=["weight", "threshold"],
)
def test_a_graph_with_another_number_is_not_kept(edit, said, vgg, tmp_path, monkeypatch):
    """The check runs the file: what the exporter did wrong shows there."""
    pytest.importorskip("onnxruntime", reason="extra `export` is not installed")
    make_graph = onnx_graph.make_graph

    def wrong(steps, inputs, path):
        layer = steps.model.vgg.stages[1].layers[0]
        before = {name: value.clone() for name, value in layer.state_dict().items()}
        with torch.no_grad():
            edit(layer)
        graph = make_graph(steps, inputs, path)
        layer.load_state_dict(before)
        return graph

    monkeypatch.setattr(onnx_graph, "make_graph", wrong)
    with pytest.raises(ValueError, match=rf"vgg\.stages\.1\.layers\.0\.neuron {said}"):
        export(vgg, tmp_path / "wrong.onnx", "onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 3, 8, 8)], ids=["images", "frames"])
def test_images_and_frames_of_another_batch_give_the_models_steps(vgg, tmp_path, shape):
    """Frames keep their time axis, and an image gets that of the config."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="extra `export` is not installed")
    pixels = torch.rand(7, *shape, generator=torch.Generator().manual_seed(3))
    batch = {"pixel_values": pixels[:4]}
    export(vgg.train(), tmp_path / "new" / "vgg.onnx", "onnx", batch=batch)
    assert vgg.training
    session = onnxruntime.InferenceSession(
        tmp_path / "new" / "vgg.onnx", providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"pixel_values": pixels.numpy()})
    with torch.no_grad():
        expected = vgg.eval()(pixels).timestep_logits
    assert found.shape == (7, 2 if len(shape) == 3 else 3, 10)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5)


def test_what_cannot_be_exported_is_refused_by_name(text_model, vgg, tmp_path):
    path = tmp_path / "model.pt2"
    with pytest.raises(ValueError, match="format must be one of torch, onnx, nir, got 'tflite'"):
        export(text_model, path, "tflite")
    with pytest.raises(ValueError, match=r"file \.pt2, got model\.bin"):
        export(text_model, tmp_path / "model.bin", "torch")
    with pytest.raises(ValueError, match=r"inputs of \['pixel_values'\], got \['input_ids'\]"):
        export(vgg, path, "torch", batch={"input_ids": torch.ones(2, 3)})
    collapsed = SpikingBertForSequenceClassification(SpikingBertConfig(**ONE_LAYER, collapsed=True))
    with pytest.raises(ValueError, match="collapsed"):
        export(collapsed, path, "torch")
    with pytest.raises(ValueError, match="SpikingBertForMaskedLM gives no timestep_logits"):
        export(SpikingBertForMaskedLM(SpikingBertConfig(**ONE_LAYER)), path, "torch")
    rates = {"architecture": "spikingbert", "neuron": "if", "ternary": False}
    implicit = SpikingBertConfig(**ONE_LAYER, **rates, gradient="implicit", num_timesteps=3)
    with pytest.raises(ValueError, match=r"config\.gradient = 'bptt'"):
        export(SpikingBertForSequenceClassification(implicit), path, "torch")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="is a folder: name the file to write"):
        export(vgg, tmp_path, "torch")


@pytest.mark.parametrize(("format", "package"), [("onnx", "onnxscript"), ("nir", "nir")])
def test_without_its_packages_the_error_names_the_extra(
    vgg, tmp_path, monkeypatch, format, package
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"spikenlp\[export\]"):
        export(vgg, tmp_path / f"model.{format}", format)


@pytest.mark.slow
def test_the_command_checks_on_sentences(text_model, tmp_path, capsys):
    folder, out = str(tmp_path / "text"), tmp_path / "text.pt2"
    text_model.save_pretrained(folder)
    wordpiece_tokenizer(["what is a spike", "how are you"]).save_pretrained(folder)
    sentences = [
        "what is a spike",
        "are you a spike or not " * 20,
    ]  # longer than there are positions
    command = ["export", folder, "--format", "torch", "--out", str(out), "--text"]
    main([*command, *sentences])
    assert "Agreement(samples=2" in capsys.readouterr().out
    assert out.is_file()


def test_the_command_writes_a_checked_file(vgg, tmp_path, capsys):
    pytest.importorskip("nir", reason="extra `export` is not installed")
    vgg.save_pretrained(tmp_path / "vgg")
    out = tmp_path / "vgg.nir"
    main(["export", str(tmp_path / "vgg"), "--format", "nir", "--out", str(out)])
    assert "Agreement(samples=4" in capsys.readouterr().out
    assert out.is_file()
    with pytest.raises(SystemExit, match="format must be one of"):
        main(["export", str(tmp_path / "vgg"), "--format", "tf", "--out", str(out)])
    with pytest.raises(SystemExit, match="--text is for models of text"):
        main(["export", str(tmp_path / "vgg"), "--format", "nir", "--out", str(out), "--text", "a"])


def test_the_command_writes_half_precision_in_float32_where_the_format_needs_it(vgg, tmp_path):
    pytest.importorskip("nir", reason="extra `export` is not installed")
    folder, out = str(tmp_path / "vgg"), tmp_path / "vgg.nir"
    copy = SpikingVGGForImageClassification(vgg.config)
    copy.load_state_dict(vgg.state_dict())
    copy.bfloat16().save_pretrained(folder)
    main(["export", folder, "--format", "nir", "--out", str(out)])
    assert out.is_file()


@pytest.mark.parametrize("return_dict", [True, False])
def test_a_program_is_made_whatever_the_model_returns(return_dict, tmp_path):
    config = SpikingVGGConfig(hidden_sizes=[4], depths=[1], image_size=8, num_timesteps=2)
    config.return_dict = return_dict
    model = SpikingVGGForImageClassification(config).eval()
    assert export(model, tmp_path / "model.pt2", "torch").samples == 4


@pytest.mark.parametrize(("burst", "ternary"), [(3, True), (2, False)])
def test_bursts_are_exported(burst, ternary, tmp_path):
    pytest.importorskip("onnxscript", reason="extra `export` is not installed")
    pytest.importorskip("onnxruntime", reason="extra `export` is not installed")
    torch.manual_seed(0)
    fields = {**ONE_LAYER, "burst": burst, "ternary": ternary, "num_timesteps": 3}
    model = SpikingBertForSequenceClassification(SpikingBertConfig(**fields)).eval()
    assert export(model, tmp_path / "model.onnx", "onnx").samples == 4


def test_half_precision_is_exported_as_a_program_and_refused_as_onnx(tmp_path):
    torch.manual_seed(0)
    config = SpikingVGGConfig(hidden_sizes=[4], depths=[1], image_size=8, num_timesteps=2)
    model = SpikingVGGForImageClassification(config).eval().bfloat16()
    assert export(model, tmp_path / "model.pt2", "torch").samples == 4
    with pytest.raises(ValueError, match=r"float32, this one is in torch\.bfloat16"):
        export(model, tmp_path / "model.onnx", "onnx")
