"""What a checkpoint becomes in other forms: file size, accuracy by step, time, for each.

    OMP_NUM_THREADS=1 python recipes/deploy.py --checkpoint outputs/sst2 --task_name sst2 \\
        --data_dir glue --output_dir outputs/deploy_sst2

Forms are the checkpoint in float32 and with weights in int8: in PyTorch (neurons compiled, the rest
eager), as a torch.export program, and as ONNX in onnxruntime. An exported file was checked neuron by
neuron on `--batch` dev samples of middle length before it was kept (`spikenlp.export.check`); then every
form answers the whole dev set. "changed" counts answers at the last step other than PyTorch's with the
same weights. Time is the median over batches of wall-clock a sample, after a pass that does not count,
in which neurons compile: in batches of `--batch`, and one by one for one sample of each batch.

The output folder gets deploy.json and the exported files.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from common import write_text
from task_data import add_data_options, evaluation_data, labelled_batches, without_labels
from torch import Tensor
from transformers import AutoModelForSequenceClassification

import spikenlp
from spikenlp.export import export
from spikenlp.export.onnx_graph import open_session
from spikenlp.export.program import inputs_of
from spikenlp.provenance import run_record

Run = Callable[[dict[str, Tensor]], Tensor]
"""Inputs to timestep_logits [B, T, C]."""


def in_pytorch(model: Any) -> Run:
    return lambda inputs: model(**inputs).timestep_logits


def in_program(path: Path, names: list[str]) -> Run:
    program = torch.export.load(path).module()
    return lambda inputs: program(**{name: inputs[name] for name in names})[0]


def in_onnxruntime(path: Path) -> Run:
    session = open_session(path)
    return lambda inputs: torch.from_numpy(
        session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]
    )


def milliseconds_a_sample(run: Run, batches: list[dict[str, Tensor]]) -> float:
    """The median over batches, of a second pass."""
    inputs = [without_labels(batch) for batch in batches]
    for batch in inputs:
        run(batch)
    times = []
    for batch in inputs:
        begun = time.perf_counter()
        run(batch)
        times.append(1e3 * (time.perf_counter() - begun) / len(batch["input_ids"]))
    return statistics.median(times)


@torch.no_grad()
def figures(run: Run, *sizes: list[dict[str, Tensor]]) -> tuple[Tensor, dict[str, Any]]:
    """Answers [N, T] of `run` on the first of `sizes`, and what it measures on them and on each."""
    answers = torch.cat([run(without_labels(b)).cumsum(1).argmax(-1) for b in sizes[0]])
    labels = torch.cat([b["labels"] for b in sizes[0]])
    return answers, {
        "accuracy_by_step": (answers == labels[:, None]).double().mean(0).tolist(),
        "ms_a_sample": {len(b[0]["labels"]): milliseconds_a_sample(run, b) for b in sizes},
    }


def main() -> None:
    transformers.utils.logging.set_verbosity_warning()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="float, not in int8 yet")
    parser.add_argument(
        "--formats", nargs="*", choices=("torch", "onnx"), default=["torch", "onnx"]
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/deploy"))
    add_data_options(parser)
    args = parser.parse_args()
    data_args = evaluation_data(args)
    batches, ones = (labelled_batches(args.checkpoint, data_args, n) for n in (args.batch, 1))
    check = without_labels(batches[len(batches) // 2])
    args.output_dir.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"run": run_record(), "checkpoint": args.checkpoint.name}
    results |= {"task": args.task_name, "samples": len(ones), "forms": {}}
    for weights, config in (("float32", None), ("int8", spikenlp.Int8Config())):
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            args.checkpoint, quantization_config=config, dtype=torch.float32
        ).eval()
        path = args.output_dir / weights / "model.safetensors"
        model.save_pretrained(path.parent)
        sizes = (batches, ones[:: args.batch])
        reference, found = figures(in_pytorch(model), *sizes)
        results["forms"][f"pytorch, {weights}"] = {"bytes": path.stat().st_size, **found}
        for kind in args.formats:
            path = args.output_dir / f"{weights}.{'pt2' if kind == 'torch' else kind}"
            checked = asdict(export(model, path, kind, batch=check))
            order = list(inputs_of(model, check))
            run = in_program(path, order) if kind == "torch" else in_onnxruntime(path)
            answers, found = figures(run, *sizes)
            found |= {"changed": int((answers != reference)[:, -1].sum()), "check": checked}
            results["forms"][f"{kind}, {weights}"] = {"bytes": path.stat().st_size, **found}
    write_text(args.output_dir / "deploy.json", json.dumps(results, indent=1) + "\n")
    for name, found in results["forms"].items():
        accuracy = " / ".join(f"{100 * a:.1f}" for a in found["accuracy_by_step"])
        times = ", ".join(f"{ms:.1f} ms by {n}" for n, ms in found["ms_a_sample"].items())
        print(f"{name:18} {found['bytes'] / 1e6:7.1f} MB  {accuracy}  a sample: {times}")


if __name__ == "__main__":
    main()
