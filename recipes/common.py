"""What the recipes share: options, checkpoints to go on from, the records of a run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import HfArgumentParser, TrainerState, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from spikenlp import SpikingTrainer, SpikingTrainingArguments
from spikenlp.data.files import write_whole
from spikenlp.hub.results import split_of
from spikenlp.metrics.glue import SCORES
from spikenlp.training import last_checkpoint
from spikenlp.training.cpu import keep_freed_memory, use_all_cores

NOT_RECORDED = ("per_second", "epoch", "preparation_time")
NOT_SUMMARISED = ("loss", "runtime", "ada_ece", "nll", "brier", "confidence")


DENSE = "dense"
"""Folder, below that of a run, of the dense model that is trained before it is made spiking."""
NEW_OPTIONS = {"spike_cost": 0.0, "burst": None}
"""Options that older runs did not have, and what these did."""
STEPS = {"max_steps", "num_train_epochs"}
OF_TRAINING = STEPS | {
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "weight_decay",
    "optim",
    "optim_args",
    "optim_target_modules",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "train_sampling_strategy",
    "label_smoothing_factor",
    "neftune_noise_alpha",
    "data_seed",
    "dataloader_drop_last",
    "average_tokens_across_devices",
    "load_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
    "bf16",
    "fp16",
    "tf32",
}
"""Options of transformers' Trainer that change what is trained."""


def parse_arguments(argv: list[str], kinds: tuple[type, ...], **defaults: Any) -> Any:
    """Command line, or a YAML file followed by options that override it."""
    parser = HfArgumentParser(kinds, allow_abbrev=False)
    usual = {
        "save_total_limit": 2,
        "train_sampling_strategy": "group_by_length",
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "use_cpu": not torch.accelerator.is_available(),  # else Trainer refuses bf16
        "logging_steps": 50,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 64,
        "warmup_steps": 20,
    }
    known = {action.dest for action in parser._actions}
    parser.set_defaults(**{**{k: v for k, v in usual.items() if k in known}, **defaults})
    if argv and argv[0].endswith((".yaml", ".yml")):
        argv = [*read_options(Path(argv[0]), parser), *argv[1:]]
    return parser.parse_args_into_dataclasses(argv)


def read_options(path: Path, parser: HfArgumentParser) -> list[str]:
    """Numbers and words of a YAML file as a command line has them, so that they get its types and are
    checked against its choices; what else it holds becomes a default.

    Raises:
        ValueError: a file that is no mapping, or with names that are no options.
    """
    options = yaml.safe_load(path.read_text())
    if not isinstance(options, dict):
        raise ValueError(f"{path} must map option names to values, got {options!r}")
    if unknown := sorted(options.keys() - {action.dest for action in parser._actions}):
        raise ValueError(f"{path} has what is no option: {unknown}")
    words = {k: v for k, v in options.items() if type(v) in (int, float, str)}
    parser.set_defaults(**{k: v for k, v in options.items() if k not in words})
    return [f"--{name}={value}" for name, value in words.items()]


def prepare(args: TrainingArguments) -> None:
    """Threads, memory and random numbers of a run."""
    if args.device.type == "cpu":
        use_all_cores(args.world_size)
        keep_freed_memory()
    set_seed(args.seed)


def metrics_of(found: dict[str, float], prefix: str) -> dict[str, float]:
    """What `Trainer.evaluate` found, without its prefix and without what says nothing about the model."""
    metrics = {k.removeprefix(f"{prefix}_"): v for k, v in found.items()}
    return {k: v for k, v in metrics.items() if not k.endswith(NOT_RECORDED)}


def temporal_loss_of(args: SpikingTrainingArguments) -> str:
    return "none (collapsed)" if args.collapsed else args.temporal_loss


def train(trainer: SpikingTrainer, args: SpikingTrainingArguments) -> dict[str, Any]:
    """Trains on from the last checkpoint, if there is one, and saves; what results.json says of it.

    How long a run took that was stopped and went on, and its mean loss, are not known: they are then None. Of a run
    that is done it stays what it was.
    """
    resume = args.resume_from_checkpoint or last_checkpoint(args.output_dir)
    if resume and trainer.is_world_process_zero():
        print(f"resuming from {resume}", flush=True)
    trained = trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    trainer.save_state()
    record = Path(args.output_dir) / "results.json"
    if resume and record.exists() and _step_of(resume) == trainer.state.global_step:
        return json.loads(record.read_text())["training"]
    return {
        "steps": trainer.state.global_step,
        "seconds": None if resume else trained.metrics["train_runtime"],
        "loss": None if resume else trained.metrics["train_loss"],
        "temporal_loss": temporal_loss_of(args),
        **({} if args.collapsed else args.temporal_loss_options()),
    }


