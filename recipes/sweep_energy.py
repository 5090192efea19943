"""Accuracy against energy: distill.py for several T and spike targets, from one teacher.

    python recipes/sweep_energy.py --task_name sst2 --data_dir glue --model_name_or_path path/to/bert \\
        --timesteps 1 2 4 8 --spike_targets 0.8 0.6 0.4 --spike_weight 1 --output_dir outputs/sweep_sst2

Other options go to distill.py. For each T one run trains without a penalty. Each target is a fraction of the
spikes per neuron that it ends with. The run of the highest target goes on from there, each other one from that of
the target above it: the last phase that trains, and those after it, once more with the penalty. A run that is
done is not repeated. The output folder gets sweep.json,
sweep.md and, for each billing (float32 against the dense float32 model, int8 against the dense int8 model
and the quantised network of as many levels), a chart. The spiking model is that of the last phase, the
quantised network its collapsed twin after the phase, and in the charts of the run, in which it was best; a
student without rounding neurons has none.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import transformers
from common import is_score, write_text
from distill import STUDENTS, USUAL_PHASES, distill, parse

from spikenlp.analysis.plots import plot_energy_front
from spikenlp.provenance import run_record
from spikenlp.training.trainer import check_penalty

BILLINGS = ("float32", "int8")
TRAINED_WITH_PENALTY = ("collapsed", "unrolled")


def fraction(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be in (0, 1), got {text}")
    return value


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def last_trained(phases: list[str]) -> str:
    """Raises ValueError where none of the phases trains with a penalty on spikes."""
    trained = [phase for phase in TRAINED_WITH_PENALTY if phase in phases]
    if not trained:
        raise ValueError(
            "--spike_targets are for phases that train: add collapsed or unrolled to --phases, or give "
            "--spike_targets without a value"
        )
    return trained[-1]


def check_targets(options: list[str], phases: list[str], weight: float) -> None:
    """Raises ValueError where a penalty of `weight` would do nothing, or cannot be."""
    if not weight > 0:
        raise ValueError(
            f"--spike_weight must be > 0 where there are --spike_targets, got {weight}"
        )
    student, *_, training = parse([*options, "--spike_weight", str(weight)])
    check_penalty(student.student_config(phases), training)


def folder_of(root: Path, steps: int, share: float | None = None) -> Path:
    return root / f"t{steps}_{'free' if share is None else f'spikes{share:g}'}"


def run_free(options: list[str], root: Path, steps: int, phases: list[str]) -> dict[str, Any]:
    """The row of T = `steps` without a penalty."""
    out = folder_of(root, steps)
    options = [*options, "--num_timesteps", str(steps), "--output_dir", str(out)]
    found = distill([*options, "--phases", *phases])
    return {"num_timesteps": steps, "fraction": None, "spike_target": None, **measured(found)}


def run_target(
    options: list[str],
    root: Path,
    phases: list[str],
    weight: float,
    share: float,
    free: dict[str, Any],
    before: Path,
) -> dict[str, Any]:
    """The row of a target of `share` times the spikes per neuron of the row `free`; it goes on from the run in
    the folder `before`."""
    steps, wanted = free["num_timesteps"], round(share * free["spikes_per_neuron"], 4)
    trained = last_trained(phases)
    again = [p for p in STUDENTS if p in phases and STUDENTS.index(p) >= STUDENTS.index(trained)]
    found = distill(
        [
            *options,
            *("--num_timesteps", str(steps)),
            *("--output_dir", str(folder_of(root, steps, share))),
            *("--student", str(before / trained)),
            *("--spike_target", str(wanted), "--spike_weight", str(weight)),
            *("--reconstruct", "False", "--spike_cost", "0"),
            *("--phases", "converted", *again),
        ]
    )
    return {"num_timesteps": steps, "fraction": share, "spike_target": wanted, **measured(found)}


def measured(found: dict[str, Any]) -> dict[str, Any]:
    """Metrics of the spiking model that a run ended with and of its quantised twin, what they spend."""
    students = [found[phase] for phase in STUDENTS if "spiking" in found.get(phase, {})]
    last = students[-1]
    metrics = {k: v for k, v in last["spiking"].items() if is_score(k)}
    twins = [student["collapsed"] for student in students if "collapsed" in student]
    metric = next(iter(metrics))
    best = max(twins, key=lambda twin: twin[metric], default={})
    spent = {
        "spikes_per_neuron": last["spikes_per_neuron"],
        **{f"microjoules, {k}": v[-1] for k, v in last["energy_microjoules"].items()},
    }
    return {**metrics, **{f"quantised_{k}": best[k] for k in metrics if best}, **spent}


def markdown(rows: list[dict[str, Any]], dense: dict[str, float]) -> str:
    metrics = [k for k in rows[0] if is_score(k)]
    spent = [k for k in rows[0] if k.startswith("microjoules")]
    heads = ["T", "spike target", *metrics, "spikes per neuron", *spent]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        wanted = "none" if row["spike_target"] is None else f"{row['spike_target']:.2f}"
        cells = [str(row["num_timesteps"]), wanted]
        cells += [f"{100 * row[k]:.1f}" for k in metrics]
        cells += [f"{row['spikes_per_neuron']:.2f}", *(f"{row[k]:.1f}" for k in spent)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "dense: " + ", ".join(f"{k} {100 * dense[k]:.1f}" for k in metrics)]
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], dense: dict[str, float], out: Path) -> None:
    metric = next(filter(is_score, rows[0]))
    for billing in BILLINGS:
        series: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            point = (row[f"microjoules, spiking, {billing}"], 100 * row[metric])
            series.setdefault(f"T = {row['num_timesteps']}", []).append(point)
        if billing == "int8" and f"quantised_{metric}" in rows[0]:
            best: dict[float, float] = {}
            for row in rows:
                energy, score = (
                    row["microjoules, quantised, same levels"],
                    100 * row[f"quantised_{metric}"],
                )
                best[energy] = max(best.get(energy, score), score)
            series["quantised, same levels"] = list(best.items())
        name = f"dense, {billing}"
        rival = {name: (rows[0][f"microjoules, {name}"], 100 * dense[metric])}
        plot_energy_front(series, rival, f"{metric}, %").savefig(out / f"{billing}.svg")


def main() -> None:
    transformers.utils.logging.set_verbosity_warning()
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--timesteps", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--spike_targets", type=fraction, nargs="*", default=[0.8, 0.6, 0.4])
    parser.add_argument("--spike_weight", type=float, default=1.0)
    parser.add_argument("--phases", nargs="+", choices=STUDENTS, default=list(USUAL_PHASES[1:]))
    of_training = parser.add_mutually_exclusive_group()
    of_training.add_argument("--max_steps", type=int, help="Of the phase unrolled, at each T.")
    of_training.add_argument(
        "--training_time_steps",
        type=positive,
        help="In place of --max_steps: T times the steps of the phase unrolled, so that each T trains at "
        "about the same cost.",
    )
    parser.add_argument("--teacher", help="A dense model fine-tuned on the task.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/sweep_energy"))
    args, options = parser.parse_known_args()
    if args.spike_targets:
        last_trained(args.phases)
        check_targets(options, args.phases, args.spike_weight)
    root: Path = args.output_dir
    given = [] if args.teacher is None else ["--teacher", args.teacher]
    teacher = distill([*options, *given, "--phases", "teacher", "--output_dir", str(root)])
    dense = teacher["teacher"]["dense"]
    options += given or ["--teacher", str(root / "teacher")]
    rows = []
    for steps in args.timesteps:
        length = args.max_steps
        if args.training_time_steps is not None:
            length = max(1, round(args.training_time_steps / steps))
        trained = options if length is None else [*options, "--max_steps", str(length)]
        free = run_free(trained, root, steps, args.phases)
        rows.append(free)
        before = folder_of(root, steps)
        for share in sorted(args.spike_targets, reverse=True):
            weight = args.spike_weight
            rows.append(run_target(trained, root, args.phases, weight, share, free, before))
            before = folder_of(root, steps, share)
    record = {"run": run_record(), "dense": dense, "rows": rows}
    write_text(root / "sweep.json", json.dumps(record, indent=1) + "\n")
    write_text(root / "sweep.md", markdown(rows, dense))
    draw(rows, dense, root)
    print(markdown(rows, dense))


if __name__ == "__main__":
    main()
