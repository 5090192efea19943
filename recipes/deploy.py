"""What a checkpoint becomes in other forms: file size, accuracy by step, time, for each.

    python recipes/deploy.py --checkpoint outputs/sst2 --task_name sst2 --data_dir glue \\
        --output_dir outputs/deploy_sst2

Forms are the checkpoint in float32 and with weights in int8, in PyTorch (eager), as a torch.export
program, and as ONNX in onnxruntime. Each exported file was checked neuron by neuron on
`--check_samples` dev samples of middle length before it was kept (`spikenlp.export.check`); then every form answers the
whole dev set, in float32 arithmetic. "changed" counts answers at the last step that differ from those of
PyTorch with the same weights. Time is wall-clock on this machine in batches of `--batch`, and one by
one for the first `--check_samples`.

The output folder gets deploy.json and the exported files.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from early_exit import labelled_batches, seconds_a_sample, without_labels
from glue_tmc import DataArguments
from torch import Tensor
from transformers import AutoModelForSequenceClassification

import spikenlp
from spikenlp.export import export
from spikenlp.training.provenance import run_record

Run = Callable[[dict[str, Tensor]], Tensor]
"""Inputs to timestep_logits [B, T, C]."""


def in_pytorch(model: Any) -> Run:
    return lambda batch: model(**batch).timestep_logits


def in_program(path: Path) -> Run:
    program = torch.export.load(path).module()
    return lambda batch: program(*batch.values())[0]


def in_onnxruntime(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(batch: dict[str, Tensor]) -> Tensor:
        (logits,) = session.run(None, {name: value.numpy() for name, value in batch.items()})
        return torch.from_numpy(logits)

    return run


@torch.no_grad()
def figures(run: Run, batches: list[dict[str, Tensor]], ones: list[dict[str, Tensor]]) -> Any:
    """Answers [N, T] of `run`, and what it measures."""
    answers = torch.cat([run(without_labels(b)).cumsum(1).argmax(-1) for b in batches])
    labels = torch.cat([b["labels"] for b in batches])
    return answers, {
        "accuracy_by_step": (answers == labels[:, None]).double().mean(0).tolist(),
        "seconds_a_sample": seconds_a_sample(run, batches),
        "seconds_a_sample_one_by_one": seconds_a_sample(run, ones),
    }


def inputs_in_order(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The order in which an exported program takes them."""
    names = ("input_ids", "attention_mask", "token_type_ids", "labels")
    return {name: batch[name] for name in names if name in batch}


def main() -> None:
    transformers.utils.logging.set_verbosity_warning()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="float, not in int8 yet")
    parser.add_argument("--task_name", required=True)
    parser.add_argument("--data_dir")
    parser.add_argument("--dataset")
    parser.add_argument("--formats", nargs="*", default=["torch", "onnx"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--check_samples", type=int, default=32)
    parser.add_argument("--max_eval_samples", type=int)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/deploy"))
    args = parser.parse_args()
    data_args = DataArguments(
        task_name=args.task_name,
        dataset=args.dataset,
        data_dir=args.data_dir,
        max_train_samples=1,
        max_eval_samples=args.max_eval_samples,
    )
    if args.check_samples < 1:
        parser.error(f"--check_samples must be >= 1, got {args.check_samples}")

    def load(size: int) -> list[dict[str, Tensor]]:
        loaded = labelled_batches(args.checkpoint, data_args, size)
        return [inputs_in_order(batch) for batch in loaded]

    batches, ones = load(args.batch), load(1)
    ones = ones[:: max(1, len(ones) // args.check_samples)]  # of all lengths
    checks = load(args.check_samples)
    check = checks[len(checks) // 2]
    args.output_dir.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "run": run_record(),
        "checkpoint": args.checkpoint.name,
        "task": args.task_name,
        "samples": sum(len(b["labels"]) for b in batches),
        "batch": args.batch,
        "forms": {},
    }
    forms = results["forms"]
    for weights, config in (("float32", None), ("int8", spikenlp.Int8Config())):
        model = AutoModelForSequenceClassification.from_pretrained(
            args.checkpoint, quantization_config=config
        ).eval()
        folder = args.output_dir / weights
        model.save_pretrained(folder)
        reference, found = figures(in_pytorch(model), batches, ones)
        size = (folder / "model.safetensors").stat().st_size
        forms[f"pytorch, {weights}"] = {"bytes": size, **found}
        for kind in args.formats:
            path = args.output_dir / f"{weights}.{'pt2' if kind == 'torch' else kind}"
            agreement = export(model, path, kind, batch=without_labels(check))
            run = in_program(path) if kind == "torch" else in_onnxruntime(path)
            answers, found = figures(run, batches, ones)
            forms[f"{kind}, {weights}"] = {
                "bytes": path.stat().st_size,
                **found,
                "changed": int((answers != reference)[:, -1].sum()),
                "check": asdict(agreement),
            }
        (args.output_dir / "deploy.json").write_text(json.dumps(results, indent=1) + "\n")
    for name, found in forms.items():
        accuracy = " / ".join(f"{100 * a:.1f}" for a in found["accuracy_by_step"])
        print(
            f"{name:18} {found['bytes'] / 1e6:7.1f} MB  {accuracy}  "
            f"{1e3 * found['seconds_a_sample']:.1f} ms a sample, "
            f"{1e3 * found['seconds_a_sample_one_by_one']:.1f} ms one by one"
        )


if __name__ == "__main__":
    main()
