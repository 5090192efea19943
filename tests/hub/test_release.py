"""A release: complete, checked by sha256sum, with the run's figures and no others."""

import json
import shutil
import subprocess

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from spikenlp import SpikingBertConfig, SpikingBertForSequenceClassification
from spikenlp.data import wordpiece_tokenizer
from spikenlp.hub.publish import stage
from spikenlp.hub.release import main, release
from spikenlp.inference import ExitPolicy
from tests.conftest import TINY_DENSE
from tests.hub.test_card import RESULTS, image_results
from tests.models.test_vision import make


@pytest.fixture
def checkpoint(tmp_path):
    """What a recipe leaves, with what a Trainer leaves beside it."""
    folder = tmp_path / "runs" / "sst2-tiny"
    tokenizer = wordpiece_tokenizer(["some words"])
    torch.manual_seed(0)
    fields = {**TINY_DENSE, "vocab_size": len(tokenizer), "num_timesteps": 2}
    SpikingBertForSequenceClassification(SpikingBertConfig(**fields)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    record = {**RESULTS, "base_model": None}
    del record["dense"]
    (folder / "results.json").write_text(json.dumps(record))
    (folder / "arguments.yaml").write_text("output_dir: /home/annlee/x\nhub_token: abc\nseed: 7\n")
    state = {"best_model_checkpoint": "/home/ann lee/runs/checkpoint-3", "global_step": 800}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    ExitPolicy((0.9,), num_timesteps=2).save(folder)
    (folder / "training_args.bin").write_bytes(b"/home/annlee and a token")
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "model.safetensors").write_bytes(b"old")
    (folder / "dense").mkdir()
    (folder / "dense" / "config.json").write_text("{}")
    return folder


def test_a_release_is_complete_and_its_sums_are_right(checkpoint, tmp_path):
    folder = release(checkpoint, tmp_path / "release")
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    plots = {name for name in found if name.startswith("plots/")}
    assert found - plots == {
        ".eval_results/sst2.yaml",
        "LICENSE",
        "README.md",
        "SHA256SUMS",
        "arguments.yaml",
        "config.json",
        "early_exit.json",
        "model.safetensors",
        "results.json",
        "spikenlp_remote.py",
        "tokenizer.json",
        "tokenizer_config.json",
        "trainer_state.json",
    }
    check = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    done = subprocess.run(check, cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.count(": OK") == len(found) - 1
    assert "Apache License" in (folder / "LICENSE").read_text()
    assert (folder / "model.safetensors").read_bytes() == (
        checkpoint / "model.safetensors"
    ).read_bytes()
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0"
    assert {r.metric_value for r in card.data.eval_results} == {
        0.8125,
        0.8512,
        0.031,
        0.047,
        1.25,
        2.5,
    }


@pytest.mark.parametrize("neuron", ["lif", "relu"])
def test_an_image_model_is_released_with_its_runs_figures(tmp_path, neuron):
    model = make("resnet", neuron=neuron)
    model.save_pretrained(tmp_path / "run")
    results = image_results(model)
    if neuron == "relu":
        results["dense"] = {"accuracy_t1": results.pop("spiking")["accuracy"]}
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    folder = release(tmp_path / "run", tmp_path / "release")
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0"
    assert 0.9 in [r.metric_value for r in card.data.eval_results]
    assert not (folder / ".eval_results").exists(), "no benchmark of the Hub's"


def test_pickled_weights_are_not_released(checkpoint, tmp_path):
    weights = load_file(checkpoint / "model.safetensors")
    torch.save(weights, checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no weights in \.safetensors"):
        release(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out" / checkpoint.name).exists()


def test_its_records_are_scrubbed(checkpoint, tmp_path):
    folder = release(checkpoint, tmp_path / "release")
    assert (
        folder / "arguments.yaml"
    ).read_text() == "hub_token: <secret>\noutput_dir: x\nseed: 7\n"
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state == {"best_model_checkpoint": "checkpoint-3", "global_step": 800}


def test_figures_come_from_the_run_or_not_at_all(checkpoint, tmp_path):
    record = checkpoint / "results.json"
    results = json.loads(record.read_text())
    record.write_text(json.dumps({**results, "config": {"num_timesteps": 8}}))
    with pytest.raises(ValueError, match="num_timesteps=8, this one has 2"):
        release(checkpoint, tmp_path / "release")
    assert not list((tmp_path / "release").iterdir())  # nothing half done
    record.unlink()
    with pytest.raises(ValueError, match=r"no results\.json"):
        release(checkpoint, tmp_path / "release")


def test_a_model_made_from_another_needs_a_licence_and_its_text(checkpoint, tmp_path):
    results = json.loads((checkpoint / "results.json").read_text())
    (checkpoint / "results.json").write_text(json.dumps({**results, "base_model": "someone/base"}))
    with pytest.raises(ValueError, match=r"made from someone/base.*--license"):
        release(checkpoint, tmp_path / "release")
    with pytest.raises(ValueError, match=r"put the text of mit into .*LICENSE"):
        release(checkpoint, tmp_path / "release", licence="mit")
    (checkpoint / "LICENSE").write_text("MIT License")
    folder = release(checkpoint, tmp_path / "release", licence="mit")
    assert (folder / "LICENSE").read_text() == "MIT License"
    assert ModelCard.load(folder / "README.md").data.license == "mit"


def test_what_would_give_something_away_stops_it(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/annlee")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "from": "/home/annlee/bert"}))
    with pytest.raises(ValueError, match=r"config\.json: a path of this machine") as error:
        stage(checkpoint, tmp_path / "copy")
    assert "annlee/bert" not in str(error.value)


def test_the_command_names_what_is_wrong_and_overwrites_nothing(checkpoint, tmp_path, capsys):
    out = tmp_path / "release"
    main([str(checkpoint), "--out", str(out)])
    assert "sst2-tiny" in capsys.readouterr().out
    before = (out / "sst2-tiny" / "SHA256SUMS").read_text()
    with pytest.raises(SystemExit, match="exists"):
        main([str(checkpoint), "--out", str(out)])
    assert (out / "sst2-tiny" / "SHA256SUMS").read_text() == before
    shutil.rmtree(out)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    with pytest.raises(SystemExit, match="BertModel, which is no model of spikenlp"):
        main([str(checkpoint), "--out", str(out)])
