"""A spiking encoder for any task, from a dense one and raw text.

    python recipes/general_distill.py --model_name_or_path path/to/bert --corpus_files text/ \\
        --output_dir outputs/general
    python recipes/distill.py --task_name sst2 --data_dir glue --model_name_or_path path/to/bert \\
        --student outputs/general/unrolled --output_dir outputs/sst2

Phases, each in a folder of its own under `--output_dir`, in this order:

    converted  the student: the spiking twin of the teacher, or of `--student`, calibrated on the text
    collapsed  trains the student without the time loop, at about the cost of a dense one
    unrolled   trains it over T time steps; the usual options (`--max_steps`, `--learning_rate`, ...) are
               those of this phase

The student learns hidden states and attention scores of the dense encoder, the teacher. A student of fewer
layers learns those of evenly spaced ones, a narrower one through projections that are dropped in the end; one
with another number of heads takes `--attention_weight 0`. results.json holds, after each phase, how alike the
last hidden states of student and teacher are on held-out text by time step (linear centred kernel alignment),
spikes and energy.

A phase that is done is not repeated, and one that was stopped goes on from its last checkpoint, when the same
command is given again.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import phases
import torch
import transformers
from common import base_model, parse_arguments, prepare
from corpus import BlockArguments, in_batches
from phases import OF_TEMPORAL_LOSS, CollapsedArguments, Job, PhaseArguments, finish, listed
from student import (
    CALIBRATION_BATCH,
    ConversionArguments,
    bert_config,
    check_tokenizer,
    dense_config,
)
from torch import Tensor
from transformers import BertModel, DataCollatorWithPadding, PreTrainedTokenizerBase

from spikenlp import SpikingBertModel, watchdogs
from spikenlp.analysis import energy_by_step, microjoules
from spikenlp.metrics import LinearCKA
from spikenlp.models.modes import collapsed
from spikenlp.models.over_time import running_mean
from spikenlp.training import DistillationArguments, DistillationTrainer
from spikenlp.training.distillation import check_shapes
from spikenlp.training.trainer import check_penalty, check_tokenizer_fits

ENERGY_BLOCKS = 8
USELESS = OF_TEMPORAL_LOSS | {"logit_weight", "temperature", "label_smoothing_factor"}
"""Options of `DistillationArguments` that bear on answers, which raw text has none of."""
USUAL: dict[str, Any] = {"logit_weight": 0.0, "attention_weight": 1.0, "temporal_loss": "sdt"}


class Converted(phases.Converted):
    job: GeneralDistillation

    def source(self) -> str | Path:
        return self.job.source

    def bearing(self) -> set[str]:
        return super().bearing() - USELESS | {"hidden_act"}

    def run(self) -> dict[str, Any]:
        job, options = self.job, self.job.options
        blocks = job.blocks["train"]
        count = min(options.calibration_batches * CALIBRATION_BATCH, len(blocks))
        batches = in_batches(blocks.select(range(count)), job.collator, CALIBRATION_BATCH)
        model, created, dropped = options.make_student(
            SpikingBertModel, BertModel, self.source(), batches
        )
        self.announce(listed(created), listed(dropped))
        if job.args.process_index == 0:
            model.save_pretrained(self.folder)
            job.tokenizer.save_pretrained(self.folder)
        return job.measure(model)


class Taught(phases.Training):
    """Trains the student towards the dense encoder."""

    job: GeneralDistillation

    def models(self) -> dict[str, str | Path]:
        return {**super().models(), "teacher": self.job.dense}

    def bearing(self) -> set[str]:
        return super().bearing() - USELESS

    def run(self) -> dict[str, Any]:
        job, args = self.job, self.arguments()
        model = SpikingBertModel.from_pretrained(self.source())
        job.options.check_converted(Path(self.source()), model.config)
        trainer = DistillationTrainer(
            model,
            args,
            teacher=job.teacher,
            train_dataset=job.blocks["train"],
            data_collator=job.collator,
            processing_class=job.tokenizer,
            callbacks=watchdogs(model, args),
        )
        self.announce_training(model)
        training = self.fit(trainer)
        return {**job.measure(model), "training": training}


class Collapsed(Taught, phases.Collapsed):
    pass


class Unrolled(Taught, phases.Unrolled):
    pass


KINDS = (Converted, Collapsed, Unrolled)
PHASES = tuple(kind.name for kind in KINDS)


@dataclass
class GeneralArguments(ConversionArguments, CollapsedArguments, PhaseArguments):
    phases: list[str] = field(
        default_factory=lambda: list(PHASES),
        metadata={"help": f"Phases to run, of {', '.join(PHASES)}.", "choices": PHASES},
    )


class GeneralDistillation(Job):
    """The phases of one encoder.

    Raises:
        ValueError: a teacher that is no dense BERT; a student with another tokenizer, or that is deeper or
            has other heads.
    """

    kinds = KINDS
    recorded = (
        "learning_rate",
        "neuron_learning_rate",
        "per_device_train_batch_size",
        "hidden_weight",
        "attention_weight",
        "spike_target",
        "spike_weight",
        "collapsed_timesteps",
        "seed",
    )

    def __init__(
        self,
        options: GeneralArguments,
        text_args: BlockArguments,
        args: DistillationArguments,
        blocks: datasets.DatasetDict,
        tokenizer: PreTrainedTokenizerBase,
    ):
        super().__init__(options, args, options.phases, [text_args])
        self.dense = str(options.model_name_or_path)
        self.source = options.student or self.dense
        self.teacher = BertModel.from_pretrained(self.dense, add_pooling_layer=False).eval()
        self.tokenizer = tokenizer
        check_tokenizer_fits(self.teacher, tokenizer)
        self.blocks = blocks.remove_columns("special_tokens_mask")
        self.collator = DataCollatorWithPadding(self.tokenizer, pad_to_multiple_of=8)
        config = options.student_config(options.phases)
        for phase in self.chosen:
            check_penalty(config, phase.arguments())
        if options.student:
            check_tokenizer(options.student, tokenizer, options.tokenizer_name or self.dense)
        check_shapes(bert_config(self.source), dense_config(self.dense), args, "--attention_weight")

    def measure(self, model: SpikingBertModel) -> dict[str, Any]:
        """Alignment with the teacher on the validation blocks, spikes and energy by step."""
        device, size = self.args.device, self.args.per_device_eval_batch_size
        batches = in_batches(self.blocks["validation"], self.collator, size)
        batches = [{k: v.to(device) for k, v in batch.items()} for batch in batches]
        teacher, model = self.teacher.to(device), model.to(device).eval()
        with torch.autocast(device.type, torch.bfloat16, enabled=self.args.bf16), torch.no_grad():
            found: dict[str, Any] = {"cka": alignment(model, teacher, batches)}
            if model.config.neuron == "rounding":
                with collapsed(model.config):
                    found["cka_collapsed"] = alignment(model, teacher, batches)[0]
            few = {k: v[:ENERGY_BLOCKS] for k, v in batches[0].items()}
            reports = energy_by_step(model, few)
        found["energy_blocks"] = len(few["input_ids"])
        found["energy_microjoules"] = microjoules(reports)
        found["spikes_per_neuron"] = [report.spikes_per_neuron for report in reports]
        return found


def alignment(
    model: SpikingBertModel, teacher: BertModel, batches: list[dict[str, Tensor]]
) -> list[float]:
    """Linear CKA of the student's last hidden state, a mean over the time steps so far, with the teacher's, by
    step; of a collapsed student one figure."""
    steps = 1 if model.config.collapsed else model.config.num_timesteps
    by_step = [LinearCKA() for _ in range(steps)]
    for batch in batches:
        real = batch["attention_mask"].bool()
        wanted = teacher(**batch).last_hidden_state[real]
        outputs = model(**batch, output_timesteps=True)
        sent = outputs.timestep_hidden_state
        states = (
            outputs.last_hidden_state[None] if sent is None else running_mean(sent.transpose(0, 1))
        )
        for cka, state in zip(by_step, states, strict=True):
            cka.update(state[real], wanted)
    return [cka.compute() for cka in by_step]


def check_useful(args: DistillationArguments) -> None:
    """Raises ValueError where an option is given that bears on answers alone."""
    usual = {f.name: f.default for f in dataclasses.fields(args)} | USUAL
    if given := [name for name in sorted(USELESS) if getattr(args, name) != usual[name]]:
        raise ValueError(
            f"--{given[0]} does nothing here: raw text has no labels, and a teacher without a head no "
            "answers. Leave it out"
        )


def summary(results: dict[str, Any]) -> str:
    """A row a phase: alignment with the teacher by step, and of the collapsed twin; spikes."""
    lines = []
    for phase, found in results.items():
        by_step = " / ".join(f"{value:.3f}" for value in found["cka"])
        twin = f"; collapsed {found['cka_collapsed']:.3f}" if "cka_collapsed" in found else ""
        spikes = found["spikes_per_neuron"][-1]
        lines.append(f"{phase:10} CKA {by_step}{twin}; {spikes:.2f} spikes per neuron")
    return "\n".join(lines)


def distill_general(argv: list[str]) -> dict[str, Any]:
    """The whole job; returns what results.json holds."""
    kinds = (GeneralArguments, BlockArguments, DistillationArguments)
    options, text_args, args = parse_arguments(
        argv, kinds, output_dir="outputs/general", train_sampling_strategy="random", **USUAL
    )
    if options.model_name_or_path is None:
        raise ValueError("distillation starts from a dense BERT: give --model_name_or_path")
    text_args.check_length(dense_config(options.model_name_or_path))
    check_useful(args)
    prepare(args)
    with args.main_process_first(desc="text"):
        corpus, source = text_args.load_corpus()
        tokenizer = options.load_tokenizer(corpus["train"]["text"])
        blocks = text_args.pack(corpus, tokenizer)
    found = GeneralDistillation(options, text_args, args, blocks, tokenizer).run()
    record = {
        "base_model": base_model(options.model_name_or_path),
        "student": base_model(options.student),
        "text": source,
        "blocks": {name: len(split) for name, split in blocks.items()},
        "config": options.spiking_fields(),
        **found,
    }
    return finish(args, record, summary(found))


def main() -> None:
    transformers.utils.logging.set_verbosity_warning()
    distill_general(sys.argv[1:])


if __name__ == "__main__":
    main()
