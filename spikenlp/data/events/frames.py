"""Events to frames: a recording is cut into T slices, and each slice's events are counted by pixel."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from spikenlp.data.events.arrays import SensorSize, as_events, check_events


@dataclass(frozen=True)
class ToFrames:
    """Frames [T, 2, H, W] of a recording: how many events of each polarity fell on each pixel.

    Every event is counted once, so that frames sum to the number of events, unless `binary` or
    `resize="nearest"` asks for less.

    Args:
        num_frames: T >= 1.
        by: "count": floor(N / T) events a slice and the remainder in the last, the rule of most of
            the SNN literature; "time": slices of one duration from the first event to the last. A
            slice without events is an empty frame.
        frame_size: (H, W), or None for the sensor's own.
        resize: how `frame_size` is reached. "sum": an event goes to pixel floor(x W / width), so that
            nothing is lost; "nearest": every pixel takes the count of the sensor's pixel at its
            centre, as in TET's preprocessing, and other events are lost.
        binary: 1 where anything happened, else 0: TET's preprocessing.

    Raises:
        ValueError: an option out of range; when called, no event at all, events outside the sensor
            or out of order, or without the fields x, y, t and p.

    >>> from spikenlp.data.events import ToFrames, make_events
    >>> events = make_events(x=[0, 3, 3], y=[0, 1, 1], t=[0, 5, 9], p=[0, 1, 1])
    >>> ToFrames(2, by="time")(events, sensor_size=(4, 2, 2)).sum((1, 2, 3))
    array([1, 2])
    """

    num_frames: int
    by: Literal["count", "time"] = "count"
    frame_size: tuple[int, int] | None = None
    resize: Literal["sum", "nearest"] = "sum"
    binary: bool = False

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {self.num_frames}")
        for name, allowed in (("by", ("count", "time")), ("resize", ("sum", "nearest"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        if self.frame_size is not None and (len(self.frame_size) != 2 or min(self.frame_size) < 1):
            raise ValueError(f"frame_size must be (height, width), got {self.frame_size}")

    def __call__(self, events: Any, sensor_size: SensorSize) -> np.ndarray:
        """int32 [T, 2, H, W]; channel 0 counts polarity 0."""
        events = as_events(events)
        if len(events) == 0:
            raise ValueError("the recording has no events")
        check_events(events, sensor_size)
        width, height = sensor_size[:2]
        rows, columns = self.frame_size or (height, width)
        x, y = events["x"].astype(np.int64), events["y"].astype(np.int64)
        summed = self.resize == "sum"
        if summed:
            x, y, height, width = x * columns // width, y * rows // height, rows, columns
        slices = self._slices(events["t"])
        flat = ((slices * 2 + events["p"]) * height + y) * width + x
        counts = np.bincount(flat, minlength=self.num_frames * 2 * height * width)
        frames = counts.reshape(self.num_frames, 2, height, width).astype(np.int32)
        if not summed and (rows, columns) != (height, width):
            row, column = (_centres(n, of) for n, of in ((rows, height), (columns, width)))
            frames = frames[:, :, row[:, None], column]
        return np.minimum(frames, 1) if self.binary else frames

    def _slices(self, time: np.ndarray) -> np.ndarray:
        """Each event's slice, int64 [N] in [0, T)."""
        last = self.num_frames - 1
        if self.by == "count":
            each = len(time) // self.num_frames
            return (
                np.minimum(np.arange(len(time)) // each, last) if each else np.full(len(time), last)
            )
        since, duration = time - time[0], int(time[-1] - time[0]) + 1
        return since * self.num_frames // duration

    def settings(self) -> dict[str, Any]:
        """The options, for a record or a cache key."""
        return asdict(self)


def _centres(size: int, of: int) -> np.ndarray:
    """Indices of nearest neighbours when an axis of length `of` is resized to `size`."""
    return ((2 * np.arange(size) + 1) * of) // (2 * size)


def augment_frames(frames: Tensor, *, flip: bool = True, roll: int = 5) -> Tensor:
    """A copy of frames [..., H, W], mirrored with probability 1/2 and rolled by up to `roll` pixels.

    One draw for all frames, from torch's generator: the augmentation of TET and TMC (flip, roll 5).
    Pixels that leave on one side come back on the other.

    Raises:
        ValueError: a negative roll.
    """
    if roll < 0:
        raise ValueError(f"roll must be >= 0, got {roll}")
    mirrored, *shifts = torch.randint(2, ()), *torch.randint(-roll, roll + 1, (2,))
    if flip and mirrored:
        frames = frames.flip(-1)
    return frames.roll([int(shift) for shift in shifts], (-2, -1))
