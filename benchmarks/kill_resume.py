"""Kills a training run with SIGKILL at random points, resumes it, and compares it with one nobody killed.

    python benchmarks/kill_resume.py --kills 20 --output results/reliability/kill_resume.json

A run is a process of its own that trains a small spiking BERT, converted from a dense one and calibrated,
with SpikingTrainer (TMC, dropout, accumulation, a checkpoint every second step) and goes on from the last
whole checkpoint. Half of the kills come while a checkpoint is being written, the others a random time after
a random step. Exit status 1 if anything differs: weights, neuron amplitudes, optimizer, schedule, generators
of random numbers, losses, or the order of the data.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from datasets import Dataset
from measure import finish as finish_record
from transformers import BertConfig, BertForSequenceClassification, TrainerCallback

from spikenlp import (
    SpikingBertForSequenceClassification,
    SpikingTrainer,
    SpikingTrainingArguments,
)
from spikenlp.training import last_checkpoint
from spikenlp.training.checkpoints import INCOMPLETE

ROWS, VOCABULARY, LENGTH, BATCH = 80, 200, 12, 4
SAVE_STEPS = 2
STEP_SECONDS, WRITING_SECONDS = 0.06, 0.03
"""Longest pauses between what a kill waits for and the kill: about what a step, a checkpoint takes."""


def build() -> SpikingBertForSequenceClassification:
    """The same student every time, as a recipe that is started again builds it."""
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    dense = BertForSequenceClassification(
        BertConfig(vocab_size=VOCABULARY, num_hidden_layers=2, initializer_range=0.2, **size)
    ).eval()
    batch = {"input_ids": torch.randint(5, VOCABULARY, (16, LENGTH))}
    return SpikingBertForSequenceClassification.from_dense(
        dense, calibration=[batch], num_timesteps=2, hidden_dropout_prob=0.1
    )


def data() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, VOCABULARY, (ROWS, LENGTH), generator=generator)
    labels = torch.randint(2, (ROWS,), generator=generator)
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})


class Steps(TrainerCallback):
    """Tells the parent of every step begun, through a pipe."""

    def __init__(self, pipe: int):
        self.pipe = pipe

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        os.write(self.pipe, b".")


class RecordingTrainer(SpikingTrainer):
    """Writes down what it learns from: its process, the step and the tokens of each micro-batch."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen = [os.getpid(), self.state.global_step, inputs["input_ids"].tolist()]
        with open(self.output_dir / "order.jsonl", "a") as file:
            file.write(json.dumps(seen) + "\n")
        return super().training_step(model, inputs, *args, **kwargs)


def train(folder: Path, steps: int, pipe: int) -> None:
    args = SpikingTrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        warmup_steps=3,
        weight_decay=0.01,
        save_strategy="steps",
        save_steps=SAVE_STEPS,
        save_total_limit=2,
        logging_steps=1,
        use_cpu=True,
        disable_tqdm=True,
        seed=3,
    )
    trainer = RecordingTrainer(build(), args, train_dataset=data(), callbacks=[Steps(pipe)])
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))


