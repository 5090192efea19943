"""Arrays of real numbers in MATLAB's files of version 5 to 7 (`save -v6`, `save -v7`).

    file      = 116 bytes of text, 8 unused, u2 version, "IM" (little-endian) or "MI"; then elements
    element   = u4 type, u4 bytes, data, padded to 8 bytes; or u2 bytes, u2 type in one u4, 4 bytes of data
    matrix    = elements: flags (u4: class in bits 0-7, complex bit 11), dimensions (i4), name, real part
    compressed = an element under zlib

(MathWorks, "MAT-File Format".) scipy's `loadmat` reads more, but a damaged type number makes it read
memory that is not its own, which ends the process; here each length is checked against what is there.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np

HEADER_BYTES = 128
LARGEST_BYTES = 2**31
"""Of one variable, as in the format."""
MATRIX, COMPRESSED = 14, 15
TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""How numbers are stored."""
CLASSES = dict(enumerate("f8 f4 i1 u1 i2 u2 i4 u4 i8 u8".split(), start=6))
"""What they are; a double of small whole numbers is stored as bytes."""
COMPLEX = 1 << 11


def read_arrays(data: bytes) -> dict[str, np.ndarray | None]:
    """The variables of a file by name; None for what is not an array of real numbers.

    Raises:
        ValueError: another format or version, or damaged.
    """
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None or data[:4] == bytes(4):
        raise ValueError("it does not start with the header of a MATLAB file of version 5 to 7")
    found: dict[str, np.ndarray | None] = {}
    for kind, body in _elements(data[HEADER_BYTES:], order):
        if kind == COMPRESSED:
            kind, body = next(_elements(_inflate(body), order), (0, b""))
        if kind == MATRIX:
            name, array = _matrix(body, order)
            found[name] = array
    return found


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """The type and the data of each element."""
    words = np.dtype(f"{order}u4")
    at = 0
    while at < len(data):
        if at + 8 > len(data):
            raise ValueError(f"it ends within the tag of an element: {len(data) - at} of 8 bytes")
        kind, size = (int(word) for word in np.frombuffer(data, words, 2, at))
        start, step = at + 8, size + (0 if kind == COMPRESSED else -size % 8)
        if kind >> 16:
            kind, size, start, step = kind & 0xFFFF, kind >> 16, at + 4, 0
            if size > 4:
                raise ValueError(f"a small element claims {size} bytes, more than 4")
        if start + size > len(data):
            raise ValueError(f"it ends within an element of {size} bytes")
        yield kind, data[start : start + size]
        at += 8 + step


def _inflate(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    try:
        inflated = stream.decompress(data, LARGEST_BYTES)
    except zlib.error as error:
        raise ValueError(f"a compressed variable is damaged: {error}") from error
    if not stream.eof:
        raise ValueError("a compressed variable is cut short, or larger than the format allows")
    return inflated


def _matrix(body: bytes, order: str) -> tuple[str, np.ndarray | None]:
    parts = _elements(body, order)
    try:
        flags = _numbers(*next(parts), order)
        shape = tuple(int(size) for size in _numbers(*next(parts), order))
        name = next(parts)[1].decode("latin-1")
    except StopIteration:
        raise ValueError("a variable has no flags, dimensions and name") from None
    if not len(flags):
        raise ValueError(f"the variable {name!r} has no flags")
    class_of = CLASSES.get(int(flags[0]) & 0xFF)
    if class_of is None or int(flags[0]) & COMPLEX:
        return name, None
    kind, data = next(parts, (0, b""))
    values = _numbers(kind, data, order)
    count = 1
    for size in shape:
        count *= size
    if min(shape, default=-1) < 0 or count != len(values):
        raise ValueError(
            f"the variable {name!r} claims the shape {shape}, has {len(values)} values"
        )
    with np.errstate(invalid="ignore"):
        return name, values.astype(class_of).reshape(shape, order="F")


def _numbers(kind: int, data: bytes, order: str) -> np.ndarray:
    if kind not in TYPES:
        raise ValueError(f"type {kind} is not one of numbers")
    dtype = np.dtype(order + TYPES[kind])
    if len(data) % dtype.itemsize:
        raise ValueError(f"{len(data)} bytes are no whole number of {dtype}")
    return np.frombuffer(data, dtype)
