"""The simulator against a loop over pixels and steps; images that say what must come out."""

import math

import numpy as np
import pytest

from spikenlp.data.events import Saccades, SimulatedEvents, check_events
from spikenlp.data.events.simulate import LOG_EPS

CAMERA = Saccades(sensor=(12, 14), amplitude=3.0, steps=5, duration_us=10_000, threshold=0.4)


def image(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (8, 8)).astype(np.uint8)


def sampled(picture, row, column):
    """Bilinear, black outside."""
    top, left = math.floor(row), math.floor(column)
    total = 0.0
    for r, c in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        if 0 <= r < picture.shape[0] and 0 <= c < picture.shape[1]:
            total += (1 - abs(row - r)) * (1 - abs(column - c)) * picture[r, c] / 255
    return total


def reference(camera, picture, seed):
    """Each pixel on its own, each event on its own."""
    generator = np.random.default_rng(seed)
    angle = generator.uniform(0, 2 * np.pi)
    spread = generator.standard_normal(camera.sensor)
    rows, columns = camera.sensor
    top, left = (rows - picture.shape[0]) // 2, (columns - picture.shape[1]) // 2
    offsets = [(0.0, 0.0)]
    for side in range(3):
        for _ in range(camera.steps):
            direction = angle + 2 * math.pi * side / 3
            dy, dx = offsets[-1]
            length = camera.amplitude / camera.steps
            offsets.append((dy + length * math.sin(direction), dx + length * math.cos(direction)))
    events = []
    for y in range(rows):
        for x in range(columns):
            threshold = camera.threshold * max(1 + camera.threshold_std * spread[y, x], 0.1)
            levels = []
            for dy, dx in offsets:
                intensity = sampled(picture, y - top - dy, x - left - dx)
                levels.append(math.log(LOG_EPS + intensity) if camera.logarithmic else intensity)
            remembered = levels[0]
            for step in range(len(levels) - 1):
                before, after = levels[step], levels[step + 1]
                while abs(after - remembered) >= threshold - 1e-7:
                    up = after > remembered
                    remembered += threshold if up else -threshold
                    part = (remembered - before) / (after - before)
                    t = (step + part) * camera.duration_us / camera.steps
                    events.append((x, y, t, int(up)))
    return sorted(events, key=lambda e: e[2])


@pytest.mark.parametrize("logarithmic", [True, False])
def test_events_equal_a_loop_over_pixels(logarithmic):
    camera = Saccades(**{**CAMERA.__dict__, "logarithmic": logarithmic})
    made, expected = camera(image(), seed=3), reference(camera, image(), 3)
    assert len(made) == len(expected) > 200
    key = lambda e: (e[0], e[1], e[2])  # noqa: E731
    for found, wanted in zip(
        sorted(made.tolist(), key=key), sorted(expected, key=key), strict=True
    ):
        assert found[:2] == wanted[:2]
        assert found[3] == wanted[3]
        assert found[2] == pytest.approx(wanted[2], abs=1.5)


def test_the_stream_fits_sensor_and_time():
    events = CAMERA(image(), seed=0)
    check_events(events, CAMERA.sensor_size)
    assert events["t"][0] >= 0
    assert events["t"][-1] <= 30_000


def test_a_seed_is_a_stream():
    first, again, other = (CAMERA(image(), seed=s) for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert len(first) != len(other) or not np.array_equal(first, other)


def test_what_does_not_change_sends_nothing():
    assert len(CAMERA(np.zeros((8, 8)), seed=0)) == 0


def test_back_at_the_start_on_and_off_events_cancel():
    camera = Saccades(
        sensor=(20, 20), amplitude=4, threshold=0.05, threshold_std=0, logarithmic=False
    )
    events = camera(image(), seed=0)
    net = np.zeros((20, 20))
    np.add.at(net, (events["y"], events["x"]), 2 * events["p"] - 1)
    assert np.abs(net).max() <= 1, "the memory ends within one threshold of where it began"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Saccades(threshold=0), "threshold must be positive, got 0"),
        (lambda: Saccades(threshold_std=1), "threshold_std must lie in"),
        (lambda: CAMERA(np.zeros((13, 8)), 0), "does not fit a sensor"),
        (lambda: CAMERA(np.full((8, 8), 1.5), 0), r"\[0, 1\] of shape \[H, W\]"),
        (lambda: CAMERA(np.zeros((8, 8, 3)), 0), r"got \(8, 8, 3\)"),
        (lambda: SimulatedEvents(np.zeros((2, 8, 8)), [1]), "2 images and 1 labels"),
    ],
)
def test_bad_options_and_images_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_source_counts_from_its_end_as_well_and_takes_no_slice():
    images = np.random.default_rng(0).integers(0, 255, (2, 8, 8), dtype=np.uint8)
    source = SimulatedEvents(images, [3, 4], CAMERA)
    assert np.array_equal(source[-1][0], source[1][0])
    with pytest.raises(IndexError):
        source[2]
    with pytest.raises(TypeError, match="slice"):
        source[:1]


def test_a_source_depends_on_images_seed_and_camera_alone():
    images = np.stack([image(0), image(1)])
    source = SimulatedEvents(images, [3, 4], CAMERA)
    assert [label for _, label in (source[0], source[1])] == [3, 4]
    reordered = SimulatedEvents(images, [3, 4], CAMERA)
    assert np.array_equal(reordered[1][0], source[1][0]), "whatever was asked for before"
    others = [
        SimulatedEvents(images[::-1], [3, 4], CAMERA),
        SimulatedEvents(images, [4, 3], CAMERA),
        SimulatedEvents(images, [3, 4], CAMERA, seed=1),
        SimulatedEvents(images, [3, 4], Saccades(sensor=(12, 14))),
    ]
    assert len({s.fingerprint for s in (source, reordered, *others)}) == 5
