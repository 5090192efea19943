"""Events to frames: a recording is cut into T slices, and each slice's events are counted by pixel."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spikenlp.data.events.arrays import SensorSize, as_events, check_events


@dataclass(frozen=True)
class ToFrames:
    """Frames [T, 2, H, W] of a recording: how many events of each polarity fell on each pixel.

    Every event is counted once, so that frames sum to the number of events, unless `binary` or
    `resize="bilinear"` asks for less.

    Args:
        num_frames: T >= 1.
        by: "count": floor(N / T) events a slice and the remainder in the last, the rule of most of
            the SNN literature; "time": slices of one duration from the first event to the last. A
            slice without events is an empty frame.
        frame_size: (H, W), or None for the sensor's own.
        resize: how `frame_size` is reached. "sum": an event goes to pixel floor(x W / width), so that
            nothing is lost, and where W does not divide the width some pixels gather more of the sensor's
            than others (128 to 48: 4 to 9), a fixed pattern; "bilinear": frames of the sensor's size are
            resized as PIL resizes images, with a triangle as wide as two of the larger pixels, as the
            loaders of TET and TMC do.
            (Their two polarities are grey and alpha of one image, where PIL weights the first by the
            second; here each is resized by itself.)
        binary: 1 where anything happened, else 0, before a bilinear resizing: TET's preprocessing.

    Raises:
        ValueError: an option out of range; when called, no event at all, events outside the sensor
            or out of order, or without the fields x, y, t and p; frames larger than the sensor with
            `resize="sum"`.

    >>> from spikenlp.data.events import ToFrames, make_events
    >>> events = make_events(x=[0, 3, 3], y=[0, 1, 1], t=[0, 5, 9], p=[0, 1, 1])
    >>> ToFrames(2, by="time")(events, sensor_size=(4, 2, 2)).sum((1, 2, 3))
    array([1, 2])
    """

    num_frames: int
    by: Literal["count", "time"] = "count"
    frame_size: tuple[int, int] | None = None
    resize: Literal["sum", "bilinear"] = "sum"
    binary: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.num_frames, Integral) or self.num_frames < 1:
            raise ValueError(f"num_frames must be an integer, at least 1, got {self.num_frames}")
        object.__setattr__(self, "num_frames", int(self.num_frames))
        for name, allowed in (("by", ("count", "time")), ("resize", ("sum", "bilinear"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        size = self.frame_size
        if size is not None and (np.shape(size) != (2,) or min(size) < 1):
            raise ValueError(f"frame_size must be (height, width), got {size}")

    def __call__(self, events: Any, sensor_size: SensorSize) -> np.ndarray:
        """int32 [T, 2, H, W], resized bilinearly float32; channel 0 counts polarity 0."""
        events = as_events(events)
        if len(events) == 0:
            raise ValueError("the recording has no events")
        check_events(events, sensor_size)
        width, height = sensor_size[:2]
        rows, columns = self.frame_size or (height, width)
        x, y = events["x"].astype(np.int64), events["y"].astype(np.int64)
        summed = self.resize == "sum"
        if summed and (rows > height or columns > width):
            raise ValueError(
                f"frame_size {(rows, columns)} is larger than the sensor, {(height, width)}: with "
                'resize="sum" pixels between the sensor\'s would never get an event. Give a smaller '
                'frame_size, or resize="bilinear"'
            )
        if summed:
            x, y, height, width = x * columns // width, y * rows // height, rows, columns
        slices = self._slices(events["t"])
        flat = ((slices * 2 + events["p"]) * height + y) * width + x
        counts = np.bincount(flat, minlength=self.num_frames * 2 * height * width)
        frames = counts.reshape(self.num_frames, 2, height, width).astype(np.int32)
        if self.binary:
            frames = np.minimum(frames, 1)
        return frames if summed else _resize(frames, rows, columns)

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


def _resize(frames: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """float32 [T, 2, rows, columns]."""
    pixels = torch.from_numpy(frames.astype(np.float32))
    return F.interpolate(pixels, (rows, columns), mode="bilinear", antialias=True).numpy()


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
