"""What image_tmc.py and dvs_tmc.py have in common: the model, its training and the record."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import common
import numpy as np
import torch
from common import DENSE, base_model, metrics_of, prepare, record_options, save_records, summary
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    BaseImageProcessor,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedModel,
    Trainer,
    default_data_collator,
    set_seed,
)

from spikenlp import (
    QKFormerConfig,
    QKFormerForImageClassification,
    SpikingResNetConfig,
    SpikingResNetForImageClassification,
    SpikingTrainer,
    SpikingTrainingArguments,
    SpikingVGGConfig,
    SpikingVGGForImageClassification,
    watchdogs,
)
from spikenlp.losses import few_class_weight
from spikenlp.models.vision_conversion import calibrate
from spikenlp.provenance import run_record

CALIBRATION_BATCH = 32
SUBSET_SEED = 0
"""Which samples `max_train_samples` keeps and what is validated on depend on no run's seed."""
MODELS = {
    "spiking_resnet": (SpikingResNetConfig, SpikingResNetForImageClassification),
    "spiking_vgg": (SpikingVGGConfig, SpikingVGGForImageClassification),
    "qkformer": (QKFormerConfig, QKFormerForImageClassification),
}
ORIGINAL = (".pth", ".pt", ".tar")
"""Suffixes of the papers' own checkpoints, which `from_original` converts."""
OF_CONVERSION = ("num_timesteps", "neuron")
"""Fields of the config that a conversion sets."""
VISION_DEFAULTS = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "load_best_model_at_end": True,
    "metric_for_best_model": "accuracy",
    "train_sampling_strategy": "random",
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0,
}


@dataclass
class VisionModelArguments:
    model: Literal["spiking_resnet", "spiking_vgg", "qkformer"] = field(
        default="spiking_resnet", metadata={"help": "Architecture, where nothing is loaded."}
    )
    preset: str | None = field(
        default=None, metadata={"help": "A published network, e.g. sew-resnet-34 or hst-10-768."}
    )
    model_config: str | None = field(
        default=None,
        metadata={
            "help": "Further fields of the config as JSON: '{\"hidden_sizes\": [16, 32, 64]}'."
        },
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint to start from: spiking, dense with --neuron rounding, or the file of "
            "a paper's authors (.pth), for --model."
        },
    )
    num_timesteps: int | None = field(
        default=None,
        metadata={
            "help": "T (default: the checkpoint's, preset's or config's); of events, the frames (or 10)."
        },
    )
    neuron: Literal["if", "lif", "rounding", "relu"] | None = field(
        default=None, metadata={"help": "Neuron (default: the config's, lif); relu is dense."}
    )
    dense_first: bool = field(
        default=False,
        metadata={"help": "Train the dense network, with the same budget, before it is converted."},
    )
    calibration_batches: int = field(
        default=8,
        metadata={"help": f"Batches of {CALIBRATION_BATCH} that amplitudes are calibrated on."},
    )
    reconstruct: bool = field(
        default=False,
        metadata={
            "help": "Fit a converted network's convolutions, too, to the spikes that reach them on these "
            "batches, without training."
        },
    )

    @property
    def model_class(self) -> type[PreTrainedModel]:
        path = self.model_name_or_path
        loaded = path is not None and not path.endswith(ORIGINAL)
        return MODELS[AutoConfig.from_pretrained(path).model_type if loaded else self.model][1]

    def fields(self) -> dict[str, Any]:
        """Fields of the config that the options name."""
        given = self.model_config or "{}"
        fields = json.loads(given) if isinstance(given, str) else dict(given)
        for name in OF_CONVERSION:
            if (value := getattr(self, name)) is not None:
                fields[name] = value
        return fields

    def config_field(self, name: str, usual: Any) -> Any:
        """A field of the config that the data follow: of the options, the checkpoint or the preset, or `usual`."""
        fields, path = self.fields(), self.model_name_or_path
        if name not in fields and path is not None:
            if not path.endswith(ORIGINAL):
                return getattr(AutoConfig.from_pretrained(path), name, usual)
            config: Any = self.original_config
            of_any_size = config.model_type == "spiking_resnet" and config.stem != "imagenet"
            if name != "num_timesteps" and not (name == "image_size" and of_any_size):
                return getattr(config, name, usual)
        return {**MODELS[self.model][0].presets.get(self.preset, {}), **fields}.get(name, usual)

    @cached_property
    def original_config(self) -> PreTrainedConfig:
        """What the file of a paper's authors says of its network, and T and, of a network for any, the size of
        images, which it does not."""
        return MODELS[self.model][1].from_original(self.model_name_or_path, **self.fields()).config


