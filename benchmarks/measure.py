"""What the benchmarks share: batches of a task, rows timed in turn, memory that autograd keeps, a table, a
record."""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from spikenlp.data import TextTask
from spikenlp.provenance import run_record

LENGTH = 128
"""Tokens of a text, at most."""


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7, help="times that each row is measured")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser


def batches_by_length(
    rows: datasets.Dataset, task: TextTask, tokenizer: PreTrainedTokenizerBase, size: int
) -> list[dict[str, torch.Tensor]]:
    """Padded batches with labels, the shortest texts first."""
    tokens = rows.map(
        lambda row: tokenizer(
            *(row[c] for c in task.text_columns), truncation=True, max_length=LENGTH
        ),
        remove_columns=list(task.text_columns),
    )
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]["input_ids"]))
    collator = DataCollatorWithPadding(tokenizer)
    return list(DataLoader(tokens.select(order), batch_size=size, collate_fn=collator))


def time_in_turn(rows: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of each row: median, lowest and highest of `rounds`, the rows in turn (A B A B)."""
    for row in rows.values():
        row()
        row()
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, row in rows.items():
            synchronize()
            start = time.perf_counter()
            row()
            synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {
        name: {"median": statistics.median(s), "min": min(s), "max": max(s)}
        for name, s in seconds.items()
    }


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def kernel_seconds(row: Callable[[], Any], calls: int = 10) -> float:
    """Seconds that a CUDA GPU is busy in one call of `row`, without what the launches wait for."""
    row()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(calls):
            row()
        torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6 / calls


def peak_bytes(row: Callable[[], Any]) -> int:
    """The most memory that tensors take during `row` above what they took before, on its device."""
    row()
    synchronize()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        row()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        row()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(itertools.accumulate((size for _, size in changes), initial=0))


def saved_bytes(forward: Callable[[], Any], *not_counted: torch.Tensor) -> int:
    """Bytes that autograd keeps between `forward` and its backward pass, each storage once."""
    kept: dict[int, int] = {}
    alive = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        alive.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = forward()
    for tensor in not_counted:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    del result
    return sum(kept.values())


def table(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in [header, *rows])
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def finish(results: dict[str, Any], output: Path | None) -> None:
    """Writes the results with the run's command, versions, commit and hardware."""
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({"run": run_record(), **results}, indent=1) + "\n")
