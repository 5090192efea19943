"""Checkpoints that are damaged or hostile: nothing executes, each ends in a clear error."""

import json
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

import spikenlp
from spikenlp import (
    QKFormerForImageClassification,
    SpikingBertConfig,
    SpikingBertForMaskedLM,
    SpikingBertForSequenceClassification,
    SpikingBertModel,
    SpikingResNetForImageClassification,
    SpikingVGGConfig,
    SpikingVGGForImageClassification,
)
from spikenlp.data import wordpiece_tokenizer
from tests.conftest import TINY_DENSE

PACKAGE = Path(spikenlp.__file__).parent
REMOVED = object()


class Payload:
    """Its pickle, loaded without care, makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture(autouse=True)
def marker(tmp_path):
    path = tmp_path / "executed"
    yield path
    assert not path.exists(), "something of the checkpoint was executed"


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    SpikingBertForSequenceClassification(SpikingBertConfig(**TINY_DENSE)).save_pretrained(
        tmp_path / "model"
    )
    return tmp_path / "model"


def edit(folder, **fields):
    config = json.loads((folder / "config.json").read_text()) | fields
    kept = {k: v for k, v in config.items() if v is not REMOVED}
    (folder / "config.json").write_text(json.dumps(kept))


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def refused(folder, error, message):
    """By its own class and by the Auto class."""
    for load in (SpikingBertForSequenceClassification, AutoModelForSequenceClassification):
        with pytest.raises(error, match=message):
            load.from_pretrained(folder)


def test_the_payload_is_one(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "made")))
    assert (tmp_path / "made").is_dir()


@pytest.mark.parametrize("kept", [0, 5, 8, 200, -1, -1000])
def test_truncated_safetensors_are_refused(folder, kept):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:kept])
    refused(folder, ValueError, r"the weights in .*model are damaged or no safetensors")


@pytest.mark.parametrize("length", [0, 2**20, 2**62, 2**64 - 1])
def test_safetensors_whose_header_lies_about_its_length_are_refused(folder, length):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(length.to_bytes(8, "little") + data[8:])
    refused(folder, ValueError, "damaged or no safetensors")


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_named_safetensors_is_refused(folder, marker, protocol):
    (folder / "model.safetensors").write_bytes(pickle.dumps(Payload(marker), protocol))
    refused(folder, ValueError, "damaged or no safetensors")


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_as_pytorch_weights_is_refused_and_not_executed(folder, marker, zipped, wrapped):
    (folder / "model.safetensors").unlink()
    payload = Payload(marker)
    content = {"classifier.weight": torch.zeros(2, 32), "extra": payload} if wrapped else payload
    torch.save(content, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    refused(folder, ValueError, "pickle of more than tensors, which was not executed")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(payload))
    refused(folder, ValueError, "pickle of more than tensors, which was not executed")


def test_weights_only_cannot_be_switched_off(folder, marker):
    (folder / "model.safetensors").unlink()
    torch.save(Payload(marker), folder / "pytorch_model.bin")
    for load in (SpikingBertForSequenceClassification, AutoModelForSequenceClassification):
        with pytest.raises(ValueError, match="weights_only must be True, got False"):
            load.from_pretrained(folder, weights_only=False)


def test_plain_tensors_in_a_pickle_still_load(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    model = SpikingBertForSequenceClassification.from_pretrained(folder)
    assert torch.equal(model.classifier.weight, weights["classifier.weight"])


@pytest.mark.parametrize("part", ["bert.pooler.", "classifier."])
def test_a_classifier_without_its_head_or_pooler_is_refused(folder, part):
    def drop(weights):
        for name in [n for n in weights if n.startswith(part)]:
            del weights[name]

    change_weights(folder, drop)
    refused(folder, ValueError, rf"incomplete: 2 of the .* missing: {part}")
    assert isinstance(SpikingBertModel.from_pretrained(folder), SpikingBertModel)


def test_a_classifier_may_get_another_number_of_labels(folder):
    options = {"num_labels": 5, "ignore_mismatched_sizes": True}
    model = SpikingBertForSequenceClassification.from_pretrained(folder, **options)
    assert model.classifier.out_features == 5


def test_a_checkpoint_without_weights_says_which_files_it_looked_for(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, OSError, "no file named model.safetensors")


@pytest.mark.parametrize(
    "name",
    ["classifier.weight", "bert.embeddings.word_embeddings.weight"],
)
def test_weights_of_another_shape_are_refused(folder, name):
    def change(weights):
        weights[name] = torch.zeros(7, 9)

    change_weights(folder, change)
    refused(folder, RuntimeError, "ignore_mismatched_sizes")


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("layer.1.", r"22 of the 53 tensors.*encoder.layer.1.attention.output.LayerNorm.bias"),
        ("layer.0.attention.output.neuron.amplitude", r"1 of the 53 tensors.*neuron.amplitude"),
        ("word_embeddings", "1 of the 53 tensors.*word_embeddings"),
    ],
)
def test_missing_weights_are_not_replaced_by_random_ones(folder, lost, message):
    def change(weights):
        for name in [name for name in weights if lost in name]:
            del weights[name]

    change_weights(folder, change)
    refused(folder, ValueError, f"is incomplete: {message}")


def test_heads_poolers_and_new_kinds_of_neuron_parameters_may_be_missing(folder, tmp_path):
    config = SpikingBertConfig(**TINY_DENSE)
    SpikingBertForMaskedLM(config).save_pretrained(tmp_path / "mlm")
    SpikingBertForSequenceClassification.from_pretrained(tmp_path / "mlm")
    SpikingBertModel.from_pretrained(folder)
    binary = SpikingBertForSequenceClassification.from_pretrained(folder, ternary=False)
    assert all(bool((p == 0).all()) for n, p in binary.named_parameters() if n.endswith("offset"))
    SpikingBertForSequenceClassification.from_pretrained(folder, neuron="plif")


@pytest.mark.parametrize(
    "field", ["num_timesteps", "neuron", "num_attention_heads", "nonlinearity", "ternary"]
)
def test_a_lost_field_that_changes_answers_is_not_replaced_by_a_default(folder, field):
    edit(folder, **{field: REMOVED})
    refused(folder, ValueError, f"config has no {field}, which every saved one has")
    given = {"num_timesteps": 3, "neuron": "rounding", "ternary": True}
    if field in given:
        loaded = SpikingBertForSequenceClassification.from_pretrained(
            folder, **{field: given[field]}
        )
        assert getattr(loaded.config, field) == given[field]


@pytest.mark.parametrize("field", ["hidden_size", "vocab_size", "num_hidden_layers"])
def test_a_lost_field_that_changes_shapes_is_refused_by_the_weights(folder, field):
    edit(folder, **{field: REMOVED})
    refused(folder, (RuntimeError, ValueError), r"ignore_mismatched_sizes|is incomplete")


@pytest.mark.parametrize("load", [SpikingBertModel, SpikingBertForSequenceClassification])
def test_weights_of_more_layers_than_the_config_says_are_refused(folder, load):
    fewer = load.from_pretrained(folder, num_hidden_layers=1)
    assert fewer.config.num_hidden_layers == 1
    edit(folder, num_hidden_layers=1)
    refused(folder, ValueError, r"more layers than its config says, 22 tensors: .*layer\.1\.")
    with pytest.raises(ValueError, match="more layers than its config says, 22 tensors"):
        load.from_pretrained(folder)


def test_a_vision_model_with_weights_of_more_layers_is_refused(tmp_path):
    config = SpikingVGGConfig(hidden_sizes=[4, 8, 8], depths=[1, 2], image_size=8)
    SpikingVGGForImageClassification(config).save_pretrained(tmp_path)
    edit(tmp_path, depths=[1, 1], hidden_sizes=[4, 8])
    with pytest.raises(ValueError, match=r"more layers than its config says, .*layers\.1\."):
        SpikingVGGForImageClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", ["[1, 2]", '["model_type"]', '"spiking_bert"', "null", "7"])
def test_a_config_that_is_no_object_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json is damaged: it holds no JSON object but a"):
        SpikingBertForSequenceClassification.from_pretrained(folder)


def test_a_checkpoint_that_does_not_say_what_it_is_is_refused(folder):
    edit(folder, model_type=REMOVED)
    with pytest.raises(ValueError, match="model_type None, not 'spiking_bert'"):
        SpikingBertForSequenceClassification.from_pretrained(folder)
    with pytest.raises(ValueError, match="contains custom code which must be"):
        AutoModelForSequenceClassification.from_pretrained(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"neuron": "quantum"}, "neuron.*'quantum'"),
        ({"surrogate": "../x"}, r"surrogate.*\.\./x"),
        ({"architecture": 7}, "architecture"),
        ({"num_timesteps": 0}, "num_timesteps must be >= 1, got 0"),
        ({"num_timesteps": "4"}, "num_timesteps.*'4'"),
        ({"hidden_size": -32}, "hidden_size must be >= 1, got -32"),
        ({"num_attention_heads": 5}, "hidden_size=32 is not a multiple"),
        ({"hidden_act": "evil"}, "hidden_act must be one of .* got 'evil'"),
        ({"layer_norm_eps": "x"}, "layer_norm_eps.*x"),
        ({"beta": 7.0}, r"beta must be in \(0, 1\], got 7"),
        ({"collapsed": "yes"}, "collapsed.*yes"),
        ({"dtype": "evil"}, "dtype='evil'"),
        ({"dtype": "load"}, "dtype='load'"),
        ({"spikenlp_format": "1"}, "spikenlp_format must be an integer"),
    ],
)
def test_unknown_values_are_named(folder, fields, message):
    edit(folder, **fields)
    refused(folder, (ValueError, StrictDataclassError), f"(?s){message}")


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe{}", b'{"model_type": "spiking_bert"'])
def test_a_config_that_is_no_json_is_refused(folder, content):
    (folder / "config.json").write_bytes(content)
    refused(folder, OSError, "not a valid JSON file")


@pytest.mark.parametrize(
    "outside", ["../outside.safetensors", "/etc/passwd", "a/../../outside.safetensors", "..", ""]
)
def test_an_index_that_leads_out_of_the_folder_is_refused(folder, outside):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights, outside)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, ValueError, "index.json names weights outside its folder")


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"weight_map": 1}', '{"weight_map": {"a": 1}}']
)
def test_an_index_that_is_none_is_refused(folder, content):
    (folder / "model.safetensors.index.json").write_text(content)
    refused(folder, ValueError, "is no index of weights")


EVIL = "import os\nos.mkdir({marker!r})\nclass Evil:\n    pass\n"


@pytest.mark.parametrize("trust", [True, False, None])
@pytest.mark.parametrize("reference", ["../evil.Evil", "../../evil.Evil", "evil.Evil"])
def test_code_that_a_config_names_is_not_run(folder, marker, reference, trust):
    """Our models are registered, so that transformers never needs a checkpoint's own code."""
    if trust and reference == "evil.Evil":
        pytest.skip("with trust_remote_code=True code inside the folder is run, as the user asked")
    for place in (folder, folder.parent, folder.parent.parent):
        (place / "evil.py").write_text(EVIL.format(marker=str(marker)))
    auto = dict.fromkeys(
        ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification"), reference
    )
    edit(folder, auto_map=auto, _name_or_path="../../../etc/passwd")
    for load in (AutoConfig, AutoModel, AutoModelForSequenceClassification):
        loaded = load.from_pretrained(folder, trust_remote_code=trust)
        assert type(loaded).__name__ in spikenlp.__all__
    (folder.parent.parent / "evil.py").unlink()


