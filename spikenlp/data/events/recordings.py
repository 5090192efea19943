"""CIFAR10-DVS, N-Caltech101, DVS128-Gesture and SL-Animals-DVS from their unpacked archives.

| name | classes | split |
|---|---|---|
| cifar10_dvs | 10 | none published; the SNN literature's 9 : 1: of each class the first 900 recordings train, the last 100 test |
| n_caltech101 | 101 | none published; the same rule: of each class the first 90% (rounded up) train, the rest test |
| dvs_gesture | 11 | the data set's own trials_to_train.txt and trials_to_test.txt (other subjects) |
| sl_animals | 19 | no list published; 4-fold cross-validation over recordings (other subjects): fold k tests every fourth recording of a fixed permutation |

Nothing is downloaded: the archives are had from the data sets' own sites.
"""

from __future__ import annotations

import csv
import hashlib
import math
import operator
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from spikenlp.data.events.arrays import SensorSize, sort_by_time
from spikenlp.data.events.readers import read_aedat, read_events

Split = Literal["train", "test"]

CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
GESTURES = (
    "hand_clapping right_hand_wave left_hand_wave right_arm_clockwise right_arm_counter_clockwise "
    "left_arm_clockwise left_arm_counter_clockwise arm_roll air_drums air_guitar other_gestures"
).split()
CALTECH_CLASSES = 101
FOLDS = 4
CLOCK_JITTER = 100_000
"""Microseconds that packets which were written out of order may lie apart."""
TRAIN_SHARE = 0.9


@dataclass(frozen=True)
class Sample:
    """A labelled stretch of a file: all of it, or events of a time or index in [start, stop).

    An index counts all events of the file, special ones too.
    """

    path: Path
    label: int
    span: Literal["all", "time", "index"] = "all"
    start: int = 0
    stop: int = 0


@dataclass(frozen=True)
class EventRecordings(Sequence):
    """A data set of recordings: `[i]` is (events, label), events sorted by time; a warning tells of a
    clock that goes back by more than 0.1 s.

    Attributes:
        classes: class names in the order of their ids; sensor_size: (width, height, polarities).
    """

    name: str
    samples: tuple[Sample, ...]
    classes: tuple[str, ...]
    sensor_size: SensorSize

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index):  # type: ignore[override]
        index = range(len(self))[operator.index(index)]
        sample = self.samples[index]
        events = _read(sample.path)
        if sample.span == "index":
            if not 0 <= sample.start < sample.stop <= len(events):
                raise ValueError(
                    f"{sample.path} has {len(events)} events, but a label for events "
                    f"{sample.start} to {sample.stop}"
                )
            events = events[sample.start : sample.stop]
        elif sample.span == "time":
            time = events["t"]
            events = events[(time >= sample.start) & (time < sample.stop)]
        events = events[events["x"] >= 0]
        if self.name == "cifar10_dvs" and sample.path.suffix == ".aedat":
            events = _as_dat2mat(events)
        if len(events) == 0:
            raise ValueError(f"{sample.path} has no events for sample {index} ({sample})")
        back = -np.diff(events["t"]).min(initial=0)
        if back > CLOCK_JITTER:
            warnings.warn(
                f"{sample.path}: the clock goes back by {back} us within sample {index}, more than "
                "packets out of order explain; its events are sorted by time all the same",
                stacklevel=2,
            )
        return sort_by_time(events), sample.label

    @property
    def labels(self) -> list[int]:
        return [sample.label for sample in self.samples]

    @property
    def groups(self) -> list[str]:
        """The subject of each sample (user01 of user01_led.aedat), or its file where there is none."""
        return [
            str(s.path) if s.span == "all" else s.path.stem.partition("_")[0] for s in self.samples
        ]

    @property
    def fingerprint(self) -> str:
        """Changes with the list of samples and with the size of a file."""
        digest = hashlib.sha256()
        for s in self.samples:
            line = (
                s.path.parent.name,
                s.path.name,
                s.path.stat().st_size,
                s.label,
                s.start,
                s.stop,
            )
            digest.update(repr(line).encode())
        return digest.hexdigest()

    def select(self, indices: Sequence[int]) -> EventRecordings:
        return replace(self, samples=tuple(self.samples[i] for i in indices))