def _step_of(checkpoint: str) -> int:
    return TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME)).global_step


def base_model(path: str | None) -> str | None:
    """Hub id, or the name of a local folder: the rest of its path is nobody's business."""
    return Path(path).name if path is not None and Path(path).exists() else path


def is_score(name: str, *others: str) -> bool:
    """Whether a metric, of whichever split, is a score of a task or one of `others`."""
    return split_of(name)[1] in (*SCORES, *others)


def save_records(output_dir: Path, results: dict[str, Any]) -> None:
    output_dir.mkdir(parents=True, exist_ok=True)
    write_text(output_dir / "results.json", json.dumps(results, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file that is there as a whole or not at all."""
    write_whole(path, lambda file: file.write(text.encode()))


def weights_digest(folder: str | Path) -> str | None:
    """SHA-256 of the weights in a folder; None where it has none, such as of a Hub id."""
    files = sorted(Path(folder).glob("*.safetensors"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest() if files else None


def record_options(*arguments: Any, of_student: Set[str] = frozenset()) -> None:
    """Writes arguments.yaml into the output folder, at the start of a run: one that goes on from a
    checkpoint there must be asked for the same model, data, loss, seed and training but for its length.

    Args:
        of_student: options that may change while only the dense model, which is trained first, has a checkpoint.

    Raises:
        ValueError: other options than those of the run that it would go on with.
    """
    (args,) = (part for part in arguments if isinstance(part, SpikingTrainingArguments))
    if args.process_index > 0:
        return
    out = Path(args.output_dir)
    of_trainer = {f.name for f in dataclasses.fields(TrainingArguments)}
    free = of_trainer - {"seed"} - (OF_TRAINING - STEPS)
    if (out / "arguments.yaml").exists():
        if last_checkpoint(str(out)):
            check_same_options(out, arguments, ignored=free)
        elif last_checkpoint(str(out / DENSE)):
            of_loss = {f.name for f in dataclasses.fields(SpikingTrainingArguments)} - of_trainer
            check_same_options(out, arguments, ignored=free | of_loss | of_student)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "arguments.yaml", yaml.safe_dump(all_options(arguments)))


def check_same_options(output_dir: Path, arguments: Sequence[Any], ignored: Set[str]) -> None:
    """Raises ValueError where the run in `output_dir` was made with other options than `arguments`."""
    before = yaml.safe_load((output_dir / "arguments.yaml").read_text())
    now = yaml.safe_load(yaml.safe_dump(all_options(arguments)))
    before = NEW_OPTIONS | before
    changed = [
        f"{k} {before[k]!r} -> {now[k]!r}"
        for k in sorted(before.keys() & now.keys() - ignored)
        if before[k] != now[k]
    ]
    if changed:
        raise ValueError(
            f"{output_dir} holds a run with other options ({'; '.join(changed)}): give the same options, or "
            "another --output_dir"
        )


def all_options(arguments: Sequence[Any]) -> dict[str, Any]:
    return {k: v for part in arguments for k, v in part_to_dict(part).items()}


def part_to_dict(part: Any) -> dict[str, Any]:
    if isinstance(part, SpikingTrainingArguments):
        return json.loads(part.to_json_string())
    return dataclasses.asdict(part)


def summary(results: dict[str, Any]) -> str:
    """A table: one row a model, its metrics at the last step and the first of them step by step."""
    lines = []
    for name in ("dense", "before_training", "spiking", "spiking_float32"):
        metrics = results.get(name)
        if metrics is None:
            continue
        final = {k: v for k, v in metrics.items() if not ("_t" in k or k.endswith(NOT_SUMMARISED))}
        shown = "  ".join(f"{k} {100 * v:.1f}" for k, v in final.items() if isinstance(v, float))
        lines.append(f"{name.replace('_', ' '):16} {shown}")
        for key in final:
            steps = [v for k, v in metrics.items() if k.startswith(f"{key}_t")]
            if steps:
                by_step = " ".join(f"{100 * v:.1f}" for v in steps)
                lines.append(f"{'':16} {key} at step 1..{len(steps)}: {by_step}")
    return "\n".join(lines)
