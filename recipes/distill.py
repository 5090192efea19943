"""The whole way from a dense BERT to a spiking one, by distillation.

    python recipes/distill.py --task_name sst2 --data_dir glue --model_name_or_path path/to/bert \\
        --output_dir outputs/distill_sst2

Phases, each in a folder of its own under `--output_dir`, in this order:

    teacher    fine-tunes the dense model on the task (or `--teacher` names one that is)
    converted  the student: spiking, with the weights of the teacher (or of `--student`), calibrated
    general    raw text (`--corpus_files`, `--corpus_dataset`): hidden states and attention scores of the
               dense model before it was fine-tuned
    internal   the task's text without its labels: the same of the teacher, over time
    collapsed  trains the student without the time loop, at about the cost of a dense one
    unrolled   trains it over T time steps with the temporal loss; the usual options (`--max_steps`,
               `--learning_rate`, `--temporal_loss`, ...) are those of this phase

`--phases` chooses among them (by default all but general and internal, which are for students that cannot
be converted well, as SpikingBERT's); each goes on from the last one before it that was run. A phase that is
done is not repeated, and one that was stopped goes on from its last checkpoint, when the same command is
given again. results.json holds dev metrics by time step, spikes and energy after each phase.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import transformers
from common import base_model, parse_arguments
from corpus import CorpusArguments
from glue_tmc import dense_trainer, evaluate, fine_tune_dense, spending
from phases import CollapsedArguments, Phases
from student import StudentArguments
from task_data import DataArguments, Inputs, calibration_batches, load_inputs, load_task_data
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertForSequenceClassification,
    PreTrainedModel,
    set_seed,
)

from spikenlp import SpikingBertForSequenceClassification, SpikingTrainer, watchdogs
from spikenlp.data import pack
from spikenlp.hub.training import CONFIG_FIELDS
from spikenlp.metrics.glue import SCORES
from spikenlp.training.cpu import keep_freed_memory, use_all_cores
from spikenlp.training.distillation import DistillationArguments, DistillationTrainer
from spikenlp.training.trainer import collapsed

PHASES = ("teacher", "converted", "general", "internal", "collapsed", "unrolled")
USUAL_PHASES = ("teacher", "converted", "collapsed", "unrolled")


@dataclass
class PipelineArguments(StudentArguments, CollapsedArguments):
    phases: list[str] = field(
        default_factory=lambda: list(USUAL_PHASES),
        metadata={"help": f"Phases to run, of {', '.join(PHASES)}.", "choices": PHASES},
    )
    teacher: str | None = field(
        default=None,
        metadata={"help": "A dense model fine-tuned on the task, in place of the phase teacher."},
    )
    student: str | None = field(
        default=None,
        metadata={
            "help": "Dense BERT that the student is converted from, where it is to have another shape "
            "than the teacher. Same tokenizer. Default: the teacher; before the phase general the "
            "model that the teacher was fine-tuned from."
        },
    )
    teacher_learning_rate: float = field(default=5e-5, metadata={"help": "Of the phase teacher."})
    teacher_epochs: float = field(default=2.0, metadata={"help": "Of the phase teacher."})
    general_learning_rate: float = field(default=5e-5, metadata={"help": "Of the phase general."})
    general_steps: int = field(default=1000, metadata={"help": "Of the phase general."})
    internal_learning_rate: float = field(default=5e-5, metadata={"help": "Of the phase internal."})
    internal_steps: int = field(default=1000, metadata={"help": "Of the phase internal."})
    hidden_act: str | None = field(
        default=None,
        metadata={"help": "Activation of the student's feed-forward layers; relu spikes less."},
    )


class Pipeline(Phases):
    """The phases on one task."""

    names, students = PHASES, PHASES[1:]
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
        args: DistillationArguments,
        inputs: Inputs,
        corpus: datasets.DatasetDict | None,
    ):
        chosen = [p for p in options.phases if not (p == "teacher" and options.teacher)]
        super().__init__(options, args, chosen)
        self.data_args = data_args
        self.inputs, self.corpus = inputs, corpus
        self.teacher_path = Path(options.teacher or self.root / "teacher")

    def facts(self, phase: str) -> dict[str, Any]:
        """Of the model that a phase left: what its card says beside the figures."""
        known = {
            **self.inputs.facts(),
            "base_model": base_model(self.options.model_name_or_path),
            "seed": self.args.seed,
        }
        if phase != "teacher":
            config = AutoConfig.from_pretrained(self.root / phase)
            known["config"] = {name: getattr(config, name) for name in CONFIG_FIELDS}
            record = self.teacher_path / "results.json"
            if record.exists() and "dense" in (teacher := json.loads(record.read_text())):
                known["dense"] = teacher["dense"]
        return known

    def run_teacher(self, folder: Path) -> dict[str, Any]:
        options = self.options
        self.announce("teacher", options.model_name_or_path, "the classifier")
        model = BertForSequenceClassification.from_pretrained(
            options.model_name_or_path, **self.inputs.label_fields()
        )
        rate, epochs = options.teacher_learning_rate, options.teacher_epochs
        return {"dense": fine_tune_dense(model, self.inputs, self.args, folder, rate, epochs)}

    def run_converted(self, folder: Path) -> dict[str, Any]:
        options = self.options
        before_general = options.model_name_or_path if "general" in options.phases else None
        source = options.student or before_general or self.teacher_path
        self.announce("converted", source, options.created())
        self.check_tokenizer(source)
        fields = options.spiking_fields()
        if options.hidden_act is not None:
            fields["hidden_act"] = options.hidden_act
        dense = BertForSequenceClassification.from_pretrained(source, **self.inputs.label_fields())
        batches = calibration_batches(self.inputs, options.calibration_batches, self.args.seed)
        model = SpikingBertForSequenceClassification.from_dense(
            dense, calibration=batches, reconstruct=options.reconstruct, **fields
        )
        trainer = self.trainer(model, dataclasses.replace(self.args, output_dir=str(folder)))
        trainer.save_model()
        return self.measure(trainer)

    def run_general(self, folder: Path) -> dict[str, Any]:
        if self.corpus is None:
            raise ValueError("the phase general needs text: --corpus_files or --corpus_dataset")
        options = self.options
        teacher = AutoModel.from_pretrained(options.model_name_or_path, add_pooling_layer=False)
        text = pack(self.corpus["train"], self.inputs.tokenizer, self.data_args.max_seq_length)
        steps, rate = options.general_steps, options.general_learning_rate
        return self.train("general", self.features_only(folder, steps, rate), teacher, text)

    def run_internal(self, folder: Path) -> dict[str, Any]:
        labels = {"label", "labels"} & set(self.inputs.train.column_names)
        text = self.inputs.train.remove_columns(sorted(labels))
        steps, rate = self.options.internal_steps, self.options.internal_learning_rate
        return self.train("internal", self.features_only(folder, steps, rate), data=text)

    def features_only(self, folder: Path, steps: int, rate: float) -> DistillationArguments:
        return dataclasses.replace(
            self.args, output_dir=str(folder), max_steps=steps, learning_rate=rate, logit_weight=0.0
        )

    def train(
        self,
        phase: str,
        args: DistillationArguments,
        teacher: PreTrainedModel | None = None,
        data: datasets.Dataset | None = None,
    ) -> dict[str, Any]:
        start = self.start(phase)
        self.announce(phase, start, "nothing")
        model = SpikingBertForSequenceClassification.from_pretrained(start)
        trainer = self.trainer(model, args, teacher, data)
        training = self.fit(trainer)
        training["temporal_loss"] = args.temporal_loss if phase == "unrolled" else None
        return {**self.measure(trainer), "training": training}

    def trainer(
        self,
        model: SpikingBertForSequenceClassification,
        args: DistillationArguments,
        teacher: PreTrainedModel | None = None,
        data: datasets.Dataset | None = None,
    ) -> DistillationTrainer:
        """By default the fine-tuned teacher on the task's training data."""
        if teacher is None:
            self.check_tokenizer(self.teacher_path)
            teacher = BertForSequenceClassification.from_pretrained(self.teacher_path)
        return DistillationTrainer(
            model,
            args,
            teacher=teacher,
            train_dataset=self.inputs.train if data is None else data,
            eval_dataset=next(iter(self.inputs.evaluation.values())),
            data_collator=self.inputs.collator,
            processing_class=self.inputs.tokenizer,
            compute_metrics=self.inputs.compute_metrics,
            callbacks=watchdogs(model, args),
        )

    def measure(self, trainer: SpikingTrainer) -> dict[str, Any]:
        """Dev metrics of the spiking model by step and of its collapsed twin, spikes and energy."""
        model, args = trainer.model, trainer.args
        found = {"spiking": evaluate(trainer, self.inputs, "eval")}
        if model.config.neuron == "rounding":
            with collapsed(model.config):
                twin = dense_trainer(model, self.inputs, args)
                found["collapsed"] = evaluate(twin, self.inputs, "eval")
        return {**found, **spending(model, self.inputs, args.per_device_eval_batch_size)}

    def check_tokenizer(self, path: str | Path) -> None:
        if Path(path) == self.teacher_path and not (self.teacher_path / "config.json").exists():
            raise ValueError(
                f"there is no teacher at {path}: run the phase teacher, or name one with --teacher"
            )
        if AutoTokenizer.from_pretrained(path).get_vocab() != self.inputs.tokenizer.get_vocab():
            raise ValueError(
                f"the tokenizer at {path} is not that of {self.options.model_name_or_path}: teacher "
                "and student must read the same token ids"
            )