_last_read: tuple[tuple[Path, int], np.ndarray] | None = None


def _read(path: Path) -> np.ndarray:
    """The file's events, special ones at x = -1; those of the last file are kept, for the next sample is
    often in it too."""
    global _last_read
    key = (path, path.stat().st_mtime_ns)
    if _last_read is None or _last_read[0] != key:
        aedat = path.suffix == ".aedat"
        _last_read = (key, read_aedat(path, special=True) if aedat else read_events(path))
    return _last_read[1]


def load_recordings(
    name: str, root: str | Path, split: Split, *, fold: int | None = None
) -> EventRecordings:
    """A split of one of the four data sets.

    Args:
        name: "cifar10_dvs", "n_caltech101", "dvs_gesture" or "sl_animals".
        root: where its archive was unpacked; one folder above will do too.
        split: "train" or "test".
        fold: 1 to 4, for "sl_animals" only: the fold that is tested on.

    Raises:
        ValueError: an unknown name or split, a fold where none is due or none where one is, label
            files that are not what they should be.
        FileNotFoundError: files that are not there.

    >>> train = load_recordings("dvs_gesture", "DvsGesture", "train")  # doctest: +SKIP
    >>> events, label = train[0]  # doctest: +SKIP
    """
    if name not in EVENT_DATASETS:
        raise ValueError(
            f"unknown event data set {name!r}: choose from {', '.join(EVENT_DATASETS)}"
        )
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    folds = range(1, FOLDS + 1)
    if (name == "sl_animals") != (fold in folds):
        wanted = f"must be 1 to {FOLDS}" if name == "sl_animals" else "is for sl_animals only"
        raise ValueError(f"{name}: fold {wanted}, got {fold}")
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{name}: no such folder: {root}")
    found = EVENT_DATASETS[name](root, split, fold or 0)
    if not found.samples:
        raise FileNotFoundError(f"{name}: {root} has no recordings of the {split} split")
    return found


def _number(path: Path) -> tuple[int, str]:
    """Files in the order of the last number in their names."""
    numbers = re.findall(r"\d+", path.stem)
    return (int(numbers[-1]) if numbers else -1, path.name)


def _class_folders(root: Path, suffixes: tuple[str, ...]) -> dict[str, list[Path]]:
    """Recordings by the name of their folder."""
    by_class: dict[str, list[Path]] = {}
    for path in root.rglob("*"):
        if path.suffix in suffixes:
            by_class.setdefault(path.parent.name, []).append(path)
    return {name: sorted(by_class[name], key=_number) for name in sorted(by_class)}


def _nine_to_one(files: dict[str, list[Path]], split: Split) -> tuple[Sample, ...]:
    samples = []
    for label, paths in enumerate(files.values()):
        first_test = math.ceil(TRAIN_SHARE * len(paths))
        chosen = paths[:first_test] if split == "train" else paths[first_test:]
        samples += [Sample(path, label) for path in chosen]
    return tuple(samples)


def _as_dat2mat(events: np.ndarray) -> np.ndarray:
    """A DVS128's addresses as dat2mat.m of the data set's authors writes them to .mat, which networks for
    CIFAR10-DVS were trained on: x is mirrored, and in an address bit 0 is 0 where it got brighter."""
    events = events.copy()
    events["x"] = 127 - events["x"]
    events["p"] = 1 - events["p"]
    return events


