"""A job in phases, each in a folder of its own under the output folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml
from common import (
    OF_TRAINING,
    STEPS,
    all_options,
    check_same_options,
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


class Phase:
    """One phase of a job: what its model is made of, which options bear on it, what it does.

    It leaves its model, in results.json what `run` returned, and in arguments.yaml its options in a folder
    of its own.
    """

    name: ClassVar[str]
    makes_student: ClassVar[bool] = True
    """Whether a later phase goes on from its model."""

    def __init__(self, job: Job):
        self.job = job
        self.folder = job.root / self.name

    def run(self) -> dict[str, Any]:
        raise NotImplementedError

    def source(self) -> str | Path:
        """What its model is made of: the folder of the last phase before it that left a student, or is to
        leave one.

        Raises:
            ValueError: there is none.
        """
        phases = self.job.phases
        earlier = [phase for phase in phases[: phases.index(self)] if phase.makes_student]
        for phase in reversed(earlier):
            if phase in self.job.chosen or phase.done:
                return phase.folder
        names = ", ".join(phase.name for phase in earlier)
        raise ValueError(
            f"the phase {self.name} needs a student, and none of the phases {names} was run "
            f"in {self.job.root}: add converted to --phases"
        )

    def models(self) -> dict[str, str | Path]:
        """The models that bear on what it leaves."""
        return {"start": self.source()}

    def changed(self) -> dict[str, Any]:
        """In what its training arguments differ from the usual ones."""
        return {"output_dir": str(self.folder), "collapsed_timesteps": "fixed"}

    def arguments(self) -> DistillationArguments:
        """The usual training arguments as it takes them."""
        own = self.job.own.get(self.name, {})
        return dataclasses.replace(self.job.args, **(self.changed() | own))

    def bearing(self) -> set[str]:
        """Names of the options that bear on what it leaves."""
        of_data = {name for part in self.job.further for name in names_of(part)}
        return of_data | {"start", "seed", "model_name_or_path", "tokenizer_name"}

    def facts(self) -> dict[str, Any]:
        """What its record says beside what was found."""
        return {}

    @property
    def record(self) -> Path:
        return self.folder / "results.json"

    @property
    def done(self) -> bool:
        return self.record.exists()

    def parts(self) -> tuple[Any, ...]:
        """All its options."""
        source = Path(self.source())
        start = Start(source.name if source.parent == self.job.root else str(source))
        return start, self.job.options, *self.job.further, self.arguments()

    def weights(self) -> dict[str, str]:
        """Digests of its models, so far as they are in folders."""
        digests = {name: weights_digest(path) for name, path in self.models().items()}
        return {name: digest for name, digest in digests.items() if digest is not None}

    def taken_over(self) -> bool:
        """Whether it is done or goes on from a checkpoint, with a record to check it by."""
        if self.job.args.process_index > 0 or not (self.folder / "arguments.yaml").exists():
            return False
        return self.done or last_checkpoint(str(self.folder)) is not None

    def check_weights(self) -> None:
        """Raises ValueError where it came from other weights than there are now. Of what was run before they
        were recorded it is not known."""
        if not self.taken_over():
            return
        recorded = yaml.safe_load((self.folder / "arguments.yaml").read_text()).get("weights", {})
        for name, digest in self.weights().items():
            if recorded.get(name, digest) != digest:
                raise ValueError(
                    f"{self.folder} came from other weights of its {name}, {self.models()[name]}, than "
                    "there are now: delete it, and the folders of the phases that went on from it, to "
                    "run them again"
                )

    def check_options(self) -> None:
        """Raises ValueError where it was run with other options; where it goes on from a checkpoint the
        number of steps may change."""
        parts = self.parts()
        if not self.taken_over():
            return
        counting = self.bearing()
        if not self.done:
            counting -= STEPS
        elif self.arguments().max_steps > 0:
            counting.discard("num_train_epochs")
        check_same_options(self.folder, parts, ignored=all_options(parts).keys() - counting)

    def check_own_options(self) -> None:
        """Raises ValueError where one of `phase_options` does nothing in it, has an option there already, or
        does not change what is trained."""
        changed = self.changed().keys()
        fixed = OF_TEMPORAL_LOSS | {"collapsed", "seed"} | changed
        if changed & STEPS:
            fixed |= STEPS
        given = self.job.own.get(self.name, {}).keys()
        if refused := sorted(given - (self.bearing() - fixed)):
            raise ValueError(
                f"--phase_options {self.name}.{refused[0]}: it does nothing in this phase, has an option of its "
                "own (see --help), or is one for the whole job"
            )

    def write_options(self) -> None:
        if self.job.args.process_index == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            record = {**all_options(self.parts()), "weights": self.weights()}
            write_text(self.folder / "arguments.yaml", yaml.safe_dump(record))

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
            **{name: getattr(args, name) for name in self.job.recorded},
        }

    def announce_training(self, model: PreTrainedModel) -> None:
        """Of a student whose trainer has made what it learns beside the student."""
        projections = getattr(model, PROJECTIONS, ())
        created = f"{len(projections)} projections of hidden states" if projections else "nothing"
        dropped = "the projections, when it ends" if projections else "nothing"
        self.announce(created, dropped)

    def announce(self, created: str, dropped: str = "nothing") -> None:
        if self.job.args.process_index == 0:
            said = f"loads {self.source()}; creates {created}; drops {dropped}"
            print(f"phase {self.name}: {said}", flush=True)


class Converted(Phase):
    """Makes the student."""

    name = "converted"

    def bearing(self) -> set[str]:
        return super().bearing() | names_of(StudentArguments) | {"student"}


class Training(Phase):
    """Trains the student."""

    def bearing(self) -> set[str]:
        of_distillation = names_of(self.job.args) - names_of(TrainingArguments)
        unused = OF_TEMPORAL_LOSS | {"teacher_cache_gb", "collapsed_timesteps"}
        return super().bearing() | OF_TRAINING | of_distillation - unused


class Collapsed(Training):
    """Trains the student without the time loop."""

    name = "collapsed"

    def changed(self) -> dict[str, Any]:
        options, changed = self.job.options, super().changed()
        del changed["collapsed_timesteps"]
        return changed | {
            "collapsed": True,
            "max_steps": options.collapsed_steps,
            "learning_rate": options.collapsed_learning_rate,
            "neuron_learning_rate": options.collapsed_neuron_learning_rate,
            "label_smoothing_factor": 0.0,
        }

    def bearing(self) -> set[str]:
        return super().bearing() - {"label_smoothing_factor"} | {"collapsed_timesteps"}


class Unrolled(Training):
    """Trains the student over its time steps."""

    name = "unrolled"

    def changed(self) -> dict[str, Any]:
        return super().changed() | {"collapsed": False}

    def bearing(self) -> set[str]:
        return super().bearing() | OF_TEMPORAL_LOSS


class Job:
    """Runs those phases of `kinds` that are `chosen` by name, in that order.

    One that is done is not repeated. Each begins with the seed set, whatever ran before it.

    Args:
        further: other options that bear on the phases, such as those of the data.
    """

    kinds: ClassVar[tuple[type[Phase], ...]]
    recorded: ClassVar[tuple[str, ...]]
    """Training arguments that the record of a phase holds."""

    def __init__(
        self,
        options: Any,
        args: DistillationArguments,
        chosen: Collection[str],
        further: Sequence[Any] = (),
    ):
        assert args.output_dir is not None  # TrainingArguments fills it in
        if args.collapsed:
            raise ValueError(
                "--collapsed does nothing here: --phases says whether the phase collapsed is run"
            )
        self.options, self.args, self.further = options, args, further
        self.root = Path(args.output_dir)
        self.own = options.by_phase(type(args))
        self.phases = [kind(self) for kind in self.kinds]
        self.chosen = [phase for phase in self.phases if phase.name in chosen]

    def run(self) -> dict[str, Any]:
        """What each phase found, in this call or an earlier one.

        Raises:
            ValueError: a chosen phase that is done, or has a checkpoint, was given other options, or came
                from other weights than there are now; a phase that needs a student comes before all
                that make one; `phase_options` that do nothing.
        """
        self.check_phase_options()
        for phase in self.chosen:
            phase.check_options()
        found: dict[str, Any] = {}
        for phase in self.phases:
            if phase in self.chosen:
                phase.check_weights()
            if phase.done:
                found[phase.name] = json.loads(phase.record.read_text())
            elif phase in self.chosen:
                phase.write_options()
                set_seed(self.args.seed)
                found[phase.name] = {**phase.run(), **phase.facts(), "run": run_record()}
                if self.args.process_index == 0:
                    write_text(phase.record, json.dumps(found[phase.name], indent=1) + "\n")
        return found

    def check_phase_options(self) -> None:
        """Raises ValueError where one of `phase_options` is for no phase, or not for that one."""
        names = [phase.name for phase in self.phases]
        for name in self.own:
            if name not in names:
                raise ValueError(f"--phase_options: {name!r} is none of {', '.join(names)}")
        for phase in self.phases:
            phase.check_own_options()


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
