"""Train the same image or event classifier with each temporal loss, and the dense network, if it has one, beside them.

    python recipes/compare_vision.py image --data_dir cifar10 --num_timesteps 2 --seeds 1 2 3 \\
        --output_dir outputs/compare_cifar10
    python recipes/compare_vision.py dvs --events simulated --data_dir mnist --rounding \\
        --output_dir outputs/compare_events

Options that are not named here go to `image_tmc.py` or `dvs_tmc.py`. All runs of a seed start from the
same weights and see the same order of data. `dense` is the network of the same shape and budget, trained
with the cross entropy; `--rounding` also converts it to rounding neurons, once plainly and once with its
convolutions fitted to the spikes, and trains both on with the first of the losses. A run that is done
is not repeated, and one that was stopped goes on, when the same command is given again; with other options
it is refused.

The output folder gets comparison.json, comparison.md and charts: accuracy and calibration on the test
set, mean and standard deviation over seeds, and a paired t test of each loss against the first.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import dvs_tmc
import image_tmc
import numpy as np
import transformers
import vision
from common import check_same_options, parse_arguments, write_text
from compare_losses import LOSSES, WINDOW, compare, markdown, options_of, parse_own
from torch.utils.data import Subset
from transformers import default_data_collator

from spikenlp import SpikingTrainingArguments
from spikenlp.analysis import SpikeMonitor, energy_by_step, microjoules
from spikenlp.analysis.plots import plot_metric_by_step
from spikenlp.analysis.temporal import loss_oscillation, mean_off_diagonal, temporal_similarity
from spikenlp.provenance import run_record

KINDS = {
    "image": (image_tmc.ImageArguments, image_tmc.load_image_data),
    "dvs": (dvs_tmc.EventArguments, dvs_tmc.load_event_data),
}
LOOKED_INTO = 128
"""Test samples that rates, energy and similarity are taken from."""


def arguments_of(kind: str, options: list[str], out: Path, seed: int) -> tuple[Any, ...]:
    """Of the model, the data and the training of one run."""
    defaults = {
        **vision.VISION_DEFAULTS,
        "model": "spiking_vgg" if kind == "dvs" else "spiking_resnet",
    }
    return parse_arguments(
        [*options, "--seed", str(seed), "--output_dir", str(out)],
        (vision.VisionModelArguments, KINDS[kind][0], SpikingTrainingArguments),
        **defaults,
    )


def run_one(kind: str, options: list[str], out: Path, seed: int) -> dict[str, Any]:
    """One training, and what the trained model does; read from disk if it is done."""
    done = out / "run.json"
    arguments, load_data = arguments_of(kind, options, out, seed), KINDS[kind][1]
    if done.exists():
        check_same_options(out, arguments, ignored={"output_dir", "disable_tqdm", "use_cpu"})
        return json.loads(done.read_text())
    found = vision.run(*arguments, load_data=load_data)
    if found["config"]["neuron"] != "relu":
        found |= look_into(out, load_data(*arguments[:2]))
    write_text(done, json.dumps(found, indent=1) + "\n")
    return found


def spread(test: Any) -> Subset:
    """`LOOKED_INTO` samples, or all, at even distances: a test set may be sorted by class."""
    indices = np.linspace(0, len(test) - 1, min(LOOKED_INTO, len(test))).astype(int)
    return Subset(test, indices.tolist())


def look_into(out: Path, data: vision.VisionData) -> dict[str, Any]:
    """Firing rate and energy by time step, how alike the steps are, and how much the loss swung."""
    model = transformers.AutoModelForImageClassification.from_pretrained(out).eval()
    few = spread(data.test)
    pixels = default_data_collator(list(few))["pixel_values"]
    with SpikeMonitor(model) as monitor:
        model(pixels)
    batch = {"pixel_values": pixels}
    matrices = temporal_similarity(model, batch).values()
    similarity = statistics.mean(mean_off_diagonal(matrix) for matrix in matrices)
    log = json.loads((out / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    return {
        "firing_rate_by_step": monitor.rate_by_step.tolist(),
        "energy_microjoules": microjoules(energy_by_step(model, batch)),
        "similarity": similarity if math.isfinite(similarity) else None,
        "loss_oscillation": loss_oscillation(losses, WINDOW) if len(losses) >= WINDOW else None,
    }


def rivals(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Test accuracy of the dense network, and of rounding neurons before and after training."""
    lines = []
    for label, run, key in (
        ("dense", "dense", "dense"),
        ("rounding, converted", "rounding", "before_training"),
        ("rounding, trained", "rounding", "spiking"),
        ("rounding, reconstructed", "reconstructed", "before_training"),
        ("rounding, reconstructed and trained", "reconstructed", "spiking"),
    ):
        if values := [100 * seed[key]["accuracy"] for seed in found.get(run, [])]:
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            lines.append(f"{label}: accuracy {statistics.mean(values):.1f}{spread}")
    return lines


