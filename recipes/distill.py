"""The whole way from a dense BERT to a spiking one, by distillation.

    python recipes/distill.py --task_name sst2 --data_dir glue --model_name_or_path path/to/bert \\
        --output_dir outputs/distill_sst2

Phases, each in a folder of its own under `--output_dir`, in this order:

    teacher        fine-tunes the dense model on the task (or evaluates the one that `--teacher` names)
    converted      the student: spiking, with the weights of the teacher (or of `--student`, dense or
                   spiking), calibrated
    general        raw text (`--corpus_files`, `--corpus_dataset`): hidden states and attention scores of the
                   dense model before it was fine-tuned
    internal       the task's text without its labels: the same of the teacher, over time
    collapsed      trains the student without the time loop, at about the cost of a dense one, at a T that
                   is drawn anew for each batch, so that early steps learn as well (`--collapsed_timesteps`)
    reconstructed  fits its weights to its spikes, towards the collapsed twin, without training
    unrolled       trains it over T time steps with the temporal loss; the usual options (`--max_steps`,
                   `--learning_rate`, `--temporal_loss`, ...) are those of this phase
    rival          the dense model that the student was made of, trained on towards the same teachers for
                   `--rival_steps`: what the spiking one is fairly compared with

`--phases` chooses among them (by default teacher, converted, collapsed and unrolled; general and internal are
for students that cannot be converted well, as SpikingBERT's); each goes on from the last one before it
that was run.
`--phase_options` gives one phase training options of its own (`collapsed.per_device_train_batch_size=64`).
A phase that is done is not repeated, and one that was stopped goes on from its last checkpoint, when the
same command is given again; other options that bear on it, or other weights that it came from, are an
error. results.json holds dev metrics by time step, spikes and energy after each phase.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import distill_phases
import transformers
from common import is_score, parse_arguments, prepare
from corpus import CorpusArguments
from evaluation import dense_trainer, ensemble_scores, evaluate, float32_scores, spending
from phases import (
    CollapsedArguments,
    Job,
    PhaseArguments,
    RepresentationArguments,
    finish,
    listed,
)
from student import (
    CALIBRATION_BATCH,
    ConversionArguments,
    bert_config,
    check_labels,
    check_tokenizer,
    dense_config,
    load,
)
from task_data import MODELS, DataArguments, Inputs, load_inputs, load_task_data
from transformers import AutoConfig, PreTrainedModel

from spikenlp import SpikingTrainer, watchdogs
from spikenlp.models.modes import collapsed
from spikenlp.training.distillation import DistillationArguments, DistillationTrainer, check_shapes
from spikenlp.training.trainer import check_penalty

KINDS = (
    distill_phases.Teacher,
    distill_phases.Converted,
    distill_phases.General,
    distill_phases.Internal,
    distill_phases.Collapsed,
    distill_phases.Reconstructed,
    distill_phases.Unrolled,
    distill_phases.Rival,
)
PHASES = tuple(kind.name for kind in KINDS)
STUDENTS = tuple(kind.name for kind in KINDS if kind.makes_student)
USUAL_PHASES = ("teacher", "converted", "collapsed", "unrolled")
COLLAPSED_TIMESTEPS = "random"
"""The usual way of the phase collapsed: docs/results.md has what it does to each step."""


@dataclass
class PipelineArguments(
    ConversionArguments, RepresentationArguments, CollapsedArguments, PhaseArguments
):
    phases: list[str] = field(
        default_factory=lambda: list(USUAL_PHASES),
        metadata={"help": f"Phases to run, of {', '.join(PHASES)}.", "choices": PHASES},
    )
    teacher: str | None = field(
        default=None,
        metadata={"help": "A dense model fine-tuned on the task, in place of the phase teacher."},
    )
    further_teachers: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Other dense models fine-tuned on the task, from other seeds, say: the phases collapsed, "
            "unrolled and rival learn the mean of the logits of all teachers. Same tokenizer."
        },
    )
    teacher_learning_rate: float = field(default=5e-5, metadata={"help": "Of the phase teacher."})
    teacher_epochs: float = field(default=2.0, metadata={"help": "Of the phase teacher."})
    reconstruction_batches: int = field(
        default=32,
        metadata={"help": f"Batches of {CALIBRATION_BATCH} of the phase reconstructed."},
    )
    rival_learning_rate: float = field(default=5e-5, metadata={"help": "Of the phase rival."})
    rival_steps: int = field(default=1500, metadata={"help": "Of the phase rival."})


class Distillation(Job):
    """The phases on one task.

    Raises:
        ValueError: a model that is no dense BERT, or has another tokenizer or the task's labels in
            another order.
    """

    kinds = KINDS
    recorded = (
        "learning_rate",
        "neuron_learning_rate",
        "logit_weight",
        "hidden_weight",
        "attention_weight",
        "spike_target",
        "spike_weight",
        "collapsed_timesteps",
        "seed",
    )

    def __init__(
        self,
        options: PipelineArguments,
        data_args: DataArguments,
        corpus_args: CorpusArguments,
        args: DistillationArguments,
        inputs: Inputs,
        corpus: datasets.DatasetDict | None,
    ):
        chosen = {*options.phases, "teacher"} if options.teacher else set(options.phases)
        super().__init__(options, args, chosen, [data_args])
        self.data_args, self.corpus_args = data_args, corpus_args
        self.inputs, self.corpus = inputs, corpus
        self.teacher_path = Path(options.teacher or self.root / "teacher")
        dense_config(options.model_name_or_path)
        self.check_tokenizer(options.model_name_or_path)
        if options.teacher:
            self.check_source(options.teacher)
        config = options.student_config(options.phases)
        for phase in self.chosen:
            check_penalty(config, phase.arguments())
        taught = [p for p in self.chosen if isinstance(p, distill_phases.Taught)]
        answering = [p for p in taught if p.learns_answers and p.arguments().logit_weight]
        if options.further_teachers and not answering:
            raise ValueError(
                "--further_teachers is for the phases collapsed, unrolled and rival, and for --logit_weight "
                "above 0: leave it out"
            )
        self.further_teachers = [self.load_teacher(path) for path in options.further_teachers]
        if options.student:
            self.check_source(options.student, spiking_too="rival" not in chosen)
        self.check_shapes(taught)

    def source(self) -> str | Path:
        """What the student is converted from."""
        general = "general" in self.options.phases
        before_general = self.options.model_name_or_path if general else None
        return self.options.student or before_general or self.teacher_path

    def trainer(
        self,
        model: PreTrainedModel,
        args: DistillationArguments,
        teacher: PreTrainedModel | None = None,
        data: datasets.Dataset | None = None,
        further_teachers: Sequence[PreTrainedModel] = (),
    ) -> DistillationTrainer:
        """By default the fine-tuned teacher on the task's training data."""
        return DistillationTrainer(
            model,
            args,
            teacher=self.load_teacher(self.teacher_path) if teacher is None else teacher,
            further_teachers=further_teachers,
            train_dataset=self.inputs.train if data is None else data,
            eval_dataset=next(iter(self.inputs.evaluation.values())),
            data_collator=self.inputs.collator,
            processing_class=self.inputs.tokenizer,
            compute_metrics=self.inputs.compute_metrics,
            callbacks=watchdogs(model, args),
        )

    def measure(self, trainer: SpikingTrainer) -> dict[str, Any]:
        """Dev metrics of the spiking model by step, in the precision of training and in float32, and of its
        collapsed twin; spikes and energy."""
        model, args = trainer.model, trainer.args
        found = {"spiking": evaluate(trainer, self.inputs, "eval")}
        if model.config.neuron == "rounding":
            with collapsed(model.config):
                twin = dense_trainer(model, self.inputs, args)
                found["collapsed"] = evaluate(twin, self.inputs, "eval")
        found |= spending(model, self.inputs, args.per_device_eval_batch_size)
        return {**found, **float32_scores(trainer, self.inputs)}

    def measure_teachers(self, trainer: DistillationTrainer) -> dict[str, Any]:
        """Dev metrics of the mean of the logits of several teachers."""
        if not trainer.further_teachers:
            return {}
        teachers = [trainer.teacher, *trainer.further_teachers]
        return {"teachers": ensemble_scores(teachers, self.inputs, trainer.args)}

    def load_teacher(self, path: str | Path) -> PreTrainedModel:
        """Raises ValueError where there is none, or it was not fine-tuned on such a task."""
        made = self.root / "teacher"
        if path == made and not (made / "config.json").exists():
            raise ValueError(
                f"there is no teacher at {path}: run the phase teacher, or name one with --teacher"
            )
        self.check_source(path)
        teacher, created, _ = load(self.inputs.dense_class, path)
        if created:
            lacking = listed(created)
            raise ValueError(f"the teacher {path} lacks {lacking}: give one fine-tuned on the task")
        return teacher

    def check_source(self, path: str | Path, spiking_too: bool = False) -> None:
        """Raises ValueError where a model is no BERT, or a spiking one and not `spiking_too`, reads other
        token ids, or has other labels than the task."""
        config = bert_config(path) if spiking_too else dense_config(path)
        self.check_tokenizer(path)
        check_labels(path, config, self.inputs.task)

    def check_shapes(self, taught: Sequence[distill_phases.Taught]) -> None:
        """Raises ValueError where a student is too deep for its teacher, or has other heads."""

        def there(path: str | Path) -> str | Path:
            teacher = self.root / "teacher"
            to_be_made = path == teacher and not (teacher / "results.json").exists()
            return str(self.options.model_name_or_path) if to_be_made else path

        made = self.root / "converted"
        done = (made / "results.json").exists()
        student = AutoConfig.from_pretrained(made) if done else bert_config(there(self.source()))
        for phase in taught:
            teacher = dense_config(there(phase.teacher()))
            own = f"{phase.name}_attention_weight"
            option = own if hasattr(self.options, own) else "attention_weight"
            check_shapes(student, teacher, phase.arguments(), f"--{option}")

    def check_tokenizer(self, path: str | Path) -> None:
        known_as = self.options.tokenizer_name or self.options.model_name_or_path
        check_tokenizer(path, self.inputs.tokenizer, known_as)


