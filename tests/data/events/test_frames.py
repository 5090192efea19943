"""Framing against loops over events; totals are conserved; what cannot be framed is refused."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from spikenlp.data.events import ToFrames, augment_frames, make_events

SENSOR = (24, 18, 2)


def random_events(count, seed, last=1000):
    generator = np.random.default_rng(seed)
    x, y, p = (generator.integers(0, top, count) for top in SENSOR)
    return make_events(x, y, np.sort(generator.integers(0, last, count)), p)


def reference(events, frames, by, size, resize, binary):
    """One event at a time."""
    width, height, _ = SENSOR
    rows, columns = size or (height, width)
    out = np.zeros((frames, 2, rows, columns) if resize == "sum" else (frames, 2, height, width))
    first, last = int(events["t"][0]), int(events["t"][-1])
    for i, (x, y, t, p) in enumerate(events.tolist()):
        if by == "count":
            each = len(events) // frames
            k = frames - 1 if each == 0 else min(i // each, frames - 1)
        else:
            k = next(k for k in range(frames) if t < first + (k + 1) * (last - first + 1) / frames)
        if resize == "sum":
            x, y = int(x * columns / width), int(y * rows / height)
        out[k, p, y, x] += 1
    if binary:
        out = out > 0
    if resize == "sum":
        return out
    images = [Image.fromarray(image.astype(np.float32)) for image in out.reshape(-1, height, width)]
    resized = [image.resize((columns, rows), Image.Resampling.BILINEAR) for image in images]
    return np.stack([np.asarray(image) for image in resized]).reshape(frames, 2, rows, columns)


@pytest.mark.parametrize("by", ["count", "time"])
@pytest.mark.parametrize(
    ("resize", "size"),
    [
        *[("sum", size) for size in (None, (7, 9))],
        *[("bilinear", size) for size in (None, (7, 9), (20, 31))],
    ],
)
def test_frames_equal_a_loop_over_events(by, size, resize):
    for count, seed in itertools.product((1, 3, 7, 500), range(3)):
        events = random_events(count, seed)
        for frames, binary in ((1, False), (4, True), (5, False)):
            made = ToFrames(frames, by, size, resize, binary)(events, SENSOR)
            expected = reference(events, frames, by, size, resize, binary)
            assert made.dtype == (np.int32 if resize == "sum" else np.float32)
            np.testing.assert_allclose(made, expected, atol=1e-5 if resize == "bilinear" else 0)


@pytest.mark.parametrize("by", ["count", "time"])
def test_every_event_is_counted_once(by):
    for count, frames, seed in itertools.product((1, 2, 9, 100, 1001), (1, 2, 10, 16), range(4)):
        events = random_events(count, seed, last=10 ** (seed + 1))
        for size in (None, (5, 5), (9, 12)):
            made = ToFrames(frames, by, size)(events, SENSOR)
            by_polarity = made.sum((0, 2, 3)).tolist()
            assert by_polarity == np.bincount(events["p"], minlength=2).tolist()


def test_by_count_the_remainder_is_in_the_last_slice():
    made = ToFrames(4)(random_events(11, 0), SENSOR)
    assert made.sum((1, 2, 3)).tolist() == [2, 2, 2, 5]
    assert ToFrames(4)(random_events(3, 0), SENSOR).sum((1, 2, 3)).tolist() == [0, 0, 0, 3]


def test_by_time_a_silence_is_an_empty_frame():
    events = make_events([1, 1, 1, 1], [0, 0, 0, 0], [100, 101, 198, 199], [1, 1, 0, 0])
    made = ToFrames(5, by="time")(events, SENSOR)
    assert made.sum((1, 2, 3)).tolist() == [2, 0, 0, 0, 2]


def test_binary_frames_lose_the_counts_only():
    events = make_events([3, 3, 3], [2, 2, 2], [0, 1, 2], [1, 1, 0])
    made = ToFrames(1, binary=True)(events, SENSOR)
    assert made[0, 1, 2, 3] == made[0, 0, 2, 3] == 1
    assert made.sum() == 2


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (make_events([], [], [], []), "no events"),
        (make_events([24], [0], [0], [0]), r"event 0 has x = 24, which must lie in \[0, 24\)"),
        (make_events([0, 0], [0, -1], [0, 0], [0, 0]), "1 of 2 events.*event 1 has y = -1"),
        (make_events([0, 0], [0, 0], [5, 4], [0, 0]), "out of order: event 1 at 4 us"),
        (np.zeros((3, 4)), "structured array"),
    ],
)
def test_what_cannot_be_framed_is_refused(events, message):
    with pytest.raises(ValueError, match=message):
        ToFrames(2)(events, SENSOR)


def test_summed_frames_are_no_larger_than_the_sensor():
    with pytest.raises(ValueError, match="is larger than the sensor"):
        ToFrames(2, frame_size=(SENSOR[1], SENSOR[0] + 1))(random_events(9, 0), SENSOR)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "num_frames must be an integer, at least 1, got 0"),
        ({"num_frames": 2.5}, "num_frames must be an integer, at least 1, got 2.5"),
        ({"num_frames": 2, "frame_size": 48}, "frame_size must be"),
        ({"num_frames": 2, "by": "events"}, "by must be one of"),
        ({"num_frames": 2, "resize": "nearest"}, "resize must be one of"),
        ({"num_frames": 2, "frame_size": (48,)}, "frame_size must be"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ToFrames(**options)


def test_augmentation_rolls_and_mirrors_all_frames_alike():
    frames = torch.rand(3, 2, 12, 12)
    torch.manual_seed(0)
    seen = set()
    for _ in range(300):
        made = augment_frames(frames, roll=2)
        candidates = {
            (flip, dy, dx): torch.equal(
                made, (frames.flip(-1) if flip else frames).roll((dy, dx), (2, 3))
            )
            for flip in (False, True)
            for dy, dx in itertools.product(range(-2, 3), repeat=2)
        }
        (found,) = [key for key, same in candidates.items() if same]
        seen.add(found)
    assert len(seen) > 45, "all 50 are as likely as one another"
    for _ in range(20):
        assert torch.equal(augment_frames(frames, flip=False, roll=0), frames)
    with pytest.raises(ValueError, match="roll must be >= 0"):
        augment_frames(frames, roll=-1)
