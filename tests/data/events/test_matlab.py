"""MATLAB files against what scipy writes; damaged ones are refused, where scipy's reader may crash."""

import struct
import zlib

import numpy as np
import pytest
import scipy.io

from spikenlp.data.events.matlab import LARGEST_BYTES, read_arrays
from tests.data.events.test_readers import REAL

DTYPES = "f8 f4 i1 u1 i2 u2 i4 u4 i8 u8".split()


def saved(tmp_path, variables, **options):
    scipy.io.savemat(tmp_path / "a.mat", variables, **options)
    return (tmp_path / "a.mat").read_bytes()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_are_those_that_scipy_wrote(dtype, compressed, tmp_path):
    generator = np.random.default_rng(0)
    arrays = {
        "a": generator.integers(0, 100, (5, 3)).astype(dtype),
        "scalar": np.array([[7]], dtype),
        "empty": np.zeros((0, 4), dtype),
        "cube": generator.integers(0, 100, (2, 3, 4)).astype(dtype),
        "a_name_longer_than_eight": np.ones((1, 9), dtype),
    }
    found = read_arrays(saved(tmp_path, arrays, do_compression=compressed))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_what_is_no_array_of_real_numbers_is_none(tmp_path):
    others = {"text": "abc", "cell": np.array([1, "a"], object), "complex": np.ones((2, 2)) * 1j}
    found = read_arrays(saved(tmp_path, {**others, "bool": np.ones((2, 2), bool)}))
    assert {name: found[name] for name in others} == dict.fromkeys(others)
    assert found["bool"].tolist() == [[1, 1], [1, 1]]


def test_big_endian_and_numbers_stored_smaller_than_they_are():
    """By hand: a double array whose values are stored as bytes, as MATLAB itself does."""
    parts = [
        struct.pack(">IIII", 6, 8, 6, 0),
        struct.pack(">IIii", 5, 8, 2, 1),
        struct.pack(">HH", 1, 1) + b"v\0\0\0",
        struct.pack(">HH", 2, 2) + bytes([3, 200, 0, 0]),
    ]
    body = b"".join(parts)
    data = b"MATLAB".ljust(124) + struct.pack(">H", 0x0100) + b"MI"
    found = read_arrays(data + struct.pack(">II", 14, len(body)) + body)
    assert found["v"].dtype == np.float64
    assert found["v"].tolist() == [[3.0], [200.0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d[:100], "does not start with the header"),
        (lambda d: d[:130], "ends within the tag of an element: 2 of 8 bytes"),
        (lambda d: d[:-8], "ends within an element"),
        (lambda d: d[:136] + b"\xff\xff\0\0" + d[140:], "type 65535 is not one of numbers"),
        (lambda d: d.replace(struct.pack("<ii", 5, 3), struct.pack("<ii", 5, 2**31 - 1)), "claims"),
        (lambda d: d.replace(struct.pack("<ii", 5, 3), struct.pack("<ii", -5, -3)), "claims"),
    ],
)
def test_damage_is_named(change, message, tmp_path):
    data = saved(tmp_path, {"a": np.ones((5, 3))})
    assert change(data) != data
    with pytest.raises(ValueError, match=message):
        read_arrays(change(data))


def test_a_variable_that_inflates_without_end_is_refused(tmp_path, monkeypatch):
    data = saved(tmp_path, {"a": np.zeros((200, 200))}, do_compression=True)
    assert read_arrays(data)["a"].shape == (200, 200)
    assert LARGEST_BYTES == 2**31
    monkeypatch.setattr("spikenlp.data.events.matlab.LARGEST_BYTES", 1000)
    with pytest.raises(ValueError, match="larger than the format allows"):
        read_arrays(data)
    with pytest.raises(ValueError, match="compressed variable is damaged"):
        read_arrays(data[:136] + b"\xff" + data[137:])
    assert zlib.decompress(data[136:])


def test_a_real_file_is_what_scipy_reads():
    path = REAL / "tonic_sample_stmnist.mat"
    if not path.is_file():
        pytest.skip("no real recordings here: set SPIKENLP_EVENTS_DIR to their folder")
    found, theirs = read_arrays(path.read_bytes()), scipy.io.loadmat(path)
    np.testing.assert_array_equal(found["spiketrain"], theirs["spiketrain"])
