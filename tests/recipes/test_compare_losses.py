"""The comparison of losses: the same start for all, nothing done twice, and its statistics."""

import json
import os
import statistics
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from scipy.stats import ttest_rel

from spikenlp import SpikingTrainingArguments
from spikenlp.data import get_task

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "recipes"))

import compare_losses  # noqa: E402
import compare_vision  # noqa: E402
import evaluation  # noqa: E402
import mlm  # noqa: E402
import vision  # noqa: E402
from common import parse_arguments  # noqa: E402
from compare_losses import LOSSES, compare, markdown  # noqa: E402

from tests.recipes.running import run_here, succeed  # noqa: E402


def made_up(accuracy, ece):
    metrics = {f"{k}_t{t}": v for k, vs in (("accuracy", accuracy), ("ece", ece)) for t, v in vs}
    return {
        "spiking": {**metrics, "accuracy": 0.9, "loss_t1": 5.0},
        "training": {"seconds": 20.0, "steps": 40},
        "firing_rate_by_step": [0.2, 0.4],
        "similarity": 0.5,
        "energy_microjoules": {"spiking, float32": [1.0, 2.0]},
        "loss_oscillation": None,
    }


def test_means_deviations_and_paired_tests():
    first, second = (0.80, 0.84, 0.82), (0.83, 0.86, 0.86)
    runs = {
        loss: [made_up([(1, 0.5), (2, a)], [(1, 0.1), (2, 0.05)]) for a in values]
        for loss, values in (("tmc_batch", first), ("sdt", second))
    }
    table = compare(runs)
    found = table["sdt"]["accuracy_t2"]
    assert found["values"] == list(second)
    assert found["mean"] == pytest.approx(statistics.mean(second))
    assert found["std"] == pytest.approx(statistics.stdev(second))
    assert found["p"] == pytest.approx(ttest_rel(second, first).pvalue)
    assert "p" not in table["tmc_batch"]["accuracy_t2"]
    assert "p" not in table["sdt"]["accuracy_t1"], "nothing differs"
    assert table["sdt"]["seconds_per_step"]["mean"] == 0.5
    assert not {"loss_t1", "accuracy", "loss_oscillation"} & set(table["sdt"])
    row = next(line for line in markdown(table).splitlines() if line.startswith("| sdt"))
    assert "50.0 / 85.0 ± 1.7 *" in row
    assert "0.100 / 0.050" in row
    runs["sdt"][1]["training"]["seconds"] = None  # a run that was stopped and went on
    runs["sdt"][1]["similarity"] = float("nan")  # of one step
    table = compare(runs)
    assert all({"seconds_per_step", "similarity"}.isdisjoint(row) for row in table.values())
    json.dumps(table, allow_nan=False)


@pytest.mark.parametrize(
    "counts",
    [[(700, 701), (705, 706), (710, 711)], [(700, 703), (705, 709)]],
    ids=["all by one sentence", "two seeds"],
)
def test_no_test_of_what_a_test_says_nothing_about(counts):
    first, second = zip(*counts, strict=True)
    runs = {
        loss: [made_up([(1, n / 872)], [(1, 0.1)]) for n in right]
        for loss, right in (("sdt", first), ("tet", second))
    }
    assert "p" not in compare(runs)["tet"]["accuracy_t1"]
    assert "*" not in markdown(compare(runs)).splitlines()[3]


@pytest.mark.parametrize("task", ["cola", "stsb", "mrpc"])
def test_the_metrics_of_the_task_are_compared(task):
    run = made_up([], [])
    run["spiking"] = {f"{name}_t1": 0.5 for name in get_task(task).metrics}
    table = compare({"sdt": [run]})
    assert set(run["spiking"]) < set(table["sdt"])
    assert markdown(table).splitlines()[2].startswith("| sdt | 50.0 | 50.0 | 0.500 |")
    assert "| 0.200 / 0.400 | 1.000 / 2.000 |" in markdown(table), "rate and energy by step"


def test_scores_in_float32_are_compared_beside_those_in_the_precision_of_training():
    run = made_up([(1, 0.5), (2, 0.75)], [])
    run["spiking_float32"] = {"accuracy": 0.7, "accuracy_t1": 0.6, "accuracy_t2": 0.7, "loss_t2": 1}
    row = compare({"sdt": [run]})["sdt"]
    assert [row[f"accuracy_float32_t{t}"]["mean"] for t in (1, 2)] == [0.6, 0.7]
    assert not any("loss" in name for name in row if name != "loss_oscillation")
    assert "| 50.0 / 75.0 | 60.0 / 70.0 |" in markdown({"sdt": row})


