"""Accuracy against energy: distill.py for several T and spike targets, from one teacher.

    python recipes/sweep_energy.py --task_name sst2 --data_dir glue --model_name_or_path path/to/bert \\
        --timesteps 1 2 4 8 --spike_targets 1.2 0.9 0.6 --spike_weight 1 --output_dir outputs/sweep_sst2

Other options go to distill.py. A target is in spikes per neuron and inference; "none" trains without a
penalty. A run that is done is not repeated. The output folder gets sweep.json, sweep.md and, for each
billing (float32 against the dense float32 model, int8 against the dense int8 model and the quantised
network of as many levels), a chart.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import transformers
from distill import distill

from spikenlp.analysis.plots import plot_energy_front
from spikenlp.metrics.glue import SCORES
from spikenlp.training.provenance import run_record

BILLINGS = ("float32", "int8")


def target(text: str) -> float | None:
    return None if text == "none" else float(text)


def run_one(
    options: list[str], root: Path, steps: int, spikes: float | None, weight: float
) -> dict[str, Any]:
    """A row of the table: metrics of the spiking model and of its quantised twin, what they spend."""
    name = f"t{steps}_spikes{'any' if spikes is None else spikes}"
    penalty = (
        [] if spikes is None else ["--spike_target", str(spikes), "--spike_weight", str(weight)]
    )
    found = distill(
        [
            *options,
            *("--teacher", str(root / "teacher")),
            *("--num_timesteps", str(steps)),
            *("--output_dir", str(root / name)),
            *penalty,
        ]
    )
    last = found.get("unrolled") or found["collapsed"]
    metrics = {k: v for k, v in last["spiking"].items() if k in SCORES}
    twin = {f"quantised_{k}": last["collapsed"][k] for k in metrics}
    spent = {
        "spikes_per_neuron": last["spikes_per_neuron"],
        **{f"microjoules, {k}": v[-1] for k, v in last["energy_microjoules"].items()},
    }
    return {"num_timesteps": steps, "spike_target": spikes, **metrics, **twin, **spent}


def markdown(rows: list[dict[str, Any]], dense: dict[str, float]) -> str:
    metrics = [k for k in SCORES if k in rows[0]]
    spent = [k for k in rows[0] if k.startswith("microjoules")]
    heads = ["T", "spike target", *metrics, "spikes per neuron", *spent]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        wanted = "any" if row["spike_target"] is None else f"{row['spike_target']:g}"
        cells = [str(row["num_timesteps"]), wanted]
        cells += [f"{100 * row[k]:.1f}" for k in metrics]
        cells += [f"{row['spikes_per_neuron']:.2f}", *(f"{row[k]:.1f}" for k in spent)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "dense: " + ", ".join(f"{k} {100 * dense[k]:.1f}" for k in metrics)]
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], dense: dict[str, float], out: Path) -> None:
    metric = next(k for k in SCORES if k in rows[0])
    for billing in BILLINGS:
        series: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            point = (row[f"microjoules, spiking, {billing}"], 100 * row[metric])
            series.setdefault(f"T = {row['num_timesteps']}", []).append(point)
        if billing == "int8":
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
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--timesteps", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--spike_targets", type=target, nargs="+", default=[None, 1.2, 0.9, 0.6])
    parser.add_argument("--spike_weight", type=float, default=1.0)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/sweep_energy"))
    args, options = parser.parse_known_args()
    root: Path = args.output_dir
    teacher = distill([*options, "--phases", "teacher", "--output_dir", str(root)])
    dense = teacher["teacher"]["dense"]
    rows = [
        run_one(options, root, steps, spikes, args.spike_weight)
        for steps in args.timesteps
        for spikes in args.spike_targets
    ]
    record = {"run": run_record(), "dense": dense, "rows": rows}
    (root / "sweep.json").write_text(json.dumps(record, indent=1) + "\n")
    (root / "sweep.md").write_text(markdown(rows, dense))
    draw(rows, dense, root)
    print(markdown(rows, dense))


if __name__ == "__main__":
    main()
