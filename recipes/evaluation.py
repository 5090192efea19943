"""What the recipes on text find out about a model: scores, rates, energy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import metrics_of
from task_data import Inputs, evaluation_batches, model_inputs
from transformers import EvalPrediction, PreTrainedModel, Trainer

from spikenlp import SpikingTrainer, SpikingTrainingArguments
from spikenlp.analysis import SpikeMonitor, energy_by_step, microjoules
from spikenlp.losses.temporal import IGNORE_INDEX
from spikenlp.training import ResumableTrainer, last_checkpoint

LOOKED_INTO = 256
"""Dev samples that rates and energy are taken from."""


def evaluate(trainer: Trainer, inputs: Inputs, prefix: str) -> dict[str, float]:
    """Metrics of each evaluation split; MNLI's are told apart by their names."""
    metrics: dict[str, float] = {}
    for name, split in inputs.evaluation.items():
        metric_key = "_".join(filter(None, (prefix, part_of(name))))
        metrics |= metrics_of(trainer.evaluate(split, metric_key_prefix=metric_key), prefix)
    return metrics


def part_of(split: str) -> str:
    """matched of validation_matched, nothing of validation."""
    return split.removeprefix("validation").replace("_", "")


def of_part(split: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """`metrics` named by the part of the evaluation data that they are of."""
    return {"_".join(filter(None, (part_of(split), name))): v for name, v in metrics.items()}


def ensemble_scores(
    models: Sequence[PreTrainedModel], inputs: Inputs, args: SpikingTrainingArguments
) -> dict[str, float]:
    """Metrics of each evaluation split, of the mean of the logits of dense models."""
    assert inputs.compute_metrics is not None
    found: dict[str, float] = {}
    for name, split in inputs.evaluation.items():
        answers = [dense_trainer(model, inputs, args).predict(split) for model in models]
        logits = np.mean([answer.predictions for answer in answers], axis=0)
        found |= of_part(name, inputs.compute_metrics(EvalPrediction(logits, answers[0].label_ids)))
    return found


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


def dense_trainer(
    model: PreTrainedModel, inputs: Inputs, args: SpikingTrainingArguments
) -> Trainer:
    # transformers' BERT takes loss keywords but returns a plain mean: without this the gradient of
    # accumulated batches would be as many times too large.
    model.accepts_loss_kwargs = False
    return ResumableTrainer(
        model,
        args,
        train_dataset=inputs.train,
        eval_dataset=next(iter(inputs.evaluation.values())),
        data_collator=inputs.collator,
        processing_class=inputs.tokenizer,
        compute_metrics=inputs.compute_metrics,
    )


def spending(model: PreTrainedModel, inputs: Inputs, size: int) -> dict[str, Any]:
    """Rates, and energy by time step, of `LOOKED_INTO` dev samples that are read in batches of `size`."""
    model.eval()
    batches = evaluation_batches(inputs, LOOKED_INTO, size)
    batches = [{k: v.to(model.device) for k, v in batch.items()} for batch in batches]
    with SpikeMonitor(model) as monitor, torch.no_grad():
        for batch in batches:
            model(**batch)
    samples = sum(len(batch["input_ids"]) for batch in batches)
    energies: dict[str, list[float]] = {}
    for batch in batches:
        share = len(batch["input_ids"]) / samples
        for name, by_step in microjoules(energy_by_step(model, batch)).items():
            before = energies.get(name, [0.0] * len(by_step))
            energies[name] = [a + share * b for a, b in zip(before, by_step, strict=True)]
    return {
        "firing_rate": float(monitor.rate_by_step.mean()),
        "firing_rate_by_step": monitor.rate_by_step.tolist(),
        "spikes_per_neuron": monitor.spikes_per_neuron,
        "energy_samples": samples,
        "energy_microjoules": energies,
    }


def float32_scores(trainer: SpikingTrainer, inputs: Inputs) -> dict[str, dict[str, float]]:
    """Metrics of each evaluation split as pipelines run a model, in float32, of one that was trained in less:
    a rounding that falls the other way changes spikes, and with them answers."""
    args = trainer.args
    if args.mixed_precision == "no" or trainer.model.dtype != torch.float32:
        return {}
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
    assert trainer.compute_metrics is not None
    found: dict[str, float] = {}
    for name, split in inputs.evaluation.items():
        batches = model_inputs(inputs, split, args.per_device_eval_batch_size, labels=True)
        labels = [batch.pop("labels") for batch in batches]
        with torch.no_grad():
            outputs = [model(**{k: v.to(model.device) for k, v in b.items()}) for b in batches]
        of_tokens = inputs.task.kind == "tokens"
        logits, by_step = (
            joined([output[key].cpu() for output in outputs], dim=-2 if of_tokens else None)
            for key in ("logits", "timestep_logits")
        )
        if of_tokens:  # the Trainer hands [N, L, T, C] to its metrics
            by_step = by_step.swapaxes(1, 2)
        answers = joined(labels, dim=-1 if of_tokens else None)
        found |= of_part(name, trainer.compute_metrics(EvalPrediction((logits, by_step), answers)))
    return {"spiking_float32": found}


def joined(batches: Sequence[torch.Tensor], dim: int | None) -> np.ndarray:
    """One array of all rows; along `dim`, that of the tokens, the shorter ones are filled up with -100."""
    if dim is not None:
        longest = max(batch.shape[dim] for batch in batches)
        behind = [0] * (-2 * dim - 1)
        batches = [
            F.pad(batch, [*behind, longest - batch.shape[dim]], value=IGNORE_INDEX)
            for batch in batches
        ]
    return torch.cat(list(batches)).numpy()
