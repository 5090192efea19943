"""Mutations of small valid files, and what a reader may do with them: a valid result or a clear error."""

from __future__ import annotations

import io
import random
import signal
import tempfile
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from spikenlp.data import get_task, load_glue, load_topics
from spikenlp.data.events import EVENT_DTYPE, read_events
from spikenlp.data.orange import read_tab
from tests.data.events import files
from tests.data.tab_files import write_r8
from tests.data.test_glue import ROWS

ALLOWED = (ValueError, FileNotFoundError)
"""Exactly these, which the docstrings name: UnicodeDecodeError is a ValueError that says nothing."""
SECONDS = 10.0
"""After which a case counts as one that hangs."""
INTERESTING = (0, 1, 0x09, 0x0A, 0x0D, 0x22, 0x23, 0x7F, 0x80, 0xC3, 0xFE, 0xFF)


@dataclass
class Target:
    """A reader and valid files for it."""

    files: list[bytes]
    read: Callable[[bytes, Path], Any]
    """Writes the bytes into a folder, reads them, and checks what comes out."""


@dataclass
class Findings:
    mutations: int = 0
    valid: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    leaks: list[str] = field(default_factory=list)
    """What is neither a valid result nor an allowed error: mutation, type, message."""


class Hangs(BaseException):
    pass


def mutate(data: bytes, rng: random.Random) -> bytes:
    """1 to 4 changes: cut, flip a bit, overwrite, insert, delete, repeat or move a piece."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        size = rng.choice((1, 1, 2, 4, 8, rng.randint(1, 64)))
        kind = rng.randrange(7)
        if kind == 0:
            del out[at:]
        elif kind == 1 and out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        elif kind == 2:
            out[at : at + size] = bytes(rng.choice(INTERESTING) for _ in range(size))
        elif kind == 3:
            out[at:at] = rng.randbytes(size)
        elif kind == 4:
            del out[at : at + size]
        elif kind == 5:
            out[at:at] = out[at : at + size]
        elif kind == 6 and len(out) >= 4:
            value = rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, rng.getrandbits(32)))
            start = at % (len(out) - 3)
            out[start : start + 4] = value.to_bytes(4, rng.choice(("little", "big")))
    return bytes(out)


def fuzz(target: Target, mutations: int, seed: int = 0) -> Findings:
    """Mutation i depends on `seed` and i alone."""
    findings = Findings()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(mutations):
            rng = random.Random(seed * 1_000_003 + i)
            data = mutate(rng.choice(target.files), rng)
            findings.mutations += 1
            try:
                with time_limit(SECONDS):
                    target.read(data, Path(folder))
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                kind = type(error).__name__
                findings.outcomes[kind] = findings.outcomes.get(kind, 0) + 1
                if type(error) not in ALLOWED or not str(error):
                    findings.leaks.append(f"{i}: {type(error).__name__}: {str(error)[:200]}")
            else:
                findings.valid += 1
    return findings


@contextmanager
def time_limit(seconds: float):
    def stop(*_: Any) -> None:
        raise Hangs(f"no result after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def targets() -> dict[str, Target]:
    rng = random.Random(0)
    time = sorted(rng.randrange(9_000_000) for _ in range(40))
    events = [(rng.randrange(34), rng.randrange(34), t, rng.randrange(2)) for t in time]
    aedat31 = files.aedat31(
        files.packet(events[:20], capacity=24),
        files.packet([(0, 0, 7, 1)], type_=0),
        files.packet(events[20:], overflow=2, invalid=(1, 3)),
    )
    return {
        "AEDAT 2.0": Target([files.aedat2(events), files.AEDAT2_HEADER], reader(".aedat")),
        "AEDAT 3.1": Target([aedat31], reader(".aedat")),
        "ATIS": Target([files.atis(events)], reader(".bin")),
        "DAT": Target([files.dat(events)], reader(".dat")),
        "MATLAB": Target(mat_files(events), reader(".mat")),
        **{f"GLUE {task}": Target([text.encode()], glue(task)) for task, text in ROWS.items()},
        "Orange .tab": Target([tab_file()], topics),
    }


def mat_files(events: list[tuple[int, ...]]) -> list[bytes]:
    x, y, t, p = (np.array(c, float)[:, None] for c in zip(*events[:12], strict=True))
    matrix = np.zeros((101, 3))
    matrix[-1] = 0.5, 0.6, 2
    matrix[[23, 99, 0], [0, 1, 1]] = 1, -1, 1
    made = []
    for variables in (
        {"x": x, "y": y, "ts": t, "pol": p},
        {"out1": np.hstack([t, x, y, p])},
        {"out1": np.hstack([t, 0 * t, 0 * t, x, y, 2 * p - 1])},
        {"spiketrain": matrix},
    ):
        for compressed in (False, True):
            file = io.BytesIO()
            scipy.io.savemat(file, variables, do_compression=compressed)
            made.append(file.getvalue())
    return made


def reader(suffix: str) -> Callable[[bytes, Path], None]:
    def read(data: bytes, folder: Path) -> None:
        path = folder / f"a{suffix}"
        path.write_bytes(data)
        found = read_events(path)
        assert found.dtype == EVENT_DTYPE
        assert found.ndim == 1
        assert np.isin(found["p"], (0, 1)).all()

    return read


def glue(name: str) -> Callable[[bytes, Path], None]:
    task = get_task(name)

    def read(data: bytes, folder: Path) -> None:
        (folder / "train.tsv").write_bytes(data)
        rows = load_glue(name, data_dir=folder)["train"]
        assert rows.column_names == [*task.text_columns, "label"]
        assert all(isinstance(text, str) for c in task.text_columns for text in rows[c])
        highest = 5 if task.labels is None else len(task.labels) - 1
        assert all(0 <= label <= highest for label in rows["label"])

    return read


def tab_file() -> bytes:
    rows = [(("earn", "grain")[i % 3 == 0], f'report "{i}", of stocks') for i in range(18)]
    with tempfile.TemporaryDirectory() as folder:
        write_r8(Path(folder), rows, rows[:2])
        return next(Path(folder).glob("*train.tab")).read_bytes()


def topics(data: bytes, folder: Path) -> None:
    path = folder / "reuters-r8-train.tab"
    path.write_bytes(data)
    tab = read_tab(path)
    assert len({len(column) for column in tab.columns.values()}) == 1
    test = folder / "reuters-r8-test.tab"
    test.write_bytes(data)
    splits = load_topics("r8", data_dir=folder)
    assert all(isinstance(text, str) for split in splits.values() for text in split["text"])
