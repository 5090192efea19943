"""recipes/distill.py and sweep_energy.py as a user runs them."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertForMaskedLM

from spikenlp.data import demo_question_pairs, get_task, wordpiece_tokenizer
from spikenlp.hub.release import release

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "recipes"))

import distill  # noqa: E402
import sweep_energy  # noqa: E402
from shrink import ShrinkArguments, shrink  # noqa: E402
from task_data import DataArguments  # noqa: E402

SMALL = ["--max_train_samples", "64", "--max_eval_samples", "32", "--max_seq_length", "24"]
SMALL += ["--task_name", "qqp", "--use_cpu", "True", "--disable_tqdm", "True", "--save_steps", "2"]
SMALL += ["--num_timesteps", "2", "--teacher_epochs", "1", "--per_device_train_batch_size", "16"]
SMALL += ["--collapsed_steps", "8", "--max_steps", "4", "--spike_weight", "0.1"]


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


@pytest.fixture(scope="module")
def done(options, tmp_path_factory):
    """A folder in which the usual phases were run, and what was printed."""
    arguments, _ = options
    out = tmp_path_factory.mktemp("out") / "run"
    with pytest.MonkeyPatch.context() as patch, io.StringIO() as printed:
        patch.setattr("sys.stdout", printed)
        distill.distill([*arguments, "--output_dir", str(out)])
        return out, printed.getvalue()


def prepared(done, folder, *phases):
    """A folder in which only `phases` were run."""
    folder.mkdir()
    for phase in phases:
        (folder / phase).symlink_to(done[0] / phase)
    return folder


@pytest.mark.slow
def test_the_whole_way_says_what_it_loads_and_finds(done):
    out, printed = done
    loaded = dict(re.findall(r"phase (\w+): loads (\S+);", printed))
    assert {k: Path(v).name for k, v in loaded.items()} == {
        "teacher": "dense",
        "converted": "teacher",
        "collapsed": "converted",
        "unrolled": "collapsed",
    }
    results = json.loads((out / "results.json").read_text())
    for phase in ("converted", "collapsed", "unrolled"):
        assert {"accuracy_t1", "accuracy_t2", "ece_t2"} <= results[phase]["spiking"].keys()
        assert 0 < results[phase]["spikes_per_neuron"] <= 2
        assert "accuracy" in results[phase]["collapsed"]
    assert results["unrolled"]["training"]["steps"] == 4
    assert results["collapsed"]["training"]["steps"] == 8
    assert str(out.parent) not in json.dumps(results)
    model = AutoModelForSequenceClassification.from_pretrained(out / "unrolled")
    assert model.config.id2label[1] == "duplicate"


@pytest.mark.parametrize("task", ["cola", "stsb", "mrpc"])
def test_the_summary_has_the_metrics_of_the_task(task):
    names = get_task(task).metrics
    found = {"spiking": {k: 0.5 for name in names for k in (name, f"{name}_t1")}}
    lines = distill.summary({"unrolled": found}).splitlines()
    assert [line.split()[2:] for line in lines] == [[name, "50.0", "50.0"] for name in names]


@pytest.mark.slow
def test_what_a_phase_leaves_is_ready_for_a_release_with_its_figures(done, tmp_path):
    folder = release(done[0] / "unrolled", tmp_path, licence="apache-2.0")
    card = (folder / "README.md").read_text()
    found = json.loads((done[0] / "unrolled" / "results.json").read_text())
    assert found["task"] == "qqp"
    for line in ("| step 2 | ", "| dense | ", "energy (µJ)", "Task**: qqp"):
        assert line in card


@pytest.mark.slow
def test_a_student_of_fewer_layers_and_words_learns_from_a_teacher_of_as_many_words(
    options, done, tmp_path
):
    data = DataArguments(task_name="qqp", data_dir=options[0][options[0].index("--data_dir") + 1])
    teacher, student = str(tmp_path / "teacher"), str(tmp_path / "student")
    source = str(done[0] / "teacher")
    large = shrink(ShrinkArguments(source, teacher, vocab_size=80), data)
    small = shrink(ShrinkArguments(teacher, student, num_hidden_layers=1), data)
    assert large.config.vocab_size == small.config.vocab_size <= 80
    assert large.config.num_hidden_layers == 2
    last = large.bert.encoder.layer[1].state_dict()
    for name, value in small.bert.encoder.layer[0].state_dict().items():
        assert torch.equal(value, last[name]), name
    arguments = [*options[0], "--teacher", teacher, "--student", student]
    arguments += ["--model_name_or_path", student, "--phases", "converted", "collapsed"]
    found = distill.distill([*arguments, "--output_dir", str(tmp_path / "out")])
    assert found["collapsed"]["training"]["steps"] == 8
    made = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "collapsed")
    assert (made.config.num_hidden_layers, made.config.vocab_size) == (1, small.config.vocab_size)


@pytest.mark.slow
def test_what_is_done_is_not_repeated(options, done, capsys):
    weights = done[0] / "unrolled" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    distill.distill([*options[0], "--output_dir", str(done[0])])
    assert "loads" not in capsys.readouterr().out
    assert weights.stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_killed_phase_goes_on_and_ends_with_the_same_weights(options, done, tmp_path):
    out = prepared(done, tmp_path / "killed", "teacher", "converted")
    command = [sys.executable, str(ROOT / "recipes" / "distill.py"), *options[0]]
    command += ["--output_dir", str(out), "--phases", "collapsed"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (out / "collapsed" / "checkpoint-2" / "trainer_state.json").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "collapsed" / "results.json").exists()
    distill.distill(command[2:])
    whole, resumed = (
        load_file(folder / "collapsed" / "model.safetensors") for folder in (done[0], out)
    )
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


@pytest.mark.slow
def test_raw_text_and_text_without_labels_teach_as_well(options, done, tmp_path):
    arguments, folder = options
    out = prepared(done, tmp_path / "text", "teacher", "converted")
    phases = ["--phases", "general", "internal", "--general_steps", "2", "--internal_steps", "2"]
    corpus = ["--corpus_files", str(folder / "corpus.txt")]
    found = distill.distill([*arguments, "--output_dir", str(out), *phases, *corpus])
    for phase in ("general", "internal"):
        log = json.loads((out / phase / "trainer_state.json").read_text())["log_history"]
        assert found[phase]["training"]["temporal_loss"] is None
        assert not any("loss_task" in entry or "loss_soft" in entry for entry in log)


@pytest.mark.slow
def test_the_converted_weights_are_fitted_to_their_spikes_when_asked(options, done, tmp_path):
    out = prepared(done, tmp_path / "fitted", "teacher")
    asked = ["--phases", "converted", "--reconstruct", "True", "--output_dir", str(out)]
    distill.distill([*options[0], *asked])
    plain, fitted = (
        load_file(folder / "converted" / "model.safetensors") for folder in (done[0], out)
    )
    changed = {k for k in plain if not torch.equal(plain[k], fitted[k])}
    assert len(changed) == 2 * 6 * 2
    assert all(".encoder.layer." in k and not k.endswith("amplitude") for k in changed)


@pytest.mark.slow
def test_a_sweep_tables_accuracy_and_energy(options, done, tmp_path, monkeypatch):
    out = prepared(done, tmp_path / "sweep", "teacher")
    arguments = [a for a in options[0] if a not in ("--spike_weight", "0.1", "--num_timesteps")]
    sweep = ["--timesteps", "2", "--spike_targets", "none", "0.1", "--spike_weight", "5"]
    sweep += ["--collapsed_neuron_learning_rate", "0.05", "--neuron_learning_rate", "0.05"]
    arguments.remove("2")
    monkeypatch.setattr(
        sys, "argv", ["sweep_energy.py", *arguments, *sweep, "--output_dir", str(out)]
    )
    sweep_energy.main()
    free, penalised = json.loads((out / "sweep.json").read_text())["rows"]
    assert (free["spike_target"], penalised["spike_target"]) == (None, 0.1)
    assert penalised["spikes_per_neuron"] < free["spikes_per_neuron"]
    assert penalised["microjoules, spiking, float32"] < free["microjoules, spiking, float32"]
    assert (out / "sweep.md").read_text().count("\n| ") == 2
    assert (out / "int8.svg").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--phases", "unrolled"], "needs a student"),
        (["--phases", "converted"], "there is no teacher"),
        (["--teacher", "{other}"], "must read the same token ids"),
        (["--phases", "general"], "exactly one source of text"),
    ],
)
def test_what_is_missing_is_named(options, tmp_path, change, message):
    arguments, folder = options
    other = folder / "other"
    config = BertConfig(num_hidden_layers=1, hidden_size=24, num_attention_heads=2, vocab_size=40)
    BertForMaskedLM(config).save_pretrained(other)
    wordpiece_tokenizer(["a few other words"]).save_pretrained(other)
    change = [str(other) if word == "{other}" else word for word in change]
    with pytest.raises(ValueError, match=message):
        distill.distill([*arguments, "--output_dir", str(tmp_path / "out"), *change])
