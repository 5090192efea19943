"""A job in phases, each in a folder of its own under the output folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from transformers import TrainingArguments

from spikenlp.training.provenance import run_record


class Phases:
    """Runs the methods `run_NAME(folder)` of the phases that are `chosen`, in the order of `names`.

    A phase leaves its model, and in results.json what its method returned, in its folder. One that is done
    is not repeated.
    """

    names: ClassVar[tuple[str, ...]]
    students: ClassVar[tuple[str, ...]]
    """The phases that leave a student for the next one."""

    def __init__(self, args: TrainingArguments, chosen: Sequence[str]):
        assert args.output_dir is not None  # TrainingArguments fills it in
        self.args, self.chosen, self.root = args, chosen, Path(args.output_dir)

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

    def announce(self, phase: str, loaded: Any, created: str) -> None:
        if self.args.process_index == 0:
            print(f"phase {phase}: loads {loaded}; creates {created}", flush=True)
