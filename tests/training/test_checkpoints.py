"""Checkpoints are whole or passed over, a full disk costs none, and SIGTERM leaves one."""

import json
import os
import shutil
import signal
import warnings

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainingArguments

from spikenlp import SpikingTrainer
from spikenlp.hub.publish import RESUMABLE, stage
from spikenlp.training import (
    CheckpointError,
    TrainingTerminated,
    checkpoint_problem,
    last_checkpoint,
)
from spikenlp.training.checkpoints import ORDER
from tests.training.test_trainer import make_args, make_data, make_model

SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "logging_steps": 1}


def trainer(folder, callbacks=(), eval_dataset=None, **options):
    return SpikingTrainer(
        make_model(hidden_dropout_prob=0.1),
        make_args(folder, **{**SAVING, **options}),
        train_dataset=make_data(),
        eval_dataset=eval_dataset,
        callbacks=list(callbacks),
    )


class AtStep(TrainerCallback):
    """Does something at the end of a step, before it is saved."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.action()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The output folder of a run with checkpoints 2 and 4."""
    folder = tmp_path_factory.mktemp("run")
    trainer(folder).train()
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def cut(path, part=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])


def zero(path):
    """A hole, as a power failure leaves it: the length is right and the middle is not there."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    path.write_bytes(content)


FILES = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
DAMAGE = [
    *((f"{name} {how.__name__}", name, how) for name in FILES for how in (os.remove, cut)),
    ("header cut", "model.safetensors", lambda path: cut(path, 0.001)),
    ("one byte short", "model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-1])),
    ("optimizer hole", "optimizer.pt", zero),
    ("empty", "config.json", lambda path: path.write_bytes(b"")),
]


@pytest.mark.parametrize(("name", "how"), [d[1:] for d in DAMAGE], ids=[d[0] for d in DAMAGE])
def test_a_damaged_checkpoint_is_recognised_and_the_one_before_taken(name, how, run):
    assert checkpoint_problem(run / "checkpoint-4") is None
    assert last_checkpoint(run) == str(run / "checkpoint-4")
    how(run / "checkpoint-4" / name)
    assert checkpoint_problem(run / "checkpoint-4") is not None
    with pytest.warns(UserWarning, match=r"checkpoint-4 is passed over: .+"):
        assert last_checkpoint(run) == str(run / "checkpoint-2")
    with pytest.raises(CheckpointError, match=r"cannot resume from .*checkpoint-4"):
        trainer(run).train(resume_from_checkpoint=str(run / "checkpoint-4"))


def test_resuming_passes_over_the_damaged_one_and_ends_the_same(finished, run):
    cut(run / "checkpoint-4" / "optimizer.pt")
    with pytest.warns(UserWarning, match="checkpoint-4 is passed over: optimizer.pt is cut off"):
        trainer(run).train(resume_from_checkpoint=True)
    assert weights(run / "checkpoint-4") == weights(finished / "checkpoint-4")
    assert checkpoint_problem(run / "checkpoint-4") is None


def test_a_checkpoint_under_another_step_s_name_or_half_copied_is_recognised(run):
    (run / "checkpoint-4").rename(run / "checkpoint-6")
    assert "is of step 4" in checkpoint_problem(run / "checkpoint-6")
    (run / "checkpoint-2" / "checkpoint-is-incomplete.txt").touch()
    assert "interrupted" in checkpoint_problem(run / "checkpoint-2")
    with pytest.warns(UserWarning, match="passed over"):
        assert last_checkpoint(run) is None
    shutil.rmtree(run)
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        trainer(run).train(resume_from_checkpoint=True)


def test_a_missing_shard_is_recognised(run):
    folder = run / "checkpoint-4"
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {f"w{i}": f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors, which is missing" in checkpoint_problem(folder)


def test_no_checkpoint_is_none(tmp_path):
    assert last_checkpoint(tmp_path) is None
    assert last_checkpoint(tmp_path / "missing") is None


def test_plain_trainer_and_ours_leave_the_same_files(finished, tmp_path):
    """What is renamed is what transformers writes, and nothing else stays."""
    args = make_args(tmp_path, TrainingArguments, **{**SAVING, "max_steps": 2})
    Trainer(make_model(), args, train_dataset=make_data()).train()
    plain = {p.name for p in (tmp_path / "checkpoint-2").iterdir()}
    assert {p.name for p in (finished / "checkpoint-2").iterdir()} == plain
    assert {p.name for p in finished.iterdir()} == {"checkpoint-2", "checkpoint-4"}


def test_a_checkpoint_has_its_name_only_when_all_of_it_is_written(tmp_path, monkeypatch):
    seen = []

    def look(self, output_dir):
        seen.append(sorted(p.name for p in tmp_path.iterdir()))
        return original(self, output_dir)

    original = Trainer._save_rng_state
    monkeypatch.setattr(Trainer, "_save_rng_state", look)
    trainer(tmp_path, save_total_limit=1).train()
    # The old one is deleted when the new one is in place, and not before.
    assert seen == [["incomplete"], ["checkpoint-2", "incomplete"]]
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-4"]


def test_saving_a_step_again_replaces_it_and_a_death_between_the_renames_loses_nothing(
    run, monkeypatch
):
    (run / "checkpoint-2").rename(run / "elsewhere")
    monkeypatch.setattr("shutil.rmtree", lambda *args, **kwargs: None)
    again = trainer(run)
    again.train(resume_from_checkpoint=str(run / "checkpoint-4"))  # is over: state and weights of 4
    again.create_optimizer_and_scheduler(4)
    again._save_checkpoint(again.model, None)
    assert (run / "checkpoint-4.replaced").is_dir()
    assert last_checkpoint(run) == str(run / "checkpoint-4")
    (run / "checkpoint-4").rename(run / "incomplete" / "checkpoint-4")
    assert last_checkpoint(run) == str(run / "checkpoint-4.replaced")


def test_the_best_checkpoint_is_known_by_its_final_name(tmp_path):
    best = trainer(
        tmp_path,
        eval_dataset=make_data(8, seed=1),
        load_best_model_at_end=True,
        eval_strategy="steps",
        eval_steps=2,
        metric_for_best_model="loss",
        save_total_limit=1,
    )
    best.train()
    path = best.state.best_model_checkpoint
    assert path in (str(tmp_path / "checkpoint-2"), str(tmp_path / "checkpoint-4"))
    assert checkpoint_problem(path) is None
    last = last_checkpoint(tmp_path)
    state = json.loads((tmp_path / os.path.basename(last) / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == path


def test_the_best_checkpoint_is_found_in_a_folder_that_was_moved(tmp_path):
    options = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2}
    options |= {"metric_for_best_model": "loss", "greater_is_better": False, "learning_rate": 1e-2}
    options["eval_dataset"] = make_data(8, seed=1)
    first = trainer(tmp_path / "before", max_steps=4, **options)
    first.train()
    best = os.path.basename(first.state.best_model_checkpoint)
    assert best == "checkpoint-2"
    (tmp_path / "before").rename(tmp_path / "after")
    done = trainer(tmp_path / "after", max_steps=4, **options)
    done.train(resume_from_checkpoint=True)
    on = trainer(tmp_path / "after", max_steps=6, **options)
    on.train(resume_from_checkpoint=str(tmp_path / "after" / "checkpoint-4"))
    kept = load_file(tmp_path / "after" / best / "model.safetensors")
    for run in (done, on):
        assert run.state.best_model_checkpoint == str(tmp_path / "after" / best)
        for name, weight in run.model.state_dict().items():
            assert torch.equal(weight, kept[name]), name


@pytest.mark.parametrize("writer", ["torch.save", "safetensors.torch.save_file", "limit"])
def test_a_full_disk_is_an_error_and_leaves_the_last_checkpoint(writer, tmp_path, monkeypatch):
    """A writer that stops in the middle, or a limit of the operating system on the size of a file."""
    resource = pytest.importorskip("resource")
    options = {"max_steps": 6}

    def fill_the_disk():
        if writer == "limit":
            size = (tmp_path / "checkpoint-2" / "optimizer.pt").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))
            return

        def broken(content, path, *args, **kwargs):
            with open(path, "wb") as file:
                file.write(b"half")
            raise OSError(28, "No space left on device", str(path))

        target = "transformers.modeling_utils.safe_save_file" if "safe" in writer else writer
        monkeypatch.setattr(target, broken)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(
            CheckpointError, match=r"checkpoint-4 could not be written.*checkpoint-2"
        ):
            trainer(tmp_path, [AtStep(3, fill_the_disk)], **options).train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-2"]
    trainer(tmp_path, **options).train(resume_from_checkpoint=True)
    whole = tmp_path / "whole"
    trainer(whole, **options).train()
    assert weights(tmp_path / "checkpoint-6") == weights(whole / "checkpoint-6")


def test_sigterm_saves_ends_with_status_143_and_the_run_goes_on(finished, tmp_path, capsys):
    before = signal.getsignal(signal.SIGTERM)
    stopped = trainer(tmp_path, [AtStep(3, lambda: signal.raise_signal(signal.SIGTERM))])
    with pytest.raises(TrainingTerminated) as ended:
        stopped.train()
    assert ended.value.code == 143
    message = capsys.readouterr().err
    assert "SIGTERM: stopped after step 3 of 4" in message
    assert "checkpoint-3" in message
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")
    assert signal.getsignal(signal.SIGTERM) is before
    resumed = trainer(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert weights(tmp_path / "checkpoint-4") == weights(finished / "checkpoint-4")
    assert [log["step"] for log in resumed.state.log_history if "loss" in log] == [1, 2, 3, 4]


def test_sigterm_after_the_last_step_is_not_swallowed(tmp_path):
    class Late(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            signal.raise_signal(signal.SIGTERM)

    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        trainer(tmp_path, [Late()]).train()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]


def test_what_is_pushed_has_its_name_and_a_failed_push_costs_no_checkpoint(tmp_path, monkeypatch):
    pushed = []

    def refuse(self, folder):
        pushed.append((folder, checkpoint_problem(folder)))
        raise PermissionError("no")

    monkeypatch.setattr(
        "spikenlp.training.publishing.PublishingTrainer._push_from_checkpoint", refuse
    )
    pushing = trainer(tmp_path)
    pushing.args.push_to_hub = True
    with pytest.raises(PermissionError):
        pushing.train()
    assert pushed == [(str(tmp_path / "checkpoint-2"), None)]
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


def test_same_seed_and_threads_give_bit_equal_weights_on_cpu(tmp_path):
    """Two runs in one process; benchmarks/kill_resume.py compares runs in separate ones."""
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found = []
            for name in ("a", "b"):
                trainer(tmp_path / f"{name}{count}").train()
                found.append(weights(tmp_path / f"{name}{count}" / "checkpoint-4"))
            assert found[0] == found[1]
    finally:
        torch.set_num_threads(threads)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = trainer(tmp_path / "other", seed=1)
        other.train()
    assert weights(tmp_path / "other" / "checkpoint-4") != found[0]


def test_a_checkpoint_on_the_hub_has_all_that_a_run_goes_on_from(tmp_path):
    args = make_args(
        tmp_path, save_strategy="steps", save_steps=1, train_sampling_strategy="group_by_length"
    )
    SpikingTrainer(make_model(), args, train_dataset=make_data()).train()
    saved = {path.name for path in (tmp_path / "checkpoint-1").iterdir()}
    assert ORDER.format(0) in saved
    staged = stage(tmp_path / "checkpoint-1", tmp_path / "staged", RESUMABLE)
    assert saved - set(staged) == {"training_args.bin"}
