"""Long runs on a tiny spiking BERT: memory, open files and compiled functions do not grow.

    python benchmarks/soak.py --output results/reliability/soak.json

Training (SpikingTrainer with its watchdogs, evaluations and checkpoints) and inference, both on batches of
random size and length. The neurons' loops are compiled from the first element on, so that every shape
could cause a recompilation. After the warm-up, the first tenth, resident memory is sampled
and its least-squares slope taken.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo
from datasets import Dataset
from transformers import TrainerCallback

from spikenlp import (
    SpikingBertConfig,
    SpikingBertForSequenceClassification,
    SpikingTrainer,
    SpikingTrainingArguments,
    watchdogs,
)
from spikenlp.neurons import compilation
from spikenlp.provenance import run_record

SAMPLES = 100
LENGTHS = (3, 40)
BATCHES = (1, 12)
LARGEST_GROWTH_MIB = 16.0
"""Between the end of the warm-up and the end of a phase, along the fitted line."""


class Gauge:
    """What a process holds, sampled over the steps of a phase."""

    def __init__(self, steps: int):
        self.steps, self.every = steps, max(steps // SAMPLES, 1)
        self.warm_up = steps // 10
        self.samples: list[tuple[int, float, int, int]] = []
        self.start = time.perf_counter()

    def look(self, step: int) -> None:
        """To be called after each step, counted from 1."""
        if step % self.every and step not in (self.warm_up, self.steps):
            return
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident = pages * resource.getpagesize() / 2**20
        files = len(os.listdir("/proc/self/fd"))
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        self.samples.append((step, resident, files, graphs))

    def findings(self) -> dict[str, Any]:
        kept = [sample for sample in self.samples if sample[0] >= self.warm_up]
        step, resident, files, graphs = (list(column) for column in zip(*kept, strict=True))
        slope = float(np.polyfit(step, resident, 1)[0])
        growth = slope * (step[-1] - step[0])
        return {
            "steps": self.steps,
            "seconds": round(time.perf_counter() - self.start, 1),
            "resident_mib": {"after_warm_up": round(resident[0], 1), "end": round(resident[-1], 1)},
            "slope_kib_per_1000_steps": round(slope * 1024 * 1000, 1),
            "growth_mib_along_the_line": round(growth, 2),
            "open_files": {"after_warm_up": files[0], "end": files[-1]},
            "compiled_functions": {"after_warm_up": graphs[0], "end": graphs[-1]},
            "flat": bool(
                growth <= LARGEST_GROWTH_MIB and files[-1] <= files[0] and graphs[-1] == graphs[0]
            ),
            "resident_mib_by_step": {s: round(r, 1) for s, r in zip(step, resident, strict=True)},
        }


class GaugeCallback(TrainerCallback):
    def __init__(self, gauge: Gauge):
        self.gauge = gauge

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.gauge.look(state.global_step)


def tiny_model() -> SpikingBertForSequenceClassification:
    torch.manual_seed(0)
    config = SpikingBertConfig(
        vocab_size=200,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        num_timesteps=2,
    )
    return SpikingBertForSequenceClassification(config)


def train(model: SpikingBertForSequenceClassification, steps: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(*LENGTHS, 512, endpoint=True)
    rows = [
        {
            "input_ids": [int(i) for i in rng.integers(5, 200, n)],
            "attention_mask": [1] * int(n),
            "labels": int(rng.integers(2)),
        }
        for n in lengths
    ]
    gauge = Gauge(steps)
    with tempfile.TemporaryDirectory() as folder:
        args = SpikingTrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=4,
            use_cpu=True,
            disable_tqdm=True,
            logging_steps=max(steps // 20, 1),
            eval_strategy="steps",
            eval_steps=max(steps // 20, 1),
            save_steps=max(steps // 20, 1),
            save_total_limit=2,
            dataloader_pin_memory=False,
        )
        SpikingTrainer(
            model,
            args,
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(rows[:32]),
            data_collator=pad,
            callbacks=[*watchdogs(model, args), GaugeCallback(gauge)],
        ).train()
    return gauge.findings()


def pad(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)
    padded = {
        key: torch.tensor([row[key] + [0] * (longest - len(row[key])) for row in rows])
        for key in ("input_ids", "attention_mask")
    }
    return {**padded, "labels": torch.tensor([row["labels"] for row in rows])}


@torch.no_grad()
def infer(model: SpikingBertForSequenceClassification, calls: int) -> dict[str, Any]:
    model.eval()
    generator = torch.Generator().manual_seed(0)
    gauge = Gauge(calls)
    for call in range(1, calls + 1):
        batch, length = (
            int(torch.randint(low, high + 1, (), generator=generator))
            for low, high in (BATCHES, LENGTHS)
        )
        ids = torch.randint(5, 200, (batch, length), generator=generator)
        real = torch.randint(1, length + 1, (batch, 1), generator=generator)
        mask = (torch.arange(length) < real).long()
        if not bool(model(input_ids=ids, attention_mask=mask).logits.isfinite().all()):
            raise RuntimeError(f"call {call} gave logits that are not finite")
        gauge.look(call)
    return gauge.findings()


def soak(steps: int, calls: int, *, smallest_compiled: int = 1) -> dict[str, Any]:
    """Findings of both phases; loops over fewer elements than `smallest_compiled` run eagerly."""
    before = compilation.MIN_COMPILED_NUMEL
    compilation.MIN_COMPILED_NUMEL = smallest_compiled
    gc.freeze()  # else each look goes through all that the process held before
    try:
        model = tiny_model()
        return {"training": train(model, steps), "inference": infer(model, calls)}
    finally:
        compilation.MIN_COMPILED_NUMEL = before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000, help="of training")
    parser.add_argument("--calls", type=int, default=20_000, help="of inference")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    logging.getLogger("spikenlp").setLevel(logging.ERROR)
    found = soak(args.steps, args.calls)
    for phase, findings in found.items():
        print(phase, {k: v for k, v in findings.items() if k != "resident_mib_by_step"})
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({"run": run_record(), **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
