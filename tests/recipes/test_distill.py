"""recipes/distill.py and sweep_energy.py as a user runs them."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertTokenizer,
    DistilBertConfig,
    RobertaConfig,
)

from spikenlp import SpikingBertConfig, SpikingBertForSequenceClassification
from spikenlp.analysis.plots import plot_energy_front
from spikenlp.data import demo_question_pairs, get_task, wordpiece_tokenizer
from spikenlp.hub.release import release
from spikenlp.models.amplitudes import neurons_of
from spikenlp.models.quantization import Int8Config
from spikenlp.models.spiking_bert.reconstruction import reconstruct

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "recipes"))

import distill  # noqa: E402
import phases  # noqa: E402
import sweep_energy  # noqa: E402
from common import parse_arguments  # noqa: E402
from evaluation import float32_scores  # noqa: E402
from shrink import ShrinkArguments, shrink  # noqa: E402
from student import load  # noqa: E402
from task_data import (  # noqa: E402
    DataArguments,
    calibration_batches,
    load_inputs,
    load_task_data,
)

from tests.conftest import TINY_DENSE  # noqa: E402
from tests.recipes.running import spike_cost_of  # noqa: E402

SMALL = ["--max_train_samples", "64", "--max_eval_samples", "32", "--max_seq_length", "24"]
SMALL += ["--task_name", "qqp", "--use_cpu", "True", "--disable_tqdm", "True", "--save_steps", "2"]
SMALL += ["--num_timesteps", "2", "--teacher_epochs", "1", "--per_device_train_batch_size", "16"]
SMALL += ["--collapsed_steps", "8", "--max_steps", "4", "--spike_weight", "0.1"]
WEIGHTS = "model.safetensors"
DENSE = {"num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 32}


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
        initializer_range=0.2,
        **DENSE,
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


class Drawing(phases.Training):
    """Draws a number; the weights of the student are its time steps."""

    def run(self):
        shutil.copy(self.source() / WEIGHTS, self.folder)
        return {"drawn": torch.rand(()).item(), "rate": self.arguments().learning_rate}


class DrawingConverted(phases.Converted):
    def source(self):
        return self.job.options.model_name_or_path

    def run(self):
        save_file({"t": torch.tensor(self.job.options.num_timesteps or 0)}, self.folder / WEIGHTS)
        return {"drawn": torch.rand(()).item()}


class DrawingCollapsed(Drawing, phases.Collapsed):
    pass


class DrawingUnrolled(Drawing, phases.Unrolled):
    pass


class DrawingJob(phases.Job):
    kinds = (DrawingConverted, DrawingCollapsed, DrawingUnrolled)


def draw(folder, words="", phases="converted collapsed unrolled"):
    kinds = (distill.PipelineArguments, DataArguments, distill.DistillationArguments)
    argv = f"--model_name_or_path dense --use_cpu True --phases {phases} {words}".split()
    options, data, args = parse_arguments(argv, kinds, output_dir=str(folder))
    return DrawingJob(options, args, options.phases, [data]).run()


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        ("--seed 7", "seed 42 -> 7"),
        ("--learning_rate 1e-2", "learning_rate 5e-05 -> 0.01"),
        ("--num_timesteps 4", "num_timesteps None -> 4"),
        ("--reconstruct True", "reconstruct False -> True"),
        ("--spike_cost 0.2", "spike_cost 0.0 -> 0.2"),
        ("--collapsed_steps 9", "max_steps 1500 -> 9"),
        ("--temporal_loss tet", "temporal_loss 'tmc' -> 'tet'"),
        ("--max_seq_length 16", "max_seq_length 128 -> 16"),
        ("--dataloader_drop_last True", "dataloader_drop_last False -> True"),
        (
            "--load_best_model_at_end True --eval_strategy steps --eval_steps 500",
            "load_best_model_at_end False -> True",
        ),
    ],
)
def test_what_is_done_does_not_pass_for_a_run_with_other_options(tmp_path, words, changed):
    draw(tmp_path)
    with pytest.raises(ValueError, match=re.escape(changed)):
        draw(tmp_path, words)


def test_what_does_not_bear_on_a_phase_may_change(tmp_path):
    first = draw(tmp_path)
    assert draw(tmp_path, "--logging_steps 7 --save_steps 9 --teacher_epochs 4") == first
    assert draw(tmp_path, "--temporal_loss tet", "collapsed") == first
    assert draw(tmp_path, "--collapsed_timesteps random", "unrolled") == first


def test_a_phase_gets_no_option_that_does_nothing_in_it(tmp_path):
    words = "--collapsed_timesteps random --label_smoothing_factor 0.1"
    draw(tmp_path, words)
    options = [
        yaml.safe_load((tmp_path / phase / "arguments.yaml").read_text())
        for phase in ("collapsed", "unrolled")
    ]
    assert [o["collapsed_timesteps"] for o in options] == ["random", "fixed"]
    assert [o["label_smoothing_factor"] for o in options] == [0.0, 0.1]
    draw(tmp_path, words)


def test_an_option_of_a_phase_of_its_own_is_for_that_phase_alone(tmp_path):
    own = "--phase_options collapsed.per_device_train_batch_size=3 collapsed.weight_decay=1e-2 "
    own += "unrolled.hidden_weight=0 unrolled.warmup_steps=0.5"
    draw(tmp_path, f"--warmup_steps 7 {own}")
    names = ("per_device_train_batch_size", "weight_decay", "hidden_weight", "warmup_steps")
    collapsed, unrolled = (
        yaml.safe_load((tmp_path / phase / "arguments.yaml").read_text())
        for phase in ("collapsed", "unrolled")
    )
    assert [collapsed[name] for name in names] == [3, 1e-2, 1.0, 7]
    assert [unrolled[name] for name in names] == [32, 0.0, 0.0, 0.5]
    with pytest.raises(ValueError, match=r"hidden_weight 0\.0 -> 1\.0"):
        draw(tmp_path, "--warmup_steps 7 --phase_options unrolled.warmup_steps=0.5", "unrolled")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("hidden_weight=0", "takes PHASE.OPTION=VALUE"),
        ("unrolled.hidden_weight", "takes PHASE.OPTION=VALUE"),
        ("unroled.hidden_weight=0", "'unroled' is none of converted, collapsed, unrolled"),
        ("unrolled.hidden_weigh=0", "hidden_weigh is no training option"),
        ("converted.learning_rate=1", "converted.learning_rate: it does nothing in this phase"),
        ("collapsed.temporal_loss=tet", "collapsed.temporal_loss: it does nothing in this phase"),
        ("unrolled.collapsed=True", "unrolled.collapsed: it does nothing in this phase"),
        ("collapsed.learning_rate=1", "collapsed.learning_rate: .* has an option of its own"),
        (
            "collapsed.num_train_epochs=1",
            "collapsed.num_train_epochs: it does nothing in this phase",
        ),
        ("unrolled.seed=1", "unrolled.seed: it does nothing in this phase"),
        ("unrolled.logging_steps=1", "unrolled.logging_steps: it does nothing in this phase"),
    ],
)
def test_an_option_of_a_phase_that_does_not_fit_is_refused(tmp_path, option, message):
    with pytest.raises(ValueError, match=message):
        draw(tmp_path, f"--phase_options {option}")
    assert not (tmp_path / "collapsed").exists()


def test_phases_that_are_run_apart_have_options_of_their_own(tmp_path):
    draw(tmp_path, phases="converted")
    found = draw(tmp_path, "--learning_rate 1e-2 --seed 7", "unrolled")
    assert found["unrolled"]["rate"] == 1e-2
    with pytest.raises(ValueError, match="start 'converted' -> 'collapsed'"):
        draw(tmp_path, "--learning_rate 1e-2 --seed 7", "collapsed unrolled")
    assert not (tmp_path / "collapsed").exists()


def test_a_checkpoint_goes_on_with_the_same_options_but_for_the_steps(tmp_path, monkeypatch):
    draw(tmp_path)
    (tmp_path / "unrolled" / "results.json").unlink()
    monkeypatch.setattr("phases.last_checkpoint", lambda folder: f"{folder}/checkpoint-2")
    with pytest.raises(ValueError, match=r"learning_rate 5e-05 -> 0\.1"):
        draw(tmp_path, "--learning_rate 0.1")
    draw(tmp_path, "--max_steps 9")
    with pytest.raises(ValueError, match="max_steps 9 -> 10"):
        draw(tmp_path, "--max_steps 10")


def test_a_student_from_before_spikes_had_a_cost_had_none(tmp_path):
    draw(tmp_path)
    for record in tmp_path.glob("*/arguments.yaml"):
        before = yaml.safe_load(record.read_text())
        del before["spike_cost"]
        record.write_text(yaml.safe_dump(before))
    draw(tmp_path)
    with pytest.raises(ValueError, match=r"spike_cost 0.0 -> 0.2"):
        draw(tmp_path, "--spike_cost 0.2")
    options = distill.PipelineArguments(spike_cost=0.2)
    with pytest.raises(ValueError, match=r"converted with spike_cost 0.0, not 0.2"):
        options.check_converted(tmp_path / "collapsed", SpikingBertConfig(hidden_dropout_prob=0.0))


def test_students_are_calibrated_at_the_spike_cost(tmp_path, batches):
    BertForSequenceClassification(BertConfig(**TINY_DENSE)).save_pretrained(tmp_path / "dense")
    spiking = SpikingBertForSequenceClassification(SpikingBertConfig(**TINY_DENSE))
    spiking.save_pretrained(tmp_path / "spiking")
    options = distill.PipelineArguments(spike_cost=0.3)
    kinds = (SpikingBertForSequenceClassification, BertForSequenceClassification)
    for source in ("dense", "spiking"):
        make = partial(options.make_student, *kinds, tmp_path / source, batches)
        assert spike_cost_of(make) == 0.3


def test_bursts_leave_the_amplitudes_of_a_spiking_student_as_they_are(tmp_path, batches):
    torch.manual_seed(0)
    source = SpikingBertForSequenceClassification(SpikingBertConfig(**TINY_DENSE))
    source.save_pretrained(tmp_path)
    kinds = (SpikingBertForSequenceClassification, BertForSequenceClassification)
    options = distill.PipelineArguments(burst=3, hidden_dropout_prob=0.1)
    model, created, _ = options.make_student(*kinds, tmp_path, batches)
    assert model.config.burst == 3
    assert {neuron.burst for _, neuron in neurons_of(model)} == {3}
    assert not created
    same = zip(model.parameters(), source.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    with pytest.raises(ValueError, match="converted with burst 1, not 3"):
        options.check_converted(tmp_path, source.config)


def test_what_came_from_weights_that_are_no_more_is_refused(tmp_path):
    first = draw(tmp_path)
    shutil.rmtree(tmp_path / "converted")
    with pytest.raises(
        ValueError, match=r"collapsed came from other weights of its start, .*converted"
    ):
        draw(tmp_path, "--num_timesteps 4")
    shutil.rmtree(tmp_path / "collapsed")
    with pytest.raises(ValueError, match=r"unrolled came from other weights.*: delete it"):
        draw(tmp_path, "--num_timesteps 4")
    shutil.rmtree(tmp_path / "unrolled")
    assert draw(tmp_path, "--num_timesteps 4").keys() == first.keys()


def test_what_came_from_the_same_weights_is_taken_over(tmp_path):
    first = draw(tmp_path)
    shutil.rmtree(tmp_path / "converted")
    assert draw(tmp_path)["unrolled"] == first["unrolled"]


def test_what_was_run_before_weights_were_recorded_is_taken_over(tmp_path):
    first = draw(tmp_path)
    for phase in first:
        record = tmp_path / phase / "arguments.yaml"
        content = yaml.safe_load(record.read_text())
        assert len(content.pop("weights")) == (phase != "converted")
        record.write_text(yaml.safe_dump(content))
    shutil.rmtree(tmp_path / "converted")
    assert draw(tmp_path, "--num_timesteps 4")["unrolled"] == first["unrolled"]


def test_a_checkpoint_does_not_go_on_from_other_weights(tmp_path, monkeypatch):
    draw(tmp_path)
    (tmp_path / "unrolled" / "results.json").unlink()
    save_file({"t": torch.tensor(9)}, tmp_path / "collapsed" / WEIGHTS)
    monkeypatch.setattr("phases.last_checkpoint", lambda folder: f"{folder}/checkpoint-2")
    with pytest.raises(ValueError, match="unrolled came from other weights"):
        draw(tmp_path)


def test_a_record_that_could_not_be_written_is_not_there(tmp_path, monkeypatch):
    def replace(source, target, rename=os.replace):
        if Path(target).name == "results.json":
            raise OSError("no space left")
        rename(source, target)

    monkeypatch.setattr("os.replace", replace)
    with pytest.raises(OSError, match="no space"):
        draw(tmp_path)
    assert {p.name for p in (tmp_path / "converted").iterdir()} == {"arguments.yaml", WEIGHTS}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (distill.USUAL_PHASES, "converted came from other weights of its start"),
        (["unrolled"], "unrolled came from other weights of its teacher"),
    ],
    ids=["all", "unrolled alone"],
)
def test_students_of_another_teacher_than_there_is_now_are_refused(
    options, done, tmp_path, phases, message
):
    out = prepared(done, tmp_path / "out", *distill.USUAL_PHASES[1:])
    shutil.copytree(done[0] / "teacher", out / "teacher")
    weights = load_file(out / "teacher" / WEIGHTS)
    weights["classifier.bias"] += 1
    save_file(weights, out / "teacher" / WEIGHTS, {"format": "pt"})
    with pytest.raises(ValueError, match=message):
        distill.distill([*options[0], "--output_dir", str(out), "--phases", *phases])


def test_a_phase_draws_the_same_whatever_ran_before_it(tmp_path):
    whole = draw(tmp_path / "whole")
    torch.manual_seed(99)
    for phase in whole:
        apart = draw(tmp_path / "apart", phases=phase)
    assert apart == whole


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
    assert results["collapsed"]["training"]["collapsed_timesteps"] == "random"
    assert str(out.parent) not in json.dumps(results)
    model = AutoModelForSequenceClassification.from_pretrained(out / "unrolled")
    assert model.config.id2label[1] == "duplicate"


@pytest.mark.parametrize("task", ["cola", "stsb", "mrpc"])
def test_the_summary_has_the_metrics_of_the_task(task):
    names = get_task(task).metrics
    found = {"spiking": {k: 0.5 for name in names for k in (name, f"{name}_t1")}}
    lines = distill.summary({"unrolled": found}).splitlines()
    assert [line.split()[2:] for line in lines] == [[name, "50.0", "50.0"] for name in names]


def test_the_summary_has_the_metrics_of_each_split():
    names = [f"{part}_accuracy" for part in ("matched", "mismatched")]
    found = {"spiking": {k: 0.5 for name in names for k in (name, f"{name}_t1", f"{name}_loss")}}
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
    arguments += ["--output_dir", str(tmp_path / "out")]
    found = distill.distill(arguments)
    assert found["collapsed"]["training"]["steps"] == 8
    assert found["collapsed"]["dense"] == found["teacher"]["dense"]
    assert 0 <= found["teacher"]["dense"]["accuracy"] <= 1
    apart = ["--phases", "teacher", "--seed", "7", "--weight_decay", "0.1"]
    assert distill.distill([*arguments, *apart])["teacher"] == found["teacher"]
    made = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "collapsed")
    assert (made.config.num_hidden_layers, made.config.vocab_size) == (1, small.config.vocab_size)


@pytest.mark.parametrize("kind", [BertModel, BertForTokenClassification])
def test_what_is_shrunk_keeps_the_head_that_it_has(kind, tmp_path):
    torch.manual_seed(0)
    model = kind(BertConfig(**TINY_DENSE))
    model.save_pretrained(tmp_path / "large")
    wordpiece_tokenizer(["a word"]).save_pretrained(tmp_path / "large")
    out = str(tmp_path / "small")
    shrink(
        ShrinkArguments(str(tmp_path / "large"), out, num_hidden_layers=1),
        DataArguments(task_name="qqp"),
    )
    small = kind.from_pretrained(out)
    assert small.config.architectures == [kind.__name__]
    assert type(AutoModel.from_pretrained(out)) is BertModel
    named = dict(model.named_parameters())
    for name, value in small.named_parameters():
        if "encoder" not in name:
            assert torch.equal(value, named[name]), name


def test_a_spiking_model_is_not_shrunk(tmp_path):
    SpikingBertForSequenceClassification(SpikingBertConfig(**TINY_DENSE)).save_pretrained(tmp_path)
    options = ShrinkArguments(str(tmp_path), str(tmp_path / "small"), num_hidden_layers=1)
    with pytest.raises(ValueError, match="give a dense BERT"):
        shrink(options, DataArguments(task_name="qqp"))


@pytest.mark.slow
def test_the_dense_rival_learns_from_the_same_teachers(options, done, tmp_path, capsys):
    out = prepared(done, tmp_path / "out", "teacher", "converted", "collapsed")
    further = str(done[0] / "teacher")
    argv = [*options[0], "--output_dir", str(out), "--phases", "rival"]
    argv += ["--rival_steps", "3", "--rival_learning_rate", "1e-3"]
    found = distill.distill([*argv, "--further_teachers", further])
    printed = capsys.readouterr().out
    assert re.search(r"phase rival: loads .*teacher; creates nothing; drops nothing", printed)
    assert "rival: dense" in printed
    assert found["rival"]["training"]["steps"] == 3
    assert found["rival"]["training"]["spike_weight"] == 0
    assert 0 <= found["rival"]["dense"]["accuracy"] <= 1
    assert found["rival"]["teachers"]["accuracy"] == found["teacher"]["dense"]["accuracy"]
    rival = AutoModelForSequenceClassification.from_pretrained(out / "rival")
    assert rival.config.model_type == "bert"
    before, after = (load_file(out / phase / WEIGHTS) for phase in ("teacher", "rival"))
    assert before.keys() == after.keys()
    assert not torch.equal(before["classifier.weight"], after["classifier.weight"])
    again = distill.distill([*argv, "--further_teachers", further])
    assert again["rival"] == found["rival"]
    with pytest.raises(ValueError, match=r"learning_rate 0\.001 -> 0\.01"):
        distill.distill([*argv[:-1], "1e-2", "--further_teachers", further])


def test_a_spiking_student_has_no_dense_rival(options, tmp_path):
    student = str(tmp_path / "spiking")
    tokenizer = AutoTokenizer.from_pretrained(options[1] / "dense")
    fields = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, **DENSE}
    SpikingBertForSequenceClassification(SpikingBertConfig(**fields)).save_pretrained(student)
    tokenizer.save_pretrained(student)
    argv = [*options[0], "--student", student, "--output_dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=r"spiking_bert.*give a dense BERT"):
        distill.distill([*argv, "--phases", "teacher", "converted", "rival"])
    assert not (tmp_path / "out" / "teacher").exists()


@pytest.mark.slow
def test_what_is_done_is_not_repeated(options, done, tmp_path, capsys):
    weights = done[0] / "unrolled" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    distill.distill([*options[0], "--output_dir", str(done[0])])
    assert "loads" not in capsys.readouterr().out
    records = (done[0] / "results.json").read_text()
    with pytest.raises(ValueError, match="seed 42 -> 7"):
        distill.distill([*options[0], "--output_dir", str(done[0]), "--seed", "7"])
    assert (done[0] / "results.json").read_text() == records
    assert weights.stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["collapsed", "reconstructed", "unrolled"])
@pytest.mark.parametrize(
    ("name", "before", "asked"),
    [
        ("num_timesteps", "2", "4"),
        ("hidden_act", "'gelu'", "relu"),
        ("hidden_dropout_prob", "0.0", "0.1"),
    ],
)
def test_a_student_that_was_converted_otherwise_is_refused(
    options, done, tmp_path, phase, name, before, asked
):
    out = prepared(done, tmp_path / "apart", "teacher", "converted")
    apart = ["--phases", phase, f"--{name}", asked, "--output_dir", str(out)]
    with pytest.raises(ValueError, match=f"was converted with {name} {before}, not "):
        distill.distill([*options[0], *apart])


def test_an_unknown_activation_is_refused_before_anything_is_loaded(options, tmp_path):
    argv = [*options[0], "--hidden_act", "nonsense", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(StrictDataclassError, match="hidden_act must be one of"):
        distill.distill(argv)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def narrow(options):
    """A dense BERT of half the width, with the same tokenizer."""
    folder = options[1] / "narrow"
    tokenizer = AutoTokenizer.from_pretrained(options[1] / "dense")
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, **DENSE)
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def general(options, done, narrow, tmp_path_factory):
    """Options of the phase general for the narrow student, and a folder in which it was run."""
    out = prepared(done, tmp_path_factory.mktemp("general") / "run", "teacher")
    arguments = [*options[0], "--student", narrow, "--general_steps", "8"]
    arguments += ["--corpus_files", str(options[1] / "corpus.txt")]
    run = ["--phases", "converted", "general", "--output_dir", str(out)]
    distill.distill([*arguments, *run])
    return arguments, out


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["teacher", "general", "collapsed", "unrolled"])
def test_a_killed_phase_goes_on_and_ends_with_the_same_weights(
    options, done, tmp_path, phase, request
):
    arguments, whole = options[0], done[0]
    if phase == "general":
        arguments, whole = request.getfixturevalue("general")
    before = [p for p in distill.PHASES[: distill.PHASES.index(phase)] if (whole / p).exists()]
    out = prepared((whole,), tmp_path / "killed", *before)
    command = [sys.executable, str(ROOT / "recipes" / "distill.py"), *arguments]
    command += ["--output_dir", str(out), "--phases", phase]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (out / phase / "checkpoint-2" / "trainer_state.json").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / phase / "results.json").exists()
    distill.distill(command[2:])
    expected, resumed = (load_file(folder / phase / WEIGHTS) for folder in (whole, out))
    for name, value in expected.items():
        assert torch.equal(value, resumed[name]), name


@pytest.mark.slow
def test_the_head_that_a_spiking_student_lacks_is_said_to_be_created(
    options, done, tmp_path, capsys
):
    spiking = AutoModelForSequenceClassification.from_pretrained(done[0] / "converted")
    (tmp_path / "student").mkdir()
    spiking.bert.save_pretrained(tmp_path / "student")
    AutoTokenizer.from_pretrained(done[0] / "converted").save_pretrained(tmp_path / "student")
    argv = [*options[0], "--teacher", str(done[0] / "teacher"), "--phases", "converted"]
    change = ["--student", str(tmp_path / "student"), "--output_dir", str(tmp_path / "out")]
    distill.distill([*argv, *change])
    assert "student; creates classifier; drops nothing" in capsys.readouterr().out


@pytest.mark.slow
def test_what_is_trained_in_less_than_float32_is_scored_in_it_too(options, done, tmp_path):
    assert "spiking_float32" not in json.loads((done[0] / "results.json").read_text())["unrolled"]
    out = prepared(done, tmp_path / "out", "teacher")
    argv = [*options[0], "--bf16", "True", "--phases", "converted", "--output_dir", str(out)]
    found = distill.distill(argv)["converted"]
    tokenizer = AutoTokenizer.from_pretrained(out / "converted")
    model = AutoModelForSequenceClassification.from_pretrained(out / "converted").eval()
    rows = demo_question_pairs()["validation"].select(range(32))
    texts = tokenizer(
        list(rows["question1"]),
        list(rows["question2"]),
        padding=True,
        truncation=True,
        max_length=24,
        return_tensors="pt",
    )
    with torch.no_grad():
        logits = model(**texts).timestep_logits.cumsum(1)
    labels = torch.tensor(list(rows["label"]))
    assert found["spiking_float32"].keys() <= found["spiking"].keys()
    for t, summed in enumerate(logits.unbind(1), 1):
        loss = torch.nn.functional.cross_entropy(summed / t, labels).item()
        assert found["spiking_float32"][f"loss_t{t}"] == pytest.approx(loss, rel=1e-5)
        assert found["spiking"][f"loss_t{t}"] != pytest.approx(loss, rel=1e-5)


def test_a_classifier_of_another_number_of_labels_is_created_anew(others):
    model, created, dropped = load(BertForSequenceClassification, others / "three", num_labels=2)
    assert (created, dropped) == (["classifier"], [])
    assert model.classifier.weight.shape == (2, 32)
    kept = load_file(others / "three" / WEIGHTS)["bert.pooler.dense.weight"]
    torch.testing.assert_close(model.bert.pooler.dense.weight, kept)


def test_other_weights_of_another_shape_are_refused(others):
    with pytest.raises(ValueError, match=r"other shapes than its config says: \['bert.embeddings"):
        load(BertForSequenceClassification, others / "three", vocab_size=7)


def test_a_model_that_evaluation_left_in_less_than_float32_has_no_scores_in_it():
    model = SimpleNamespace(dtype=torch.bfloat16)
    trainer = SimpleNamespace(args=SimpleNamespace(mixed_precision="bf16"), model=model)
    assert float32_scores(trainer, None) == {}


@pytest.mark.slow
def test_further_teachers_are_scored_with_the_first_and_must_stay_the_same(options, done, tmp_path):
    further = tmp_path / "further"
    shutil.copytree(done[0] / "teacher", further)
    weights = load_file(further / WEIGHTS)
    weights["classifier.bias"] += torch.tensor([0.0, 100.0])
    save_file(weights, further / WEIGHTS, {"format": "pt"})
    out = prepared(done, tmp_path / "out", "teacher", "converted")
    argv = [*options[0], "--output_dir", str(out), "--further_teachers", str(further)]
    found = distill.distill([*argv, "--phases", "collapsed"])["collapsed"]
    labels = torch.tensor(list(demo_question_pairs()["validation"].select(range(32))["label"]))
    assert found["teachers"]["accuracy"] == pytest.approx(labels.float().mean().item())
    weights["classifier.bias"] += 1
    save_file(weights, further / WEIGHTS, {"format": "pt"})
    with pytest.raises(ValueError, match="other weights of its further teacher 1"):
        distill.distill([*argv, "--phases", "collapsed"])


@pytest.mark.slow
def test_a_spiking_student_is_calibrated_anew_for_another_number_of_steps_alone(
    options, done, tmp_path
):
    trained = done[0] / "unrolled"
    before = load_file(trained / WEIGHTS)
    argv = [*options[0], "--teacher", str(done[0] / "teacher"), "--student", str(trained)]
    for steps, chosen in (("2", ["converted"]), ("1", ["converted", "unrolled"])):
        out = tmp_path / steps
        change = ["--num_timesteps", steps, "--output_dir", str(out), "--phases", *chosen]
        found = distill.distill([*argv, *change])
        taken = load_file(out / "converted" / WEIGHTS)
        changed = {name for name, value in taken.items() if not torch.equal(value, before[name])}
        assert changed == {name for name in before if steps == "1" and "amplitude" in name}
        assert f"accuracy_t{steps}" in found[chosen[-1]]["spiking"]
        assert f"accuracy_t{int(steps) + 1}" not in found[chosen[-1]]["spiking"]


@pytest.mark.slow
def test_what_is_created_and_dropped_is_said(options, done, narrow, tmp_path, capsys):
    out = prepared(done, tmp_path / "out", "teacher")
    change = ["--student", narrow, "--phases", "converted", "collapsed"]
    distill.distill([*options[0], *change, "--output_dir", str(out)])
    said = dict(re.findall(r"phase (\w+): loads \S+; (.+)", capsys.readouterr().out))
    assert said == {
        "converted": "creates bert.pooler, classifier, amplitudes (calibrated); drops cls.predictions",
        "collapsed": "creates 2 projections of hidden states; drops the projections, when it ends",
    }
    for phase in said:
        weights = load_file(out / phase / "model.safetensors")
        assert not any("projections" in name for name in weights)


@pytest.mark.slow
def test_reconstructed_weights_are_fitted_towards_the_collapsed_twin(options, done, tmp_path):
    out = prepared(done, tmp_path / "fitted", "teacher", "converted", "collapsed")
    argv = [*options[0], "--output_dir", str(out), "--reconstruction_batches", "1"]
    found = distill.distill([*argv, "--phases", "reconstructed"])["reconstructed"]
    assert {"spiking", "collapsed", "energy_microjoules"} <= found.keys()
    kinds = (distill.PipelineArguments, DataArguments, distill.DistillationArguments)
    given, data_args, args = parse_arguments(argv, kinds)
    inputs = load_inputs(given, data_args, *load_task_data(data_args))
    (batch,) = calibration_batches(inputs, 1, args.seed)
    model = AutoModelForSequenceClassification.from_pretrained(out / "collapsed")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    reconstruct(model, [batch], target="collapsed")
    saved = load_file(out / "reconstructed" / "model.safetensors")
    assert saved.keys() == before.keys()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(saved[name], value, rtol=1e-4, atol=1e-5)
    changed = {k for k in saved if not torch.equal(saved[k], before[k])}
    assert "bert.encoder.layer.1.output.dense.weight" in changed
    distill.distill([*argv, "--phases", "unrolled"])
    options_of_unrolled = (out / "unrolled" / "arguments.yaml").read_text()
    assert "start: reconstructed" in options_of_unrolled


@pytest.mark.slow
def test_raw_text_and_text_without_labels_teach_as_well(options, done, tmp_path):
    arguments, folder = options
    out = prepared(done, tmp_path / "text", "teacher")
    phases = ["--phases", "converted", "general", "internal"]
    phases += ["--general_steps", "2", "--internal_steps", "2"]
    phases += ["--logging_steps", "1"]
    corpus = ["--corpus_files", str(folder / "corpus.txt")]
    found = distill.distill([*arguments, "--output_dir", str(out), *phases, *corpus])
    for phase in ("general", "internal"):
        log = json.loads((out / phase / "trainer_state.json").read_text())["log_history"]
        assert found[phase]["training"]["temporal_loss"] is None
        assert not any("loss_task" in entry or "loss_soft" in entry for entry in log)
        assert any("loss_scores" in entry for entry in log)


@pytest.mark.slow
def test_spikingbert_goes_through_all_its_phases(options, tmp_path):
    recipe = str(ROOT / "recipes" / "configs" / "spikingbert.yaml")
    argv = [recipe, *options[0], "--corpus_files", str(options[1] / "corpus.txt")]
    argv += ["--num_timesteps", "4", "--general_steps", "2", "--internal_steps", "2"]
    argv += ["--max_steps", "2", "--spike_weight", "0", "--logging_steps", "1"]
    argv += ["--settle_tolerance", "1e-6"]
    found = distill.distill([*argv, "--output_dir", str(tmp_path)])
    parts = {
        "general": {"loss_hidden", "loss_scores"},
        "internal": {"loss_hidden", "loss_scores"},
        "unrolled": {"loss_task", "loss_soft"},
    }
    before = load_file(tmp_path / "converted" / WEIGHTS)
    for phase, names in parts.items():
        assert found[phase]["training"]["steps"] == 2
        assert "accuracy_t4" in found[phase]["spiking"]
        assert "collapsed" not in found[phase]
        log = json.loads((tmp_path / phase / "trainer_state.json").read_text())["log_history"]
        assert {key for key in log[0] if key.startswith("loss_")} == names
        weights = load_file(tmp_path / phase / WEIGHTS)
        name = "bert.encoder.layer.0.output.dense.weight"
        assert not torch.equal(weights[name], before[name])
        before = weights
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "unrolled").config
    chosen = (config.architecture, config.gradient, config.nonlinearity)
    assert chosen == ("spikingbert", "implicit", "step")
    assert config.settle_tolerance == 1e-6


@pytest.mark.slow
def test_general_does_not_go_on_from_the_fine_tuned_teacher_unless_asked(options, done, tmp_path):
    out = prepared(done, tmp_path / "text", "teacher", "converted")
    argv = [*options[0], "--output_dir", str(out), "--phases", "general", "--general_steps", "1"]
    argv += ["--corpus_files", str(options[1] / "corpus.txt")]
    with pytest.raises(ValueError, match="converted from the fine-tuned teacher"):
        distill.distill(argv)
    found = distill.distill([*argv, "--student", str(done[0] / "teacher")])
    assert found["general"]["training"]["steps"] == 1
    assert distill.distill(argv)["general"] == found["general"]


@pytest.mark.slow
def test_a_regression_is_converted_without_a_loss_for_the_unrolled_phase(options, tmp_path):
    (tmp_path / "STS-B").mkdir()
    lines = ["index\tsentence1\tsentence2\tscore"]
    for i, row in enumerate(demo_question_pairs()["train"].select(range(40))):
        lines.append(f"{i}\t{row['question1']}\t{row['question2']}\t{5 * row['label']}.0")
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / "STS-B" / name).write_text("\n".join(lines) + "\n")
    argv = [*options[0], "--task_name", "stsb", "--data_dir", str(tmp_path)]
    argv += ["--output_dir", str(tmp_path / "out"), "--phases", "teacher", "converted"]
    found = distill.distill([*argv, "--teacher_epochs", "0.1"])
    assert "pearson_t2" in found["converted"]["spiking"]
    with pytest.raises(ValueError, match="no confidence for TMC"):
        distill.distill([*argv, "unrolled"])


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
@pytest.mark.parametrize("given", [False, True], ids=["teacher trained", "teacher given"])
def test_a_sweep_tables_accuracy_and_energy(options, done, tmp_path, monkeypatch, given):
    out = prepared(done, tmp_path / "sweep", *([] if given else ["teacher"]))
    arguments = [a for a in options[0] if a not in ("--spike_weight", "0.1", "--num_timesteps")]
    sweep = ["--timesteps", "2", "--spike_targets", "0.2", "--spike_weight", "5"]
    sweep += ["--collapsed_neuron_learning_rate", "0.05", "--neuron_learning_rate", "0.05"]
    sweep += ["--teacher", str(done[0] / "teacher")] if given else []
    arguments.remove("2")
    monkeypatch.setattr(
        sys, "argv", ["sweep_energy.py", *arguments, *sweep, "--output_dir", str(out)]
    )
    sweep_energy.main()
    free, penalised = json.loads((out / "sweep.json").read_text())["rows"]
    assert (free["fraction"], penalised["fraction"]) == (None, 0.2)
    assert penalised["spike_target"] == pytest.approx(0.2 * free["spikes_per_neuron"], abs=1e-4)
    assert penalised["spikes_per_neuron"] < free["spikes_per_neuron"]
    assert penalised["microjoules, spiking, float32"] < free["microjoules, spiking, float32"]
    found = json.loads((out / "t2_free" / "results.json").read_text())
    twins = [found[phase]["collapsed"]["accuracy"] for phase in distill.USUAL_PHASES[1:]]
    assert free["quantised_accuracy"] == max(twins)
    assert (out / "sweep.md").read_text().count("\n| ") == 2
    assert (out / "int8.svg").stat().st_size > 1000


SPENT = {
    "spikes_per_neuron": 1.0,
    "energy_microjoules": {
        name: [1.0, 2.0]
        for name in (
            *("spiking, float32", "spiking, int8", "dense, float32", "dense, int8"),
            "quantised, same levels",
        )
    },
}


@pytest.mark.parametrize(
    ("twins", "accuracy", "quantised"),
    [
        ({"converted": 0.6, "collapsed": 0.9, "unrolled": 0.85}, 0.8, 0.9),
        ({"converted": 0.6, "collapsed": 0.7, "reconstructed": 0.8}, 0.75, 0.8),
        ({"converted": 0.9, "reconstructed": 0.8}, 0.75, 0.9),
    ],
    ids=["unrolled", "reconstructed last", "none collapsed"],
)
def test_a_row_is_of_the_last_phase_and_of_the_twin_where_it_was_best(twins, accuracy, quantised):
    spiking = {"converted": 0.5, "collapsed": 0.7, "reconstructed": 0.75, "unrolled": 0.8}
    found = {"task": "qqp", "teacher": {"dense": {"accuracy": 0.99}}}
    for phase, twin in twins.items():
        metrics = {"spiking": {"accuracy": spiking[phase]}, "collapsed": {"accuracy": twin}}
        found[phase] = {**metrics, **SPENT}
    row = sweep_energy.measured(found)
    assert (row["accuracy"], row["quantised_accuracy"]) == (accuracy, quantised)


def test_a_student_without_a_twin_is_drawn_without_a_quantised_rival(tmp_path, monkeypatch):
    drawn = []

    def plot(series, rivals, ylabel):
        drawn.append(set(series))
        return plot_energy_front(series, rivals, ylabel)

    monkeypatch.setattr(sweep_energy, "plot_energy_front", plot)
    for twin in ({}, {"collapsed": {"accuracy": 0.9}}):
        found = {"unrolled": {"spiking": {"accuracy": 0.8}, **twin, **SPENT}}
        row = {"num_timesteps": 2, "spike_target": None, **sweep_energy.measured(found)}
        sweep_energy.draw([row], {"accuracy": 0.99}, tmp_path)
    alone, beside = {"T = 2"}, {"T = 2", "quantised, same levels"}
    assert drawn == [alone, alone, alone, beside]


def test_the_chart_has_the_best_quantised_network_of_each_number_of_steps(tmp_path, monkeypatch):
    drawn = {}
    figure = SimpleNamespace(savefig=lambda path: None)
    monkeypatch.setattr(
        sweep_energy, "plot_energy_front", lambda series, *rest: drawn.update(series) or figure
    )
    rows = []
    for steps, quantised in ((2, 0.8), (2, 0.9), (4, 0.85)):
        found = {"spiking": {"accuracy": 0.7}, "collapsed": {"accuracy": quantised}, **SPENT}
        row = sweep_energy.measured({"unrolled": found})
        rows.append({**row, "num_timesteps": steps, "microjoules, quantised, same levels": steps})
    sweep_energy.draw(rows, {"accuracy": 0.99}, tmp_path)
    assert drawn["quantised, same levels"] == [(2, 90.0), (4, 85.0)]


def test_a_sweep_tables_each_split(tmp_path):
    names = ("matched_accuracy", "mismatched_accuracy")
    metrics = {**dict.fromkeys(names, 0.8), "matched_loss": 1.0, "matched_accuracy_t1": 0.7}
    twin = dict.fromkeys(names, 0.9)
    found = {"unrolled": {"spiking": metrics, "collapsed": twin, **SPENT}}
    row = {"num_timesteps": 2, "spike_target": None, **sweep_energy.measured(found)}
    assert [row[name] for name in names] == [0.8, 0.8]
    assert [row[f"quantised_{name}"] for name in names] == [0.9, 0.9]
    dense = dict.fromkeys(names, 0.99)
    head, _, cells = sweep_energy.markdown([row], dense).splitlines()[:3]
    assert "matched_accuracy | mismatched_accuracy | spikes" in head
    assert "| 80.0 | 80.0 |" in cells
    sweep_energy.draw([row], dense, tmp_path)
    assert (tmp_path / "int8.svg").exists()


@pytest.mark.parametrize(
    ("phases", "goes_on_from", "again"),
    [
        (["converted", "collapsed", "unrolled"], "unrolled", ["unrolled"]),
        (["converted", "collapsed", "reconstructed"], "collapsed", ["collapsed", "reconstructed"]),
    ],
)
def test_a_target_goes_on_from_the_run_above_it(tmp_path, monkeypatch, phases, goes_on_from, again):
    calls = []

    def distill(argv):
        calls.append(argv)
        found = {"spiking": {"accuracy": 0.8}, **SPENT}
        return {"teacher": {"dense": {"accuracy": 0.99}}, phases[-1]: found}

    monkeypatch.setattr(sweep_energy, "distill", distill)
    argv = [
        "sweep_energy.py",
        "--task_name",
        "qqp",
        "--timesteps",
        "2",
        "4",
        "--spike_targets",
        "0.25",
        "0.5",
        "--phases",
    ]
    argv += [*phases, "--training_time_steps", "80", "--output_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", argv)
    sweep_energy.main()
    _, free, penalised, lower, *rest = calls
    assert free[free.index("--phases") + 1 :] == phases
    assert "--spike_weight" not in free
    assert penalised[penalised.index("--student") + 1] == str(tmp_path / "t2_free" / goes_on_from)
    assert lower[lower.index("--student") + 1] == str(tmp_path / "t2_spikes0.5" / goes_on_from)
    for run, target in ((penalised, "0.5"), (lower, "0.25")):
        assert run[run.index("--spike_target") + 1] == target
    assert penalised[penalised.index("--phases") + 1 :] == ["converted", *again]
    assert penalised[penalised.index("--reconstruct") + 1] == "False"  # it is spiking by now
    assert penalised[penalised.index("--spike_cost") + 1] == "0"  # nor calibrated anew
    lengths = [call[call.index("--max_steps") + 1] for call in (free, penalised, lower, *rest)]
    assert lengths == ["40"] * 3 + ["20"] * 3


@pytest.mark.parametrize("steps", ["0", "-4"])
def test_a_sweep_trains_for_at_least_one_time_step(monkeypatch, capsys, steps):
    monkeypatch.setattr(sys, "argv", ["sweep_energy.py", "--training_time_steps", steps])
    with pytest.raises(SystemExit):
        sweep_energy.main()
    assert f"must be at least 1, got {steps}" in capsys.readouterr().err


def test_targets_need_a_phase_that_trains(tmp_path, monkeypatch):
    argv = ["sweep_energy.py", "--phases", "converted", "--output_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sweep_energy, "distill", lambda argv: pytest.fail("must not run"))
    with pytest.raises(ValueError, match="--spike_targets are for phases that train"):
        sweep_energy.main()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--spike_weight", "0"], "--spike_weight must be > 0"),
        (["--architecture", "spikingbert"], "gradient='implicit'"),
    ],
)
def test_a_sweep_tells_at_once_that_a_penalty_cannot_be(options, message, tmp_path, monkeypatch):
    argv = ["sweep_energy.py", "--task_name", "qqp", "--phases", "converted", "unrolled"]
    monkeypatch.setattr(sys, "argv", [*argv, *options, "--output_dir", str(tmp_path)])
    monkeypatch.setattr(sweep_energy, "distill", lambda argv: pytest.fail("must not run"))
    with pytest.raises(ValueError, match=message):
        sweep_energy.main()


def test_a_sweep_is_written_whole(tmp_path, monkeypatch):
    def replace(source, target):
        raise OSError("no space left")

    dense = {"teacher": {"dense": {"accuracy": 0.99}}}
    found = {**dense, "unrolled": {"spiking": {"accuracy": 0.8}, **SPENT}}
    monkeypatch.setattr(sweep_energy, "distill", lambda argv: found)
    argv = ["sweep_energy.py", "--task_name", "qqp", "--timesteps", "2"]
    argv += ["--output_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(os, "replace", replace)
    (tmp_path / "sweep.json").write_text("before")
    with pytest.raises(OSError, match="no space left"):
        sweep_energy.main()
    assert (tmp_path / "sweep.json").read_text() == "before"


def test_a_target_for_all_runs_is_not_taken_for_the_targets_of_the_sweep(
    options, tmp_path, monkeypatch
):
    words = [*options[0], "--spike_target", "0.7"]
    monkeypatch.setattr(sys, "argv", ["sweep_energy.py", *words, "--output_dir", str(tmp_path)])
    with pytest.raises(ValueError, match="does nothing without spike_weight"):
        sweep_energy.main()


@pytest.fixture(scope="module")
def others(options):
    """Models and tokenizers that do not fit."""
    folder = options[1]
    config = BertConfig(num_hidden_layers=1, hidden_size=24, num_attention_heads=2, vocab_size=40)
    BertForMaskedLM(config).save_pretrained(folder / "other")
    wordpiece_tokenizer(["a few other words"]).save_pretrained(folder / "other")
    tokenizer = AutoTokenizer.from_pretrained(folder / "dense")
    swapped = {0: "Duplicate", 1: "Not_duplicate"}
    unlike = (("swapped", {"id2label": swapped}), ("three", {"num_labels": 3}), ("fine", {}))
    for name, fields in unlike:
        config = BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, **DENSE, **fields
        )
        BertForSequenceClassification(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    shape = {"vocab_size": len(tokenizer), "num_hidden_layers": 1, **DENSE}
    for config in (
        DistilBertConfig(vocab_size=len(tokenizer), n_layers=1, n_heads=2, dim=32, hidden_dim=64),
        RobertaConfig(hidden_size=32, **shape),
        SpikingBertConfig(hidden_size=32, **shape),
        SpikingBertConfig(hidden_size=32, neuron="lif", **shape),
    ):
        model = AutoModelForSequenceClassification.from_config(config)
        name = "lif" if getattr(config, "neuron", None) == "lif" else config.model_type
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    int8 = AutoModelForSequenceClassification.from_pretrained(
        folder / "spiking_bert", quantization_config=Int8Config()
    )
    int8.save_pretrained(folder / "int8")
    tokenizer.save_pretrained(folder / "int8")
    deep = {"hidden_size": 32, "num_hidden_layers": 3, "vocab_size": len(tokenizer), **DENSE}
    for name, fields in (
        ("deep", {}),
        ("heads", {"num_hidden_layers": 2, "num_attention_heads": 4}),
    ):
        BertForMaskedLM(BertConfig(**{**deep, **fields})).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    shallow = BertConfig(**{**deep, "num_hidden_layers": 1})
    BertForMaskedLM(shallow).save_pretrained(folder / "cased")
    cased = BertTokenizer(vocab=tokenizer.get_vocab(), do_lower_case=False)
    cased.save_pretrained(folder / "cased")
    tokenizer.save_pretrained(folder / "permuted")
    file = folder / "permuted" / "tokenizer.json"
    content = json.loads(file.read_text())
    words = content["model"]["vocab"]
    a, b = list(words)[-2:]
    words[a], words[b] = words[b], words[a]
    file.write_text(json.dumps(content))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--phases unrolled", "needs a student"),
        ("--phases converted", "there is no teacher"),
        ("--model_name_or_path {}/distilbert", "model_type 'distilbert': give a dense BERT"),
        ("--model_name_or_path {}/spiking_bert", "model_type 'spiking_bert': give a dense BERT"),
        ("--teacher {}/roberta", "model_type 'roberta': give a dense BERT"),
        ("--student {}/distilbert", "model_type 'distilbert': give a dense BERT"),
        ("--student {}/spiking_bert --reconstruct True", "spiking_bert is spiking: leave it out"),
        ("--student {}/lif", "needs rounding neurons, the student's are 'lif'"),
        ("--student {}/int8", "weights in int8, which cannot be trained"),
        ("--student {}/three", "has 3 labels, qqp 2"),
        ("--teacher {}/other", "must read the same token ids"),
        ("--student {}/cased", "must read the same token ids"),
        ("--student {}/deep", "a student of 3 layers cannot learn layer by layer"),
        (
            "--student {}/heads --phases converted general --corpus_files {}/corpus.txt",
            "Set --general_attention_weight=0",
        ),
        ("--student {}/heads --phases converted internal", "Set --internal_attention_weight=0"),
        ("--student {}/heads --attention_weight 1", "Set --attention_weight=0"),
        ("--tokenizer_name {}/permuted", "must read the same token ids"),
        ("--teacher {}/swapped", "their order must be the same"),
        ("--student {}/swapped", "their order must be the same"),
        ("--teacher {}/three", "has 3 labels, qqp 2"),
        ("--teacher {}/dense", "lacks bert.pooler, classifier"),
        ("--further_teachers {}/dense", "lacks bert.pooler, classifier"),
        ("--further_teachers {}/three", "has 3 labels, qqp 2"),
        ("--further_teachers {}/other", "must read the same token ids"),
        ("--further_teachers {}/swapped", "their order must be the same"),
        ("--further_teachers {}/fine --logit_weight 0", "for --logit_weight above 0"),
        (
            "--further_teachers {}/fine --phases converted",
            "for the phases collapsed, unrolled and rival",
        ),
        ("--phases general", "exactly one source of text"),
        ("--architecture spikingbert", "needs rounding neurons"),
        ("--neuron lif --phases converted reconstructed", "needs rounding neurons"),
        ("--architecture spikingbert --phases teacher unrolled", "gradient='implicit'"),
        ("--phase_options reconstructed.max_steps=1", "reconstructed.max_steps: it does nothing"),
        ("--phase_options teacher.hidden_weight=1", "teacher.hidden_weight: it does nothing"),
        ("--phase_options teacher.max_steps=9", "teacher.max_steps: it does nothing"),
        (
            "--teacher {}/fine --phase_options teacher.warmup_steps=1",
            "teacher.warmup_steps: it does nothing",
        ),
        (
            "--architecture spikingbert --spike_weight 0 --phases teacher unrolled "
            "--phase_options unrolled.spike_weight=1",
            "gradient='implicit'",
        ),
    ],
)
def test_what_is_missing_or_does_not_fit_is_named(options, others, tmp_path, change, message):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=message):
        distill.distill(
            [*options[0], "--output_dir", str(out), *change.replace("{}", str(others)).split()]
        )
    assert not (out / "teacher" / "model.safetensors").exists()