def test_the_metrics_of_each_split_are_compared():
    run = made_up([], [])
    names = [
        f"{part}_{name}_t1" for part in ("matched", "mismatched") for name in ("accuracy", "ece")
    ]
    run["spiking"] = {"matched_accuracy": 0.5, "matched_loss_t1": 1.0, **dict.fromkeys(names, 0.5)}
    table = compare({"sdt": [run]})
    assert [name for name in table["sdt"] if "matched" in name] == names
    assert (
        markdown(table).splitlines()[2].startswith("| sdt | 50.0 | 0.500 | 50.0 | 0.500 | 0.500 |")
    )


def test_the_losses_are_different():
    assert len({tuple(options.items()) for options in LOSSES.values()}) == len(LOSSES) == 10


def test_a_loss_does_not_depend_on_other_options(tmp_path):
    config = tmp_path / "job.yaml"
    config.write_text("temporal_loss: tet\ntheta_weight: '0.3'\ntheta_reduction: sample\n")
    options = {}
    for name, of_loss in LOSSES.items():
        argv = [str(config), "--output_dir", "x", *(f"--{k}={v}" for k, v in of_loss.items())]
        (args,) = parse_arguments(argv, (SpikingTrainingArguments,))
        options[name] = {"loss": args.temporal_loss, **args.temporal_loss_options()}
    assert options["tmc_batch"]["loss"] == "tmc"
    assert options["tmc_batch"]["theta_weight"] == "auto"
    assert options["tmc_sample_literal"]["theta_weight"] == 1
    assert len({str(o) for o in options.values()}) == 10


def stubbed(module, folder, monkeypatch, *words):
    """`main` of a comparison whose runs are made up; what they were asked for."""
    asked = []
    run = {**made_up([(1, 0.5), (2, 0.6)], [(1, 0.1), (2, 0.1)]), "run": {"commit": None}}

    def run_one(*arguments):
        asked.append(arguments)
        return {**run, "dense": {"accuracy": 0.9}}

    monkeypatch.setattr(module, "run_one", run_one)
    kind = ["image"] if module is compare_vision else []
    argv = [module.__name__, *kind, "--losses", "sdt", "--output_dir", str(folder), *words]
    monkeypatch.setattr(sys, "argv", argv)
    module.main()
    return asked


BOTH = pytest.mark.parametrize("module", [compare_losses, compare_vision], ids=["text", "vision"])


@BOTH
def test_the_seed_of_a_run_is_not_that_of_a_comparison(module, tmp_path, monkeypatch, capsys):
    for words in (["--seed", "7"], ["--seed=7"]):
        with pytest.raises(SystemExit):
            stubbed(module, tmp_path, monkeypatch, *words)
        assert "--seed is that of one run: give --seeds" in capsys.readouterr().err
    asked = stubbed(module, tmp_path, monkeypatch, "--seeds", "7", "--data_dir", "x")
    assert asked[0][-1] == 7
    assert asked[0][-3][:2] == ["--data_dir", "x"]
    with pytest.raises(SystemExit):
        stubbed(module, tmp_path, monkeypatch, "--seeds", "7", "7")
    assert "--seeds must differ, got 7 7" in capsys.readouterr().err


@BOTH
def test_an_option_has_no_abbreviation(module, tmp_path, monkeypatch):
    if module is compare_losses:
        asked = stubbed(module, tmp_path, monkeypatch, "--out", "x")
        assert asked[0][-3][:2] == ["--out", "x"]
    else:
        with pytest.raises(ValueError, match="--out"):
            stubbed(module, tmp_path, monkeypatch, "--out", "x")


def test_a_preset_is_no_shape_for_a_conversion(tmp_path, monkeypatch, capsys):
    words = ["--rounding", "--preset", "resnet-19"]
    with pytest.raises(SystemExit):
        stubbed(compare_vision, tmp_path, monkeypatch, *words)
    assert "give --model_config in place of --preset" in capsys.readouterr().err


@BOTH
def test_a_comparison_is_written_whole(module, tmp_path, monkeypatch):
    written = ("comparison.json", "comparison.md")
    for name in written:
        (tmp_path / name).write_text("before")

    def replace(source, target):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(OSError, match="no space left"):
            stubbed(module, tmp_path, patch)
    assert (tmp_path / "comparison.json").read_text() == "before"
    stubbed(module, tmp_path, monkeypatch)
    assert all((tmp_path / name).read_text() != "before" for name in written)


