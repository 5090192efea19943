"""What a checkpoint carries beside its weights: format version, auto_map, and that it is spiking."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
)

import spikenlp
from spikenlp import SpikingBertConfig, SpikingBertForSequenceClassification, SpikingBertModel
from spikenlp.models import checkpoint
from tests.conftest import TINY_DENSE

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SpikingBertForSequenceClassification(SpikingBertConfig(**TINY_DENSE)).eval()


def edit(folder, **fields):
    """Changes config.json; None removes a field."""
    config = json.loads((folder / "config.json").read_text()) | fields
    kept = {k: v for k, v in config.items() if v is not None or k not in fields}
    (folder / "config.json").write_text(json.dumps(kept))


def test_a_checkpoint_says_its_format(model, tmp_path):
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["spikenlp_format"] == checkpoint.FORMAT


def test_a_newer_format_is_refused_with_advice_even_if_its_fields_are_unknown(model, tmp_path):
    model.save_pretrained(tmp_path)
    edit(tmp_path, spikenlp_format=checkpoint.FORMAT + 1, neuron="one of tomorrow")
    for load in (SpikingBertModel, AutoModelForSequenceClassification):
        with pytest.raises(ValueError, match=r"format 3.*up to format 2.*pip install --upgrade"):
            load.from_pretrained(tmp_path)


def test_a_checkpoint_from_before_versions_loads_as_it_is(model, batches, tmp_path):
    model.save_pretrained(tmp_path)
    edit(tmp_path, spikenlp_format=None, auto_map=None)
    assert "spikenlp_format" not in json.loads((tmp_path / "config.json").read_text())
    loaded = SpikingBertForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.spikenlp_format == checkpoint.FORMAT
    assert torch.equal(loaded(**batches[0]).logits, model(**batches[0]).logits)


def test_a_checkpoint_from_before_bursts_has_none(model, batches, tmp_path):
    model.save_pretrained(tmp_path)
    edit(tmp_path, spikenlp_format=1, burst=None)
    loaded = SpikingBertForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.burst == 1
    assert SpikingBertConfig.from_pretrained(tmp_path, burst=2).burst == 2
    edit(tmp_path, spikenlp_format=2)
    with pytest.raises(ValueError, match="config has no burst"):
        SpikingBertConfig.from_pretrained(tmp_path)


def test_older_formats_migrate_step_by_step_or_say_why_not(model, tmp_path, monkeypatch):
    def rename(config):
        return {("num_timesteps" if k == "steps" else k): v for k, v in config.items()}

    def give_up(config):
        raise ValueError("its amplitudes were one per layer")

    model.save_pretrained(tmp_path)
    monkeypatch.setattr(checkpoint, "FORMAT", 3)
    migrations = {0: lambda config: config, 1: rename, 2: lambda config: {**config, "beta": 0.25}}
    monkeypatch.setattr(checkpoint, "MIGRATIONS", migrations)
    edit(tmp_path, spikenlp_format=1, num_timesteps=None, steps=7)
    config = SpikingBertConfig.from_pretrained(tmp_path)
    assert (config.num_timesteps, config.beta, config.spikenlp_format) == (7, 0.25, 3)
    monkeypatch.setitem(migrations, 2, give_up)
    with pytest.raises(ValueError, match=r"format 2 cannot be loaded.*format 3: its amplitudes"):
        SpikingBertConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("version", [-1, "1", 1.5])
def test_a_format_that_is_no_version_is_refused(version):
    fields = {"model_type": "spiking_bert", "spikenlp_format": version}
    with pytest.raises(ValueError, match="spikenlp_format must be an integer"):
        SpikingBertConfig.from_dict(fields)


def test_the_thin_module_imports_public_names_for_every_auto_class(model, tmp_path):
    model.save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert set(auto_map) == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForMaskedLM",
        "AutoModelForQuestionAnswering",
        "AutoModelForSequenceClassification",
        "AutoModelForTokenClassification",
    }
    names = {}
    exec((tmp_path / f"{checkpoint.REMOTE_MODULE}.py").read_text(), names)
    for reference in auto_map.values():
        module, name = reference.split(".")
        assert module == checkpoint.REMOTE_MODULE
        assert names[name] is getattr(spikenlp, name)
        assert name in spikenlp.__all__


def test_a_users_own_subclass_is_not_passed_off_as_ours(tmp_path):
    class OwnConfig(SpikingBertConfig):
        model_type = "own"

    OwnConfig(**TINY_DENSE).save_pretrained(tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())
    assert not (tmp_path / f"{checkpoint.REMOTE_MODULE}.py").exists()


def test_a_dense_checkpoint_is_never_taken_for_a_spiking_one(dense, tmp_path):
    dense.save_pretrained(tmp_path)
    for load in (SpikingBertForSequenceClassification, SpikingBertModel, SpikingBertConfig):
        with pytest.raises(ValueError, match=r"model_type 'bert', not 'spiking_bert'.*from_dense"):
            load.from_pretrained(tmp_path)
    config = SpikingBertConfig(**TINY_DENSE)
    with pytest.raises(ValueError, match=r"no parameter of any neuron.*dense.*from_dense"):
        SpikingBertForSequenceClassification.from_pretrained(tmp_path, config=config)
    edit(tmp_path, model_type="spiking_bert", attention_probs_dropout_prob=0.0)
    with pytest.raises(ValueError, match="no parameter of any neuron"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_a_spiking_checkpoint_becomes_no_dense_bert_in_silence(model, tmp_path, caplog):
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(loaded) is SpikingBertForSequenceClassification
    BertForSequenceClassification.from_pretrained(tmp_path)
    assert "of type `spiking_bert` to instantiate a model of type `bert`" in caplog.text
    assert "UNEXPECTED" in caplog.text


def test_a_head_may_be_new_but_loading_info_still_tells(model, tmp_path):
    SpikingBertModel(model.config).save_pretrained(tmp_path)
    _, info = SpikingBertForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}


def test_loading_by_trust_does_not_make_us_copy_our_sources(model, tmp_path):
    """transformers registers such classes, and then copies the files that define them."""
    type(model).register_for_auto_class("AutoModel")
    type(model.config).register_for_auto_class()
    model.save_pretrained(tmp_path)
    written = {p.name for p in tmp_path.glob("*.py")}
    assert written == {f"{checkpoint.REMOTE_MODULE}.py"}


@pytest.mark.parametrize(
    "model_class",
    [
        spikenlp.SpikingVGGForImageClassification,
        spikenlp.SpikingResNetForImageClassification,
        spikenlp.QKFormerForImageClassification,
    ],
)
def test_image_classifiers_carry_the_same(model_class, tmp_path):
    config = model_class.config_class()
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["spikenlp_format"] == checkpoint.FORMAT
    named = saved["auto_map"]["AutoModelForImageClassification"]
    assert named == f"{checkpoint.REMOTE_MODULE}.{model_class.__name__}"
    assert model_class.__name__ in (tmp_path / f"{checkpoint.REMOTE_MODULE}.py").read_text()
    edit(tmp_path, spikenlp_format=checkpoint.FORMAT + 1)
    with pytest.raises(ValueError, match="pip install --upgrade"):
        AutoModelForImageClassification.from_pretrained(tmp_path)


TRUSTING = """
import sys
from transformers import AutoModelForImageClassification
assert "spikenlp" not in sys.modules
model = AutoModelForImageClassification.from_pretrained(sys.argv[1], trust_remote_code=True)
print(type(model).__name__)
"""


@pytest.mark.slow
def test_an_image_classifier_loads_where_nobody_imported_spikenlp(tmp_path):
    config = spikenlp.SpikingVGGConfig(hidden_sizes=[4, 4], depths=[1, 1], image_size=8)
    spikenlp.SpikingVGGForImageClassification(config).save_pretrained(tmp_path)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", TRUSTING, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == "SpikingVGGForImageClassification"
