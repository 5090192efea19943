"""A job in phases, each in a folder of its own under the output folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from spikenlp import SpikingTrainer
from spikenlp.training import DistillationArguments, last_checkpoint
from spikenlp.training.provenance import run_record


@dataclass
class CollapsedArguments:
    """Options of the phase collapsed; the usual ones are those of unrolled."""

    collapsed_learning_rate: float = field(
        default=5e-5, metadata={"help": "Of the phase collapsed."}
    )
    collapsed_neuron_learning_rate: float = field(
        default=1e-3, metadata={"help": "Of the amplitudes in the phase collapsed."}
    )
    collapsed_steps: int = field(default=1500, metadata={"help": "Of the phase collapsed."})


class Phases:
    """Runs the methods `run_NAME(folder)` of the phases that are `chosen`, in the order of `names`.

    A phase leaves its model, and in results.json what its method returned, in its folder. One that is done
    is not repeated. A subclass says in `train(phase, args)` how a student is trained.
    """

    names: ClassVar[tuple[str, ...]]
    students: ClassVar[tuple[str, ...]]
    """The phases that leave a student for the next one."""
    recorded: ClassVar[tuple[str, ...]]
    """Training arguments that the record of a phase holds."""

    def __init__(self, options: Any, args: DistillationArguments, chosen: Sequence[str]):
        assert args.output_dir is not None  # TrainingArguments fills it in
        self.options, self.args, self.chosen = options, args, chosen
        self.root = Path(args.output_dir)

    def run(self) -> dict[str, Any]:
        """What each phase found, in this call or an earlier one."""
        found: dict[str, Any] = {}
        for phase in self.names:
            record = self.root / phase / "results.json"
            if record.exists():
                found[phase] = json.loads(record.read_text())
            elif phase in self.chosen:
                found[phase] = getattr(self, f"run_{phase}")(self.root / phase)
                found[phase] |= {**self.facts(phase), "run": run_record()}
                if self.args.process_index == 0:
                    record.parent.mkdir(parents=True, exist_ok=True)
                    record.write_text(json.dumps(found[phase], indent=1) + "\n")
        return found

    def facts(self, phase: str) -> dict[str, Any]:
        """What the record of a phase says beside what was found."""
        return {}

    def start(self, phase: str) -> Path:
        """The folder of the last phase before `phase` that left a student."""
        earlier = self.students[: self.students.index(phase)]
        for name in reversed(earlier):
            if (self.root / name / "results.json").exists():
                return self.root / name
        raise ValueError(
            f"the phase {phase} needs a student, and none of the phases {', '.join(earlier)} was run "
            f"in {self.root}: add converted to --phases"
        )

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
        return self.train("collapsed", args)

    def run_unrolled(self, folder: Path) -> dict[str, Any]:
        args = dataclasses.replace(self.args, output_dir=str(folder), collapsed=False)
        return self.train("unrolled", args)

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

    def announce(self, phase: str, loaded: Any, created: str) -> None:
        if self.args.process_index == 0:
            print(f"phase {phase}: loads {loaded}; creates {created}", flush=True)
