"""recipes/distill.py and sweep_energy.py as a user runs them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertForMaskedLM

from spikenlp.data import demo_question_pairs, wordpiece_tokenizer

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--max_train_samples", "64", "--max_eval_samples", "32", "--max_seq_length", "24"]
SMALL += ["--task_name", "qqp", "--use_cpu", "True", "--disable_tqdm", "True"]
SMALL += ["--num_timesteps", "2", "--teacher_epochs", "1", "--per_device_train_batch_size", "16"]


def start(recipe, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / "recipes" / recipe), *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def succeed(*args):
    process = start(*args)
    printed, said = process.communicate(timeout=600)
    assert process.returncode == 0, said[-3000:]
    return printed


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Question pairs as GLUE's files and a small dense BERT, as a user would have them on disk."""
    folder = tmp_path_factory.mktemp("distill")
    pairs = demo_question_pairs()
    (folder / "QQP").mkdir()
    for split, name in (("train", "train.tsv"), ("validation", "dev.tsv")):
        lines = ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"]
        for row in pairs[split].select(range(80)):
            lines.append(f"0\t1\t2\t{row['question1']}\t{row['question2']}\t{row['label']}")
        (folder / "QQP" / name).write_text("\n".join(lines) + "\n")
    questions = [*pairs["train"]["question1"], *pairs["train"]["question2"]]
    (folder / "corpus.txt").write_text("\n".join(questions[:400]))
    tokenizer = wordpiece_tokenizer(questions)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        initializer_range=0.2,
    )
    BertForMaskedLM(config).save_pretrained(folder / "dense")
    tokenizer.save_pretrained(folder / "dense")
    model = ["--model_name_or_path", folder / "dense", "--data_dir", folder]
    return [*map(str, model), *SMALL], folder


@pytest.mark.slow
def test_the_whole_way_says_what_it_loads_and_is_not_repeated(options, tmp_path):
    arguments, folder = options
    phases = "teacher converted general collapsed unrolled".split()
    command = ["distill.py", *arguments, "--output_dir", tmp_path, "--phases", *phases]
    command += ["--corpus_files", folder / "corpus.txt", "--general_steps", 2]
    command += ["--collapsed_steps", 2, "--max_steps", 2, "--spike_weight", 0.1]
    printed = succeed(*command)
    sources = ["dense", "dense", "converted", "general", "collapsed"]
    for phase, loaded in zip(phases, sources, strict=True):
        assert f"phase {phase}: loads" in printed
        assert Path(printed.split(f"phase {phase}: loads ")[1].split(";")[0]).name == loaded
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(phases) <= results.keys()
    for phase in phases[1:]:
        assert {"accuracy_t1", "accuracy_t2", "ece_t2"} <= results[phase]["spiking"].keys()
        assert 0 < results[phase]["spending"]["spikes_per_neuron"] <= 2
        assert "accuracy" in results[phase]["collapsed"]
    assert results["unrolled"]["training"]["steps"] == 2
    assert str(tmp_path) not in json.dumps(results)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "unrolled")
    assert model.config.id2label[1] == "duplicate"
    weights = (tmp_path / "unrolled" / "model.safetensors").stat().st_mtime_ns
    assert "phase" not in succeed(*command).split("teacher: dense")[0]
    assert (tmp_path / "unrolled" / "model.safetensors").stat().st_mtime_ns == weights


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["collapsed", "unrolled"])
def test_a_killed_phase_goes_on_and_ends_with_the_same_weights(options, tmp_path, phase):
    arguments, _ = options
    arguments = [*arguments, "--save_steps", 2, "--save_total_limit", 9, "--spike_weight", 0.1]
    steps = "--collapsed_steps" if phase == "collapsed" else "--max_steps"
    once = tmp_path / "prepared"
    succeed("distill.py", *arguments, "--output_dir", once, "--phases", "teacher", "converted")
    finals = []
    for name in ("whole", "killed"):
        out = tmp_path / name
        out.mkdir()
        for earlier in ("teacher", "converted"):
            (out / earlier).symlink_to(once / earlier)
        command = ["distill.py", *arguments, "--output_dir", out, "--phases", phase, steps, 12]
        if name == "killed":
            process = start(*command)
            deadline = time.monotonic() + 300
            while not (out / phase / "checkpoint-2" / "trainer_state.json").exists():
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert not (out / phase / "results.json").exists()
        succeed(*command)
        finals.append(load_file(out / phase / "model.safetensors"))
    for name, value in finals[0].items():
        assert torch.equal(value, finals[1][name]), name


@pytest.mark.slow
def test_a_sweep_tables_accuracy_and_energy(options, tmp_path):
    arguments, _ = options
    printed = succeed(
        "sweep_energy.py",
        *[a for a in arguments if a not in ("--num_timesteps", "2")],
        *("--timesteps", 1, 2, "--spike_targets", "none", "0.1", "--spike_weight", "5"),
        *("--collapsed_steps", 3, "--max_steps", 3, "--output_dir", tmp_path),
    )
    record = json.loads((tmp_path / "sweep.json").read_text())
    assert [(r["num_timesteps"], r["spike_target"]) for r in record["rows"]] == [
        (1, None),
        (1, 0.1),
        (2, None),
        (2, 0.1),
    ]
    free, penalised = record["rows"][2:]
    assert penalised["spikes_per_neuron"] < free["spikes_per_neuron"]
    assert penalised["microjoules, spiking, float32"] < free["microjoules, spiking, float32"]
    assert printed.count("\n| ") == 5
    assert (tmp_path / "int8.svg").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--phases", "unrolled"], "needs a student"),
        (["--phases", "converted"], "there is no teacher"),
        (["--teacher", "{other}"], "must read the same token ids"),
        (["--phases", "teacher", "converted", "general"], "needs text|exactly one source of text"),
    ],
)
def test_what_is_missing_is_named(options, tmp_path, change, message):
    arguments, folder = options
    other = folder / "other"
    BertForMaskedLM(BertConfig(num_hidden_layers=1, hidden_size=24, vocab_size=40)).save_pretrained(
        other
    )
    wordpiece_tokenizer(["a few other words"]).save_pretrained(other)
    change = [str(other) if word == "{other}" else word for word in change]
    process = start("distill.py", *arguments, "--output_dir", tmp_path / "out", *change)
    _, said = process.communicate(timeout=300)
    assert process.returncode != 0
    assert any(part in said for part in message.split("|"))