def summary(results: dict[str, Any]) -> str:
    """One row a model: its main metrics at the last step, and step by step; spikes and energy."""
    lines = []
    for phase, found in results.items():
        for name in ("dense", "collapsed", "spiking"):
            metrics = found.get(name, {})
            for key in SCORES:
                if key in metrics:
                    steps = [v for k, v in metrics.items() if k.startswith(f"{key}_t")]
                    by_step = " / ".join(f"{100 * v:.1f}" for v in steps)
                    label = f"{phase}: {name}"
                    lines.append(f"{label:22} {key:21} {100 * metrics[key]:5.1f}  {by_step}")
        if "spikes_per_neuron" in found:
            spikes = found["spikes_per_neuron"]
            lines.append(f"{phase + ': spikes':22} {spikes:.2f} per neuron and inference")
    return "\n".join(lines)


def distill(argv: list[str]) -> dict[str, Any]:
    """The whole job; returns what results.json holds."""
    kinds = (PipelineArguments, DataArguments, CorpusArguments, DistillationArguments)
    options, data_args, corpus_args, args = parse_arguments(
        argv, kinds, output_dir="outputs/distill"
    )
    if options.model_name_or_path is None:
        raise ValueError("distillation starts from a dense BERT: give --model_name_or_path")
    if args.device.type == "cpu":
        use_all_cores(args.world_size)
        keep_freed_memory()
    set_seed(args.seed)
    with args.main_process_first(desc="data"):
        inputs = load_inputs(options, data_args, *load_task_data(data_args))
    if inputs.task.labels is None and args.temporal_loss == "tmc":
        raise ValueError(
            f"{inputs.task.name} is a regression, which has no confidence for TMC to calibrate: use "
            "--temporal_loss sdt or tet"
        )
    corpus = corpus_args.load_corpus()[0] if "general" in options.phases else None
    phases = Pipeline(options, data_args, args, inputs, corpus).run()
    record = {"task": inputs.task.name, "data": inputs.source, "seed": args.seed, **phases}
    if args.process_index == 0:
        (Path(args.output_dir) / "results.json").write_text(json.dumps(record, indent=1) + "\n")
        print(summary(phases), flush=True)
    return record


def main() -> None:
    transformers.utils.logging.set_verbosity_warning()
    distill(sys.argv[1:])


if __name__ == "__main__":
    main()
