"""What early exit saves: accuracy, steps, energy and time of trained checkpoints over thresholds.

    python recipes/early_exit.py --checkpoints outputs/sst2_sdt outputs/sst2_tet outputs/sst2_tmc \\
        --task_name sst2 --data_dir glue --dense outputs/sst2_tmc/dense --output_dir outputs/exit_sst2

Each checkpoint answers the task's dev set step by step. Thresholds are chosen for `--max_accuracy_drop`
(a fraction: 0.005 is half a point) twice: on all dev samples, for the policy that is saved, and on
each half for the other half, for the figures called held out. Time is wall-clock on this machine, in
batches of `--batch`: of the unrolled model, of early exit at each threshold, and of `--dense`.

The output folder gets early_exit.json, early_exit.md, charts, and a folder with the policy of each
checkpoint; `--save` writes the policy beside the checkpoint too.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from common import write_text
from task_data import add_data_options, evaluation_data, labelled_batches, without_labels
from transformers import AutoModelForSequenceClassification

from spikenlp.analysis import energy_report
from spikenlp.inference import (
    Answers,
    ExitPolicy,
    choose_policy,
    collect_answers,
    early_exit,
    exit_curve,
    exit_table,
    plot_exit_curves,
)
from spikenlp.provenance import run_record

THRESHOLDS = [0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 1.0]


def seconds_a_sample(run: Callable[[dict[str, Any]], Any], batches: list[dict[str, Any]]) -> float:
    """Wall-clock over all batches, after one that does not count."""
    inputs = [without_labels(batch) for batch in batches]
    run(inputs[len(inputs) // 2])
    begun = time.perf_counter()
    for batch in inputs:
        run(batch)
    return (time.perf_counter() - begun) / sum(len(batch["labels"]) for batch in batches)


def held_out(answers: Answers, max_accuracy_drop: float) -> dict[str, float]:
    """Each half of the samples, every second one, under the policy chosen on the other half."""
    points, sizes = [], []
    for half in (0, 1):
        rows, others = np.arange(half, len(answers), 2), np.arange(1 - half, len(answers), 2)
        policy = choose_policy(answers.select(others), max_accuracy_drop)
        part = answers.select(rows)
        points += exit_curve(part, policy, policy.thresholds)
        sizes.append(len(part))
    return {
        name: sum(n * getattr(p, name) for n, p in zip(sizes, points, strict=True)) / sum(sizes)
        for name in ("accuracy", "mean_steps", "energy")
    }


@torch.no_grad()
def dense_figures(folder: str, batches: list[dict[str, Any]]) -> dict[str, float]:
    dense = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    right = sum(
        int((dense(**without_labels(b)).logits.argmax(-1) == b["labels"]).sum()) for b in batches
    )
    latency = seconds_a_sample(lambda batch: dense(**batch), batches)
    return {"accuracy": right / sum(len(b["labels"]) for b in batches), "latency": latency}


@torch.no_grad()
def examine(
    checkpoint: Path, batches: list[dict[str, Any]], args: argparse.Namespace
) -> tuple[dict[str, Any], list[Any], ExitPolicy]:
    """All figures of one checkpoint, its curve and its policy."""
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    if not hasattr(model, "anytime"):
        raise ValueError(f"{checkpoint} is a {type(model).__name__}: give a spiking classifier")
    answers = collect_answers(model, batches, energy=True)
    policy = choose_policy(answers, args.max_accuracy_drop)
    thresholds = sorted({*args.thresholds, policy.threshold(1), 1.0})

    def timed(threshold: float) -> float:
        at = ExitPolicy((threshold,), policy.temperatures, policy.num_timesteps)
        return seconds_a_sample(lambda batch: early_exit(model, batch, at), batches)

    latencies = {threshold: timed(threshold) for threshold in thresholds}
    curve = exit_curve(answers, policy, thresholds, latencies)
    chosen = next(point for point in curve if point.threshold == policy.threshold(1))
    dense = sum(
        len(b["labels"]) * energy_report(model, b).energies["dense, float32"] for b in batches
    )
    figures = {
        "samples": len(answers),
        "num_timesteps": answers.num_timesteps,
        "accuracy_by_step": answers.correct().mean(0).tolist(),
        "energy_by_step": answers.energy.mean(0).tolist(),
        "dense_energy": dense / len(answers),
        "policy": asdict(policy),
        "chosen": asdict(chosen),
        "held_out": held_out(answers, args.max_accuracy_drop),
        "unrolled_latency": seconds_a_sample(lambda batch: model(**batch), batches),
        "curve": [asdict(point) for point in curve],
    }
    return figures, curve, policy


def summary(results: dict[str, Any]) -> str:
    """Markdown: what the chosen thresholds save."""
    dense = results["dense"]
    lines = [
        "| model | T | accuracy at T, % | early exit | held out | mean steps (held out) | energy, of T "
        "steps | time, of T steps unrolled |" + ("" if dense is None else " time, of dense |"),
        "|---|---|---|---|---|---|---|---|" + ("" if dense is None else "---|"),
    ]
    for name, found in results["models"].items():
        chosen, out = found["chosen"], found["held_out"]
        cells = [
            name,
            str(found["num_timesteps"]),
            f"{100 * found['accuracy_by_step'][-1]:.1f}",
            f"{100 * chosen['accuracy']:.1f}",
            f"{100 * out['accuracy']:.1f}",
            f"{chosen['mean_steps']:.2f} ({out['mean_steps']:.2f})",
            f"{chosen['energy'] / found['energy_by_step'][-1]:.2f}",
            f"{chosen['latency'] / found['unrolled_latency']:.2f}",
        ]
        if dense is not None:
            cells.append(f"{chosen['latency'] / dense['latency']:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    if dense is not None:
        lines += ["", f"dense: accuracy {100 * dense['accuracy']:.1f} %"]
    return "\n".join(lines)


def main() -> None:
    transformers.utils.logging.set_verbosity_warning()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoints", type=Path, nargs="+", required=True)
    parser.add_argument("--names", nargs="+", help="of the checkpoints (default: their folders')")
    add_data_options(parser)
    parser.add_argument("--dense", help="dense classifier to compare accuracy and time with")
    parser.add_argument("--max_accuracy_drop", type=float, default=0.005)
    parser.add_argument("--thresholds", type=float, nargs="+", default=THRESHOLDS)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--save", action="store_true", help="policies beside the checkpoints too")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/early_exit"))
    args = parser.parse_args()
    names = args.names or [path.name for path in args.checkpoints]
    if len(set(names)) != len(args.checkpoints):
        parser.error(f"{len(args.checkpoints)} checkpoints need as many different names: {names}")
    data_args = evaluation_data(args)
    results: dict[str, Any] = {
        "run": run_record(),
        "task": args.task_name,
        "batch": args.batch,
        "max_accuracy_drop": args.max_accuracy_drop,
        "dense": None,
        "models": {},
    }
    curves = {}
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name, checkpoint in zip(names, args.checkpoints, strict=True):
        batches = labelled_batches(checkpoint, data_args, args.batch)
        if args.dense and results["dense"] is None:
            results["dense"] = dense_figures(args.dense, batches)
        results["models"][name], curves[name], policy = examine(checkpoint, batches, args)
        policy.save(args.output_dir / name)
        if args.save:
            policy.save(checkpoint)
    text = f"{summary(results)}\n\n{exit_table(curves)}\n"
    write_text(args.output_dir / "early_exit.json", json.dumps(results, indent=1) + "\n")
    write_text(args.output_dir / "early_exit.md", text)
    figure = plot_exit_curves(curves, ["mean_steps", "energy", "latency"])
    figure.savefig(args.output_dir / "early_exit.svg")
    print(text)


if __name__ == "__main__":
    main()
