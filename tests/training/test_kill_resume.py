"""A run that is killed and resumed ends as the run that nobody killed; the script that shows it would notice."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "kill_resume.py"


def kill_and_compare(kills, seed, output):
    command = [sys.executable, SCRIPT, "--kills", kills, "--seed", seed, "--output", output]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*map(str, command)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return json.loads(output.read_text())["kill_resume"]


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_runs_end_as_the_run_nobody_killed(kills, tmp_path):
    found = kill_and_compare(kills, seed=kills, output=tmp_path / "found.json")
    assert found["differences"] == []
    assert len(found["kills"]) == kills
    assert found["steps_taken_again"] > 0
    if kills == 10:
        assert found["kills_that_left_an_unfinished_checkpoint"] >= 1


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        spec = importlib.util.spec_from_file_location("kill_resume", SCRIPT)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return module


@pytest.fixture(scope="module")
def whole(script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    reading, writing = os.pipe()
    script.train(folder, 4, writing)
    os.close(reading)
    os.close(writing)
    return folder


def change(name, how):
    def apply(folder):
        path = folder / "checkpoint-4" / name
        content = torch.load(path, weights_only=False)
        how(content)
        torch.save(content, path)

    return apply


def change_order(folder):
    lines = (folder / "order.jsonl").read_text().splitlines()
    lines[0], lines[2] = (
        lines[2].replace(" 1, [[", " 0, [[", 1),
        lines[0].replace(" 0, [[", " 1, [[", 1),
    )
    (folder / "order.jsonl").write_text("\n".join(lines) + "\n")


def change_weight(folder):
    from safetensors.torch import load_file, save_file

    path = folder / "checkpoint-4" / "model.safetensors"
    tensors = load_file(path)
    name = next(n for n in tensors if n.endswith("amplitude"))
    tensors[name][0] = torch.nextafter(tensors[name][0], torch.tensor(9.0))
    save_file(tensors, path)


def change_loss(folder):
    path = folder / "checkpoint-4" / "trainer_state.json"
    state = json.loads(path.read_text())
    state["log_history"][0]["loss"] += 1e-9
    path.write_text(json.dumps(state))


@pytest.mark.parametrize(
    ("apply", "named"),
    [
        (lambda folder: None, []),
        (change_weight, ["weights and neuron amplitudes"]),
        (
            change("optimizer.pt", lambda s: s["state"][0]["exp_avg"].mul_(1 + 1e-6)),
            ["optimizer.pt"],
        ),
        (change("scheduler.pt", lambda s: s.update(last_epoch=3)), ["scheduler.pt"]),
        (change("rng_state.pth", lambda s: s["cpu"].add_(1)), ["rng_state.pth"]),
        (change_loss, ["losses, learning rates and progress"]),
        (change_order, ["order of the data"]),
    ],
    ids=["nothing", "weight", "optimizer", "schedule", "generator", "loss", "order"],
)
def test_every_kind_of_difference_is_noticed(apply, named, script, whole, tmp_path):
    other = shutil.copytree(whole, tmp_path / "other")
    apply(other)
    assert script.differences(other, whole, 4) == named
