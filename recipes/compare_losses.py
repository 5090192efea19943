"""Train the same model with each temporal loss, from the same start and on the same data order.

    python recipes/compare_losses.py recipes/configs/demo.yaml --output_dir outputs/compare_demo
    python recipes/compare_losses.py --task_name sst2 --data_dir glue --max_steps 300 \\
        --model_name_or_path outputs/sst2/dense --seeds 1 2 3 --output_dir outputs/compare_sst2

Other options, or a YAML file of them and then options, go to `glue_tmc.py` (without a task: to
`qqp_tmc.py`, on demo pairs); those of the loss are set here. A run that is done is not repeated, and
one that was stopped goes on, when the same command is given again. The output folder gets
comparison.json, comparison.md and charts: mean and standard deviation over seeds, and a paired t test of
each loss against the first (differences of the same seed).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import transformers
from common import (
    check_same_options,
    is_score,
    parse_arguments,
    weights_digest,
    write_text,
)
from evaluation import LOOKED_INTO
from glue_tmc import ARGUMENTS, run
from scipy.stats import ttest_rel
from task_data import evaluation_batches, load_inputs, load_pairs, load_task_data

from spikenlp import SpikingBertForSequenceClassification
from spikenlp.analysis.plots import plot_metric_by_step
from spikenlp.analysis.temporal import loss_oscillation, mean_off_diagonal, temporal_similarity
from spikenlp.hub.results import MEASURED
from spikenlp.provenance import run_record

USUAL = {
    "temporal_loss": "tmc",
    "theta_reduction": "batch",
    "theta_weight": "auto",
    "theta_lambda": "linear",
    "theta_odds": "True",
    "theta_scope": "local",
    "tet_mse_weight": "0",
}
LOSSES = {
    name: {**USUAL, **changed}
    for name, changed in {
        "sdt": {"temporal_loss": "sdt"},
        "tet": {"temporal_loss": "tet"},
        "tet_mse": {"temporal_loss": "tet", "tet_mse_weight": "1e-3"},
        "trt": {"temporal_loss": "trt"},
        "tmc_batch": {},
        "tmc_batch_literal": {"theta_weight": "1"},
        "tmc_sample": {"theta_reduction": "sample"},
        "tmc_sample_literal": {"theta_reduction": "sample", "theta_weight": "1"},
        "tmc_constant_lambda": {"theta_lambda": "constant"},
        "tmc_no_odds": {"theta_odds": "False"},
    }.items()
}
"""Every option of a loss, so that none is left to what else is on the command line or in a file."""
CALIBRATION = ("ece", "ada_ece", "confidence", "nll")
IN_FLOAT32 = "_float32"
"""Ends the name of a score in float32 of a model that was trained, and is scored, in less."""
WINDOW = 5
"""Of the moving average that the loss's oscillation is measured against, in logged values."""


def options_of(loss: str) -> list[str]:
    return [part for name, value in LOSSES[loss].items() for part in (f"--{name}", value)]


