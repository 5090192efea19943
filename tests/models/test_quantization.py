"""Weights in int8: the rounding, the layers, the round trip through transformers' quantization."""

import copy
import json
import operator
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import (
    LoraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

import spikenlp
from spikenlp import (
    Int8Config,
    SpikingBertConfig,
    SpikingBertForMaskedLM,
    SpikingBertForSequenceClassification,
    SpikingTrainer,
    SpikingTrainingArguments,
    SpikingVGGConfig,
    SpikingVGGForImageClassification,
)
from spikenlp.analysis import assert_spiking, energy_report, weight_rank
from spikenlp.models.quantization import Int8Conv2d, Int8Embedding, Int8SpikingLinear, int8_of
from spikenlp.neurons import SpikingLinear
from tests.conftest import TINY_DENSE

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def model(dense, batches):
    return SpikingBertForSequenceClassification.from_dense(dense, calibration=batches).eval()


@pytest.fixture
def rounded(model, tmp_path):
    model.save_pretrained(tmp_path / "float")
    return AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "float", quantization_config=Int8Config()
    )


def by_hand(weight):
    """The rounded weight, an element at a time in float64."""
    out = torch.empty_like(weight, dtype=torch.float64)
    for i, row in enumerate(weight.flatten(1).tolist()):
        scale = max(abs(w) for w in row) / 127
        values = [0.0 if scale == 0 else scale * round(w / scale) for w in row]
        out[i] = torch.tensor(values, dtype=torch.float64).view(weight[0].shape)
    return out


@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 2, 2), (1, 1)])
def test_each_row_is_rounded_to_255_levels_of_its_own_scale(shape):
    torch.manual_seed(0)
    weight = torch.randn(shape) * torch.logspace(-3, 3, shape[0]).view(-1, *[1] * (len(shape) - 1))
    q, scale = int8_of(weight)
    assert q.dtype == torch.int8
    assert q.abs().flatten(1).amax(1).tolist() == [127] * shape[0]
    made = scale.view(-1, *[1] * (len(shape) - 1)) * q
    torch.testing.assert_close(made.double(), by_hand(weight), rtol=1e-5, atol=0)
    assert ((made - weight).flatten(1).abs().amax(1) <= scale * 0.5001).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_of_zeros_stays_zero(dtype):
    q, scale = int8_of(torch.zeros(2, 3, dtype=dtype))
    assert q.tolist() == [[0] * 3] * 2
    assert ((scale > 0) & scale.isfinite()).all()
    assert scale.dtype == dtype


def test_ranks_are_of_the_weights_with_their_scales(model, tmp_path):
    with torch.no_grad():  # rows that only their scales tell apart
        model.bert.encoder.layer[0].output.dense.weight *= torch.logspace(-3, 3, 32)[:, None]
    model.save_pretrained(tmp_path)
    rounded = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, quantization_config=Int8Config()
    )
    assert weight_rank(rounded) == pytest.approx(weight_rank(model), rel=0.02)


def test_a_weight_that_is_not_finite_is_refused_by_name(model, tmp_path):
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight[3, 4] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"encoder\.layer\.1\.output\.dense.*row 3"):
        SpikingBertForSequenceClassification.from_pretrained(
            tmp_path, quantization_config=Int8Config()
        )


def test_a_rounded_model_is_the_float_model_with_rounded_weights(model, rounded, batches):
    """In float32 the weight is the scale times the integer: bit for bit."""
    twin = copy.deepcopy(model).requires_grad_(False)
    layers = 0
    for name, module in twin.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            q, scale = int8_of(module.weight)
            module.weight.data = scale[:, None] * q
            assert torch.equal(rounded.get_submodule(name).weight, module.weight)
            layers += 1
    assert layers == 3 + 2 * 6 + 2
    with torch.no_grad():
        expected, found = twin(**batches[0]), rounded(**batches[0])
        assert torch.equal(found.timestep_logits, expected.timestep_logits)
        assert not torch.equal(found.timestep_logits, model(**batches[0]).timestep_logits)


def test_only_weights_of_layers_are_rounded(model, rounded):
    for name, value in model.state_dict().items():
        if name not in rounded.state_dict():
            assert name.endswith(".weight")
            assert rounded.state_dict()[f"{name}_int8"].shape == value.shape
        else:
            assert "LayerNorm" in name or "neuron" in name or name.endswith("bias"), name
            assert torch.equal(rounded.state_dict()[name], value)
    assert not any(p.requires_grad for n, p in rounded.named_parameters() if "weight_" in n)