def test_a_record_holds_no_speed_and_no_prefix():
    names = ("accuracy", "loss", "samples_per_second", "model_preparation_time")

    def evaluate(split=None, metric_key_prefix="eval"):
        return {"epoch": 3.0, **{f"{metric_key_prefix}_{name}": 0.5 for name in names}}

    trainer = SimpleNamespace(evaluate=evaluate)
    inputs = SimpleNamespace(evaluation={"validation_matched": [], "validation_mismatched": []})
    expected = {"accuracy": 0.5, "loss": 0.5}
    of_mnli = {f"{part}_{k}": 0.5 for part in ("matched", "mismatched") for k in expected}
    assert evaluation.evaluate(trainer, inputs, "dense") == of_mnli
    assert vision.score(trainer, [], "test") == mlm.evaluate(trainer) == expected


def parsed(folder, text, *words):
    job = folder / "job.yaml"
    job.write_text(text)
    return parse_arguments([str(job), "--output_dir", "x", *words], (SpikingTrainingArguments,))[0]


def test_a_yaml_file_has_the_types_and_choices_of_the_command_line(tmp_path):
    text = "theta_weight: 0.5\nwarmup_steps: 7\nlearning_rate: 5e-4\nmax_steps: -1\ntheta_odds: false\n"
    text += "lr_scheduler_type: polynomial\nlr_scheduler_kwargs: {power: 2.0}\n"
    words = ["--theta_weight", "0.5", "--warmup_steps", "7", "--learning_rate", "5e-4"]
    words += ["--theta_odds", "False", "--lr_scheduler_type", "polynomial", "--max_steps", "-1"]
    found, expected = parsed(tmp_path, text), parsed(tmp_path, "{}", *words)
    assert found.lr_scheduler_kwargs == {"power": 2.0}
    expected.lr_scheduler_kwargs = found.lr_scheduler_kwargs
    assert found.to_dict() == expected.to_dict()
    assert parsed(tmp_path, text, "--theta_weight", "1").theta_weight == "1"
    with pytest.raises(SystemExit):
        parsed(tmp_path, "theta_lambda: nonsense")


@pytest.mark.parametrize(
    "text", ["", "- tet\n", "temporal_los: tet\n"], ids=["empty", "list", "typo"]
)
def test_a_yaml_file_that_names_no_options_is_refused(text, tmp_path):
    with pytest.raises(ValueError, match=r"job.yaml (must map|has what is no option)"):
        parsed(tmp_path, text)


@pytest.mark.slow
def test_a_comparison_on_demo_pairs_goes_on_where_it_was(tmp_path):
    options = ["--losses", "tmc_batch", "tet", "--seeds", "1", "--output_dir", str(tmp_path)]
    options += ["--max_steps", "4", "--logging_steps", "1", "--disable_tqdm", "True"]
    options += ["--max_train_samples", "96", "--max_eval_samples", "32", "--use_cpu", "True"]
    assert "tmc_batch" in succeed("compare_losses.py", *options)
    runs = {loss: tmp_path / loss / "seed1" / "run.json" for loss in ("tmc_batch", "tet")}
    written = {loss: path.stat().st_mtime_ns for loss, path in runs.items()}
    record = json.loads((tmp_path / "comparison.json").read_text())
    assert set(record["losses"]) == {"tmc_batch", "tet"}
    logs = [json.loads((p.parent / "trainer_state.json").read_text()) for p in runs.values()]
    norms = [log["log_history"][0]["grad_norm"] for log in logs]
    assert norms[0] != norms[1], "the losses differ from the first step on"
    run = json.loads(runs["tmc_batch"].read_text())
    runs["tmc_batch"].write_text(json.dumps(run | {"start_weights": "of another start"}))
    with pytest.raises(ValueError, match="came from other weights"):
        run_here(compare_losses, *options)
    runs["tmc_batch"].write_text(json.dumps(run))
    written["tmc_batch"] = runs["tmc_batch"].stat().st_mtime_ns
    runs["tet"].unlink()
    run_here(compare_losses, *options)
    assert runs["tmc_batch"].stat().st_mtime_ns == written["tmc_batch"], "done is done"
    assert runs["tet"].stat().st_mtime_ns > written["tet"]
    with pytest.raises(ValueError, match=r"learning_rate 5e-05 -> 0\.001"):
        run_here(compare_losses, *options, "--learning_rate", "1e-3")
    again = json.loads((tmp_path / "comparison.json").read_text())["losses"]
    assert {"accuracy.svg", "ece.svg", "firing_rate.svg"} <= {p.name for p in tmp_path.iterdir()}
    assert again["tet"]["accuracy_t4"] == record["losses"]["tet"]["accuracy_t4"]
