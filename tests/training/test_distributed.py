"""Two CPU processes equal one on the same batches, stop together, and resume to the same weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spikenlp.losses import tmc_loss
from spikenlp.training.processes import check_processes
from tests.training import two_processes
from tests.training.test_trainer import make_args

ROOT = Path(__file__).resolve().parents[2]


def launch(*command, **variables):
    """A command in a process of its own, without what a launcher around the tests may have set."""
    kept = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "MASTER_ADDR")}
    environment = {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("two")
    done = launch(
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2),
        *("-m", "tests.training.two_processes", folder),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [torch.load(folder / f"results_{rank}.pt") for rank in (0, 1)]
    assert [results["world_size"] for results in found] == [2, 2]
    return found


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return two_processes.gradients(tmp_path_factory.mktemp("one"), 1)


def largest_difference(found, expected):
    assert found.keys() == expected.keys()
    scale = max(gradient.abs().max() for gradient in expected.values())
    return max(((found[name] - expected[name]).abs().max() / scale).item() for name in expected)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in two_processes.CASES if c != "tmc, batch, local"])
def test_two_processes_give_the_gradients_of_one(case, one, two):
    for results in two:
        assert largest_difference(results["gradients"][case], one[case]) < 1e-5


@pytest.mark.slow
def test_local_theta_is_another_loss_than_that_of_one_process(one, two):
    case = "tmc, batch, local"
    assert largest_difference(two[0]["gradients"][case], one[case]) > 1e-4
    # In one process there is no difference between the two.
    assert largest_difference(one["tmc, batch, global"], one[case]) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("theta_odds", [True, False])
def test_global_theta_is_right_for_unequal_batches(theta_odds, two):
    (expected,) = [
        two_processes.gradient_of_unequal_batches((sum(two_processes.UNEQUAL),), 0, theta_odds)
    ]
    for results in two:
        torch.testing.assert_close(results["unequal"][theta_odds], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_sigterm_to_one_process_stops_both_after_the_same_step_and_the_run_goes_on(two):
    for results in two:
        assert results["terminated"] == {
            "status": 143,
            "last": "checkpoint-3",
            "generators": ["rng_state_0.pth", "rng_state_1.pth"],
            "same": True,
        }


def test_global_theta_without_a_process_group_is_local():
    z, labels = torch.randn(6, 3, 4), torch.randint(4, (6,))
    scopes = [tmc_loss(z, labels, theta_scope=scope) for scope in ("global", "local")]
    torch.testing.assert_close(*scopes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"theta_scope": "world"}, "theta_scope must be 'local' or 'global', got 'world'"),
        ({"theta_scope": "global", "theta_reduction": "sample"}, "theta_scope='global'.*'sample'"),
    ],
)
def test_bad_scopes_are_named(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tmc_loss(torch.randn(2, 2, 4), torch.tensor([0, 1]), **options)
    with pytest.raises(ValueError, match=message):
        make_args(tmp_path, **options)


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "2"},
        {"OMPI_COMM_WORLD_SIZE": "4"},
        {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"},
    ],
)
def test_fewer_processes_than_were_asked_for_stop(environment, monkeypatch):
    for name in ("WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    check_processes(1)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match=r"asked for.*ddp_cpu\.yaml"):
        check_processes(1)
    check_processes(4)


@pytest.mark.slow
def test_accelerate_launch_that_starts_one_process_of_two_stops(tmp_path):
    """The silent case: `--cpu --num_processes 2` starts one process."""
    script = tmp_path / "script.py"
    script.write_text(
        "from spikenlp import SpikingTrainingArguments\n"
        f"args = SpikingTrainingArguments({str(tmp_path)!r}, use_cpu=True)\n"
    )
    done = launch("-m", "accelerate.commands.launch", "--cpu", "--num_processes", 2, script)
    assert done.returncode != 0
    assert "was asked for several processes" in done.stderr
    script.write_text(script.read_text().replace("use_cpu=True", ""))
    if not torch.accelerator.is_available():
        done = launch("-m", "torch.distributed.run", "--nproc_per_node", 2, script)
        assert "use_cpu=True is missing" in done.stderr