@dataclass
class SplitArguments:
    data_dir: str | None = field(default=None, metadata={"help": "Folder of the data."})
    validation_fraction: float = field(
        default=0.1, metadata={"help": "Share of the training set that is validated on."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only so many."})
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Validate and test on only so many."}
    )


@dataclass
class VisionData:
    """Data sets of {"pixel_values", "labels"}; `calibration`: training samples as they are; `processor`:
    what transformers' pipelines bring an image to the model's input with; `tested_on`: the source's name
    of the split that is `test`."""

    source: str
    train: Dataset
    calibration: Dataset
    validation: Dataset
    test: Dataset
    labels: list[str]
    config_fields: dict[str, Any]
    processor: BaseImageProcessor | None = None
    tested_on: str = "test"

    def label_fields(self) -> dict[str, Any]:
        return {
            "id2label": dict(enumerate(self.labels)),
            "label2id": {name: i for i, name in enumerate(self.labels)},
        }


def some(indices: Sequence[int], limit: int | None) -> list[int]:
    """At most `limit` of the indices, drawn at random but the same each time, in their order."""
    if limit is None or limit >= len(indices):
        return list(indices)
    drawn = np.random.default_rng(SUBSET_SEED).permutation(len(indices))[:limit]
    return [indices[i] for i in sorted(drawn.tolist())]


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def neuron_of(path: str) -> str:
    config = AutoConfig.from_pretrained(path)
    if config.model_type not in MODELS:
        raise ValueError(f"{path} is a {config.model_type}: choose from {', '.join(MODELS)}")
    return config.neuron


def check_labels(path: str, config: PreTrainedConfig, data: VisionData) -> None:
    """Raises ValueError where a model was trained for another number of labels."""
    found, wanted = config.num_labels, len(data.labels)
    if found != wanted:
        raise ValueError(
            f"{path} has {found} labels, {data.source} {wanted}: give a model of these data"
        )


def build_model(
    model_args: VisionModelArguments,
    data: VisionData,
    training_args: SpikingTrainingArguments,
    results: dict[str, Any],
) -> PreTrainedModel:
    """The model that is to be trained; what it came from is measured into `results`."""
    fields = {**data.config_fields, **data.label_fields(), **model_args.fields()}
    path = model_args.model_name_or_path
    if model_args.reconstruct and fields.get("neuron") != "rounding":
        raise ValueError("--reconstruct is for --neuron rounding, converted from a dense network")
    if path is not None:
        if model_args.dense_first or model_args.preset:
            raise ValueError("--model_name_or_path excludes --dense_first and --preset")
        original = path.endswith(ORIGINAL)
        neuron = "spiking" if original else neuron_of(path)
        asked = fields.get("neuron", neuron)
        if neuron == "relu" and asked == "rounding":
            check_labels(path, AutoConfig.from_pretrained(path), data)
            dense = AutoModelForImageClassification.from_pretrained(path, **data.label_fields())
            check_shape(dense, model_args)
            results["dense"] = score(trainer_of(dense, data, training_args), data.test, "dense")
            return convert(dense, model_args, data, training_args)
        if model_args.reconstruct:
            raise ValueError(f"--reconstruct converts a dense network, but {path} is spiking")
        if asked != neuron and asked in ("rounding", "relu"):
            raise ValueError(
                f"{path} was trained with {neuron} neurons, not {asked}: rounding neurons are converted "
                "from a dense network (relu), which is trained from scratch"
            )
        if original:
            check_labels(path, model_args.original_config, data)
            return MODELS[model_args.model][1].from_original(path, **fields)
        trained = AutoConfig.from_pretrained(path)
        check_labels(path, trained, data)
        model = AutoModelForImageClassification.from_pretrained(path, **fields)
        if neuron == "rounding" and model.config.num_timesteps != trained.num_timesteps:
            print(f"{path} is to spike otherwise: its amplitudes are calibrated anew", flush=True)
            calibrate(model, calibration_batches(model_args, data, training_args))
        return model
    config_class, model_class = MODELS[model_args.model]
    if fields.get("neuron") == "rounding" and not model_args.dense_first:
        raise ValueError(
            "rounding neurons start from a dense network: give --dense_first, or a dense checkpoint "
            "by --model_name_or_path"
        )
    if model_args.dense_first:
        if fields.get("neuron") != "rounding":
            raise ValueError(
                f"--dense_first is for --neuron rounding, got {fields.get('neuron')}: to compare with "
                "the dense network, run --neuron relu on its own"
            )
        fields["neuron"] = "relu"
    config = (
        config_class.preset(model_args.preset, **fields)
        if model_args.preset
        else config_class(**fields)
    )
    model = model_class(config)
    if not model_args.dense_first:
        return model
    args = dataclasses.replace(
        training_args, output_dir=str(Path(training_args.output_dir) / DENSE), push_to_hub=False
    )
    trainer = trainer_of(model, data, args)
    train(trainer)
    results["dense"] = score(trainer, data.test, "dense")
    return convert(model, model_args, data, training_args)


def check_shape(dense: PreTrainedModel, model_args: VisionModelArguments) -> None:
    """Raises ValueError where a network that is converted is to have other fields than T and neuron."""
    fields = {k: v for k, v in model_args.fields().items() if k not in OF_CONVERSION}
    differing = [
        f"{name} {getattr(dense.config, name, None)!r}, not {value!r}"
        for name, value in fields.items()
        if getattr(dense.config, name, None) != value
    ]
    if differing:
        raise ValueError(
            f"{model_args.model_name_or_path} has {'; '.join(differing)}: a conversion changes "
            f"{' and '.join(OF_CONVERSION)} alone, leave the rest out of --model_config"
        )


def convert(
    dense: PreTrainedModel,
    model_args: VisionModelArguments,
    data: VisionData,
    training_args: SpikingTrainingArguments,
) -> PreTrainedModel:
    overrides = {k: v for k, v in model_args.fields().items() if k in OF_CONVERSION}
    return type(dense).from_dense(
        dense.cpu().eval(),
        calibration=calibration_batches(model_args, data, training_args),
        reconstruct=model_args.reconstruct,
        **overrides,
    )


def calibration_batches(
    model_args: VisionModelArguments, data: VisionData, training_args: SpikingTrainingArguments
) -> list[dict[str, torch.Tensor]]:
    """Training images as they are, drawn with the seed."""
    size = min(model_args.calibration_batches * CALIBRATION_BATCH, len(data.calibration))  # type: ignore[arg-type]
    chosen = np.random.default_rng(training_args.seed).permutation(len(data.calibration))[:size]  # type: ignore[arg-type]
    pixels = [data.calibration[i]["pixel_values"] for i in chosen.tolist()]
    starts = range(0, size, CALIBRATION_BATCH)
    return [{"pixel_values": torch.stack(pixels[i : i + CALIBRATION_BATCH])} for i in starts]


def trainer_of(
    model: PreTrainedModel, data: VisionData, args: SpikingTrainingArguments
) -> SpikingTrainer:
    """Dense networks are trained with the cross entropy of their mean logits, which is SDT."""
    if model.config.neuron == "relu":
        args = dataclasses.replace(args, temporal_loss="sdt")
    return SpikingTrainer(
        model,
        args,
        train_dataset=data.train,
        eval_dataset=data.validation,
        data_collator=default_data_collator,
        processing_class=data.processor,
        compute_metrics=accuracy,
        callbacks=watchdogs(model, args),
    )


def train(trainer: SpikingTrainer) -> dict[str, Any]:
    """`common.train`, and the epochs and the best checkpoint."""
    trained = common.train(trainer, trainer.args)
    best = trainer.state.best_model_checkpoint
    return {
        **trained,
        "epochs": trainer.state.epoch,
        "best_checkpoint": Path(best).name if best else None,
        "best_validation_accuracy": trainer.state.best_metric,
    }


def score(trainer: Trainer, split: Dataset, prefix: str) -> dict[str, float]:
    return metrics_of(trainer.evaluate(split, metric_key_prefix=prefix), prefix)


def describe(data: VisionData, model: PreTrainedModel, args: SpikingTrainingArguments) -> str:
    config = model.config
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    loss = "sdt" if config.neuron == "relu" else args.temporal_loss
    if loss == "tmc":
        weight = args.theta_weight
        if weight == "auto":
            weight = f"auto = {few_class_weight(config.num_labels):.3f}"
        loss += f", theta over the {args.theta_reduction}, theta_weight {weight}"
    sizes = ", ".join(f"{len(getattr(data, k)):,} {k}" for k in ("train", "validation", "test"))
    parameters = sum(p.numel() for p in model.parameters())
    return "\n".join(
        [
            f"data            {data.source}: {sizes}",
            f"model           {config.model_type}, {parameters / 1e6:.2f}M parameters, "
            f"{config.neuron} neurons, T = {config.num_timesteps}",
            f"temporal loss   {loss}",
            f"processes       {args.world_size} on {args.device.type}, with "
            f"{torch.get_num_threads()} threads each; global batch {batch}",
        ]
    )


def run(
    model_args: VisionModelArguments,
    data_args: SplitArguments,
    training_args: SpikingTrainingArguments,
    load_data: Callable[[Any, Any], VisionData],
) -> dict[str, Any]:
    """The whole job; returns what results.json holds."""
    prepare(training_args)
    with training_args.main_process_first(desc="data"):
        data = load_data(model_args, data_args)
    of_student = {"calibration_batches", "reconstruct"}
    record_options(model_args, data_args, training_args, of_student=of_student)
    results: dict[str, Any] = {
        "data": data.source,
        "samples": {k: len(getattr(data, k)) for k in ("train", "validation", "test")},
        "evaluated_on": data.tested_on,
        "base_model": base_model(model_args.model_name_or_path),
        "dense_first": model_args.dense_first,
        "seed": training_args.seed,
        "run": run_record(),
    }
    model = build_model(model_args, data, training_args, results)
    shape = ("model_type", "num_timesteps", "neuron", "hidden_sizes", "depths", "image_size")
    results["config"] = {k: getattr(model.config, k) for k in shape}
    results["config"]["parameters"] = sum(p.numel() for p in model.parameters())
    set_seed(training_args.seed)  # the same order of data whatever came before
    trainer = trainer_of(model, data, training_args)
    if trainer.is_world_process_zero():
        print(describe(data, model, training_args), flush=True)
    output_dir = Path(training_args.output_dir)
    if "dense" in results or model_args.model_name_or_path is not None:
        results["before_training"] = score(trainer, data.test, "before_training")
    results["training"] = train(trainer)
    results["validation"] = score(trainer, data.validation, "validation")
    name = "dense" if model.config.neuron == "relu" else "spiking"
    results[name] = score(trainer, data.test, "test")
    if trainer.is_world_process_zero():
        save_records(output_dir, results)
        print(summary(results), flush=True)
    if training_args.push_to_hub:
        trainer.push_to_hub(results=results)
    else:
        trainer.create_model_card(results=results)
    return results
