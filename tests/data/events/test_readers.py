"""Readers against files written bit by bit, and against real recordings."""

import os
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from spikenlp.data.events import (
    EVENT_DTYPE,
    as_events,
    check_events,
    make_events,
    read_aedat,
    read_events,
    sort_by_time,
)
from tests.data.events import files

REAL = Path(os.environ.get("SPIKENLP_EVENTS_DIR", "../shared/data/events"))


def random_events(size=(128, 128), count=500, last=300_000, seed=0):
    generator = np.random.default_rng(seed)
    time = np.sort(generator.integers(0, last, count))
    x, y, p = (generator.integers(0, top, count) for top in (*size, 2))
    return [tuple(int(v) for v in event) for event in zip(x, y, time, p, strict=True)]


def read(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    return read_events(path)


def real(name):
    if not (REAL / name).is_file():
        pytest.skip("no real recordings here: set SPIKENLP_EVENTS_DIR to their folder")
    return read_events(REAL / name)


def assert_events(found, expected):
    assert found.dtype == EVENT_DTYPE
    assert found.tolist() == expected


def test_aedat2_round_trips(tmp_path):
    events = random_events()
    assert_events(read(tmp_path, "a.aedat", files.aedat2(events)), events)


def test_aedat2_whose_first_data_byte_is_a_hash(tmp_path):
    events = [(0, 0, 10, 0), (127, 1, 2**32 - 1, 1)]
    assert files.aedat2(events, header=b"", junk=0x23000000)[:1] == b"#"
    found = read(tmp_path, "a.aedat", files.aedat2(events, junk=0x23000000))
    assert_events(found, events)


def test_the_clock_of_aedat2_starts_anew_after_32_bits(tmp_path):
    last = 2**32 - 1
    written = [last - 9, last, 3, last - 1, 5, 7, 2**31, last - 2, 4]
    meant = [last - 9, last, last + 4, last - 1, last + 6, last + 8]
    meant += [2**32 + 2**31, 2**33 - 3, 2**33 + 4]
    found = read(tmp_path, "a.aedat", files.aedat2([(i, 0, t, 1) for i, t in enumerate(written)]))
    assert sorted(zip(found["x"].tolist(), found["t"].tolist(), strict=True)) == list(
        enumerate(meant)
    )


def test_aedat2_special_events_have_no_pixel(tmp_path):
    events = random_events(count=6)
    found = read(tmp_path, "a.aedat", files.aedat2(events, special=(0, 3)))
    assert_events(found, [events[i] for i in (1, 2, 4, 5)])
    found = read_aedat(tmp_path / "a.aedat", special=True)
    assert_events(
        found, [(-1, -1, *event[2:]) if i in (0, 3) else event for i, event in enumerate(events)]
    )


def test_aedat2_with_newlines_in_its_events_and_other_letters_in_its_header(tmp_path):
    events = [(5, 10, 0x0A0A0A0A, 0)]
    header = files.AEDAT2_HEADER.replace(b"\r\n", b"\n") + "# Usuario: José\n".encode("latin-1")
    assert_events(read(tmp_path, "a.aedat", files.aedat2(events, header)), events)


def test_aedat2_keeps_the_order_of_the_file(tmp_path):
    events = [(1, 2, 50, 0), (3, 4, 20, 1)]
    found = read(tmp_path, "a.aedat", files.aedat2(events))
    assert_events(found, events)
    with pytest.raises(ValueError, match=r"event 1 at 20 us comes after event 0 at 50 us.*sort_by"):
        check_events(found, (128, 128, 2))
    assert sort_by_time(found)["t"].tolist() == [20, 50]


def test_aedat31_round_trips_over_packets_and_overflows(tmp_path):
    events = random_events()
    later = [(x, y, t + (3 << 31), p) for x, y, t, p in events]
    data = files.aedat31(
        files.packet(events[:200], capacity=256),
        files.packet([(0, 0, 7, 1)], type_=0),  # a special event: no pixel
        files.packet(events[200:]),
        files.packet(events, overflow=3),
    )
    assert_events(read(tmp_path, "a.aedat", data), events + later)


def test_aedat31_leaves_out_events_marked_invalid(tmp_path):
    events = random_events(count=5)
    data = files.aedat31(files.packet(events, invalid=(1, 3)))
    assert_events(read(tmp_path, "a.aedat", data), [events[i] for i in (0, 2, 4)])


def test_atis_round_trips_through_time_overflows(tmp_path):
    events = random_events(size=(240, 180), last=9_000_000)
    assert max(t for _, _, t, _ in events) > 2**23
    assert_events(read(tmp_path, "a.bin", files.atis(events)), events)


@pytest.mark.parametrize("kind", [0, 12])
def test_dat_round_trips(kind, tmp_path):
    events = random_events(size=(1280, 720), last=2**32)
    header = files.DAT_HEADER.replace(b"2\n", b"2\r\n") if kind else files.DAT_HEADER
    found = read(tmp_path, "a.dat", files.dat(events, header, kind))
    assert_events(found, events)


@pytest.mark.parametrize("layout", ["columns", "out1", "out1 of six"])
def test_mat_round_trips(layout, tmp_path):
    events = random_events()
    x, y, t, p = (np.array(c, float)[:, None] for c in zip(*events, strict=True))
    variables = {
        "columns": {"x": x, "y": y, "ts": t, "pol": p},
        "out1": {"out1": np.hstack([t, x, y, p])},
        "out1 of six": {"out1": np.hstack([t, 0 * t, 0 * t - 1, x, y, 2 * p - 1])},
    }[layout]
    scipy.io.savemat(tmp_path / "a.mat", variables)
    assert_events(read_events(tmp_path / "a.mat"), events)


def test_mat_of_taxels_round_trips(tmp_path):
    matrix = np.zeros((101, 3))
    matrix[-1] = 0.5, 0.50001, 2
    matrix[[23, 99, 0], [0, 1, 1]] = 1, -1, 1
    scipy.io.savemat(tmp_path / "a.mat", {"spiketrain": matrix})
    expected = [(2, 3, 500_000, 1), (0, 0, 500_010, 1), (9, 9, 500_010, 0)]
    assert_events(read_events(tmp_path / "a.mat"), expected)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.aedat", files.AEDAT2_HEADER),
        ("a.aedat", files.AEDAT31_HEADER),
        ("a.aedat", files.aedat31(files.packet([]))),
        ("a.bin", b""),
        ("a.dat", files.dat([])),
    ],
)
def test_a_file_without_events_is_an_empty_array(name, data, tmp_path):
    assert_events(read(tmp_path, name, data), [])


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.aedat", files.aedat2(random_events())[:-3], "truncated: its last event has 5 of 8"),
        (
            "a.aedat",
            files.aedat31(files.packet(random_events()))[:-8],
            "truncated in the packet at",
        ),
        ("a.aedat", files.aedat31(files.packet([]))[:-1], "truncated in the packet header"),
        ("a.aedat", files.AEDAT31_HEADER[:40], "no #!END-HEADER"),
        ("a.bin", files.atis(random_events((34, 34)))[:-2], "truncated: its last event has 3 of 5"),
        ("a.dat", files.dat(random_events())[:-3], "truncated: its last event has 5 of 8"),
        ("a.dat", files.DAT_HEADER, "truncated after its header"),
        ("a.dat", files.dat([], header=b"% Version 1\n"), "no DAT file of version 2"),
        ("a.dat", files.dat([], header=b""), "no DAT file of version 2"),
        ("a.dat", files.dat([], kind=14), "events of type 14 and 8 bytes, not 0 or 12 and 8"),
        ("a.dat", files.dat([(0, 0, 0, 3)]), "polarities must be 0 or 1, got 3"),
        ("a.aedat", b"#!AER-DAT4.0\r\n", "AEDAT 4.0: this reads 2.0 and 3.1"),
        ("a.aedat", b"", "does not start with an AEDAT version"),
        (
            "a.mat",
            b"MATLAB 5.0 MAT-file" + bytes(50),
            "cannot be read as a MATLAB file of version 5 to 7",
        ),
        ("a.raw", b"", r"suffix must be one of \.bin, \.dat, \.mat, \.aedat"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(name, data, message, tmp_path):
    with pytest.raises(ValueError, match=message) as raised:
        read(tmp_path, name, data)
    assert str(tmp_path / name) in str(raised.value)


def test_a_packet_with_more_events_than_room_is_refused(tmp_path):
    good = bytearray(files.packet(random_events(count=2)))
    good[20:24] = (3).to_bytes(4, "little")
    with pytest.raises(ValueError, match="claims 3 events and room for 2"):
        read(tmp_path, "a.aedat", files.aedat31(bytes(good)))


def test_a_mat_file_of_another_layout_is_refused(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"x": np.ones(3), "y": np.ones(3), "ts": np.ones(3)})
    with pytest.raises(
        ValueError, match=r"variables \['ts', 'x', 'y'\]: expected x, y, ts and pol"
    ):
        read_events(tmp_path / "a.mat")
    scipy.io.savemat(tmp_path / "b.mat", {"out1": np.array([[0, 40_000, 1, 1]])})
    with pytest.raises(ValueError, match=r"field 'x' must hold integers of int16, got 40000"):
        read_events(tmp_path / "b.mat")


