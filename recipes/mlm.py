"""Pretrain a spiking BERT by masked language modelling, from scratch or on from a model.

    python recipes/train_tokenizer.py --corpus_files corpus.txt --output_dir outputs/tokenizer
    accelerate launch recipes/mlm.py --corpus_files corpus.txt --tokenizer_name outputs/tokenizer \\
        --config_overrides hidden_size=256,num_hidden_layers=4 --output_dir outputs/mlm
    accelerate launch recipes/mlm.py --corpus_dataset Salesforce/wikitext \\
        --corpus_config wikitext-103-raw-v1 --model_name_or_path bert-base-uncased --output_dir outputs/mlm

Text is packed into blocks of `--max_seq_length` tokens. `--model_name_or_path` is a dense BERT (converted
and calibrated) or a spiking checkpoint, whose tokenizer is used; without it a model starts from scratch, with
`--tokenizer_name` or a WordPiece vocabulary of the training text. Every temporal loss works, each masked token
being a sample; `--collapsed` trains without the time loop, at about the cost of a dense model.

A run that was stopped goes on from its last checkpoint when the same command is given again. The output
folder gets the model, the tokenizer, arguments.yaml, results.json (loss, perplexity and accuracy on masked
tokens at every time step: dense, converted, trained) and the Trainer's own logs. glue_tmc.py fine-tunes it.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from common import (
    metrics_of,
    parse_arguments,
    prepare,
    record_options,
    save_records,
    temporal_loss_of,
    train,
)
from corpus import BlockArguments, in_batches
from student import (
    CALIBRATION_BATCH,
    FROM_SCRATCH,
    OF_TOKENIZER,
    StudentArguments,
    config_from_scratch,
)
from transformers import (
    AutoConfig,
    BertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)

from spikenlp import (
    SpikingBertConfig,
    SpikingBertForMaskedLM,
    SpikingTrainingArguments,
    watchdogs,
)
from spikenlp.data import ReproducibleMasking
from spikenlp.models.spiking_bert.conversion_spiking_bert import calibrate
from spikenlp.provenance import run_record
from spikenlp.training import MaskedLMTrainer, check_tokenizer_fits
from spikenlp.training.masked_lm import masked_lm_metrics, token_scores


@dataclass
class MaskedLMModelArguments(StudentArguments):
    config_overrides: str | None = field(
        default=None,
        metadata={
            "help": "Fields of a model from scratch: hidden_size=256,num_hidden_layers=4. Defaults: "
            f"{', '.join(f'{k}={v}' for k, v in FROM_SCRATCH.items())} (more if --max_seq_length is)."
        },
    )


@dataclass
class TextArguments(BlockArguments):
    mlm_probability: float = field(
        default=0.15,
        metadata={
            "help": "Share of tokens to predict (80%% [MASK], 10%% random, 10%% as they are)."
        },
    )


@dataclass
class Blocks:
    """Packed text."""

    source: str
    train: datasets.Dataset
    validation: datasets.Dataset
    tokenizer: PreTrainedTokenizerBase
    collator: ReproducibleMasking

    def calibration_batches(self, batches: int) -> list[dict[str, torch.Tensor]]:
        rows = self.train.select(range(min(batches * CALIBRATION_BATCH, len(self.train))))
        return in_batches(rows, self.collator, CALIBRATION_BATCH)


def load_blocks(model_args: StudentArguments, text_args: TextArguments, seed: int) -> Blocks:
    corpus, source = text_args.load_corpus()
    tokenizer = model_args.load_tokenizer(corpus["train"]["text"])
    splits = text_args.pack(corpus, tokenizer)
    collator = ReproducibleMasking(tokenizer, mlm_probability=text_args.mlm_probability, seed=seed)
    return Blocks(source, splits["train"], splits["validation"], tokenizer, collator)


def build_model(
    blocks: Blocks,
    model_args: MaskedLMModelArguments,
    text_args: TextArguments,
    args: SpikingTrainingArguments,
    results: dict[str, Any],
) -> SpikingBertForMaskedLM:
    fields = model_args.spiking_fields()
    path = model_args.model_name_or_path
    calibration = partial(blocks.calibration_batches, model_args.calibration_batches)
    if path is None:
        model_args.check_reconstruct("the model starts from scratch")
        config = config_from_scratch(
            blocks.tokenizer,
            text_args.max_seq_length,
            **{**parse_overrides(model_args.config_overrides, fields), **fields},
        )
        text_args.check_length(config)
        model = SpikingBertForMaskedLM(config)
        calibrate(model, calibration(), model_args.spike_cost)
        return model
    if model_args.config_overrides is not None:
        raise ValueError(
            f"--config_overrides {model_args.config_overrides} is for a model from scratch: leave out "
            f"--model_name_or_path {path}, whose shape is given"
        )
    source_config = AutoConfig.from_pretrained(path)
    text_args.check_length(source_config)
    if source_config.model_type == "spiking_bert":
        model_args.check_reconstruct(f"{path} is spiking")
        model = SpikingBertForMaskedLM.from_pretrained(path, dtype=torch.float32, **fields)
        if model_args.spikes_otherwise(path):
            print(f"{path} is to spike otherwise: its amplitudes are calibrated anew", flush=True)
            calibrate(model, calibration(), model_args.spike_cost)
        return model
    if source_config.model_type != "bert":
        raise ValueError(
            f"{path} is of model_type {source_config.model_type!r}: give a dense BERT ('bert') or "
            "a spiking checkpoint ('spiking_bert')"
        )
    dense = BertForMaskedLM.from_pretrained(path, dtype=torch.float32)
    check_tokenizer_fits(dense, blocks.tokenizer)
    if "BertForMaskedLM" in (source_config.architectures or []):
        results["dense"] = evaluate(dense_trainer(dense, blocks, args))
    return SpikingBertForMaskedLM.from_dense(
        dense,
        calibration=calibration(),
        reconstruct=model_args.reconstruct,
        spike_cost=model_args.spike_cost,
        **fields,
    )


def parse_overrides(text: str | None, taken: Collection[str] = ()) -> dict[str, Any]:
    """ "hidden_size=256,hidden_act=relu" -> fields, of the types that the config has. Raises ValueError for those
    `taken`, which options say, or that the tokenizer says."""
    defaults = SpikingBertConfig()
    fields: dict[str, Any] = {}
    for item in text.split(",") if text else []:
        name, _, value = item.strip().partition("=")
        if name in taken or name in OF_TOKENIZER:
            raise ValueError(
                f"--config_overrides has {item!r}, and {name} is what --{name} or the tokenizer says: leave it out"
            )
        kind = type(getattr(defaults, name, None))
        try:
            if kind not in (int, float, str):
                raise ValueError
            fields[name] = kind(value)
        except ValueError:
            raise ValueError(
                f"--config_overrides has {item!r}: expected name=value with a field of "
                "SpikingBertConfig that is a number or a word"
            ) from None
    return fields


def dense_trainer(
    model: PreTrainedModel, blocks: Blocks, args: SpikingTrainingArguments
) -> Trainer:
    return Trainer(
        model,
        args,
        eval_dataset=blocks.validation,
        data_collator=blocks.collator,
        compute_metrics=masked_lm_metrics,
        preprocess_logits_for_metrics=lambda logits, labels: token_scores(
            logits[labels != -100], labels
        ),
    )


def evaluate(trainer: Trainer) -> dict[str, float]:
    return metrics_of(trainer.evaluate(), "eval")


def describe(blocks: Blocks, model: PreTrainedModel, args: SpikingTrainingArguments) -> str:
    config = model.config
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    parameters = sum(p.numel() for p in model.parameters())
    return "\n".join(
        [
            f"text            {blocks.source}: {len(blocks.train):,} blocks of up to "
            f"{len(blocks.train[0]['input_ids'])} tokens, {len(blocks.validation):,} for validation",
            f"vocabulary      {len(blocks.tokenizer):,} tokens",
            f"model           {parameters / 1e6:.1f}M parameters, {config.num_hidden_layers} layers "
            f"of {config.hidden_size}, {config.neuron} neurons, nonlinearity {config.nonlinearity}",
            f"time steps      T = {config.num_timesteps}",
            f"temporal loss   {temporal_loss_of(args)}",
            f"processes       {args.world_size} on {args.device.type}, with "
            f"{torch.get_num_threads()} threads each; global batch {batch}",
            f"learning rates  {args.learning_rate:g} weights, {args.neuron_learning_rate:g} neurons",
        ]
    )


def run(
    model_args: MaskedLMModelArguments,
    text_args: TextArguments,
    training_args: SpikingTrainingArguments,
) -> dict[str, Any]:
    """The whole job; returns what results.json holds."""
    prepare(training_args)
    with training_args.main_process_first(desc="text"):
        blocks = load_blocks(model_args, text_args, training_args.seed)
    record_options(model_args, text_args, training_args)
    results: dict[str, Any] = {
        "text": blocks.source,
        "blocks": {"train": len(blocks.train), "validation": len(blocks.validation)},
        "seed": training_args.seed,
        "run": run_record(),
    }
    model = build_model(blocks, model_args, text_args, training_args, results)
    results["config"] = model.config.to_diff_dict()
    trainer = MaskedLMTrainer(
        model,
        training_args,
        train_dataset=blocks.train,
        eval_dataset=blocks.validation,
        data_collator=blocks.collator,
        processing_class=blocks.tokenizer,
        callbacks=watchdogs(model, training_args),
    )
    if trainer.is_world_process_zero():
        print(describe(blocks, model, training_args), flush=True)
    results["before_training"] = evaluate(trainer)
    results["training"] = train(trainer, training_args)
    results["spiking"] = evaluate(trainer)
    if trainer.is_world_process_zero():
        output_dir = Path(training_args.output_dir)
        save_records(output_dir, results)
        print(summary(results), flush=True)
    return results


def summary(results: dict[str, Any]) -> str:
    lines = []
    for name in ("dense", "before_training", "spiking"):
        if name not in results:
            continue
        for key, scale, digits in (("perplexity", 1, 1), ("accuracy", 100, 1)):
            steps = [v for k, v in results[name].items() if k.startswith(f"{key}_t")]
            by_step = " ".join(f"{scale * v:.{digits}f}" for v in steps)
            lines.append(f"{name.replace('_', ' '):16} {key} at step 1..{len(steps)}: {by_step}")
    return "\n".join(lines)


def main() -> None:
    transformers.utils.logging.set_verbosity_warning()
    arguments = parse_arguments(
        sys.argv[1:],
        (MaskedLMModelArguments, TextArguments, SpikingTrainingArguments),
        output_dir="outputs/mlm",
        temporal_loss="sdt",
        train_sampling_strategy="random",
        remove_unused_columns=False,  # special_tokens_mask is for the collator
        per_device_eval_batch_size=32,
    )
    run(*arguments)


if __name__ == "__main__":
    main()
