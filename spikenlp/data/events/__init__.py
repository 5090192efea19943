"""Event-camera recordings: original file formats, four data sets, frames, a cache and a simulator."""

from spikenlp.data.events.arrays import (
    EVENT_DTYPE,
    as_events,
    check_events,
    make_events,
    sort_by_time,
)
from spikenlp.data.events.dataset import EventSource, FrameDataset
from spikenlp.data.events.frames import ToFrames, augment_frames
from spikenlp.data.events.readers import read_aedat, read_atis, read_dat, read_events, read_mat
from spikenlp.data.events.recordings import EVENT_DATASETS, EventRecordings, load_recordings
from spikenlp.data.events.simulate import Saccades, SimulatedEvents

__all__ = [
    "EVENT_DATASETS",
    "EVENT_DTYPE",
    "EventRecordings",
    "EventSource",
    "FrameDataset",
    "Saccades",
    "SimulatedEvents",
    "ToFrames",
    "as_events",
    "augment_frames",
    "check_events",
    "load_recordings",
    "make_events",
    "read_aedat",
    "read_atis",
    "read_dat",
    "read_events",
    "read_mat",
    "sort_by_time",
]
