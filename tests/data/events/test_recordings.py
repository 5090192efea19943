"""The four data sets, from small archives in their original layout and formats."""

import os
import warnings

import numpy as np
import pytest

from spikenlp.data.events import load_recordings
from spikenlp.data.events.recordings import EventRecordings, Sample
from tests.data.events import files
from tests.data.events.test_readers import random_events

CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()


def events_of(recordings):
    return [recordings[i][0].tolist() for i in range(len(recordings))]


def test_cifar10_dvs_tests_the_last_tenth_of_each_class(tmp_path):
    written = {}
    for c, name in enumerate(CIFAR10):
        (tmp_path / "CIFAR10-DVS" / name).mkdir(parents=True)
        for i in range(20):
            written[c, i] = random_events(count=5, seed=20 * c + i)
            path = tmp_path / "CIFAR10-DVS" / name / f"cifar10_{name}_{i}.aedat"
            path.write_bytes(files.aedat2(written[c, i]))
    train, test = (load_recordings("cifar10_dvs", tmp_path, s) for s in ("train", "test"))
    assert (len(train), len(test)) == (180, 20)
    assert train.classes == tuple(CIFAR10)
    assert test.labels == [c for c in range(10) for _ in range(2)]
    # 18 and 19, not the last of "0, 1, 10, 11, ..."; mirrored and 1 where brighter, as in the .mat files
    assert events_of(test) == [
        [(127 - x, y, t, 1 - p) for x, y, t, p in written[c, i]]
        for c in range(10)
        for i in (18, 19)
    ]
    assert not set(train.groups) & set(test.groups)


def test_a_clock_that_goes_back_is_told(tmp_path):
    path = tmp_path / "x.aedat"
    found = EventRecordings("x", (Sample(path, 0),), ("a",), (128, 128, 2))
    path.write_bytes(files.aedat2([(1, 1, 50, 0), (1, 2, 40, 0)]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found[0][0]["t"].tolist() == [40, 50]
    path.write_bytes(files.aedat2([(1, 1, 900_000, 0), (1, 2, 50, 0), (1, 3, 60, 0)]))
    os.utime(path, (1, 1))
    with pytest.warns(UserWarning, match=r"x\.aedat: the clock goes back by 899950 us"):
        assert found[0][0]["t"].tolist() == [50, 60, 900_000]


def caltech_archive(folder, classes=101):
    """Eleven recordings of the first class and one of each other, and as many annotations."""
    for c in range(classes):
        for i in range(1, 12 if c == 0 else 2):
            for name, data in (
                ("Caltech101/{}/image_{:04d}.bin", files.atis([(i, 179, 5, 1), (239, 0, 6, 0)])),
                ("Caltech101_annotations/{}/annotation_{:04d}.bin", bytes(20)),
            ):
                path = folder / name.format(f"class{c:03d}", i)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)


def test_n_caltech101_tests_the_last_tenth_of_each_class(tmp_path):
    caltech_archive(tmp_path / "archive")
    for root in (tmp_path, tmp_path / "archive", tmp_path / "archive" / "Caltech101"):
        train, test = (load_recordings("n_caltech101", root, s) for s in ("train", "test"))
        assert train.labels == [0] * 10 + list(range(1, 101))
        assert test.labels == [0]
        assert len(test.classes) == 101
        assert test[0][0].tolist() == [(11, 179, 5, 1), (239, 0, 6, 0)]
        assert test.sensor_size == (240, 180, 2)


def test_n_caltech101_has_101_classes(tmp_path):
    caltech_archive(tmp_path / "archive", classes=3)
    with pytest.raises(FileNotFoundError, match=r"Caltech101 must hold .* 101 classes, found 3"):
        load_recordings("n_caltech101", tmp_path, "train")


def gesture_archive(folder):
    folder.mkdir(parents=True)
    events = [(i % 128, 0, 1000 * i, i % 2) for i in range(100)]
    for name in ("user01_led", "user24_led"):
        packets = [files.packet(events[:60]), files.packet(events[60:])]
        (folder / f"{name}.aedat").write_bytes(files.aedat31(*packets))
        (folder / f"{name}_labels.csv").write_text(
            "class,startTime_usec,endTime_usec\n1,10000,20000\n8,30000,50000\n8,45000,46000\n11,90000,99000\n"
        )
    (folder / "trials_to_train.txt").write_text("user01_led.aedat\n\n")
    (folder / "trials_to_test.txt").write_text("user24_led.aedat\n")
    return events


def test_dvs_gesture_follows_its_lists_and_labels(tmp_path):
    events = gesture_archive(tmp_path / "DvsGesture")
    train, test = (load_recordings("dvs_gesture", tmp_path, s) for s in ("train", "test"))
    assert train.labels == test.labels == [0, 7, 7, 10]
    # Half open, and a label may repeat and overlap.
    assert events_of(test) == [events[10:20], events[30:50], events[45:46], events[90:99]]
    assert (set(train.groups), set(test.groups)) == ({"user01"}, {"user24"})
    assert len(train.classes) == 11


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("12,1,2", "line 2: expected a class from 1 to 11"),
        ("1,5,5", "startTime_usec < endTime_usec"),
        ("1,5", "line 2"),
        ("wave,5,6", "line 2.*'wave'"),
    ],
)
def test_a_broken_label_is_named(row, message, tmp_path):
    gesture_archive(tmp_path / "DvsGesture")
    labels = tmp_path / "DvsGesture" / "user01_led_labels.csv"
    labels.write_text(f"class,startTime_usec,endTime_usec\n{row}\n")
    with pytest.raises(ValueError, match=message):
        load_recordings("dvs_gesture", tmp_path, "train")


