"""Event streams as numpy arrays: one record (x, y, t, p) an event.

x is the column and y the row in pixels, t the time in microseconds, p the polarity (1: brighter, 0:
darker; of AEDAT 2.0, `read_aedat`, as the DVS128 writes it). `sensor_size` is (width, height, polarities) everywhere,
as in tonic, whose arrays have the same fields.
"""

from __future__ import annotations

from typing import Any

import numpy as np

EVENT_DTYPE = np.dtype([("x", np.int16), ("y", np.int16), ("t", np.int64), ("p", np.int8)])

SensorSize = tuple[int, int, int]


def make_events(x: Any, y: Any, t: Any, p: Any) -> np.ndarray:
    """Events [N] of `EVENT_DTYPE` from four arrays of one length.

    Raises:
        ValueError: lengths that differ, values that the fields cannot hold.

    >>> make_events([3], [4], [1000], [1])["t"]
    array([1000])
    """
    columns = [np.asarray(column).reshape(-1) for column in (x, y, t, p)]
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1:
        raise ValueError(f"x, y, t and p must be of one length, got {lengths}")
    events = np.empty(lengths[0], EVENT_DTYPE)
    for name, column in zip("xytp", columns, strict=True):
        with np.errstate(invalid="ignore"):
            events[name] = column
        lost = events[name] != column
        if lost.any():
            raise ValueError(
                f"field {name!r} must hold integers of {EVENT_DTYPE[name]}, got {column[lost][0]}"
            )
    return events


def as_events(source: Any) -> np.ndarray:
    """Any structured array with the integer fields x, y, t and p (bool will do for p) as `EVENT_DTYPE`.

    Polarities may be {0, 1} or {-1, 1}; -1 becomes 0. Further fields are left out.

    Raises:
        ValueError: not a structured array of one axis, a field that is missing or not of integers,
            coordinates beyond int16, another polarity.
    """
    array = np.asarray(source)
    names = array.dtype.names or ()
    if array.ndim != 1 or not set("xytp") <= set(names):
        raise ValueError(
            "events must be a structured array [N] with the fields x, y, t and p, got shape "
            f"{array.shape} with {f'the fields {list(names)}' if names else array.dtype}"
        )
    for name in "xytp":
        if array.dtype[name].kind not in "iub":
            raise ValueError(f"field {name!r} must be of integers, got {array.dtype[name]}")
    polarity = array["p"]
    signed = bool(len(array)) and polarity.min() == -1
    if not np.isin(polarity, (-1, 1) if signed else (0, 1)).all():
        found = np.unique(polarity)[:5].tolist()
        raise ValueError(f"polarities must be {{0, 1}} or {{-1, 1}}, got {found}")
    if array.dtype == EVENT_DTYPE and not signed:
        return array
    return make_events(array["x"], array["y"], array["t"], polarity > 0)


def check_events(events: np.ndarray, sensor_size: SensorSize) -> None:
    """Raises ValueError where events lie outside the sensor or go back in time."""
    for name, limit in (("x", sensor_size[0]), ("y", sensor_size[1])):
        outside = (events[name] < 0) | (events[name] >= limit)
        if outside.any():
            first = int(outside.argmax())
            raise ValueError(
                f"{outside.sum()} of {len(events)} events lie outside the sensor: event {first} has "
                f"{name} = {events[name][first]}, which must lie in [0, {limit}) for sensor_size "
                f"{tuple(sensor_size)}"
            )
    backwards = np.diff(events["t"]) < 0
    if backwards.any():
        first = int(backwards.argmax())
        raise ValueError(
            f"events are out of order: event {first + 1} at {events['t'][first + 1]} us comes after "
            f"event {first} at {events['t'][first]} us; sort_by_time(events) puts them in order"
        )


def sort_by_time(events: np.ndarray) -> np.ndarray:
    """The events in the order of t; events of one time keep their order."""
    if (np.diff(events["t"]) >= 0).all():
        return events
    return events[np.argsort(events["t"], kind="stable")]