def summary(results: dict[str, Any]) -> str:
    """One row a model: its main metrics at the last step, and step by step; spikes and energy."""
    lines = []
    for phase, found in results.items():
        for name in ("dense", "teachers", "collapsed", "spiking", "spiking_float32"):
            metrics = found.get(name, {})
            for key in filter(is_score, metrics):
                steps = [v for k, v in metrics.items() if k.startswith(f"{key}_t")]
                by_step = " / ".join(f"{100 * v:.1f}" for v in steps)
                label = f"{phase}: {name.replace('_', ', ')}"
                lines.append(f"{label:28} {key:21} {100 * metrics[key]:5.1f}  {by_step}")
        if "spikes_per_neuron" in found:
            spikes = found["spikes_per_neuron"]
            lines.append(f"{phase + ': spikes':28} {spikes:.2f} per neuron and inference")
    return "\n".join(lines)


def parse(
    argv: list[str],
) -> tuple[PipelineArguments, DataArguments, CorpusArguments, DistillationArguments]:
    kinds = (PipelineArguments, DataArguments, CorpusArguments, DistillationArguments)
    return parse_arguments(
        argv, kinds, output_dir="outputs/distill", collapsed_timesteps=COLLAPSED_TIMESTEPS
    )


def distill(argv: list[str]) -> dict[str, Any]:
    """The whole job; returns what results.json holds."""
    options, data_args, corpus_args, args = parse(argv)
    if options.model_name_or_path is None:
        raise ValueError("distillation starts from a dense BERT: give --model_name_or_path")
    prepare(args)
    with args.main_process_first(desc="data"):
        data = load_task_data(data_args)
        inputs = load_inputs(options, data_args, *data, kinds=MODELS.keys())
    if inputs.task.labels is None and args.temporal_loss == "tmc":
        if "unrolled" in options.phases:
            raise ValueError(
                f"{inputs.task.name} is a regression, which has no confidence for TMC to calibrate: use "
                "--temporal_loss sdt or tet"
            )
        args = dataclasses.replace(args, temporal_loss="tet")  # to evaluate with
    corpus = corpus_args.load_corpus()[0] if "general" in options.phases else None
    found = Distillation(options, data_args, corpus_args, args, inputs, corpus).run()
    record = {"task": inputs.task.name, "data": inputs.source, **found}
    return finish(args, record, summary(found))


def main() -> None:
    transformers.utils.logging.set_verbosity_warning()
    distill(sys.argv[1:])


if __name__ == "__main__":
    main()