def start(folder: Path, steps: int) -> tuple[int, int]:
    """A process that trains; its id, and a pipe from which a byte a step is read."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        status = 1
        try:
            os.close(reading)
            with open(folder / "log.txt", "a") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                train(folder, steps, writing)
                status = 0
        finally:
            os._exit(status)
    os.close(writing)
    return process, reading


def wait_for_steps(pipe: int, count: int) -> None:
    """Until `count` steps have begun, or the process has ended."""
    for _ in range(count):
        if not os.read(pipe, 1):
            return


def wait_for_writing(folder: Path, process: int) -> None:
    """Until a checkpoint is begun, or the process has ended."""
    unfinished = folder / INCOMPLETE
    known = modified(unfinished)
    while modified(unfinished) in (None, known):
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return


def modified(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def finish(process: int, pipe: int) -> int:
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    os.close(pipe)
    return status


def kill_once(folder: Path, steps: int, in_writing: bool, rng: random.Random) -> dict[str, Any]:
    """Starts or resumes the run, kills it, and says where that was."""
    resumed, before = last_checkpoint(folder), modified(folder / INCOMPLETE)
    process, pipe = start(folder, steps)
    if in_writing:
        began = rng.randint(1, 2 * SAVE_STEPS)
        wait_for_steps(pipe, began)
        wait_for_writing(folder, process)
        pause = rng.uniform(0, WRITING_SECONDS)
    else:
        began = rng.randint(0, 3 * SAVE_STEPS)
        wait_for_steps(pipe, began)
        pause = rng.uniform(0, STEP_SECONDS)
    time.sleep(pause)
    os.kill(process, signal.SIGKILL)  # one that has ended is not gone before it is waited for
    status = finish(process, pipe)
    if status != -signal.SIGKILL:
        raise RuntimeError(f"the run ended with {status} before it was killed: {folder}/log.txt")
    left = []
    if modified(folder / INCOMPLETE) not in (None, before):
        left = sorted(p.name for p in folder.glob(f"{INCOMPLETE}/*/*"))
    return {
        "resumed_from": _step(resumed),
        "aim": "the writing of a checkpoint" if in_writing else f"step {began} since the start",
        "pause_seconds": round(pause, 4),
        "left_of_an_unfinished_checkpoint": left,
        "last_whole_checkpoint": _step(last_checkpoint(folder)),
    }


def _step(folder: str | None) -> int | None:
    return None if folder is None else int(Path(folder).name.split("-")[1])


def differences(killed: Path, whole: Path, steps: int) -> list[str]:
    """What the two runs differ in, by name."""
    found = []
    checkpoints = [folder / f"checkpoint-{steps}" for folder in (killed, whole)]
    weights = [safetensors.torch.load_file(path / "model.safetensors") for path in checkpoints]
    assert any(name.endswith("amplitude") for name in weights[1])  # the neurons' calibration
    parts = {"weights and neuron amplitudes": weights}
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        parts[name] = [torch.load(path / name, weights_only=False) for path in checkpoints]
    states = [json.loads((path / "trainer_state.json").read_text()) for path in checkpoints]
    parts["losses, learning rates and progress"] = states
    for name, (one, other) in parts.items():
        if not same(one, other):
            found.append(name)
    if not same_order(killed, whole):
        found.append("order of the data")
    return found


def same(one: Any, other: Any) -> bool:
    """Equality to the bit of nested containers of tensors, arrays and numbers."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def order(folder: Path) -> dict[int, list[list[Any]]]:
    """For each step, for each process that took it, the micro-batches that it saw."""
    taken: dict[int, dict[int, list[Any]]] = {}
    for line in (folder / "order.jsonl").read_text().splitlines():
        process, step, tokens = json.loads(line)
        taken.setdefault(step, {}).setdefault(process, []).append(tokens)
    return {step: list(attempts.values()) for step, attempts in taken.items()}


def same_order(killed: Path, whole: Path) -> bool:
    """Every step saw the batches of the run nobody killed, however often it was taken."""
    seen, expected = order(killed), {step: only for step, (only,) in order(whole).items()}
    return seen.keys() == expected.keys() and all(
        attempts[-1] == expected[step]
        and all(attempt == expected[step][: len(attempt)] for attempt in attempts)
        for step, attempts in seen.items()
    )


def run(kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """Kills a run `kills` times in `folder`, which is empty, and compares it with a whole one."""
    steps = 4 * kills + 8
    whole, killed = folder / "whole", folder / "killed"
    for path in (whole, killed):
        path.mkdir()
    began = time.perf_counter()
    if finish(*start(whole, steps)):
        raise RuntimeError(f"the run nobody kills failed: {(whole / 'log.txt').read_text()}")
    rng = random.Random(seed)
    aims = [i % 2 == 0 for i in range(kills)]
    rng.shuffle(aims)
    made = [kill_once(killed, steps, in_writing, rng) for in_writing in aims]
    if finish(*start(killed, steps)):
        raise RuntimeError(f"the resumed run failed: {(killed / 'log.txt').read_text()}")
    attempts = order(killed)
    return {
        "seed": seed,
        "steps": steps,
        "save_steps": SAVE_STEPS,
        "kills": made,
        "kills_that_left_an_unfinished_checkpoint": sum(
            bool(kill["left_of_an_unfinished_checkpoint"]) for kill in made
        ),
        "steps_taken_again": sum(len(taken) - 1 for taken in attempts.values()),
        "differences": differences(killed, whole, steps),
        "seconds": round(time.perf_counter() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    # Processes are forked from this one, which has imported everything: it must have no threads.
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    try:
        results = run(args.kills, args.seed, folder)
    finally:
        shutil.rmtree(folder)
    print(
        f"{args.kills} kills, {results['kills_that_left_an_unfinished_checkpoint']} of them left an "
        f"unfinished checkpoint; {results['steps_taken_again']} steps taken again; differences: "
        f"{results['differences'] or 'none'}"
    )
    finish_record({"kill_resume": results}, args.output)
    sys.exit(bool(results["differences"]))


if __name__ == "__main__":
    main()