@pytest.mark.parametrize("value", [2, 0.5, np.nan, np.inf])
@pytest.mark.parametrize("layout", ["columns", "spiketrain"])
def test_a_polarity_that_is_none_is_refused(layout, value, tmp_path):
    if layout == "columns":
        variables = {k: np.ones((3, 1)) for k in ("x", "y", "ts", "pol")}
        variables["pol"][1] = value
    else:
        variables = {"spiketrain": np.zeros((101, 3))}
        variables["spiketrain"][5, 1] = value
    scipy.io.savemat(tmp_path / "a.mat", variables)
    with pytest.raises(ValueError, match=rf"a\.mat: polarities must be -1, 0 or 1, got {value}"):
        read_events(tmp_path / "a.mat")


def test_variables_that_are_no_numbers_are_refused(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"out1": np.ones((3, 4)) * 1j})
    with pytest.raises(ValueError, match=r"\['out1'\]: expected|out1 must be an array of real"):
        read_events(tmp_path / "a.mat")
    scipy.io.savemat(tmp_path / "b.mat", {"x": "abc", "y": "abc", "ts": "abc", "pol": "abc"})
    with pytest.raises(ValueError, match=r"b\.mat: x must be an array of real numbers"):
        read_events(tmp_path / "b.mat")


def test_real_n_mnist():
    events = real("tonic_sample_nmnist.bin")
    assert len(events) == 4325
    check_events(events, (34, 34, 2))
    assert 300_000 < events["t"][-1] - events["t"][0] < 320_000
    assert 0.3 < events["p"].mean() < 0.7
    # The camera's three saccades of 100 ms: few events where it turns around.
    rate = np.histogram(events["t"], bins=30, range=(0, 300_000))[0]
    assert rate.min() < 0.4 * rate.mean()