def run_one(options: list[str], out: Path, seed: int) -> dict[str, Any]:
    """One training, and what the trained model does; read from disk if it is done."""
    done = out / "run.json"
    argv = [*options, "--seed", str(seed), "--output_dir", str(out)]
    demo = "--task_name" not in options
    defaults = {"task_name": "qqp"} if demo else {}
    arguments = parse_arguments(argv, ARGUMENTS, **defaults)
    path = arguments[0].model_name_or_path
    start_weights = None if path is None else weights_digest(path)
    if done.exists():
        check_same_options(out, arguments, ignored={"output_dir", "disable_tqdm", "use_cpu"})
        found = json.loads(done.read_text())
        if found.get("start_weights", start_weights) != start_weights:
            raise ValueError(
                f"{out} came from other weights than {arguments[0].model_name_or_path} has now: give another "
                "--output_dir"
            )
        return found
    load_data = load_pairs if demo else load_task_data
    results = run(*arguments, load_data=load_data)
    model_args, data_args, training_args = arguments
    model_args.model_name_or_path = str(out)
    inputs = load_inputs(model_args, data_args, *load_data(data_args))
    model = SpikingBertForSequenceClassification.from_pretrained(out).eval()
    size = training_args.per_device_eval_batch_size
    matrices = temporal_similarity(model, evaluation_batches(inputs, LOOKED_INTO, size)[0])
    similarity = statistics.mean(mean_off_diagonal(matrix) for matrix in matrices.values())
    log = json.loads((out / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    found = {
        **results,
        "start_weights": start_weights,
        "similarity": similarity if math.isfinite(similarity) else None,
        "loss_oscillation": loss_oscillation(losses, WINDOW) if len(losses) >= WINDOW else None,
    }
    write_text(done, json.dumps(found, indent=1) + "\n")
    return found


def measures(found: dict[str, Any]) -> dict[str, float]:
    """What is compared, of one run."""
    metrics = found["spiking"]
    by_step = {k: v for k, v in metrics.items() if is_score(k.rpartition("_t")[0], *CALIBRATION)}
    for name, value in found.get("spiking_float32", {}).items():
        score, _, step = name.rpartition("_t")
        if is_score(score):
            by_step[f"{score}{IN_FLOAT32}_t{step}"] = value
    others = {k: found[k] for k in ("similarity", "loss_oscillation")}
    for name, values in (
        ("firing_rate", found["firing_rate_by_step"]),
        ("energy_microjoules", found["energy_microjoules"][MEASURED]),
    ):
        others |= {f"{name}_t{t}": value for t, value in enumerate(values, 1)}
    seconds, steps = found["training"]["seconds"], found["training"]["steps"]
    others["seconds_per_step"] = None if seconds is None else seconds / steps
    return {k: v for k, v in {**by_step, **others}.items() if v is not None and math.isfinite(v)}


def compare(runs: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Mean, standard deviation and, of three seeds or more, paired p value against the first loss, by loss and
    measure; of what is known of every run."""
    values = {loss: [measures(found) for found in seeds] for loss, seeds in runs.items()}
    known = set.intersection(*(set(row) for seeds in values.values() for row in seeds))
    reference = next(iter(values))
    table: dict[str, dict[str, Any]] = {}
    for loss, seeds in values.items():
        table[loss] = {}
        for name in (name for name in seeds[0] if name in known):
            row = [seed[name] for seed in seeds]
            entry = {"mean": statistics.mean(row), "values": row}
            if len(row) > 1:
                entry["std"] = statistics.stdev(row)
                other = [seed[name] for seed in values[reference]]
                if loss != reference and may_be_tested(row, other):
                    entry["p"] = float(ttest_rel(row, other).pvalue)
            table[loss][name] = entry
    return table


def may_be_tested(row: list[float], other: list[float]) -> bool:
    """Whether a paired t test says anything: not of fewer than three seeds, nor where they all differ by the same
    (scores of a dev set are multiples of 1 / N), whose spread is rounding alone."""
    differences = [a - b for a, b in zip(row, other, strict=True)]
    size = max(map(abs, [*row, *other]))
    return len(row) >= 3 and statistics.stdev(differences) > 1e-9 * size


def measures_by_step(table: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """What was measured -> its names in the table: one a time step, or one."""
    groups: dict[str, list[str]] = {}
    for name in next(iter(table.values())):
        groups.setdefault(name.rpartition("_t")[0] or name, []).append(name)
    return groups


def markdown(table: dict[str, dict[str, Any]]) -> str:
    """One row a loss; what is measured at each step in one cell, with the deviation of the last."""
    groups = measures_by_step(table)
    lines = ["| loss | " + " | ".join(groups) + " |", "|---" * (len(groups) + 1) + "|"]
    for loss, row in table.items():
        cells = []
        for group, names in groups.items():
            percent = is_score(group.removesuffix(IN_FLOAT32), "confidence")
            scale, digits = (100, 1) if percent else (1, 3)
            last = row[names[-1]]
            cell = " / ".join(f"{scale * row[name]['mean']:.{digits}f}" for name in names)
            cell += f" ± {scale * last['std']:.{digits}f}" if "std" in last else ""
            cells.append(cell + (" *" if last.get("p", 1) < 0.05 else ""))
        lines.append(f"| {loss} | " + " | ".join(cells) + " |")
    note = (
        "By time step where there are several values; ± is the standard deviation over seeds (of the "
        f"last step).\n*: differs from {next(iter(table))}, p < 0.05 in a paired t test (last step), "
        "not corrected for the number of comparisons."
    )
    return "\n".join([*lines, "", note])


def parse_own(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, list[str]]:
    """The options of a comparison, and those that go to each run, whose seeds `--seeds` sets."""
    args, options = parser.parse_known_args()
    if any(option.partition("=")[0] == "--seed" for option in options):
        parser.error("--seed is that of one run: give --seeds")
    if len(set(args.seeds)) < len(args.seeds):
        parser.error(f"--seeds must differ, got {' '.join(map(str, args.seeds))}")
    return args, options


def main() -> None:
    transformers.utils.logging.set_verbosity_warning()
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/compare_losses"))
    args, options = parse_own(parser)
    runs: dict[str, list[dict[str, Any]]] = {loss: [] for loss in args.losses}
    for seed in args.seeds:
        for loss in args.losses:
            out = args.output_dir / loss / f"seed{seed}"
            runs[loss].append(run_one([*options, *options_of(loss)], out, seed))
    table = compare(runs)
    commits = sorted({found["run"]["commit"] or "" for seeds in runs.values() for found in seeds})
    record = {"run": run_record(), "trained_at": commits, "seeds": args.seeds, "losses": table}
    write_text(args.output_dir / "comparison.json", json.dumps(record, indent=1) + "\n")
    write_text(args.output_dir / "comparison.md", markdown(table) + "\n")
    for name, steps in measures_by_step(table).items():
        if len(steps) > 1:
            by_step = {loss: [row[k]["mean"] for k in steps] for loss, row in table.items()}
            plot_metric_by_step(by_step, name).savefig(args.output_dir / f"{name}.svg")
    print(markdown(table))


if __name__ == "__main__":
    main()