def test_the_file_holds_integers_and_loads_to_the_same_bits(rounded, batches, tmp_path):
    rounded.save_pretrained(tmp_path / "int8")
    config = json.loads((tmp_path / "int8" / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "spikenlp_int8"}
    stored = load_file(tmp_path / "int8" / "model.safetensors")
    assert stored["bert.encoder.layer.0.output.dense.weight_int8"].dtype == torch.int8
    for name in ("classifier.weight", "bert.embeddings.word_embeddings.weight"):
        assert name not in stored
    loaded, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "int8", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert loaded.is_quantized
    assert not any(p.requires_grad for n, p in loaded.named_parameters() if "weight_" in n)
    assert isinstance(loaded.bert.encoder.layer[0].output.dense, Int8SpikingLinear)
    assert isinstance(loaded.bert.embeddings.word_embeddings, Int8Embedding)
    with torch.no_grad():
        for batch in batches:
            expected, found = rounded(**batch), loaded(**batch)
            assert torch.equal(found.timestep_logits, expected.timestep_logits)
    loaded.save_pretrained(tmp_path / "again")
    same = [(tmp_path / f / "model.safetensors").read_bytes() for f in ("int8", "again")]
    assert same[0] == same[1]


def test_a_rounded_file_loads_in_sixteen_bits(rounded, batches, tmp_path):
    rounded.save_pretrained(tmp_path)
    half = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.classifier.weight_int8.dtype == torch.int8
    assert half.classifier.weight.dtype == torch.bfloat16
    torch.testing.assert_close(
        half.classifier.weight, rounded.classifier.weight.bfloat16(), rtol=0.01, atol=0
    )
    assert half(**batches[0]).logits.dtype == torch.bfloat16


def test_tied_weights_are_rounded_and_stored_once(batches, tmp_path):
    torch.manual_seed(0)
    SpikingBertForMaskedLM(SpikingBertConfig(**TINY_DENSE)).save_pretrained(tmp_path / "float")
    rounded = SpikingBertForMaskedLM.from_pretrained(
        tmp_path / "float", quantization_config=Int8Config()
    )
    rounded.save_pretrained(tmp_path / "int8")
    stored = load_file(tmp_path / "int8" / "model.safetensors")
    assert sum(name.endswith("_int8") and len(v) == 120 for name, v in stored.items()) == 1
    loaded = SpikingBertForMaskedLM.from_pretrained(tmp_path / "int8")
    for model in (rounded, loaded):
        decoder, embedding = model.cls.predictions.decoder, model.bert.embeddings.word_embeddings
        assert decoder.weight_int8 is embedding.weight_int8
        assert decoder.weight_scale is embedding.weight_scale
    with torch.no_grad():
        assert torch.equal(loaded(**batches[0]).logits, rounded(**batches[0]).logits)


def test_convolutions_are_rounded_per_output_channel(tmp_path):
    torch.manual_seed(0)
    config = SpikingVGGConfig(
        hidden_sizes=[4, 6], depths=[1, 1], image_size=8, num_timesteps=2, num_channels=3
    )
    SpikingVGGForImageClassification(config).save_pretrained(tmp_path / "float")
    load = SpikingVGGForImageClassification.from_pretrained
    rounded = load(tmp_path / "float", quantization_config=Int8Config())
    rounded.save_pretrained(tmp_path / "int8")
    loaded = load(tmp_path / "int8")
    convolutions = [m for m in loaded.modules() if isinstance(m, Int8Conv2d)]
    assert [len(c.weight_scale) for c in convolutions] == [4, 6]
    pixels = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(pixels).timestep_logits, rounded(pixels).timestep_logits)


def test_spikes_and_energy_are_counted_as_in_the_float_model(model, rounded, batches):
    assert_spiking(rounded, batches[0])
    found, expected = energy_report(rounded, batches[0]), energy_report(model, batches[0])
    for a, b in zip(found.layers, expected.layers, strict=True):
        assert (a.name, a.kind, a.driver, a.dense_macs) == (b.name, b.kind, b.driver, b.dense_macs)
    assert found.rate == pytest.approx(expected.rate, rel=0.05)


def test_gradients_reach_what_is_not_rounded(model, rounded, batches):
    """The fused product of `SpikingLinear` asks for `weight`, too."""
    assert isinstance(rounded.bert.encoder.layer[0].output.dense, SpikingLinear)
    rounded.train()
    rounded(**batches[0], labels=torch.zeros(8, dtype=torch.long)).loss.backward()
    neuron = rounded.bert.encoder.layer[0].output.neuron
    assert neuron.amplitude.grad.abs().sum() > 0


def test_the_trainer_is_told_that_rounded_weights_do_not_learn(rounded, tmp_path):
    with pytest.raises(ValueError, match="quantized"):
        Trainer(rounded, TrainingArguments(str(tmp_path), use_cpu=True))
    adapted = get_peft_model(rounded, LoraConfig(r=2, target_modules=["query"]))
    with pytest.raises(ValueError, match="dequantize"):
        SpikingTrainer(adapted, SpikingTrainingArguments(str(tmp_path), use_cpu=True))