def test_a_gesture_without_events_is_named(tmp_path):
    gesture_archive(tmp_path / "DvsGesture")
    labels = tmp_path / "DvsGesture" / "user01_led_labels.csv"
    labels.write_text("class,startTime_usec,endTime_usec\n2,200000,300000\n")
    with pytest.raises(ValueError, match=r"user01_led\.aedat has no events for sample 0"):
        load_recordings("dvs_gesture", tmp_path, "train")[0]


def animals_archive(folder, count=8, special=()):
    recordings, tags = folder / "allusers_aedat", folder / "tags_updated_19_08_2020"
    recordings.mkdir(parents=True)
    tags.mkdir()
    for user in range(1, count + 1):
        name = f"user{user}_{'indoor' if user % 2 else 'dc'}"
        events = [(user, i, 10 * i, 0) for i in range(95)]
        events[3], events[4] = events[4], events[3]  # indices count in the order of the file
        (recordings / f"{name}.aedat").write_bytes(files.aedat2(events, special=special))
        rows = [f"{c},{5 * (c - 1)},{5 * c}" for c in range(1, 20)]
        (tags / f"{name}.csv").write_text(
            "class,startTime_ev,endTime_ev\n" + "\n".join(rows) + "\n"
        )


def test_sl_animals_has_four_folds_over_recordings(tmp_path):
    animals_archive(tmp_path)
    tested = []
    for fold in (1, 2, 3, 4):
        train, test = (
            load_recordings("sl_animals", tmp_path, s, fold=fold) for s in ("train", "test")
        )
        assert (len(train), len(test)) == (6 * 19, 2 * 19)
        assert not set(train.groups) & set(test.groups)
        tested += test.groups
        assert sorted(set(test.labels)) == list(range(19))
    assert len(set(tested)) == 8, "every recording is tested once"
    assert len(tested) == 8 * 19
    events, label = test[0]
    assert label == 0
    assert events["y"].tolist() == [0, 1, 2, 3, 4], "sorted by time"
    assert test[18][0]["y"].tolist() == [90, 91, 92, 93, 94]


def test_tags_count_special_events_which_are_not_shown(tmp_path):
    animals_archive(tmp_path, special=(2, 7))
    test = load_recordings("sl_animals", tmp_path, "test", fold=1)
    assert [test[i][0]["y"].tolist() for i in range(3)] == [
        [0, 1, 3, 4],
        [5, 6, 8, 9],
        [10, 11, 12, 13, 14],
    ]


def test_a_tag_beyond_the_recording_is_refused(tmp_path):
    animals_archive(tmp_path)
    for path in tmp_path.rglob("*.csv"):
        path.write_text("class,startTime_ev,endTime_ev\n1,90,96\n")
    test = load_recordings("sl_animals", tmp_path, "test", fold=1)
    with pytest.raises(ValueError, match="has 95 events, but a label for events 90 to 96"):
        test[0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("cifar100_dvs", "train", None), ValueError, "unknown event data set.*sl_animals"),
        (("dvs_gesture", "validation", None), ValueError, "'train' or 'test', got 'validation'"),
        (("sl_animals", "train", None), ValueError, "fold must be 1 to 4, got None"),
        (("sl_animals", "train", 5), ValueError, "fold must be 1 to 4, got 5"),
        (("dvs_gesture", "train", 1), ValueError, "fold is for sl_animals only"),
        (("dvs_gesture", "train", None), FileNotFoundError, "no trials_to_train.txt"),
        (("cifar10_dvs", "train", None), FileNotFoundError, "folders.*airplane"),
        (("n_caltech101", "train", None), FileNotFoundError, "101 classes, found 0"),
        (("sl_animals", "test", 2), FileNotFoundError, "no recordings of the test split"),
    ],
)
def test_what_is_missing_is_said(arguments, error, message, tmp_path):
    name, split, fold = arguments
    with pytest.raises(error, match=message):
        load_recordings(name, tmp_path, split, fold=fold)


def test_a_list_with_a_file_that_is_not_there(tmp_path):
    gesture_archive(tmp_path / "DvsGesture")
    (tmp_path / "DvsGesture" / "user01_led.aedat").unlink()
    with pytest.raises(FileNotFoundError, match=r"user01_led\.aedat"):
        load_recordings("dvs_gesture", tmp_path, "train")


def test_the_fingerprint_follows_the_samples_and_files(tmp_path):
    gesture_archive(tmp_path / "DvsGesture")
    train = load_recordings("dvs_gesture", tmp_path, "train")
    seen = {train.fingerprint, train.select([0, 1]).fingerprint, train.select([1, 0]).fingerprint}
    with (tmp_path / "DvsGesture" / "user01_led.aedat").open("ab") as file:
        file.write(files.packet([(1, 1, 10**6, 1)]))
    seen.add(train.fingerprint)
    assert len(seen) == 4
    assert np.array_equal(train.select([2])[0][0], train[2][0])
