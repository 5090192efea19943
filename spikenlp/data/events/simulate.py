"""Still images turned into event streams: an ideal event camera looks at an image that moves.

The way N-MNIST and N-Caltech101 were recorded (Orchard et al., 2015: a camera makes three saccades
in front of a screen) with the pixel model of event simulators (ESIM, Rebecq et al., 2018): a pixel
remembers the brightness l at its last event and sends an event of polarity sign(L - l) whenever its
brightness L has moved away from l by the threshold C, upon which l moves by C towards L:

    L = log(eps + intensity) or intensity,   |L(t) - l| >= C:   l <- l + sign(L(t) - l) C

Between two rendered positions of the image L runs linearly, so that each event has its own time.
Real sensors have noise, refractory times and pixels that differ; of these only the spread of
thresholds is modelled.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from spikenlp.data.events.arrays import SensorSize, make_events

LOG_EPS = 0.1
"""Keeps the logarithm of black finite: it bounds the brightness to [log .1, log 1.1], 2.4 apart."""


@dataclass(frozen=True)
class Saccades:
    """An event camera and the path on which it looks at an image.

    The image is placed in the middle of the sensor and travels along a triangle, back to where it was.

    Args:
        sensor: (height, width) in pixels.
        amplitude: length of the triangle's sides in pixels.
        duration_us: time of one side.
        steps: positions rendered on each side; a step should not exceed about a pixel.
        threshold: C > 0, the contrast that makes an event.
        threshold_std: spread of C from pixel to pixel, as a share of C.
        logarithmic: brightness is the logarithm of the intensity, as in real sensors, or the
            intensity itself.

    Raises:
        ValueError: an option out of range; when called, an image that is not [H, W] of numbers in
            [0, 1] (or uint8) or that is larger than the sensor.

    >>> events = Saccades()(image, seed=0)  # doctest: +SKIP
    """

    sensor: tuple[int, int] = (34, 34)
    amplitude: float = 6.0
    duration_us: int = 100_000
    steps: int = 12
    threshold: float = 0.3
    threshold_std: float = 0.05
    logarithmic: bool = True

    def __post_init__(self) -> None:
        for name in ("amplitude", "duration_us", "steps", "threshold"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.threshold_std < 0.3:
            raise ValueError(f"threshold_std must lie in [0, 0.3), got {self.threshold_std}")

    @property
    def sensor_size(self) -> SensorSize:
        return (self.sensor[1], self.sensor[0], 2)

    def __call__(self, image: np.ndarray, seed: int | Sequence[int]) -> np.ndarray:
        """Events of one image, sorted by time. The seed draws the triangle's direction and the
        pixels' thresholds: the same seed gives the same events."""
        generator = np.random.default_rng(seed)
        angle = generator.uniform(0, 2 * np.pi)
        spread = 1 + self.threshold_std * generator.standard_normal(self.sensor)
        threshold = self.threshold * spread.clip(0.1)
        picture = self._place(image)
        path = self._path(angle)
        levels = [self._brightness(_shift(picture, *offset)) for offset in path]
        return self._events(levels, threshold)

    def _place(self, image: np.ndarray) -> np.ndarray:
        picture = np.asarray(image)
        if picture.dtype == np.uint8:
            picture = picture / 255
        if picture.ndim != 2 or not (np.min(picture) >= 0 and np.max(picture) <= 1):
            raise ValueError(
                f"image must be uint8 or in [0, 1] of shape [H, W], got {np.shape(image)}"
            )
        (height, width), (rows, columns) = picture.shape, self.sensor
        if height > rows or width > columns:
            raise ValueError(f"image of {picture.shape} does not fit a sensor of {self.sensor}")
        top, left = (rows - height) // 2, (columns - width) // 2
        margins = ((top, rows - height - top), (left, columns - width - left))
        return np.pad(picture.astype(np.float64), margins)

    def _path(self, angle: float) -> np.ndarray:
        """Offsets (dy, dx) [3 steps + 1, 2] along an equilateral triangle that starts at the middle."""
        directions = angle + 2 * np.pi / 3 * np.arange(3)
        sides = self.amplitude * np.stack([np.sin(directions), np.cos(directions)], 1)
        corners = np.concatenate([np.zeros((1, 2)), sides.cumsum(0)])
        at = np.arange(3 * self.steps + 1) / self.steps
        return np.stack([np.interp(at, np.arange(4), corners[:, k]) for k in range(2)], 1)

    def _brightness(self, intensity: np.ndarray) -> np.ndarray:
        return np.log(LOG_EPS + intensity) if self.logarithmic else intensity

    def _events(self, levels: list[np.ndarray], threshold: np.ndarray) -> np.ndarray:
        remembered = levels[0].copy()
        step_us = self.duration_us / self.steps
        pieces: list[tuple[np.ndarray, ...]] = []
        for step, (before, after) in enumerate(pairwise(levels)):
            change = after - remembered
            counts = np.floor(np.abs(change) / threshold + 1e-9).astype(np.int64)
            sign = np.sign(change)
            y, x = counts.nonzero()
            each = counts[y, x]
            y, x = y.repeat(each), x.repeat(each)
            # 1, 2, ..., count for each pixel
            nth = np.arange(1, len(y) + 1) - (each.cumsum() - each).repeat(each)
            crossing = remembered[y, x] + sign[y, x] * nth * threshold[y, x]
            part = (crossing - before[y, x]) / (after[y, x] - before[y, x])
            time = ((step + part.clip(0, 1)) * step_us).astype(np.int64)
            pieces.append((x, y, time, sign[y, x] > 0))
            remembered += sign * counts * threshold
        x, y, time, polarity = (np.concatenate(column) for column in zip(*pieces, strict=True))
        order = np.lexsort((x, y, time))
        return make_events(x[order], y[order], time[order], polarity[order])


