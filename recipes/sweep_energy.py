"""Accuracy against energy: distill.py for several T and spike targets, from one teacher.

    python recipes/sweep_energy.py --task_name sst2 --data_dir glue --model_name_or_path path/to/bert \\
        --timesteps 1 2 4 8 --spike_targets 0.8 0.6 0.4 --spike_weight 1 --output_dir outputs/sweep_sst2

Other options go to distill.py. For each T one run trains without a penalty; a target is a fraction of the
spikes per neuron that it ends with. A run that is done is not repeated. The output folder gets sweep.json,
sweep.md and, for each billing (float32 against the dense float32 model, int8 against the dense int8 model
and the quantised network of as many levels), a chart. The spiking model is that of the last phase, the
quantised network its collapsed twin after the phase in which it was best; a student without rounding neurons
has none.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import transformers
from common import is_score, write_text
from distill import PHASES, distill

from spikenlp.analysis.plots import plot_energy_front
from spikenlp.provenance import run_record

BILLINGS = ("float32", "int8")


def fraction(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be in (0, 1), got {text}")
    return value


def run_one(
    options: list[str],
    root: Path,
    steps: int,
    weight: float = 0.0,
    share: float | None = None,
    free: float = 0.0,
) -> dict[str, Any]:
    """A row of the table: metrics of the spiking model and of its quantised twin, what they spend.

    Args:
        share: the target as a fraction of `free`, the spikes per neuron without a penalty; None: none.
    """
    name, wanted, penalty = f"t{steps}_free", None, []
    if share is not None:
        name, wanted = f"t{steps}_spikes{share:g}", round(share * free, 4)
        penalty = ["--spike_target", str(wanted), "--spike_weight", str(weight)]
    found = distill(
        [
            *options,
            *("--num_timesteps", str(steps)),
            *("--output_dir", str(root / name)),
            *penalty,
        ]
    )
    students = [found[phase] for phase in PHASES if "spiking" in found.get(phase, {})]
    if not students:
        raise ValueError("the sweep tables a spiking model: --phases has none that leaves one")
    last = students[-1]
    metrics = {k: v for k, v in last["spiking"].items() if is_score(k)}
    twins = [student["collapsed"] for student in students if "collapsed" in student]
    metric = next(iter(metrics))
    best = max(twins, key=lambda twin: twin[metric], default={})
    spent = {
        "spikes_per_neuron": last["spikes_per_neuron"],
        **{f"microjoules, {k}": v[-1] for k, v in last["energy_microjoules"].items()},
    }
    return {
        "num_timesteps": steps,
        "fraction": share,
        "spike_target": wanted,
        **metrics,
        **{f"quantised_{k}": best[k] for k in metrics if best},
        **spent,
    }


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
            series["quantised, same levels"] = [
                (row["microjoules, quantised, same levels"], 100 * row[f"quantised_{metric}"])
                for row in rows
            ]
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
    parser.add_argument("--spike_targets", type=fraction, nargs="+", default=[0.8, 0.6, 0.4])
    parser.add_argument("--spike_weight", type=float, default=1.0)
    parser.add_argument("--teacher", help="A dense model fine-tuned on the task.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/sweep_energy"))
    args, options = parser.parse_known_args()
    root: Path = args.output_dir
    given = [] if args.teacher is None else ["--teacher", args.teacher]
    teacher = distill([*options, *given, "--phases", "teacher", "--output_dir", str(root)])
    dense = teacher["teacher"]["dense"]
    options += given or ["--teacher", str(root / "teacher")]
    rows = []
    for steps in args.timesteps:
        free = run_one(options, root, steps)
        rows.append(free)
        for share in args.spike_targets:
            spikes = free["spikes_per_neuron"]
            rows.append(run_one(options, root, steps, args.spike_weight, share, spikes))
    record = {"run": run_record(), "dense": dense, "rows": rows}
    write_text(root / "sweep.json", json.dumps(record, indent=1) + "\n")
    write_text(root / "sweep.md", markdown(rows, dense))
    draw(rows, dense, root)
    print(markdown(rows, dense))


if __name__ == "__main__":
    main()