@pytest.mark.parametrize("name", ["vocab_file", "tokenizer_file"])
def test_a_tokenizer_reads_no_file_outside_its_folder(folder, name):
    tokenizer = wordpiece_tokenizer(["a fine film"])
    tokenizer.save_pretrained(folder)
    (folder.parent / "secret.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nsecret\n")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {name: "../secret.txt", "auto_map": {"AutoTokenizer": ["../evil.Evil", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = AutoTokenizer.from_pretrained(folder)
    assert "secret" not in loaded.get_vocab()
    assert loaded("a fine film")["input_ids"] == tokenizer("a fine film")["input_ids"]


CONVERTERS = [
    SpikingVGGForImageClassification,
    SpikingResNetForImageClassification,
    QKFormerForImageClassification,
]


@pytest.mark.parametrize("model_class", CONVERTERS)
@pytest.mark.parametrize("zipped", [True, False])
def test_the_converters_of_others_checkpoints_execute_nothing(
    model_class, zipped, marker, tmp_path
):
    path = tmp_path / "theirs.pth"
    for content in (Payload(marker), {"model": {"w": torch.zeros(2)}, "args": Payload(marker)}):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match="holds more than tensors, containers and"):
            model_class.from_original(path)
    path.write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(ValueError, match=r"theirs\.pth"):
        model_class.from_original(path)


@pytest.mark.parametrize("kept", [0, 1, 100, -30])
def test_a_damaged_file_of_others_is_named(kept, tmp_path):
    path = tmp_path / "theirs.pth"
    torch.save({"state_dict": {"w": torch.zeros(100)}}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"theirs\.pth (is damaged|holds more)"):
        SpikingVGGForImageClassification.from_original(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        SpikingVGGForImageClassification.from_original(tmp_path / "absent.pth")
    for family in (SpikingVGGForImageClassification, SpikingResNetForImageClassification):
        with pytest.raises(ValueError, match="has no field 'num_timestep'"):
            family.from_original({}, num_timestep=3)


def test_nothing_in_the_package_unpickles_without_care():
    """A search of the sources: torch.load says weights_only=True, pickle is only our own subclass."""
    loads = []
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text()
        loads += re.findall(r"torch\.load\((?:[^()]|\([^()]*\))*\)", text)
        assert not re.search(r"pickle\.loads?\(|allow_pickle=True|yaml\.load\(|joblib", text), path
        assert not re.search(r"weights_only\s*=\s*False", text.replace("`weights_only=False`", ""))
    assert loads
    assert all("weights_only=True" in call for call in loads)
