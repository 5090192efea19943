"""Readers of the original files of event-camera data sets.

| format | data sets | layout |
|---|---|---|
| AEDAT 2.0 (.aedat) | CIFAR10-DVS, SL-Animals-DVS | text lines that start with `#`; then big-endian u4 address and u4 time in us. DVS128's address: bit 0 polarity, bits 1-7 x, bits 8-14 y; bit 15 marks a special event (an external signal), which has no pixel |
| AEDAT 3.1 (.aedat) | DVS128-Gesture | text up to `#!END-HEADER`; then packets: 28-byte little-endian header and events of u4 data (bit 0 valid, bit 1 polarity, bits 2-16 y, bits 17-31 x) and u4 time, whose bits above 30 are in the packet header |
| ATIS (.bin) | N-MNIST, N-Caltech101 | 5 bytes an event: x, y, 1 bit polarity and 23 bits of time, big-endian; y = 240 is no event, it adds 2^13 us |
| ATIS, Prophesee DAT 2 (.dat) | N-CARS | text lines that start with `%`; a byte each of type (0 or 12: pixel events) and size (8); then little-endian u4 time in us and u4 data (bits 0-13 x, bits 14-27 y, bits 28-31 polarity) |
| MATLAB (.mat) | see `read_mat` | |

All return events [N] of `EVENT_DTYPE` in the order of the file, x and y as the file has them, and
raise ValueError with the file's name where it is truncated or not what it should be. A file without
events gives an empty array.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from spikenlp.data.events.arrays import EVENT_DTYPE, make_events
from spikenlp.data.events.matlab import read_arrays

_HEADER_LINE = re.compile(rb"#[\t\x20-\xff]*\r?\n")
"""A line of text. Binary data that happen to start with `#` have control characters before a newline."""
_END_OF_HEADER = (b"#End Of ASCII Header", b"#!END-HEADER")
_OTHER_CHIPS = re.compile(rb"# *AEChip:.*(davis|sbret)", re.IGNORECASE)
_PACKET = np.dtype(
    [("type", "<u2"), ("source", "<u2")]
    + [(name, "<u4") for name in ("size", "offset", "overflow", "capacity", "number", "valid")]
)
_POLARITY_EVENT = 1
_AEDAT_EVENT = 8
_DAT_HEADER = re.compile(rb"(?:%[^\n]*\n)+")
_DAT_PIXEL_EVENTS = (0, 12)
_ATIS_OVERFLOW_Y = 240
_ATIS_OVERFLOW_US = 2**13
_TAXELS = (10, 10)


def read_events(path: str | Path) -> np.ndarray:
    """Reads an .aedat (2.0 or 3.1), .bin, .dat or .mat file.

    Raises:
        ValueError: another suffix, another AEDAT version, a file that is not what it should be.
        FileNotFoundError: no such file.

    >>> read_events("N-MNIST/Test/0/00004.bin").dtype.names  # doctest: +SKIP
    ('x', 'y', 't', 'p')
    """
    path = Path(path)
    readers = {".bin": read_atis, ".dat": read_dat, ".mat": read_mat, ".aedat": read_aedat}
    if path.suffix not in readers:
        raise ValueError(f"{path}: the suffix must be one of {', '.join(readers)}")
    return readers[path.suffix](path)


def read_aedat(path: str | Path, *, special: bool = False) -> np.ndarray:
    """AEDAT 2.0 of a DVS128 or AEDAT 3.1, told apart by the first line.

    In AEDAT 2.0 x and p are those of the address: a DVS128 counts columns from the right, and its polarity bit is
    0 where it got brighter (jAER). `load_recordings("cifar10_dvs", ...)` turns both to what the .mat files hold.

    Args:
        special: special events of AEDAT 2.0 are there too, at x = y = -1, so that the i-th event is the
            i-th of the file.
    """
    path = Path(path)
    data = path.read_bytes()
    version = re.match(rb"#!AER-DAT(\d\.\d)", data)
    if version is None:
        raise ValueError(f"{path} does not start with an AEDAT version (#!AER-DAT2.0 or 3.1)")
    if version[1] == b"2.0":
        events = _aedat2(data, path)
        return events if special else events[events["x"] >= 0]
    if version[1] == b"3.1":
        return _aedat31(data, path)
    raise ValueError(f"{path} is AEDAT {version[1].decode()}: this reads 2.0 and 3.1")


def _skip_header(data: bytes) -> int:
    """Where the binary data start."""
    start = 0
    while line := _HEADER_LINE.match(data, start):
        start = line.end()
        if line[0].startswith(_END_OF_HEADER):
            break
    return start


def _aedat2(data: bytes, path: Path) -> np.ndarray:
    start = _skip_header(data)
    if chip := _OTHER_CHIPS.search(data[:start]):
        raise ValueError(f"{path} was not recorded with a DVS128: {chip[0].decode('latin-1')}")
    if rest := (len(data) - start) % _AEDAT_EVENT:
        raise ValueError(f"{path} is truncated: its last event has {rest} of {_AEDAT_EVENT} bytes")
    words = np.frombuffer(data, ">u4", offset=start).reshape(-1, 2)
    address, clock = words[:, 0], words[:, 1].astype(np.int64)
    # The clock starts anew after 2^32 us. An event that comes late may lie before that again.
    jump = np.diff(clock, prepend=clock[:1])
    turns = np.cumsum((jump < -(1 << 31)).astype(np.int64) - (jump > 1 << 31))
    turns -= np.minimum.accumulate(np.minimum(turns, 0))
    time = clock + (turns << 32)
    x, y = (np.where(address & 0x8000, -1, (address >> bit & 0x7F).astype(int)) for bit in (1, 8))
    return make_events(x, y, time, address & 1)


def _aedat31(data: bytes, path: Path) -> np.ndarray:
    position = _skip_header(data)
    if not data[:position].rstrip().endswith(b"#!END-HEADER"):
        raise ValueError(f"{path} has no #!END-HEADER")
    packets = [np.empty(0, EVENT_DTYPE)]
    while position < len(data):
        body = position + _PACKET.itemsize
        if body > len(data):
            raise ValueError(f"{path} is truncated in the packet header at byte {position}")
        header = np.frombuffer(data, _PACKET, 1, position)[0]
        size, capacity, number = (int(header[k]) for k in ("size", "capacity", "number"))
        end = body + size * capacity
        if end > len(data):
            raise ValueError(f"{path} is truncated in the packet at byte {position}")
        if number > capacity:
            raise ValueError(
                f"{path}: the packet at byte {position} claims {number} events and room for {capacity}"
            )
        if header["type"] == _POLARITY_EVENT:
            if size != _AEDAT_EVENT:
                raise ValueError(f"{path}: polarity events of {size} bytes at {position}, not 8")
            words = np.frombuffer(data, "<u4", 2 * number, body).reshape(-1, 2)
            words = words[words[:, 0] & 1 == 1]
            bits = words[:, 0]
            time = words[:, 1].astype(np.int64) | int(header["overflow"]) << 31
            packets.append(make_events(bits >> 17, bits >> 2 & 0x7FFF, time, bits >> 1 & 1))
        position = end
    return np.concatenate(packets)


def read_atis(path: str | Path) -> np.ndarray:
    """ATIS events of 5 bytes, as in N-MNIST and N-Caltech101."""
    path = Path(path)
    data = np.fromfile(path, np.uint8)
    if rest := len(data) % 5:
        raise ValueError(f"{path} is truncated: its last event has {rest} of 5 bytes")
    x, y, high, middle, low = data.reshape(-1, 5).T.astype(np.int64)
    overflow = y == _ATIS_OVERFLOW_Y
    time = ((high & 0x7F) << 16 | middle << 8 | low) + _ATIS_OVERFLOW_US * overflow.cumsum()
    return make_events(x, y, time, high >> 7)[~overflow]


def read_dat(path: str | Path) -> np.ndarray:
    """Prophesee's DAT of version 2, as in N-CARS.

    Source: docs.prophesee.ai, "DAT File Format".
    """
    path = Path(path)
    data = path.read_bytes()
    header = _DAT_HEADER.match(data)
    if header is None or not re.search(rb"(?m)^% Version 2\r?$", header[0]):
        raise ValueError(f"{path} is no DAT file of version 2: no header line '% Version 2'")
    start = header.end() + 2
    kind_and_size = data[header.end() : start]
    if len(kind_and_size) < 2:
        raise ValueError(f"{path} is truncated after its header")
    kind, size = kind_and_size
    if kind not in _DAT_PIXEL_EVENTS or size != 8:
        raise ValueError(f"{path} has events of type {kind} and {size} bytes, not 0 or 12 and 8")
    if rest := (len(data) - start) % 8:
        raise ValueError(f"{path} is truncated: its last event has {rest} of 8 bytes")
    words = np.frombuffer(data, "<u4", offset=start).reshape(-1, 2)
    time, bits = words[:, 0], words[:, 1]
    polarity = bits >> 28
    if wrong := polarity[polarity > 1].tolist():
        raise ValueError(f"{path}: polarities must be 0 or 1, got {wrong[0]}")
    return make_events(bits & 0x3FFF, bits >> 14 & 0x3FFF, time, polarity)


def read_mat(path: str | Path) -> np.ndarray:
    """MATLAB files, by the names of their variables.

    - `x`, `y`, `ts` or `t` (us), `pol` or `p`: one column each (ASL-DVS).
    - `out1` [N, 4]: time in us, x, y, polarity; [N, 6]: time, two unused columns, x, y, polarity
      (CIFAR10-DVS after the MATLAB scripts that the SNN literature converts it with).
    - `spiketrain` [101, K]: 100 taxels, row r at x = r // 10, y = r % 10, with -1, 0 or 1 at each of
      K times, which the last row holds in seconds (ST-MNIST). Events of one time come by taxel.

    Polarities of -1 become 0. Files of MATLAB 5 to 7 (see `matlab.py`).

    Raises:
        ValueError: unreadable (also MATLAB 7.3, which is HDF5), none of these layouts, variables that
            are not real numbers, values that an event cannot have.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    try:
        variables = read_arrays(path.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be read as a MATLAB file of version 5 to 7 ({error}); if it is of another "
            "version (7.3 is HDF5), save it with -v7"
        ) from error
    names = sorted(variables)
    shapes = {k: () if value is None else value.shape for k, value in variables.items()}
    time = next((k for k in ("ts", "t") if k in names), None)
    polarity = next((k for k in ("pol", "p") if k in names), None)
    if {"x", "y"} <= set(names) and time and polarity:
        columns = [_real(path, k, variables[k]) for k in ("x", "y", time, polarity)]
    elif "out1" in names and shapes["out1"][1:] in ((4,), (6,)):
        table = _real(path, "out1", variables["out1"])
        columns = [table[:, -3], table[:, -2], table[:, 0], table[:, -1]]
    elif "spiketrain" in names and shapes["spiketrain"][:-1] == (np.prod(_TAXELS) + 1,):
        *spikes, seconds = _real(path, "spiketrain", variables["spiketrain"])
        signs = np.stack(spikes, 1)
        step, taxel = signs.nonzero()
        x, y = np.unravel_index(taxel, _TAXELS)
        columns = [x, y, np.rint(1e6 * seconds[step]), signs[step, taxel]]
    else:
        raise ValueError(
            f"{path} has the variables {names}: expected x, y, ts and pol; out1 [N, 4] or [N, 6]; or "
            f"spiketrain [{np.prod(_TAXELS) + 1}, K]"
        )
    x, y, t, p = columns
    wrong = p[~np.isin(p, (-1, 0, 1))]
    if wrong.size:
        raise ValueError(f"{path}: polarities must be -1, 0 or 1, got {wrong[0]}")
    try:
        return make_events(x, y, t, p > 0)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _real(path: Path, name: str, value: np.ndarray | None) -> np.ndarray:
    if value is None:
        raise ValueError(f"{path}: {name} must be an array of real numbers")
    return value