def main() -> None:
    transformers.utils.logging.set_verbosity_warning()
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument(
        "--losses", nargs="+", choices=LOSSES, default=["tmc_batch_literal", "tet", "sdt"]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rounding", action="store_true")
    parser.add_argument(
        "--rounding_learning_rate",
        help="Of converted networks, which a learning rate for training from scratch may destroy "
        "(default: that of the others).",
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/compare_vision"))
    args, options = parse_own(parser)
    runs: dict[str, list[dict[str, Any]]] = {loss: [] for loss in args.losses}
    model_args = arguments_of(args.kind, options, args.output_dir, args.seeds[0])[0]
    has_dense = hasattr(model_args.model_class, "from_dense")
    dense: dict[str, list[dict[str, Any]]] = {"dense": []} if has_dense else {}
    if args.rounding:
        if not has_dense:
            parser.error(
                f"{model_args.model_class.__name__} has no dense network that --rounding could convert"
            )
        if model_args.preset:
            parser.error(
                "--rounding converts the dense network of each seed, which has its shape already: give "
                "--model_config in place of --preset"
            )
        dense |= {"rounding": [], "reconstructed": []}
    for seed in args.seeds:
        for loss in args.losses:
            out = args.output_dir / loss / f"seed{seed}"
            runs[loss].append(run_one(args.kind, [*options, *options_of(loss)], out, seed))
        if not has_dense:
            continue
        out = args.output_dir / "dense" / f"seed{seed}"
        dense["dense"].append(run_one(args.kind, [*options, "--neuron", "relu"], out, seed))
        if args.rounding:
            convert = ["--neuron", "rounding", "--model_name_or_path", str(out)]
            convert += options_of(args.losses[0])
            if args.rounding_learning_rate:
                convert += ["--learning_rate", args.rounding_learning_rate]
            for name, fitted in (("rounding", "False"), ("reconstructed", "True")):
                asked = [*options, *convert, "--reconstruct", fitted]
                out = args.output_dir / name / f"seed{seed}"
                dense[name].append(run_one(args.kind, asked, out, seed))
    table = compare(runs)
    record = {
        "run": run_record(),
        "seeds": args.seeds,
        "losses": table,
        **dense,
    }
    write_text(args.output_dir / "comparison.json", json.dumps(record, indent=1) + "\n")
    text = "\n\n".join([markdown(table), *rivals(dense)])
    write_text(args.output_dir / "comparison.md", text + "\n")
    for name in ("accuracy", "ece"):
        steps = [k for k in next(iter(table.values())) if k.startswith(f"{name}_t")]
        by_step = {loss: [row[k]["mean"] for k in steps] for loss, row in table.items()}
        plot_metric_by_step(by_step, name).savefig(args.output_dir / f"{name}.svg")
    print(text)


if __name__ == "__main__":
    main()
