"""The cache of frames: the same frames, keyed by every setting, safe against a kill."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from transformers import default_data_collator

from spikenlp.data.events import FrameDataset, Saccades, SimulatedEvents, ToFrames, make_events
from spikenlp.data.events.recordings import EventRecordings, Sample
from tests.data.events import files
from tests.data.events.test_readers import random_events

CAMERA = Saccades(sensor=(12, 12), steps=4, amplitude=3)
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8)).astype(np.uint8)
SOURCE = SimulatedEvents(IMAGES, [0, 1, 2, 0, 1, 2], CAMERA)


class Counting:
    """Someone else's data set: no fingerprint, and it notes what it was asked for."""

    sensor_size = (12, 12, 2)

    def __init__(self):
        self.asked = []

    def __len__(self):
        return len(SOURCE)

    def __getitem__(self, index):
        self.asked.append(index)
        events, label = SOURCE[index]
        names = ["t", "x", "y", "p"]
        theirs = np.empty(len(events), [(n, "<i8") for n in names[:3]] + [("p", "?")])
        for name in names:
            theirs[name] = events[name]
        return theirs, np.int64(label)


def test_items_are_what_the_trainer_takes():
    data = FrameDataset(SOURCE, ToFrames(5))
    item = data[3]
    assert item["pixel_values"].shape == (5, 2, 12, 12)
    assert item["pixel_values"].dtype == torch.float32
    assert item["pixel_values"].sum() == len(SOURCE[3][0])
    batch = default_data_collator([data[0], data[1]])
    assert batch["pixel_values"].shape == (2, 5, 2, 12, 12)
    assert batch["labels"].tolist() == [0, 1]
    assert len(list(data)) == 6, "it ends"


def test_frames_from_the_cache_are_the_same_and_events_are_read_once(tmp_path):
    plain = FrameDataset(SOURCE, ToFrames(5))
    source = Counting()
    kept = FrameDataset(source, ToFrames(5), cache_dir=tmp_path, cache_name="mine")
    kept.prepare()
    assert source.asked == list(range(6))
    for _ in range(2):
        for a, b in zip(plain, kept, strict=True):
            assert torch.equal(a["pixel_values"], b["pixel_values"])
            assert a["labels"] == b["labels"]
    again = FrameDataset(source, ToFrames(5), cache_dir=tmp_path, cache_name="mine")
    assert torch.equal(again[2]["pixel_values"], plain[2]["pixel_values"])
    assert source.asked == list(range(6))


def test_every_setting_has_its_own_folder(tmp_path):
    settings = [
        ToFrames(5),
        ToFrames(6),
        ToFrames(5, by="time"),
        ToFrames(5, frame_size=(6, 6)),
        ToFrames(5, frame_size=(6, 6), resize="bilinear"),
        ToFrames(5, binary=True),
    ]
    for to_frames in settings:
        FrameDataset(SOURCE, to_frames, cache_dir=tmp_path)[0]
    other = SimulatedEvents(IMAGES, SOURCE.labels, CAMERA, seed=1)
    FrameDataset(other, ToFrames(5), cache_dir=tmp_path)[0]
    FrameDataset(Counting(), ToFrames(5), cache_dir=tmp_path, cache_name="a")[0]
    FrameDataset(Counting(), ToFrames(5), cache_dir=tmp_path, cache_name="b")[0]
    folders = list(tmp_path.iterdir())
    assert len(folders) == len(settings) + 3
    assert all(
        sorted(p.name for p in f.iterdir()) == ["000000.npz", "settings.json"] for f in folders
    )


def test_sizes_from_numpy_are_those_of_python(tmp_path):
    size = tuple(np.array([4, 4]))
    by_numpy = FrameDataset(SOURCE, ToFrames(2, frame_size=size), cache_dir=tmp_path)
    by_python = FrameDataset(SOURCE, ToFrames(2, frame_size=(4, 4)), cache_dir=tmp_path)
    assert by_numpy.folder == by_python.folder


