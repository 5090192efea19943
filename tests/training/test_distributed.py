"""Two CPU processes give the gradients of one on the same batches."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def gradients(folder, loss, processes):
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(processes), "-m", "tests.training.two_processes"]
    command += [str(folder), loss, str(16 // processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "gradients.pt")


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["tet", "tmc"])
def test_two_processes_give_the_gradients_of_one(loss, tmp_path):
    one, two = (gradients(tmp_path / str(n), loss, n) for n in (1, 2))
    assert (one["world_size"], two["world_size"]) == (1, 2)
    assert one["gradients"].keys() == two["gradients"].keys()
    for name, expected in one["gradients"].items():
        torch.testing.assert_close(two["gradients"][name], expected, rtol=1e-4, atol=1e-6, msg=name)