def _shift(picture: np.ndarray, dy: float, dx: float) -> np.ndarray:
    """The picture moved by a fraction of pixels, bilinearly; black comes in at the edges."""
    for axis, offset in ((0, dy), (1, dx)):
        whole = int(np.floor(offset))
        share = offset - whole
        picture = (1 - share) * _move(picture, whole, axis) + share * _move(
            picture, whole + 1, axis
        )
    return picture


def _move(picture: np.ndarray, offset: int, axis: int) -> np.ndarray:
    size = picture.shape[axis]
    moved = np.zeros_like(picture)
    kept = max(size - abs(offset), 0)
    source, target = [slice(None)] * 2, [slice(None)] * 2
    source[axis] = slice(max(-offset, 0), max(-offset, 0) + kept)
    target[axis] = slice(max(offset, 0), max(offset, 0) + kept)
    if kept:
        moved[tuple(target)] = picture[tuple(source)]
    return moved


@dataclass(frozen=True)
class SimulatedEvents(Sequence):
    """A source for `FrameDataset`: events of each image, simulated when asked for.

    Args:
        images: uint8 or [0, 1] [N, H, W]; labels: N class ids; camera: the simulator.
        seed: image i has the seed (seed, i), so that no image depends on another.
        name: stands in the cache's folder name.

    Raises:
        ValueError: as many labels as images there must be.
    """

    images: np.ndarray
    labels: Sequence[int]
    camera: Saccades = field(default_factory=Saccades)
    seed: int = 0
    name: str = "simulated"

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise ValueError(f"got {len(self.images)} images and {len(self.labels)} labels")

    @property
    def sensor_size(self) -> SensorSize:
        return self.camera.sensor_size

    @property
    def fingerprint(self) -> str:
        """Changes with the images, the labels, the seed and the camera's settings."""
        settings: dict[str, Any] = {"seed": self.seed, **asdict(self.camera)}
        digest = hashlib.sha256(repr(settings).encode())
        digest.update(np.ascontiguousarray(self.images).tobytes())
        digest.update(np.asarray(self.labels, np.int64).tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index):  # type: ignore[override]
        index = range(len(self))[operator.index(index)]
        return self.camera(self.images[index], (self.seed, index)), int(self.labels[index])
