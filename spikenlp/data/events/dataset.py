"""Frames of event recordings as a torch data set for the Trainer, kept on disk."""

from __future__ import annotations

import hashlib
import json
import operator
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from spikenlp.data.events.arrays import SensorSize
from spikenlp.data.events.frames import ToFrames, augment_frames
from spikenlp.data.events.recordings import EventRecordings
from spikenlp.data.files import write_whole

CACHE_FORMAT = 3
"""Part of the key: to be raised when the same settings come to give other frames."""


class EventSource(Protocol):
    """What `FrameDataset` reads: `EventRecordings`, a data set of tonic, or your own.

    `[i]` is (events, label): a structured array with the fields x, y, t and p, and a class id or name.
    Most have `sensor_size`, (width, height, polarities), too.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, Any]: ...


class FrameDataset(Dataset):
    """Frames of a source of events: `[i]` is {"pixel_values": float32 [T, 2, H, W], "labels": int}.

    Args:
        source: an `EventSource`. Where its events come as arrays [T, 2, H, W] already (tonic's
            `ToFrame` as its transform), they are taken as they are.
        to_frames: how a recording becomes frames.
        cache_dir: where frames are kept, in a folder whose name has a key of all settings; None keeps
            nothing. A file appears there when it is whole, so that a run may be killed at any time
            and several may share the folder.
        cache_name: what the source is, for the key. Needed where the source has no `fingerprint`; it
            must then name everything that its events depend on (split, transforms).
        sensor_size: (width, height, polarities), where the source has none (tonic's N-Caltech101, whose
            recordings differ: (240, 180, 2) holds all of them).
        classes: names in the order of their ids, where the source's labels are names.
        flip, roll: augmentation, as in `augment_frames`, drawn anew each time; none by default.

    Raises:
        ValueError: no cache_name where one is needed; later, events and no sensor_size, a label that is
            not among `classes`, a recording that cannot be framed (with its index).

    >>> import tonic  # doctest: +SKIP
    >>> nmnist = tonic.datasets.NMNIST("data", train=True)  # doctest: +SKIP
    >>> FrameDataset(nmnist, ToFrames(10), cache_dir="cache", cache_name="nmnist-train")  # doctest: +SKIP
    """

    def __init__(
        self,
        source: EventSource,
        to_frames: ToFrames,
        *,
        cache_dir: str | Path | None = None,
        cache_name: str | None = None,
        sensor_size: SensorSize | None = None,
        classes: Sequence[str] | None = None,
        flip: bool = False,
        roll: int = 0,
    ):
        self.source, self.to_frames = source, to_frames
        self.sensor_size: SensorSize | None = sensor_size or getattr(source, "sensor_size", None)
        self.classes = None if classes is None else list(classes)
        self.flip, self.roll = flip, roll
        self.folder = None if cache_dir is None else self._open_cache(Path(cache_dir), cache_name)

    def _open_cache(self, cache_dir: Path, name: str | None) -> Path:
        fingerprint = getattr(self.source, "fingerprint", None)
        if fingerprint is None and name is None:
            raise ValueError(
                f"{type(self.source).__name__} has no fingerprint: give cache_name, a name for all "
                "that its events depend on, or cache_dir=None"
            )
        settings = {
            "format": CACHE_FORMAT,
            "name": name or getattr(self.source, "name", type(self.source).__name__),
            "source": fingerprint,
            "samples": len(self.source),
            "sensor_size": self.sensor_size,
            "classes": self.classes,
            "frames": self.to_frames.settings(),
        }
        text = json.dumps(settings, indent=1, sort_keys=True, default=operator.index)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        folder = cache_dir / f"{settings['name']}-{key}"
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "settings.json", lambda file: file.write(text.encode()))
        return folder

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        frames, label = self._frames(index)
        pixels = torch.from_numpy(frames.astype(np.float32))
        if self.flip or self.roll:
            pixels = augment_frames(pixels, flip=self.flip, roll=self.roll)
        return {"pixel_values": pixels, "labels": label}

    def prepare(self, indices: Iterable[int] | None = None) -> None:
        """Fills the cache, in the order of the source by default, which so reads each file once.

        Without it the cache fills as samples are asked for.
        """
        indices = range(len(self)) if indices is None else indices
        for index in tqdm(indices, desc="Framing events", disable=None):
            self._frames(index)

    def _frames(self, index: int) -> tuple[np.ndarray, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} recordings")
        path = None if self.folder is None else self.folder / f"{index:06d}.npz"
        if path is not None and path.exists():
            try:
                with np.load(path) as kept:
                    return kept["frames"], int(kept["label"])
            except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile):
                pass  # damaged after it was written: made again below
        events, label = self.source[index]
        try:
            frames, label = self._frame(events), self._class_id(label)
        except ValueError as error:
            where = f"recording {index} of {type(self.source).__name__}"
            if isinstance(self.source, EventRecordings):
                where += f", {self.source.samples[index].path}"
            raise ValueError(f"{where}: {error}") from error
        if path is not None:
            if frames.dtype.kind in "iu" and frames.min() >= 0:
                frames = frames.astype(np.min_scalar_type(frames.max()))
            write_whole(path, lambda file: np.savez_compressed(file, frames=frames, label=label))
        return frames, label

    def _frame(self, events: Any) -> np.ndarray:
        array = np.asarray(events)
        if array.dtype.names is not None or array.ndim != 4:
            if self.sensor_size is None or len(self.sensor_size) != 3:
                raise ValueError(
                    "events need sensor_size=(width, height, polarities), of the source or given, got "
                    f"{self.sensor_size}"
                )
            return self.to_frames(events, self.sensor_size)
        if len(array) != self.to_frames.num_frames:
            raise ValueError(
                f"frames of shape {array.shape} come from the source, but num_frames is "
                f"{self.to_frames.num_frames}"
            )
        return array

    def _class_id(self, label: Any) -> int:
        if not isinstance(label, str):
            return int(label)
        if self.classes is None:
            raise ValueError(
                f"the label {label!r} is a name: give classes, in the order of their ids"
            )
        if label not in self.classes:
            raise ValueError(f"the label {label!r} is not among the {len(self.classes)} classes")
        return self.classes.index(label)
