"""A job in phases, each in a folder of its own under the output folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml
from common import (
    OF_TRAINING,
    STEPS,
    all_options,
    check_same_options,
    is_score,
    weights_digest,
    write_text,
)
from student import StudentArguments
from transformers import HfArgumentParser, PreTrainedModel, TrainingArguments, set_seed

from spikenlp import SpikingTrainer
from spikenlp.provenance import run_record
from spikenlp.training import DistillationArguments, last_checkpoint
from spikenlp.training.distillation import PROJECTIONS

OF_TEMPORAL_LOSS = {
    "temporal_loss",
    "theta_reduction",
    "theta_scope",
    "theta_weight",
    "theta_lambda",
    "theta_odds",
    "tet_mse_weight",
}


def names_of(kind: Any) -> set[str]:
    return {f.name for f in dataclasses.fields(kind)}


@dataclass
class Start:
    """What a phase goes on from: an earlier phase, or a model."""

    start: str | None


@dataclass
class RepresentationArguments:
    """Options of the phases general and internal, which learn hidden states and attention scores alone."""

    general_learning_rate: float = field(default=5e-5, metadata={"help": "Of the phase general."})
    general_steps: int = field(default=1000, metadata={"help": "Of the phase general."})
    general_attention_weight: float = field(
        default=1.0, metadata={"help": "attention_weight of the phase general."}
    )
    internal_learning_rate: float = field(default=5e-5, metadata={"help": "Of the phase internal."})
    internal_steps: int = field(default=1000, metadata={"help": "Of the phase internal."})
    internal_attention_weight: float = field(
        default=1.0, metadata={"help": "attention_weight of the phase internal."}
    )


@dataclass
class CollapsedArguments:
    """Options of the phase collapsed, which smooths no labels; the usual ones are those of unrolled."""

    collapsed_learning_rate: float = field(
        default=5e-5, metadata={"help": "Of the phase collapsed."}
    )
    collapsed_neuron_learning_rate: float = field(
        default=1e-3, metadata={"help": "Of the amplitudes in the phase collapsed."}
    )
    collapsed_steps: int = field(default=1500, metadata={"help": "Of the phase collapsed."})


@dataclass
class PhaseArguments:
    """Options of a phase of its own."""

    phase_options: list[str] = field(
        default_factory=list,
        metadata={
            "help": "PHASE.OPTION=VALUE: a training option for one phase alone, such as "
            "general.per_device_train_batch_size=128 or unrolled.hidden_weight=0."
        },
    )

    def by_phase(self, kind: type) -> dict[str, dict[str, Any]]:
        """The options by phase, with the types of `kind`, the training arguments.

        Raises:
            ValueError: one of another form; SystemExit: a value that its option does not take.
        """
        parser = HfArgumentParser(kind, allow_abbrev=False)
        found: dict[str, dict[str, Any]] = {}
        for text in self.phase_options:
            target, equals, value = text.partition("=")
            phase, dot, name = target.partition(".")
            if not (equals and dot):
                raise ValueError(f"--phase_options takes PHASE.OPTION=VALUE, got {text!r}")
            given, unknown = parser.parse_known_args([f"--{name}={value}", "--output_dir=unused"])
            if unknown:
                raise ValueError(f"--phase_options {text}: {name} is no training option")
            found.setdefault(phase, {})[name] = getattr(given, name)
        return found


class Phases:
    """Runs the methods `run_NAME(folder)` of the phases that are `chosen`, in the order of `names`.

    A phase leaves its model, in results.json what its method returned, and in arguments.yaml its options in
    its folder. One that is done is not repeated. Each begins with the seed set, whatever ran before it. A
    subclass says in `train(phase, args)` how a student is trained.

    Args:
        further: other options that bear on the phases, such as those of the data.
    """

    names: ClassVar[tuple[str, ...]]
    students: ClassVar[tuple[str, ...]]
    """The phases that leave a student for the next one."""
    recorded: ClassVar[tuple[str, ...]]
    """Training arguments that the record of a phase holds."""

    def __init__(
        self,
        options: Any,
        args: DistillationArguments,
        chosen: Sequence[str],
        further: Sequence[Any] = (),
    ):
        assert args.output_dir is not None  # TrainingArguments fills it in
        self.options, self.args, self.chosen, self.further = options, args, chosen, further
        self.root = Path(args.output_dir)
        self.own = options.by_phase(type(args))

    def run(self) -> dict[str, Any]:
        """What each phase found, in this call or an earlier one.

        Raises:
            ValueError: a chosen phase that is done, or has a checkpoint, was given other options, or came
                from other weights than there are now; a phase that needs a student comes before all
                that make one; `phase_options` that do nothing.
        """
        self.check_phase_options()
        for phase in self.chosen:
            self.check_options(phase)
        found: dict[str, Any] = {}
        for phase in self.names:
            record = self.root / phase / "results.json"
            if phase in self.chosen:
                self.check_weights(phase)
            if record.exists():
                found[phase] = json.loads(record.read_text())
            elif phase in self.chosen:
                self.write_options(phase)
                set_seed(self.args.seed)
                found[phase] = getattr(self, f"run_{phase}")(self.root / phase)
                found[phase] |= {**self.facts(phase), "run": run_record()}
                if self.args.process_index == 0:
                    write_text(record, json.dumps(found[phase], indent=1) + "\n")
        return found

    def facts(self, phase: str) -> dict[str, Any]:
        """What the record of a phase says beside what was found."""
        return {}

    def start(self, phase: str) -> Path:
        """The folder of the last phase before `phase` that left a student, or is to leave one."""
        earlier = self.students[: self.students.index(phase)]
        for name in reversed(earlier):
            if name in self.chosen or (self.root / name / "results.json").exists():
                return self.root / name
        raise ValueError(
            f"the phase {phase} needs a student, and none of the phases {', '.join(earlier)} was run "
            f"in {self.root}: add converted to --phases"
        )

    def start_name(self, phase: str) -> str | None:
        return self.start(phase).name if phase in self.students[1:] else None

    def arguments(self, phase: str) -> DistillationArguments:
        """The usual options as a phase takes them."""
        return dataclasses.replace(self.args, **(self.changed(phase) | self.own.get(phase, {})))

    def changed(self, phase: str) -> dict[str, Any]:
        """In what a phase's options differ from the usual ones."""
        changed: dict[str, Any] = {"output_dir": str(self.root / phase)}
        if phase == "collapsed":
            options = self.options
            changed |= {
                "collapsed": True,
                "max_steps": options.collapsed_steps,
                "learning_rate": options.collapsed_learning_rate,
                "neuron_learning_rate": options.collapsed_neuron_learning_rate,
                "label_smoothing_factor": 0.0,
            }
        else:
            changed["collapsed_timesteps"] = "fixed"
        if phase == "unrolled":
            changed["collapsed"] = False
        return changed

    def bearing(self, phase: str) -> set[str]:
        """Names of the options that bear on what a phase leaves."""
        names = {"start", "seed", "model_name_or_path", "tokenizer_name"}
        names |= {name for part in self.further for name in names_of(part)}
        if phase == "converted":
            names |= names_of(StudentArguments) | {"student"}
        elif phase in self.students:
            names |= OF_TRAINING | names_of(self.args) - names_of(TrainingArguments)
            names -= {"teacher_cache_gb"}
            if phase != "unrolled":
                names -= OF_TEMPORAL_LOSS
            unused = "label_smoothing_factor" if phase == "collapsed" else "collapsed_timesteps"
            names -= {unused}
        return names

    def models(self, phase: str) -> dict[str, str | Path]:
        """The models that bear on what a phase leaves."""
        return {"start": self.start(phase)} if phase in self.students[1:] else {}

    def weights(self, phase: str) -> dict[str, str]:
        """Digests of the models of a phase, so far as they are in folders."""
        digests = {name: weights_digest(path) for name, path in self.models(phase).items()}
        return {name: digest for name, digest in digests.items() if digest is not None}

    def parts(self, phase: str) -> tuple[Any, ...]:
        start = Start(self.start_name(phase))
        return start, self.options, *self.further, self.arguments(phase)

    def taken_over(self, phase: str) -> bool:
        """Whether a phase is done or goes on from a checkpoint, with a record to check it by."""
        folder = self.root / phase
        if self.args.process_index > 0 or not (folder / "arguments.yaml").exists():
            return False
        return (folder / "results.json").exists() or last_checkpoint(str(folder)) is not None

    def check_weights(self, phase: str) -> None:
        """Raises ValueError where `phase` came from other weights than there are now. Of what was run
        before they were recorded it is not known."""
        folder = self.root / phase
        if not self.taken_over(phase):
            return
        recorded = yaml.safe_load((folder / "arguments.yaml").read_text()).get("weights", {})
        for name, digest in self.weights(phase).items():
            if recorded.get(name, digest) != digest:
                raise ValueError(
                    f"{folder} came from other weights of its {name}, {self.models(phase)[name]}, than "
                    "there are now: delete it, and the folders of the phases that went on from it, to "
                    "run them again"
                )

    def check_options(self, phase: str) -> None:
        """Raises ValueError where `phase` was run with other options; of one that goes on from a
        checkpoint the number of steps may change."""
        folder, parts = self.root / phase, self.parts(phase)
        if not self.taken_over(phase):
            return
        counting = self.bearing(phase)
        if not (folder / "results.json").exists():
            counting -= STEPS
        elif parts[-1].max_steps > 0:
            counting.discard("num_train_epochs")
        check_same_options(folder, parts, ignored=all_options(parts).keys() - counting)

    def check_phase_options(self) -> None:
        """Raises ValueError where one is for no phase, does nothing in it, has an option there already, or does
        not change what is trained."""
        for phase, own in self.own.items():
            if phase not in self.names:
                raise ValueError(f"--phase_options: {phase!r} is none of {', '.join(self.names)}")
            changed = self.changed(phase).keys()
            fixed = OF_TEMPORAL_LOSS | {"collapsed", "seed"} | changed
            if changed & STEPS:
                fixed |= STEPS
            if refused := sorted(own.keys() - (self.bearing(phase) - fixed)):
                raise ValueError(
                    f"--phase_options {phase}.{refused[0]}: it does nothing in this phase, has an option of its "
                    "own (see --help), or is one for the whole job"
                )

    def write_options(self, phase: str) -> None:
        if self.args.process_index == 0:
            folder = self.root / phase
            folder.mkdir(parents=True, exist_ok=True)
            record = {**all_options(self.parts(phase)), "weights": self.weights(phase)}
            write_text(folder / "arguments.yaml", yaml.safe_dump(record))

    def run_collapsed(self, folder: Path) -> dict[str, Any]:
        return self.train("collapsed", self.arguments("collapsed"))

    def run_unrolled(self, folder: Path) -> dict[str, Any]:
        return self.train("unrolled", self.arguments("unrolled"))

    def fit(self, trainer: SpikingTrainer) -> dict[str, Any]:
        """Trains on from the last checkpoint, if there is one, and saves; what the record says of it,
        `seconds` only of a run that was not stopped."""
        args = trainer.args
        resume = last_checkpoint(str(args.output_dir))
        trained = trainer.train(resume_from_checkpoint=resume)
        trainer.save_model()
        trainer.save_state()
        return {
            "steps": trainer.state.global_step,
            "seconds": None if resume else trained.metrics["train_runtime"],
            **{name: getattr(args, name) for name in self.recorded},
        }

    def announce_training(self, phase: str, start: Path, model: PreTrainedModel) -> None:
        """Of a student whose trainer has made what it learns beside the student."""
        projections = getattr(model, PROJECTIONS, ())
        created = f"{len(projections)} projections of hidden states" if projections else "nothing"
        dropped = "the projections, when it ends" if projections else "nothing"
        self.announce(phase, start, created, dropped)

    def announce(self, phase: str, loaded: Any, created: str, dropped: str = "nothing") -> None:
        if self.args.process_index == 0:
            print(f"phase {phase}: loads {loaded}; creates {created}; drops {dropped}", flush=True)


def finish(args: DistillationArguments, record: dict[str, Any], printed: str) -> dict[str, Any]:
    """Writes results.json of the whole job and prints its summary, in one process; returns `record`."""
    if args.process_index == 0:
        write_text(
            Path(args.output_dir or "") / "results.json", json.dumps(record, indent=1) + "\n"
        )
        print(printed, flush=True)
    return record


def listed(names: list[str]) -> str:
    return ", ".join(names) or "nothing"


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
