"""The phases of distill.py, in their order."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import datasets
import phases
import yaml
from common import OF_TRAINING, base_model
from corpus import CorpusArguments
from evaluation import dense_trainer, evaluate, fine_tune_dense
from phases import Phase, Training, listed, names_of
from student import load
from task_data import DataArguments, calibration_batches
from transformers import AutoConfig, AutoModel, PreTrainedModel

from spikenlp.data import pack
from spikenlp.models.spiking_bert.reconstruction import reconstruct
from spikenlp.training.distillation import check_teacher
from spikenlp.training.publishing import CONFIG_FIELDS

if TYPE_CHECKING:
    from distill import Distillation

NOT_OF_RIVAL = ("label_smoothing_factor", "spike_weight", "spike_target", "attention_weight")
"""Training options that are 0 for a dense student."""


class OnTask(Phase):
    """Knows the task; the teacher that `--teacher` names bears on it."""

    job: Distillation

    def bearing(self) -> set[str]:
        return super().bearing() | {"teacher"}

    def facts(self) -> dict[str, Any]:
        """Of the model that it left: what its card says beside the figures."""
        job = self.job
        known = {
            **job.inputs.facts(),
            "base_model": base_model(job.options.model_name_or_path),
            "seed": job.args.seed,
        }
        if self.makes_student:
            config = AutoConfig.from_pretrained(self.folder)
            known["config"] = {name: getattr(config, name) for name in CONFIG_FIELDS}
            record = job.root / "teacher" / "results.json"
            if record.exists():
                known["dense"] = json.loads(record.read_text())["dense"]
        return known


class Teacher(OnTask):
    """Fine-tunes the dense model, or evaluates the one that is given."""

    name = "teacher"
    makes_student = False

    def source(self) -> str | Path:
        return self.job.options.teacher or str(self.job.options.model_name_or_path)

    def changed(self) -> dict[str, Any]:
        options = self.job.options
        return super().changed() | {
            "learning_rate": options.teacher_learning_rate,
            "num_train_epochs": options.teacher_epochs,
            "max_steps": -1,
        }

    def bearing(self) -> set[str]:
        names = super().bearing() - {"start"}
        return names - {"seed"} if self.job.options.teacher else names | OF_TRAINING

    def run(self) -> dict[str, Any]:
        job, args = self.job, self.arguments()
        if given := job.options.teacher:
            self.announce("nothing")
            return {
                "dense": evaluate(
                    dense_trainer(job.load_teacher(given), job.inputs, args), job.inputs, "dense"
                )
            }
        model, created, dropped = load(
            job.inputs.dense_class, self.source(), **job.inputs.label_fields()
        )
        self.announce(listed(created), listed(dropped))
        rate, epochs = args.learning_rate, args.num_train_epochs
        return {"dense": fine_tune_dense(model, job.inputs, args, self.folder, rate, epochs)}


class Converted(OnTask, phases.Converted):
    def source(self) -> str | Path:
        return self.job.source()

    def bearing(self) -> set[str]:
        return super().bearing() | {"hidden_act"}

    def run(self) -> dict[str, Any]:
        job, options = self.job, self.job.options
        teacher = job.load_teacher(job.teacher_path)
        job.check_source(self.source(), spiking_too=True)
        batches = calibration_batches(job.inputs, options.calibration_batches, job.args.seed)
        model, created, dropped = options.make_student(
            job.inputs.spiking_class,
            job.inputs.dense_class,
            self.source(),
            batches,
            **job.inputs.label_fields(),
        )
        self.announce(listed(created), listed(dropped))
        check_teacher(model, teacher, job.args)
        args = dataclasses.replace(self.arguments(), hidden_weight=0.0)
        trainer = job.trainer(model, args, teacher)
        trainer.save_model()
        return job.measure(trainer)


class Taught(OnTask, Training):
    """Trains a student towards a teacher, on the task's training data."""

    learns_answers: ClassVar[bool] = False
    """Whether it learns the logits of a teacher fine-tuned on the task, and so of several."""

    def teacher(self) -> str | Path:
        return self.job.teacher_path

    def models(self) -> dict[str, str | Path]:
        further = self.job.options.further_teachers if self.learns_answers else []
        named = {f"further teacher {i}": path for i, path in enumerate(further, 1)}
        return {**super().models(), "teacher": self.teacher(), **named}

    def bearing(self) -> set[str]:
        return super().bearing() | ({"further_teachers"} if self.learns_answers else set())

    def run(self) -> dict[str, Any]:
        return self.train()

    def train(
        self, teacher: PreTrainedModel | None = None, data: datasets.Dataset | None = None
    ) -> dict[str, Any]:
        """By default towards the fine-tuned teachers, on data with labels."""
        job, args = self.job, self.arguments()
        model = job.inputs.spiking_class.from_pretrained(self.source())
        job.options.check_converted(Path(self.source()), model.config)
        further = job.further_teachers if self.learns_answers else []
        trainer = job.trainer(model, args, teacher, data, further)
        self.announce_training(model)
        training = self.fit(trainer)
        training["temporal_loss"] = args.temporal_loss if self.name == "unrolled" else None
        return {**job.measure(trainer), "training": training, **job.measure_teachers(trainer)}