def test_a_damaged_file_is_made_again(tmp_path):
    data = FrameDataset(SOURCE, ToFrames(5), cache_dir=tmp_path)
    whole = data[0]["pixel_values"]
    (path,) = tmp_path.rglob("*.npz")
    good = path.read_bytes()
    for damaged in (b"", good[:50], good[: len(good) // 2]):
        path.write_bytes(damaged)
        assert torch.equal(data[0]["pixel_values"], whole)
        assert path.read_bytes() == good


def fill(folder):
    while True:
        data = FrameDataset(SOURCE, ToFrames(2560, by="time"), cache_dir=folder)
        for path in folder.rglob("*.npz"):
            path.unlink()
        data.prepare()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_kill_leaves_whole_files_only(tmp_path):
    for attempt in range(4):
        child = multiprocessing.get_context("fork").Process(target=fill, args=(tmp_path,))
        child.start()
        time.sleep(0.15 + 0.037 * attempt)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        for path in tmp_path.rglob("[0-9]*.npz"):
            with np.load(path) as kept:
                assert kept["frames"].shape == (2560, 2, 12, 12)
    data = FrameDataset(SOURCE, ToFrames(2560, by="time"), cache_dir=tmp_path)
    assert sum(item["pixel_values"].sum() for item in data) == sum(len(e) for e, _ in SOURCE)


def test_frames_that_a_source_made_itself_are_taken(tmp_path):
    class Framed(Counting):
        def __getitem__(self, index):
            events, label = super().__getitem__(index)
            return ToFrames(4)(events, self.sensor_size), label

    data = FrameDataset(Framed(), ToFrames(4), cache_dir=tmp_path, cache_name="framed")
    expected = FrameDataset(SOURCE, ToFrames(4))
    for _ in range(2):
        assert torch.equal(data[1]["pixel_values"], expected[1]["pixel_values"])
    with pytest.raises(ValueError, match=r"recording 1 of Framed.*num_frames is 5"):
        FrameDataset(Framed(), ToFrames(5))[1]


def test_augmentation_is_drawn_anew_and_kept_out_of_the_cache(tmp_path):
    data = FrameDataset(SOURCE, ToFrames(3), cache_dir=tmp_path, flip=True, roll=3)
    torch.manual_seed(0)
    drawn = {tuple(data[0]["pixel_values"].flatten().tolist()) for _ in range(20)}
    assert len(drawn) > 10
    plain = FrameDataset(SOURCE, ToFrames(3), cache_dir=tmp_path)[0]["pixel_values"]
    assert torch.equal(plain, FrameDataset(SOURCE, ToFrames(3))[0]["pixel_values"])
    assert len(list(tmp_path.iterdir())) == 1
    torch.manual_seed(5)
    first = data[0]["pixel_values"]
    torch.manual_seed(5)
    assert torch.equal(data[0]["pixel_values"], first)


def test_a_recording_that_cannot_be_framed_is_named():
    class Empty(Counting):
        def __getitem__(self, index):
            return make_events([], [], [], []), 0

    with pytest.raises(ValueError, match="recording 4 of Empty: the recording has no events"):
        FrameDataset(Empty(), ToFrames(2))[4]


def test_sources_that_say_too_little_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Counting has no fingerprint: give cache_name"):
        FrameDataset(Counting(), ToFrames(2), cache_dir=tmp_path)
    unsized = Counting()
    unsized.sensor_size = None
    with pytest.raises(ValueError, match=r"recording 0 of Counting: events need sensor_size.*None"):
        FrameDataset(unsized, ToFrames(2))[0]


def test_a_source_of_names_and_no_sensor_size_as_tonics_n_caltech101(tmp_path):
    class Named(Counting):
        sensor_size = None

        def __getitem__(self, index):
            events, label = super().__getitem__(index)
            return events, ["airplanes", "BACKGROUND_Google", "ant"][label]

    given = {"cache_dir": tmp_path, "cache_name": "named", "sensor_size": (12, 12, 2)}
    classes = ["BACKGROUND_Google", "airplanes", "ant"]
    for _ in range(2):
        data = FrameDataset(Named(), ToFrames(5), classes=classes, **given)
        assert [data[i]["labels"] for i in range(3)] == [1, 0, 2]
        expected = FrameDataset(SOURCE, ToFrames(5))[1]["pixel_values"]
        assert torch.equal(data[1]["pixel_values"], expected)
    other = FrameDataset(Named(), ToFrames(5), classes=classes[::-1], **given)
    assert other[0]["labels"] == 1
    assert other[1]["labels"] == 2, "not what the cache has for other ids"
    with pytest.raises(ValueError, match="'airplanes' is a name: give classes"):
        FrameDataset(Named(), ToFrames(5), **given)[0]
    with pytest.raises(ValueError, match="'ant' is not among the 2 classes"):
        FrameDataset(Named(), ToFrames(5), classes=classes[:2], **given)[2]


def test_a_file_that_cannot_be_framed_is_named(tmp_path):
    path = tmp_path / "7.bin"
    path.write_bytes(files.atis(random_events((34, 34), count=9)))
    source = EventRecordings("mine", (Sample(path, 0),), ("a",), (4, 4, 2))
    with pytest.raises(ValueError, match=r"recording 0 of EventRecordings, .*7.bin: .*outside the"):
        FrameDataset(source, ToFrames(2))[0]


def test_data_sets_and_transforms_of_tonic_plug_in(tmp_path):
    tonic = pytest.importorskip("tonic", reason="tonic is an optional extra")

    class Local(tonic.datasets.NMNIST):
        """Without the download of the whole."""

        def _check_exists(self):
            return True

    events = random_events((34, 34), count=300)
    folder = tmp_path / "Local" / "Test" / "7"
    folder.mkdir(parents=True)
    (folder / "00001.bin").write_bytes(files.atis(events))
    plain = FrameDataset(
        Local(str(tmp_path), train=False),
        ToFrames(3),
        cache_dir=tmp_path / "c",
        cache_name="nmnist",
    )
    item = plain[0]
    assert item["labels"] == 7
    ours = ToFrames(3)(make_events(*zip(*events, strict=True)), (34, 34, 2))
    assert np.array_equal(item["pixel_values"].numpy(), ours)
    framed = Local(
        str(tmp_path),
        train=False,
        transform=tonic.transforms.ToFrame(sensor_size=(34, 34, 2), n_event_bins=3),
    )
    theirs = FrameDataset(framed, ToFrames(3))[0]["pixel_values"]
    assert np.array_equal(theirs.numpy(), ours)
