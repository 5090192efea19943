"""The soak of benchmarks/soak.py in small, and that its gauge would see growth."""

import importlib.util
from pathlib import Path

import pytest

from spikenlp.neurons.compilation import MIN_COMPILED_NUMEL


@pytest.fixture
def soak(monkeypatch):
    folder = Path(__file__).resolve().parents[2] / "benchmarks"
    spec = importlib.util.spec_from_file_location("soak", folder / "soak.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_neither_memory_nor_open_files_grow_over_random_lengths(soak):
    found = soak.soak(steps=40, calls=300, smallest_compiled=MIN_COMPILED_NUMEL)
    for phase in ("training", "inference"):
        assert found[phase]["flat"], found[phase]
        assert len(found[phase]["resident_mib_by_step"]) > 30


@pytest.mark.parametrize(
    ("resident", "files", "graphs", "flat"),
    [
        (lambda s: 500 + (s % 7), 6, 3, True),
        (lambda s: 500 + s / 100, 6, 3, False),
        (lambda s: 500, lambda s: 6 + s // 500, 3, False),
        (lambda s: 500, 6, lambda s: 3 + s // 1500, False),
        # What happens in the warm-up does not count.
        (lambda s: 500 if s > 150 else s, lambda s: min(s, 6), lambda s: min(s // 20, 3), True),
    ],
)
def test_the_gauge_tells_growth_from_noise(soak, resident, files, graphs, flat):
    gauge = soak.Gauge(2000)
    for step in range(20, 2001, 20):
        values = (v(step) if callable(v) else v for v in (resident, files, graphs))
        gauge.samples.append((step, *values))
    assert gauge.findings()["flat"] is flat
