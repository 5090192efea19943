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

import safetensors.torch
import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification, TrainerCallback

from spikenlp import (
    SpikingBertForSequenceClassification,
    SpikingTrainer,
    SpikingTrainingArguments,
)
from spikenlp.training import last_checkpoint
from spikenlp.training.checkpoints import INCOMPLETE
from spikenlp.training.provenance import run_record

ROWS, VOCABULARY, LENGTH, BATCH = 80, 200, 12, 4
SAVE_STEPS = 2
LONGEST_PAUSE = 0.06
"""Seconds between what a kill waits for and the kill: about the time of a step or of a checkpoint."""
TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos")


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


class Recorder:
    """A data collator that writes down the rows of each batch."""

    def __init__(self, path: Path):
        self.path = path
        self.trainer: SpikingTrainer | None = None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {
            "input_ids": torch.tensor([row["input_ids"] for row in rows]),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }


class RecordingTrainer(SpikingTrainer):
    """Writes down the step and the first token of every row that it learns from."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen = [self.state.global_step, *inputs["input_ids"].flatten().tolist()]
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


def finish(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kill_once(folder: Path, steps: int, in_writing: bool, rng: random.Random) -> dict[str, Any]:
    """Starts or resumes the run, kills it, and says where that was."""
    resumed = last_checkpoint(folder)
    process, pipe = start(folder, steps)
    began, pause = rng.randint(1, 2 * SAVE_STEPS), rng.uniform(0, LONGEST_PAUSE)
    if in_writing:
        began = rng.randint(1, 2)
        wait_for_steps(pipe, began)
        unfinished = folder / INCOMPLETE
        known = unfinished.stat().st_ino if unfinished.exists() else None
        while os.waitpid(process, os.WNOHANG) == (0, 0):
            if unfinished.exists() and unfinished.stat().st_ino != known:
                break
        pause = rng.uniform(0, LONGEST_PAUSE / 3)
    else:
        wait_for_steps(pipe, began)
    time.sleep(pause)
    os.kill(process, signal.SIGKILL)
    status = finish(process)
    os.close(pipe)
    unfinished = sorted(str(p.relative_to(folder)) for p in folder.glob(f"{INCOMPLETE}/*/*"))
    return {
        "resumed_from": _step(resumed),
        "signal": -status,
        "aimed_at": "writing" if in_writing else f"step {began} of the process",
        "files_of_an_unfinished_checkpoint": len(unfinished),
        "last_whole_checkpoint": _step(last_checkpoint(folder)),
    }