@pytest.mark.parametrize("name", ["tonic_sample_ncars.dat", "loris_NCARS_obj_004397_td.dat"])
def test_real_n_cars(name):
    events = real(name)
    check_events(events, (120, 100, 2))  # the largest samples are of this size
    assert len(events) > 1000
    assert 90_000 < events["t"][-1] - events["t"][0] <= 100_000, "cut to 100 ms"
    assert 0.3 < events["p"].mean() < 0.7


def test_real_st_mnist():
    events = real("tonic_sample_stmnist.mat")
    check_events(events, (10, 10, 2))
    matrix = scipy.io.loadmat(REAL / "tonic_sample_stmnist.mat")["spiketrain"]
    assert len(events) == np.count_nonzero(matrix[:-1])
    assert events["p"].sum() == (matrix[:-1] > 0).sum()


def test_a_real_header_of_another_camera_is_refused():
    with pytest.raises(ValueError, match=r"not recorded with a DVS128.*davis"):
        real("tonic_sample_aedat_header.aedat")


def test_structured_arrays_of_others_are_taken():
    theirs = np.array(
        [(5, 1, True, 2, 0.5)],
        dtype=[("t", "<u4"), ("x", "<i4"), ("p", "?"), ("y", "<u2"), ("weight", "f4")],
    )
    assert_events(as_events(theirs), [(1, 2, 5, 1)])
    signed = np.array([(0, 1, 2, -1), (0, 1, 3, 1)], dtype=[(k, "<i8") for k in "xytp"])
    assert as_events(signed)["p"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((5, 4)), r"structured array \[N\].*float64"),
        (np.zeros(5, [(k, "i4") for k in "xyt"]), r"fields x, y, t and p.*\['x', 'y', 't'\]"),
        (np.zeros(5, [(k, "f4") for k in "xytp"]), "'x' must be of integers, got float32"),
        (np.full(5, 2, [(k, "i4") for k in "xytp"]), r"polarities must be .* got \[2\]"),
        (np.full(5, 256, [(k, "i4") for k in "xytp"]), r"polarities must be .* got \[256\]"),
        (np.full(5, 257, [(k, "i4") for k in "xytp"]), r"polarities must be .* got \[257\]"),
        (np.full(5, 255, [(k, "u1") for k in "xytp"]), r"polarities must be .* got \[255\]"),
        (np.array([(70_000, 0, 0, 1)], [(k, "i4") for k in "xytp"]), "'x' must hold .* 70000"),
    ],
)
def test_arrays_that_are_no_events_are_refused(array, message):
    with pytest.raises(ValueError, match=message):
        as_events(array)


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"one length, got \[2, 1, 1, 1\]"):
        make_events([1, 2], [1], [1], [1])