def _cifar10_dvs(root: Path, split: Split, fold: int) -> EventRecordings:
    files = _class_folders(root, (".aedat",)) or _class_folders(root, (".mat",))
    if sorted(files) != CIFAR10_CLASSES:
        raise FileNotFoundError(
            f"cifar10_dvs: {root} must hold .aedat or .mat files in the folders {CIFAR10_CLASSES}, "
            f"found {sorted(files)}"
        )
    samples = _nine_to_one(files, split)
    return EventRecordings("cifar10_dvs", samples, tuple(files), (128, 128, 2))


def _n_caltech101(root: Path, split: Split, fold: int) -> EventRecordings:
    # Beside it the archive has Caltech101_annotations, with the same class folders and suffix.
    root = next((path for path in sorted(root.rglob("Caltech101")) if path.is_dir()), root)
    files = _class_folders(root, (".bin",))
    if len(files) != CALTECH_CLASSES:
        raise FileNotFoundError(
            f"n_caltech101: {root} must hold .bin files in the folders of {CALTECH_CLASSES} classes, "
            f"found {len(files)}"
        )
    samples = _nine_to_one(files, split)
    return EventRecordings("n_caltech101", samples, tuple(files), (240, 180, 2))


def _dvs_gesture(root: Path, split: Split, fold: int) -> EventRecordings:
    lists = sorted(root.rglob(f"trials_to_{split}.txt"))
    if not lists:
        raise FileNotFoundError(f"dvs_gesture: no trials_to_{split}.txt in {root}")
    samples = []
    for name in lists[0].read_text().split():
        path = lists[0].parent / name
        labels = path.with_name(f"{path.stem}_labels.csv")
        samples += _tagged(path, labels, len(GESTURES), "time", "startTime_usec", "endTime_usec")
    return EventRecordings("dvs_gesture", tuple(samples), tuple(GESTURES), (128, 128, 2))


def _sl_animals(root: Path, split: Split, fold: int) -> EventRecordings:
    paths = sorted(root.rglob("*.aedat"), key=lambda path: path.name)
    order = np.random.default_rng(0).permutation(len(paths))
    tested = set(order[fold - 1 :: FOLDS].tolist())
    chosen = [path for i, path in enumerate(paths) if (i in tested) == (split == "test")]
    tags = {path.stem: path for path in root.rglob("*.csv")}
    classes = 19
    samples = []
    for path in chosen:
        tag = tags.get(path.stem, path.with_suffix(".csv"))
        samples += _tagged(path, tag, classes, "index", "startTime_ev", "endTime_ev")
    names = tuple(f"sign_{i}" for i in range(1, classes + 1))
    return EventRecordings("sl_animals", tuple(samples), names, (128, 128, 2))


def _tagged(
    path: Path, tags: Path, classes: int, span: Literal["time", "index"], start: str, stop: str
) -> list[Sample]:
    """One sample a row of a label file: class from 1, start, end. Labels may repeat."""
    for needed in (path, tags):
        if not needed.is_file():
            raise FileNotFoundError(f"no such file: {needed}")
    with tags.open(newline="") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        if missing := {"class", start, stop} - set(reader.fieldnames or ()):
            raise ValueError(f"{tags} has no column {sorted(missing)}: found {reader.fieldnames}")
        samples = []
        for row in reader:
            try:
                label, begin, end = (int(row[k]) for k in ("class", start, stop))
            except (TypeError, ValueError):
                label = begin = end = -1
            if not (1 <= label <= classes and 0 <= begin < end):
                raise ValueError(
                    f"{tags}, line {reader.line_num}: expected a class from 1 to {classes} and "
                    f"{start} < {stop}, got {dict(row)}"
                )
            samples.append(Sample(path, label - 1, span, begin, end))
    return samples


EVENT_DATASETS: dict[str, Callable[[Path, Split, int], EventRecordings]] = {
    "cifar10_dvs": _cifar10_dvs,
    "n_caltech101": _n_caltech101,
    "dvs_gesture": _dvs_gesture,
    "sl_animals": _sl_animals,
}
