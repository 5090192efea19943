"""Two CPU processes equal one on the same batches, stop together, and resume to the same weights."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from safetensors.torch import load_file

from spikenlp.losses import tmc_loss
from spikenlp.training.processes import check_processes, check_sharding
from tests.training import sharded_processes, two_processes
from tests.training.test_trainer import make_args

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "recipes" / "accelerate"


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


@pytest.mark.slow
def test_a_student_of_another_width_learns_in_two_processes(two):
    assert two[0]["narrower"] == two[1]["narrower"]
    assert two[0]["narrower"][2] != 0


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
def test_thetas_are_at_their_bound_by_the_odds_of_their_scope(two):
    assert [results["at_bound"]["local"] for results in two] == [[True] * 2, [False] * 2]
    assert [results["at_bound"]["global"] for results in two] == [[False] * 2] * 2


@pytest.mark.slow
def test_what_is_logged_is_the_mean_over_the_processes(two):
    assert [results["logged"] for results in two] == [4.0, 4.0]


@pytest.mark.slow
def test_each_epoch_shows_every_row_to_one_process(two):
    epochs = [a + b for a, b in zip(two[0]["rows"], two[1]["rows"], strict=True)]
    assert [sorted(rows) for rows in epochs] == [list(range(32))] * 3
    assert epochs[0] != epochs[1]


@pytest.mark.slow
def test_sigterm_to_one_process_stops_both_after_the_same_step_and_the_run_goes_on(two):
    for results in two:
        assert results["terminated"] == {
            "status": 143,
            "last": "checkpoint-3",
            "generators": ["rng_state_0.pth", "rng_state_1.pth"],
            "same": True,
        }


@pytest.mark.slow
def test_fsdp2_shards_neurons_and_equals_one_process(tmp_path):
    """Losses, every parameter and buffer, checkpoint and resumption, with the configuration file."""
    done = launch(
        *("-m", "accelerate.commands.launch", "--config_file", CONFIGS / "fsdp2.yaml"),
        *("--mixed_precision", "no", "-m", "tests.training.sharded_processes", tmp_path),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "results.pt")
    one = sharded_processes.train(tmp_path / "one", 1)
    expected = one.model.state_dict()
    neurons = [name for name in found["local"] if name.endswith(("v_threshold", "decay_logit"))]
    assert neurons
    for name, local in found["local"].items():
        # Rows are spread over two processes; what has one row is in the first alone.
        assert local[:1] == ((expected[name].shape[0] + 1) // 2,), name
    assert found["losses"] == pytest.approx(sharded_processes.losses(one), rel=1e-5)
    assert found["resumed"] == pytest.approx(found["losses"], rel=1e-5)
    assert found["problem"] is None
    assert found["broken"] == ["bert.embeddings.word_embeddings.weight"]
    for folder in ("first", "resumed"):
        saved = load_file(tmp_path / folder / "model.safetensors")
        assert saved.keys() == expected.keys()
        for name, tensor in saved.items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=2e-5, msg=name)


def test_fsdp_that_was_asked_for_and_is_not_there_stops(tmp_path, monkeypatch):
    """accelerate trains with DDP on CPU, in silence, where its configuration says FSDP."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_sharding("FSDP")
    with pytest.raises(RuntimeError, match=r"FSDP was asked for.*MULTI_CPU"):
        check_sharding("MULTI_CPU")


@pytest.mark.parametrize(
    ("name", "launcher", "processes"),
    [
        ("ddp", "multi_gpu", 2),
        ("ddp_cpu", "multi_gpu", 2),
        ("fsdp2", "use_fsdp", 2),
        ("deepspeed_zero2", "use_deepspeed", 2),
        ("multi_node", "multi_gpu", 16),
    ],
)
def test_configurations_are_what_accelerate_reads(name, launcher, processes):
    """Parsed by accelerate itself, with the options of the command in their first lines."""
    text = (CONFIGS / f"{name}.yaml").read_text()
    command = re.search(r"accelerate launch (.*?\.py)", text.replace("\n#", "").replace("\\", ""))
    words = command[1].split()
    assert words[:2] == ["--config_file", f"recipes/accelerate/{name}.yaml"]
    words[1] = str(CONFIGS / f"{name}.yaml")
    assert (ROOT / words[-1]).is_file()
    args, config, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    launchers = ("multi_gpu", "use_fsdp", "use_deepspeed")
    assert [key for key in launchers if getattr(args, key)] == [launcher]
    assert config.num_processes == processes
    assert args.machine_rank == 0


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