def test_what_would_be_written_into_a_made_weight_is_refused(rounded, batches):
    """Such as an adapter that is merged; into the float weights it can be."""
    config = LoraConfig(r=2, target_modules=["query", "dense"], init_lora_weights=False)
    adapted = get_peft_model(rounded, config).eval()
    adapters = get_peft_model_state_dict(adapted)
    expected = adapted(**batches[0]).logits
    with pytest.raises(ValueError, match=r"model.dequantize\(\)"):
        adapted.merge_and_unload()
    layer = rounded.bert.encoder.layer[0].attention.output.dense.base_layer
    for write in (lambda w: w.mul_(2), lambda w: w.data.zero_(), lambda w: operator.iadd(w, 1)):
        with torch.no_grad(), pytest.raises(ValueError, match="made of its integers"):
            write(layer.weight)
    assert type(copy.deepcopy(layer.weight)) is torch.Tensor
    assert torch.equal(layer.weight.data, layer.weight)
    floats = get_peft_model(adapted.unload().dequantize(), config).eval()
    set_peft_model_state_dict(floats, adapters)
    merged = floats.merge_and_unload()
    torch.testing.assert_close(merged(**batches[0]).logits, expected, rtol=1e-4, atol=1e-5)


TRUSTING = """
import sys
from transformers import AutoModelForSequenceClassification
assert "spikenlp" not in sys.modules
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], trust_remote_code=True)
print(type(model.classifier).__name__)
"""


@pytest.mark.slow
def test_a_rounded_checkpoint_loads_where_nobody_imported_spikenlp(rounded, tmp_path):
    rounded.save_pretrained(tmp_path / "int8")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", TRUSTING, str(tmp_path / "int8")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == "Int8Linear"
    assert "Int8Config" in spikenlp.__all__


def test_a_rounded_checkpoint_takes_no_new_head(rounded, tmp_path):
    """Its integers would be whatever lies in memory."""
    rounded.save_pretrained(tmp_path / "int8")
    with pytest.raises(ValueError, match=r"none for cls\.predictions.* cannot be made anew"):
        SpikingBertForMaskedLM.from_pretrained(tmp_path / "int8")
    options = {"num_labels": 4, "ignore_mismatched_sizes": True}
    with pytest.raises(ValueError, match="none for classifier, which cannot be made anew"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "int8", **options)
    assert (
        SpikingBertForSequenceClassification.from_pretrained(tmp_path / "float", **options)
        .classifier.weight.isfinite()
        .all()
    )


def test_a_rounded_vocabulary_is_not_resized(rounded):
    with pytest.raises(ValueError, match="resize the float model"):
        rounded.resize_token_embeddings(130)


def test_small_rows_of_float16_keep_the_bound():
    weight = torch.tensor([[2.9e-6, 1e-6], [2.5e-5, -1.3e-5], [0.0, 0.0], [0.5, -0.1]]).half()
    rounded, scale = int8_of(weight)
    assert scale.dtype == torch.float16
    error = (rounded.double() * scale.double()[:, None] - weight.double()).abs()
    assert (error <= scale.double()[:, None] / 2 * 1.001).all()
    assert scale[2] == 1


def test_a_rounded_model_becomes_a_float_one_again(rounded, batches, tmp_path):
    expected = rounded(**batches[0]).logits
    model = rounded.dequantize()
    assert type(model.classifier) is torch.nn.Linear
    assert model.classifier.weight.requires_grad
    torch.testing.assert_close(model(**batches[0]).logits, expected)
    model(**batches[0]).logits.sum().backward()
    model.save_pretrained(tmp_path / "again")
    names = load_file(tmp_path / "again" / "model.safetensors")
    assert not [name for name in names if "int8" in name]
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(again(**batches[0]).logits, expected)
    assert not hasattr(again, "hf_quantizer")


def test_tied_weights_stay_tied_as_floats(batches, tmp_path):
    SpikingBertForMaskedLM(SpikingBertConfig(**TINY_DENSE)).save_pretrained(tmp_path / "float")
    options = {"quantization_config": Int8Config()}
    model = SpikingBertForMaskedLM.from_pretrained(tmp_path / "float", **options).dequantize()
    assert model.cls.predictions.decoder.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path / "again")
    again = SpikingBertForMaskedLM.from_pretrained(tmp_path / "again")
    assert again.cls.predictions.decoder.weight is again.get_input_embeddings().weight
    assert torch.equal(again(**batches[0]).logits, model.eval()(**batches[0]).logits)
