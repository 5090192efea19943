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
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import transformers
import yaml
from common import base_model, parse_arguments, prepare
from corpus import CorpusArguments
from evaluation import (
    dense_trainer,
    ensemble_scores,
    evaluate,
    fine_tune_dense,
    float32_scores,
    spending,
)
from phases import (
    OF_TRAINING,
    CollapsedArguments,
    PhaseArguments,
    Phases,
    RepresentationArguments,
    finish,
    listed,
    names_of,
    summary,
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
from task_data import DataArguments, Inputs, calibration_batches, load_inputs, load_task_data
from transformers import (
    AutoConfig,
    AutoModel,
    BertForSequenceClassification,
    PreTrainedModel,
)

from spikenlp import (
    SpikingBertForSequenceClassification,
    SpikingTrainer,
    watchdogs,
)
from spikenlp.data import pack
from spikenlp.models.modes import collapsed
from spikenlp.models.spiking_bert.reconstruction import reconstruct
from spikenlp.training.distillation import (
    DistillationArguments,
    DistillationTrainer,
    check_shapes,
    check_teacher,
)
from spikenlp.training.publishing import CONFIG_FIELDS
from spikenlp.training.trainer import check_penalty

STUDENTS = (
    *("converted", "general", "internal"),
    *("collapsed", "reconstructed", "unrolled"),
)
PHASES = ("teacher", *STUDENTS, "rival")
USUAL_PHASES = ("teacher", "converted", "collapsed", "unrolled")
LEARN_ANSWERS = ("collapsed", "unrolled", "rival")
"""The phases that learn a teacher's answers."""
COLLAPSED_TIMESTEPS = "random"
"""The usual way of the phase collapsed: docs/distillation.md has what it does to each step."""
NOT_OF_RIVAL = ("label_smoothing_factor", "spike_weight", "spike_target", "attention_weight")
"""Training options that are 0 for a dense student."""


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


class Pipeline(Phases):
    """The phases on one task.

    Raises:
        ValueError: a model that is no dense BERT, or has another tokenizer or the task's labels in
            another order.
    """

    names, students = PHASES, STUDENTS
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
        chosen = [p for p in PHASES if p in options.phases or (p == "teacher" and options.teacher)]
        super().__init__(options, args, chosen, [data_args, corpus_args])
        self.data_args = data_args
        self.inputs, self.corpus = inputs, corpus
        self.teacher_path = Path(options.teacher or self.root / "teacher")
        dense_config(options.model_name_or_path)
        self.check_tokenizer(options.model_name_or_path)
        if options.teacher:
            self.check_source(options.teacher)
        config = options.student_config(options.phases)
        for phase in chosen:
            check_penalty(config, self.arguments(phase))
        learning = [p for p in chosen if p in LEARN_ANSWERS and self.arguments(p).logit_weight]
        if options.further_teachers and not learning:
            raise ValueError(
                "--further_teachers is for the phases collapsed, unrolled and rival, and for --logit_weight "
                "above 0: leave it out"
            )
        self.further_teachers = [self.load_teacher(path) for path in options.further_teachers]
        if options.student:
            self.check_source(options.student, spiking_too="rival" not in chosen)
        self.check_shapes()

    def source(self) -> str | Path:
        """What the student is converted from."""
        before_general = self.options.model_name_or_path if "general" in self.chosen else None
        return self.options.student or before_general or self.teacher_path

    def start_name(self, phase: str) -> str | None:
        if phase in ("converted", "rival"):
            source = self.source()
            return "teacher" if source == self.root / "teacher" else str(source)
        return super().start_name(phase)

    def models(self, phase: str) -> dict[str, str | Path]:
        dense = str(self.options.model_name_or_path)
        if phase == "teacher":
            return {"start": self.options.teacher or dense}
        if phase == "converted":
            return {"start": self.source()}
        if phase == "reconstructed":
            return super().models(phase)
        teacher = dense if phase == "general" else self.teacher_path
        further = self.options.further_teachers if phase in LEARN_ANSWERS else []
        named = {f"further teacher {i}": path for i, path in enumerate(further, 1)}
        start = {"start": self.source()} if phase == "rival" else super().models(phase)
        return {**start, "teacher": teacher, **named}

    def changed(self, phase: str) -> dict[str, Any]:
        options, changed = self.options, super().changed(phase)
        if phase == "teacher":
            changed["learning_rate"] = options.teacher_learning_rate
            changed |= {"num_train_epochs": options.teacher_epochs, "max_steps": -1}
        elif phase in ("general", "internal"):
            changed["logit_weight"] = 0.0
            changed["max_steps"] = getattr(options, f"{phase}_steps")
            for name in ("learning_rate", "attention_weight"):
                changed[name] = getattr(options, f"{phase}_{name}")
        elif phase == "rival":
            changed |= {"collapsed": True, "max_steps": options.rival_steps}
            changed |= {"learning_rate": options.rival_learning_rate}
            changed |= dict.fromkeys(NOT_OF_RIVAL, 0.0)
        if phase != "unrolled" and self.inputs.task.labels is None:
            changed["temporal_loss"] = "tet"  # to evaluate with; TMC has no loss of a regression
        return changed

    def bearing(self, phase: str) -> set[str]:
        if phase == "reconstructed":
            chosen = {"start", "seed", "model_name_or_path", "tokenizer_name"}
            return chosen | names_of(DataArguments) | {"reconstruction_batches"}
        names = super().bearing(phase) | {"teacher"}
        if phase == "rival":
            names |= {"student", "logit_weight", "temperature", "hidden_weight", "teacher_layers"}
            names |= OF_TRAINING - set(NOT_OF_RIVAL)
        if phase == "teacher":
            names = names - {"seed"} if self.options.teacher else names | OF_TRAINING
        if phase == "converted":
            names |= {"hidden_act"}
        if phase in LEARN_ANSWERS:
            names |= {"further_teachers"}
        if phase in ("general", "internal"):
            names -= {"temperature"}
        return names - ({"teacher"} if phase == "general" else names_of(CorpusArguments))

    def facts(self, phase: str) -> dict[str, Any]:
        """Of the model that a phase left: what its card says beside the figures."""
        known = {
            **self.inputs.facts(),
            "base_model": base_model(self.options.model_name_or_path),
            "seed": self.args.seed,
        }
        if phase in STUDENTS:
            config = AutoConfig.from_pretrained(self.root / phase)
            known["config"] = {name: getattr(config, name) for name in CONFIG_FIELDS}
            record = self.root / "teacher" / "results.json"
            if record.exists():
                known["dense"] = json.loads(record.read_text())["dense"]
        return known

    def run_teacher(self, folder: Path) -> dict[str, Any]:
        args, inputs, given = self.arguments("teacher"), self.inputs, self.options.teacher
        if given:
            self.announce("teacher", given, "nothing")
            trainer = dense_trainer(self.load_teacher(given), inputs, args)
            return {"dense": evaluate(trainer, inputs, "dense")}
        source = self.options.model_name_or_path
        model, created, dropped = load(
            BertForSequenceClassification, source, **inputs.label_fields()
        )
        self.announce("teacher", source, listed(created), listed(dropped))
        rate, epochs = args.learning_rate, args.num_train_epochs
        return {"dense": fine_tune_dense(model, inputs, args, folder, rate, epochs)}

    def run_converted(self, folder: Path) -> dict[str, Any]:
        options, source = self.options, self.source()
        teacher = self.load_teacher(self.teacher_path)
        self.check_source(source, spiking_too=True)
        batches = calibration_batches(self.inputs, options.calibration_batches, self.args.seed)
        model, created, dropped = options.make_student(
            SpikingBertForSequenceClassification,
            BertForSequenceClassification,
            source,
            batches,
            **self.inputs.label_fields(),
        )
        self.announce("converted", source, listed(created), listed(dropped))
        check_teacher(model, teacher, self.args)
        args = dataclasses.replace(self.arguments("converted"), hidden_weight=0.0)
        trainer = self.trainer(model, args, teacher)
        trainer.save_model()
        return self.measure(trainer)

    def run_reconstructed(self, folder: Path) -> dict[str, Any]:
        start, args = self.start("reconstructed"), self.arguments("reconstructed")
        model = SpikingBertForSequenceClassification.from_pretrained(start)
        self.options.check_converted(start, model.config)
        self.announce("reconstructed", start, "nothing; fits the weights to the spikes")
        number = self.options.reconstruction_batches
        batches = calibration_batches(self.inputs, number, args.seed)
        reconstruct(model.to(args.device), batches, target="collapsed")
        trainer = self.trainer(model, dataclasses.replace(args, hidden_weight=0.0))
        trainer.save_model()
        return self.measure(trainer)

    def run_general(self, folder: Path) -> dict[str, Any]:
        if self.corpus is None:
            raise ValueError("the phase general needs text: --corpus_files or --corpus_dataset")
        teacher = AutoModel.from_pretrained(
            self.options.model_name_or_path, add_pooling_layer=False
        )
        text = pack(self.corpus["train"], self.inputs.tokenizer, self.data_args.max_seq_length)
        return self.train("general", self.arguments("general"), teacher, text)

    def run_internal(self, folder: Path) -> dict[str, Any]:
        labels = {"label", "labels"} & set(self.inputs.train.column_names)
        text = self.inputs.train.remove_columns(sorted(labels))
        return self.train("internal", self.arguments("internal"), data=text)

    def train(
        self,
        phase: str,
        args: DistillationArguments,
        teacher: PreTrainedModel | None = None,
        data: datasets.Dataset | None = None,
    ) -> dict[str, Any]:
        start = self.start(phase)
        model = SpikingBertForSequenceClassification.from_pretrained(start)
        self.options.check_converted(start, model.config)
        further = self.further_teachers if phase in LEARN_ANSWERS else []
        trainer = self.trainer(model, args, teacher, data, further)
        self.announce_training(phase, start, model)
        training = self.fit(trainer)
        training["temporal_loss"] = args.temporal_loss if phase == "unrolled" else None
        return {**self.measure(trainer), "training": training, **self.measure_teachers(trainer)}

    def run_rival(self, folder: Path) -> dict[str, Any]:
        args, inputs, source = self.arguments("rival"), self.inputs, self.source()
        model, created, dropped = load(
            BertForSequenceClassification, source, **inputs.label_fields()
        )
        trainer = self.trainer(model, args, further_teachers=self.further_teachers)
        self.announce("rival", source, listed(created), listed(dropped))
        training = self.fit(trainer)
        dense = evaluate(dense_trainer(model, inputs, args), inputs, "dense")
        return {"dense": dense, "training": training, **self.measure_teachers(trainer)}

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

    def load_teacher(self, path: str | Path) -> BertForSequenceClassification:
        """Raises ValueError where there is none, or it was not fine-tuned on such a task."""
        made = self.root / "teacher"
        if path == made and not (made / "config.json").exists():
            raise ValueError(
                f"there is no teacher at {path}: run the phase teacher, or name one with --teacher"
            )
        self.check_source(path)
        teacher, created, _ = load(BertForSequenceClassification, path)
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

    def check_shapes(self) -> None:
        """Raises ValueError where a student is too deep for its teacher, or has other heads."""

        def there(path: str | Path) -> str | Path:
            teacher = self.root / "teacher"
            to_be_made = path == teacher and not (teacher / "results.json").exists()
            return str(self.options.model_name_or_path) if to_be_made else path

        made = self.root / "converted"
        done = (made / "results.json").exists()
        student = AutoConfig.from_pretrained(made) if done else bert_config(there(self.source()))
        for phase in self.chosen:
            if phase in ("teacher", "converted", "reconstructed"):
                continue
            teacher = dense_config(there(self.models(phase)["teacher"]))
            own = f"{phase}_attention_weight"
            option = own if hasattr(self.options, own) else "attention_weight"
            check_shapes(student, teacher, self.arguments(phase), f"--{option}")

    def check_options(self, phase: str) -> None:
        super().check_options(phase)
        converted = self.root / "converted" / "arguments.yaml"
        if phase != "general" or self.options.student or not converted.exists():
            return
        done = (self.root / "general" / "results.json").exists()
        if not done and yaml.safe_load(converted.read_text()).get("start") == "teacher":
            raise ValueError(
                f"{converted.parent} was converted from the fine-tuned teacher, but the phase general "
                f"teaches what {self.options.model_name_or_path} knew before: delete it and run converted "
                "and general together, or name with --student what the student starts from"
            )

    def check_tokenizer(self, path: str | Path) -> None:
        known_as = self.options.tokenizer_name or self.options.model_name_or_path
        check_tokenizer(path, self.inputs.tokenizer, known_as)


def distill(argv: list[str]) -> dict[str, Any]:
    """The whole job; returns what results.json holds."""
    kinds = (PipelineArguments, DataArguments, CorpusArguments, DistillationArguments)
    options, data_args, corpus_args, args = parse_arguments(
        argv, kinds, output_dir="outputs/distill", collapsed_timesteps=COLLAPSED_TIMESTEPS
    )
    if options.model_name_or_path is None:
        raise ValueError("distillation starts from a dense BERT: give --model_name_or_path")
    prepare(args)
    with args.main_process_first(desc="data"):
        inputs = load_inputs(options, data_args, *load_task_data(data_args))
    unrolled = "unrolled" in options.phases
    if unrolled and inputs.task.labels is None and args.temporal_loss == "tmc":
        raise ValueError(
            f"{inputs.task.name} is a regression, which has no confidence for TMC to calibrate: use "
            "--temporal_loss sdt or tet"
        )
    corpus = corpus_args.load_corpus()[0] if "general" in options.phases else None
    phases = Pipeline(options, data_args, corpus_args, args, inputs, corpus).run()
    record = {"task": inputs.task.name, "data": inputs.source, **phases}
    return finish(args, record, summary(phases))


def main() -> None:
    transformers.utils.logging.set_verbosity_warning()
    distill(sys.argv[1:])


if __name__ == "__main__":
    main()
