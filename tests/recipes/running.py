"""Running a recipe: in a process of its own, as a user does, or in this one, whose imports are made."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spikenlp.models.spiking_bert import conversion_spiking_bert

ROOT = Path(__file__).resolve().parents[2]


EAGER = {"TORCH_COMPILE_DISABLE": "1"}
"""Compiling the neurons' loops is half of what a short run in a process of its own takes."""


def succeed(recipe, *arguments, launcher=(), variables=EAGER):
    """What a recipe, a file's name, prints in a process of Python's, or of a launcher's: a module and its options."""
    started_by = ["-m", *launcher] if launcher else []
    done = subprocess.run(
        [sys.executable, *started_by, str(ROOT / "recipes" / recipe), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def spike_cost_of(run):
    """The cost at which what `run()` does calibrates first; it does no more."""
    found = []

    def record(batches, rows_of, steps, spike_cost=0.0):
        found.append(spike_cost)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversion_spiking_bert, "fit_amplitudes", record)
        with pytest.raises(KeyboardInterrupt):
            run()
    return found[0]


def run_here(recipe, *arguments):
    """What a recipe, a module, prints."""
    with pytest.MonkeyPatch.context() as patch, io.StringIO() as printed:
        patch.setattr("sys.argv", [recipe.__file__, *map(str, arguments)])
        patch.setattr("sys.stdout", printed)
        recipe.main()
        return printed.getvalue()
