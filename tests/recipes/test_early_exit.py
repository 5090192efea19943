"""The recipe on real files: figures that agree with one another, and policies that load again."""

import argparse
import json
import sys

import pytest
import torch

from spikenlp import SpikingBertConfig, SpikingBertForSequenceClassification
from spikenlp.data import demo_question_pairs, wordpiece_tokenizer
from spikenlp.inference import ExitPolicy
from tests.conftest import TINY_DENSE
from tests.recipes.running import ROOT, succeed

sys.path.insert(0, str(ROOT / "recipes"))

from task_data import DataArguments, add_data_options, evaluation_data, labelled_batches


def test_demo_pairs_are_of_no_other_task(tmp_path):
    with pytest.raises(ValueError, match="demo pairs are of qqp: for sst2 give --data_dir"):
        labelled_batches(tmp_path, DataArguments(task_name="sst2"), 4)


def test_labels_in_another_order_are_refused(tmp_path):
    tokenizer = wordpiece_tokenizer(demo_question_pairs()["validation"]["question1"])
    swapped = {"id2label": {0: "duplicate", 1: "not_duplicate"}}
    SpikingBertForSequenceClassification(
        SpikingBertConfig(**{**TINY_DENSE, "vocab_size": len(tokenizer)}, **swapped)
    ).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="their order must be the same"):
        labelled_batches(tmp_path, DataArguments(task_name="qqp"), 4)


def test_own_data_have_the_classes_of_the_checkpoint(tmp_path):
    """In their order, which is not the sorted one; dev has one class alone."""
    checkpoint, files = tmp_path / "model", tmp_path / "files"
    tokenizer = wordpiece_tokenizer(["a", "film"])
    names = {"id2label": {0: "top", 1: "low"}}
    SpikingBertForSequenceClassification(
        SpikingBertConfig(**{**TINY_DENSE, "vocab_size": len(tokenizer)}, **names)
    ).save_pretrained(checkpoint)
    tokenizer.save_pretrained(checkpoint)
    files.mkdir()
    (files / "train.csv").write_text("title,stars\na,low\nfilm,top\n")
    (files / "dev.csv").write_text("title,stars\nfilm,low\n")
    parser = argparse.ArgumentParser()
    add_data_options(parser)
    options = ["--task_name", "own_data", "--data_dir", str(files), "--text_columns", "title"]
    args = parser.parse_args([*options, "--label_column", "stars"])
    (batch,) = labelled_batches(checkpoint, evaluation_data(args), 4)
    assert batch["labels"].tolist() == [1]


def test_two_checkpoints_on_demo_pairs(tmp_path):
    pytest.importorskip("matplotlib")
    pairs = demo_question_pairs()["validation"]
    tokenizer = wordpiece_tokenizer(pairs["question1"])
    for seed in (0, 1):
        torch.manual_seed(seed)
        fields = {**TINY_DENSE, "vocab_size": len(tokenizer), "num_timesteps": 3}
        fields["max_position_embeddings"] = 128
        model = SpikingBertForSequenceClassification(SpikingBertConfig(**fields))
        model.save_pretrained(tmp_path / f"model{seed}")
        tokenizer.save_pretrained(tmp_path / f"model{seed}")
    options = ["--checkpoints", tmp_path / "model0", tmp_path / "model1", "--batch", 12, "--save"]
    options += ["--max_eval_samples", 24, "--thresholds", 0.6, "--max_accuracy_drop", 0.1]
    succeed("early_exit.py", "--task_name", "qqp", *options, "--output_dir", tmp_path / "out")
    results = json.loads((tmp_path / "out" / "early_exit.json").read_text())
    assert results["run"]["command"].startswith("early_exit.py --task_name qqp")
    for name in ("model0", "model1"):
        found = results["models"][name]
        assert found["samples"] == 24
        last = found["curve"][-1]
        assert (last["threshold"], last["mean_steps"]) == (1.0, 3.0)
        assert last["accuracy"] == found["accuracy_by_step"][-1]
        assert last["energy"] == pytest.approx(found["energy_by_step"][-1])
        assert found["chosen"]["accuracy"] >= last["accuracy"] - 0.1 - 1e-9
        assert all(point["latency"] > 0 for point in found["curve"])
        assert 1 <= found["held_out"]["mean_steps"] <= 3
        policy = ExitPolicy.load(tmp_path / name)
        assert policy == ExitPolicy.load(tmp_path / "out" / name)
        assert policy.thresholds[0] == found["chosen"]["threshold"]
    text = (tmp_path / "out" / "early_exit.md").read_text()
    assert text.count("| model0 |") == 1 + len(results["models"]["model0"]["curve"])
    assert "<svg" in (tmp_path / "out" / "early_exit.svg").read_text()
