"""When to stop: thresholds and temperatures, their file beside a checkpoint, and what they do.

`exit_steps` and `exit_point` say what a policy would do from logits that are already there, without
running the model again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

FILE = "early_exit.json"
FORMAT = 1


@dataclass(frozen=True)
class ExitPolicy:
    """An example stops at the first step t where its confidence exceeds `thresholds[t - 1]`.

    Args:
        thresholds: in [0, 1], for steps 1, 2, ...; the last holds for later ones. At 1 none stops.
        temperatures: > 0, likewise: confidence is max softmax(logits / temperature).
        num_timesteps: T, where all that are left stop, or None: as the model's config says.
        samples: validation samples that the policy was calibrated on; None for one set by hand, as
            for all that follows.
        max_accuracy_drop: that it was allowed there.
        full_accuracy: accuracy there with all T steps.
        accuracy: accuracy there with early exit.
        mean_steps: steps taken there on average.

    Raises:
        ValueError: a value outside the above.

    >>> ExitPolicy(thresholds=(0.9,), num_timesteps=4).thresholds
    (0.9,)
    """

    thresholds: tuple[float, ...] = (1.0,)
    temperatures: tuple[float, ...] = (1.0,)
    num_timesteps: int | None = None
    samples: int | None = None
    max_accuracy_drop: float | None = None
    full_accuracy: float | None = None
    accuracy: float | None = None
    mean_steps: float | None = None

    def __post_init__(self):
        for name in ("thresholds", "temperatures"):
            given = getattr(self, name)
            if not isinstance(given, Sequence | np.ndarray):
                raise ValueError(f"{name} must be a sequence of numbers, such as ({given},)")
            object.__setattr__(self, name, tuple(map(float, given)))
        if not self.thresholds or not all(0 <= t <= 1 for t in self.thresholds):
            raise ValueError(f"thresholds must lie in [0, 1], at least one, got {self.thresholds}")
        if not self.temperatures or not all(0 < t < math.inf for t in self.temperatures):
            raise ValueError(f"temperatures must be > 0, at least one, got {self.temperatures}")
        if self.num_timesteps is not None and self.num_timesteps < 1:
            raise ValueError(f"num_timesteps must be >= 1, got {self.num_timesteps}")

    def threshold(self, step: int) -> float:
        """That of step 1, 2, ..."""
        return self.thresholds[min(step, len(self.thresholds)) - 1]

    def temperature(self, step: int) -> float:
        """That of step 1, 2, ..."""
        return self.temperatures[min(step, len(self.temperatures)) - 1]

    def save(self, folder: str | Path) -> Path:
        """Writes `early_exit.json` into the folder of a checkpoint."""
        path = Path(folder) / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")
        os.replace(unfinished, path)
        return path

    @classmethod
    def load(cls, folder: str | Path, **hub_options: Any) -> ExitPolicy:
        """Reads it from a folder or a Hub id (`hub_options`: `revision`, `token`, ...).

        Raises:
            OSError: there is none.
            ValueError: a damaged file, or one of another format.
        """
        from transformers.utils import cached_file

        try:
            path = cached_file(str(folder), FILE, **hub_options)
        except OSError as error:
            raise OSError(
                f"no {FILE} of {folder} (calibrate_exit(model, dev_batches).save(folder) makes one): {error}"
            ) from error
        try:
            values = dict(json.loads(Path(str(path)).read_text()))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{FILE} in {folder} is not what ExitPolicy.save wrote: {error}"
            ) from error
        found = values.pop("format", None)
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if found != FORMAT or unknown:
            raise ValueError(
                f"{FILE} in {folder} has format {found!r} and unknown fields {unknown}; this version "
                f"reads format {FORMAT}"
            )
        return cls(**values)


@dataclass(frozen=True)
class ExitPoint:
    """What a policy does on labelled data."""

    threshold: float
    accuracy: float
    mean_steps: float
    exits: tuple[float, ...]
    """Share of the samples that stop at steps 1 ... T."""
    energy: float | None = None
    """Mean picojoules of a sample."""
    latency: float | None = None
    """Seconds of a sample, where it was measured."""


def exit_steps(confidence: np.ndarray, policy: ExitPolicy) -> np.ndarray:
    """The step, 1 ... T, at which each sample stops; confidence [N, T]."""
    stops = confidence > [policy.threshold(t) for t in range(1, confidence.shape[1] + 1)]
    stops[:, -1] = True
    return stops.argmax(1) + 1


def exit_point(
    confidence: np.ndarray,
    correct: np.ndarray,
    threshold: float,
    energy: np.ndarray | None = None,
    latency: float | None = None,
) -> ExitPoint:
    """What one threshold does; `correct` and `energy` (cumulative): [N, T], as `confidence`."""
    steps = exit_steps(confidence, ExitPolicy((threshold,)))
    rows = np.arange(len(steps))
    last = confidence.shape[1]
    return ExitPoint(
        threshold=float(threshold),
        accuracy=float(correct[rows, steps - 1].mean()),
        mean_steps=float(steps.mean()),
        exits=tuple((np.bincount(steps, minlength=last + 1)[1:] / len(steps)).tolist()),
        energy=None if energy is None else float(energy[rows, steps - 1].mean()),
        latency=latency,
    )


def pareto_front(points: Sequence[ExitPoint], cost: str = "mean_steps") -> list[ExitPoint]:
    """Those that no other point beats in both accuracy and cost, cheapest first.

    Args:
        cost: "mean_steps", "energy" or "latency".

    Raises:
        ValueError: a point without that cost.
    """
    costs: list[Any] = [getattr(point, cost) for point in points]
    if any(c is None for c in costs):
        raise ValueError(f"every point needs a {cost}, got {costs}")
    front: list[ExitPoint] = []
    for _, point in sorted(zip(costs, points, strict=True), key=lambda p: (p[0], -p[1].accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front
