"""The whole way from a dense BERT to a spiking one: teacher, collapsed training, training over time.

    python recipes/distill.py --task_name sst2 --data_dir glue --model_name_or_path path/to/bert \\
        --output_dir outputs/distill_sst2

Phases, each in a folder of its own under `--output_dir`, in this order:

    teacher    fine-tunes the dense model on the task (or `--teacher` names one that is)
    collapsed  converts the teacher, then trains it without the time loop, at about dense cost
    unrolled   trains over T time steps with the temporal loss; the usual options (`--max_steps`,
               `--learning_rate`, `--temporal_loss`, ...) are those of this phase

`--phases` chooses among them: a phase starts from the last one before it that was run, in this call
or an earlier one. A phase that is done is not repeated, and one that was stopped goes on from its last
checkpoint, when the same command is given again. results.json holds dev metrics by time step, spikes and
energy after each phase.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from glue_tmc import (
    DataArguments,
    Inputs,
    StudentArguments,
    calibration_batches,
    dense_trainer,
    evaluate,
    fine_tune_dense,
    last_checkpoint,
    load_inputs,
    load_task_data,
    parse_arguments,
    spikes_and_energy,
)
from transformers import AutoTokenizer, BertForSequenceClassification, set_seed

from spikenlp import SpikingBertForSequenceClassification
from spikenlp.training.cpu import keep_freed_memory, use_all_cores
from spikenlp.training.distillation import DistillationArguments, DistillationTrainer
from spikenlp.training.provenance import run_record
from spikenlp.training.trainer import collapsed

PHASES = ("teacher", "collapsed", "unrolled")


@dataclass
class PipelineArguments(StudentArguments):
    phases: list[str] = field(
        default_factory=lambda: list(PHASES),
        metadata={"help": f"Which phases to run, of {', '.join(PHASES)}.", "choices": PHASES},
    )
    teacher: str | None = field(
        default=None,
        metadata={"help": "A dense model fine-tuned on the task, in place of the phase 'teacher'."},
    )
    teacher_learning_rate: float = field(default=5e-5, metadata={"help": "Of the phase teacher."})
    teacher_epochs: float = field(default=2.0, metadata={"help": "Of the phase teacher."})
    collapsed_learning_rate: float = field(
        default=5e-5, metadata={"help": "Of the phase collapsed."}
    )
    collapsed_neuron_learning_rate: float = field(
        default=1e-3, metadata={"help": "Of the amplitudes in the phase collapsed."}
    )
    collapsed_steps: int = field(default=1500, metadata={"help": "Of the phase collapsed."})
    hidden_act: str | None = field(
        default=None,
        metadata={
            "help": "Activation of the student's feed-forward layers, e.g. relu: fewer spikes."
        },
    )


class Pipeline:
    """The phases on one task. Each leaves a model and results.json in its folder."""

    def __init__(
        self,
        options: PipelineArguments,
        data_args: DataArguments,
        args: DistillationArguments,
        inputs: Inputs,
    ):
        self.options, self.data_args, self.args, self.inputs = options, data_args, args, inputs
        self.root = Path(args.output_dir)
        self.teacher_path = Path(options.teacher or self.root / "teacher")

    def run(self) -> dict[str, Any]:
        results: dict[str, Any] = {}
        for phase in PHASES:
            if phase in self.options.phases and not (phase == "teacher" and self.options.teacher):
                done = self.root / phase / "results.json"
                if not done.exists():
                    found = getattr(self, f"run_{phase}")(self.root / phase)
                    done.write_text(json.dumps(found, indent=1) + "\n")
                results[phase] = json.loads(done.read_text())
            elif (self.root / phase / "results.json").exists():
                results[phase] = json.loads((self.root / phase / "results.json").read_text())
        return results

    def run_teacher(self, folder: Path) -> dict[str, Any]:
        model = BertForSequenceClassification.from_pretrained(
            self.options.model_name_or_path, **self.inputs.label_fields()
        )
        announce("teacher", self.options.model_name_or_path, "a dense classifier", "nothing")
        options = self.options
        metrics = fine_tune_dense(
            model,
            self.inputs,
            self.args,
            folder,
            options.teacher_learning_rate,
            options.teacher_epochs,
        )
        return {"dense": metrics, "run": run_record()}

    def run_collapsed(self, folder: Path) -> dict[str, Any]:
        options = self.options
        args = dataclasses.replace(
            self.args,
            output_dir=str(folder),
            collapsed=True,
            max_steps=options.collapsed_steps,
            learning_rate=options.collapsed_learning_rate,
            neuron_learning_rate=options.collapsed_neuron_learning_rate,
        )
        announce("collapsed", self.teacher_path, "amplitudes (calibrated)", "nothing")
        model = self.convert()
        trainer = self.trainer(model, args)
        before = {} if last_checkpoint(folder) else evaluate(trainer, self.inputs, "eval")
        return {"converted": before, **self.train(trainer)}

    def run_unrolled(self, folder: Path) -> dict[str, Any]:
        args = dataclasses.replace(
            self.args, output_dir=str(folder), collapsed=False, random_timesteps=False
        )
        start = self.root / "collapsed"
        if (start / "results.json").exists():
            announce("unrolled", start, "nothing", "nothing")
            model = SpikingBertForSequenceClassification.from_pretrained(
                start, **self.student_fields()
            )
        else:
            announce("unrolled", self.teacher_path, "amplitudes (calibrated)", "nothing")
            model = self.convert()
        return self.train(self.trainer(model, args))

    def student_fields(self) -> dict[str, Any]:
        fields = self.options.spiking_fields()
        if self.options.hidden_act is not None:
            fields["hidden_act"] = self.options.hidden_act
        return fields

    def convert(self) -> SpikingBertForSequenceClassification:
        batches = calibration_batches(self.inputs, self.options.calibration_batches, self.args.seed)
        return SpikingBertForSequenceClassification.from_dense(
            self.load_teacher(), calibration=batches, **self.student_fields()
        )

    def load_teacher(self) -> BertForSequenceClassification:
        if not (self.teacher_path / "config.json").exists():
            raise ValueError(
                f"there is no teacher at {self.teacher_path}: run the phase 'teacher', or give one "
                "with --teacher"
            )
        vocabulary = AutoTokenizer.from_pretrained(self.teacher_path).get_vocab()
        if vocabulary != self.inputs.tokenizer.get_vocab():
            raise ValueError(
                f"the tokenizer of the teacher at {self.teacher_path} is not that of "
                f"{self.options.model_name_or_path}: both must give the same token ids"
            )
        return BertForSequenceClassification.from_pretrained(self.teacher_path)

    def trainer(
        self, model: SpikingBertForSequenceClassification, args: DistillationArguments
    ) -> DistillationTrainer:
        return DistillationTrainer(
            model,
            args,
            teacher=self.load_teacher(),
            train_dataset=self.inputs.train,
            eval_dataset=next(iter(self.inputs.evaluation.values())),
            data_collator=self.inputs.collator,
            processing_class=self.inputs.tokenizer,
            compute_metrics=self.inputs.compute_metrics,
        )

    def train(self, trainer: DistillationTrainer) -> dict[str, Any]:
        """Trains, saves and measures: the spiking model by step, and its collapsed twin."""
        args = trainer.args
        trained = trainer.train(resume_from_checkpoint=last_checkpoint(args.output_dir))
        trainer.save_model()
        trainer.save_state()
        model = trainer.model
        found = {"spiking": evaluate(trainer, self.inputs, "eval")}
        if model.config.neuron == "rounding":
            with collapsed(model.config):
                found["collapsed"] = evaluate(
                    dense_trainer(model, self.inputs, args), self.inputs, "eval"
                )
        found["spending"] = spikes_and_energy(model, self.inputs, args.per_device_eval_batch_size)
        found["training"] = {
            "steps": trainer.state.global_step,
            "seconds": trained.metrics["train_runtime"],
            "temporal_loss": "none (collapsed)" if args.collapsed else args.temporal_loss,
            **{name: getattr(args, name) for name in RECORDED},
        }
        return {**found, "run": run_record()}


RECORDED = (
    "learning_rate",
    "neuron_learning_rate",
    "logit_weight",
    "hidden_weight",
    "attention_weight",
    "spike_target",
    "spike_weight",
    "random_timesteps",
    "seed",
)


def announce(phase: str, loaded: Any, created: str, dropped: str) -> None:
    print(f"phase {phase}: loads {loaded}; creates {created}; drops {dropped}", flush=True)


def summary(results: dict[str, Any]) -> str:
    """One row a model: its main metric at the last step, and step by step."""
    lines = []
    for phase, found in results.items():
        for name in ("dense", "converted", "collapsed", "spiking"):
            metrics = found.get(name)
            if not metrics:
                continue
            for key in ("accuracy", "f1", "matthews_correlation", "pearson", "spearmanr"):
                if key in metrics:
                    steps = [v for k, v in metrics.items() if k.startswith(f"{key}_t")]
                    by_step = " / ".join(f"{100 * v:.1f}" for v in steps)
                    label = f"{phase}: {name}"
                    lines.append(f"{label:22} {key:21} {100 * metrics[key]:5.1f}  {by_step}")
        if "spending" in found:
            spent = found["spending"]
            lines.append(
                f"{phase + ': spikes':22} {spent['spikes_per_neuron']:.2f} per neuron and inference"
            )
    return "\n".join(lines)


def main() -> None:
    transformers.utils.logging.set_verbosity_warning()
    options, data_args, args = parse_arguments(
        sys.argv[1:],
        (PipelineArguments, DataArguments, DistillationArguments),
        output_dir="outputs/distill",
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
    results = Pipeline(options, data_args, args, inputs).run()
    record = {"task": inputs.task.name, "data": inputs.source, "seed": args.seed, **results}
    record["config"] = {**options.spiking_fields(), "hidden_act": options.hidden_act}
    (Path(args.output_dir) / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    print(summary(results), flush=True)


if __name__ == "__main__":
    main()