class WithoutAnswers(Taught):
    """Learns hidden states and attention scores alone."""

    def changed(self) -> dict[str, Any]:
        options, name = self.job.options, self.name
        return super().changed() | {
            "logit_weight": 0.0,
            "max_steps": getattr(options, f"{name}_steps"),
            "learning_rate": getattr(options, f"{name}_learning_rate"),
            "attention_weight": getattr(options, f"{name}_attention_weight"),
        }

    def bearing(self) -> set[str]:
        return super().bearing() - {"temperature"}


class General(WithoutAnswers):
    """On raw text, towards the dense model before it was fine-tuned."""

    name = "general"

    def teacher(self) -> str | Path:
        return str(self.job.options.model_name_or_path)

    def parts(self) -> tuple[Any, ...]:
        return (*super().parts(), self.job.corpus_args)

    def bearing(self) -> set[str]:
        return super().bearing() - {"teacher"} | names_of(CorpusArguments)

    def check_options(self) -> None:
        super().check_options()
        converted = self.job.root / "converted" / "arguments.yaml"
        if self.done or self.job.options.student or not converted.exists():
            return
        if yaml.safe_load(converted.read_text()).get("start") == "teacher":
            raise ValueError(
                f"{converted.parent} was converted from the fine-tuned teacher, but the phase general "
                f"teaches what {self.teacher()} knew before: delete it and run converted "
                "and general together, or name with --student what the student starts from"
            )

    def run(self) -> dict[str, Any]:
        job = self.job
        if job.corpus is None:
            raise ValueError("the phase general needs text: --corpus_files or --corpus_dataset")
        text = pack(job.corpus["train"], job.inputs.tokenizer, job.data_args.max_seq_length)
        return self.train(AutoModel.from_pretrained(self.teacher(), add_pooling_layer=False), text)


class Internal(WithoutAnswers):
    """On the task's text without its labels."""

    name = "internal"

    def run(self) -> dict[str, Any]:
        return self.train(data=self.job.inputs.train.remove_columns("labels"))


class Collapsed(Taught, phases.Collapsed):
    learns_answers = True


class Reconstructed(OnTask):
    """Fits the weights of the student to its spikes, without training."""

    name = "reconstructed"

    def bearing(self) -> set[str]:
        chosen = {"start", "seed", "model_name_or_path", "tokenizer_name"}
        return chosen | names_of(DataArguments) | {"reconstruction_batches"}

    def run(self) -> dict[str, Any]:
        job, args, start = self.job, self.arguments(), Path(self.source())
        model = job.inputs.spiking_class.from_pretrained(start)
        job.options.check_converted(start, model.config)
        self.announce("nothing; fits the weights to the spikes")
        batches = calibration_batches(job.inputs, job.options.reconstruction_batches, job.args.seed)
        reconstruct(model.to(args.device), batches, target="collapsed")
        trainer = job.trainer(model, dataclasses.replace(args, hidden_weight=0.0))
        trainer.save_model()
        return job.measure(trainer)


class Unrolled(Taught, phases.Unrolled):
    learns_answers = True


class Rival(Taught):
    """Trains the dense model that the student was made of."""

    name = "rival"
    makes_student = False
    learns_answers = True

    def source(self) -> str | Path:
        return self.job.source()

    def changed(self) -> dict[str, Any]:
        options = self.job.options
        return super().changed() | {
            "collapsed": True,
            "max_steps": options.rival_steps,
            "learning_rate": options.rival_learning_rate,
            **dict.fromkeys(NOT_OF_RIVAL, 0.0),
        }

    def bearing(self) -> set[str]:
        of_loss = {"student", "logit_weight", "temperature", "hidden_weight", "teacher_layers"}
        of_rival = Phase.bearing(self) | {"teacher", "further_teachers"} | of_loss
        return of_rival | OF_TRAINING - set(NOT_OF_RIVAL)

    def run(self) -> dict[str, Any]:
        job, args = self.job, self.arguments()
        model, created, dropped = load(
            job.inputs.dense_class, self.source(), **job.inputs.label_fields()
        )
        trainer = job.trainer(model, args, further_teachers=job.further_teachers)
        self.announce(listed(created), listed(dropped))
        training = self.fit(trainer)
        dense = evaluate(dense_trainer(model, job.inputs, args), job.inputs, "dense")
        return {"dense": dense, "training": training, **job.measure_teachers(trainer)}
