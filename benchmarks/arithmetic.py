"""How much of a model's score on a GLUE task is a matter of the arithmetic: the dev set in float32 and in
bfloat16. A rounding that falls the other way changes spikes, and what follows from them.

    python benchmarks/arithmetic.py outputs/sst2/teacher outputs/sst2/unrolled --task_name sst2 \\
        --data_dir path/to/glue --output results/arithmetic/sst2.json
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path

import torch
from measure import batches_by_length, finish
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import spikenlp  # noqa: F401  registers the spiking models
from spikenlp.data import get_task, load_task
from spikenlp.metrics import glue_metrics

BATCH = 64
ARITHMETIC = {
    "float32": nullcontext,
    "bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
}


@torch.no_grad()
def answers(model, batches) -> torch.Tensor:
    """[N, T, C]: the answer at each step, the mean of the logits so far; T is 1 for a dense model."""
    outputs = [model(**{k: v for k, v in b.items() if k != "labels"}) for b in batches]
    by_step = torch.cat([o.get("timestep_logits", o.logits[:, None]).float() for o in outputs])
    return by_step.cumsum(1) / torch.arange(1, by_step.shape[1] + 1)[:, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="fine-tuned models, dense or spiking")
    parser.add_argument("--task_name", required=True)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    task, metrics = get_task(args.task_name), glue_metrics(args.task_name)
    data = load_task(args.task_name, data_dir=args.data_dir)["validation"]
    found = {}
    for path in args.models:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForSequenceClassification.from_pretrained(path).eval()
        batches = batches_by_length(data, task, tokenizer, BATCH)
        labels = torch.cat([batch["labels"] for batch in batches]).numpy()
        logits = {}
        for name, context in ARITHMETIC.items():
            with context():
                logits[name] = answers(model, batches)
        exact, rounded = logits.values()
        row = {
            name: [metrics(step.numpy(), labels) for step in by_step.unbind(1)]
            for name, by_step in logits.items()
        }
        row["logit_difference"] = (exact - rounded).abs().mean((0, 2)).tolist()
        if task.labels is not None:
            changed = exact.argmax(-1) != rounded.argmax(-1)
            row["answers_changed"] = changed.float().mean(0).tolist()
        name = "/".join(Path(path).parts[-2:])
        found[name] = row
        print(name, row, flush=True)
    finish({"task": task.name, "samples": len(data), "models": found}, args.output)


if __name__ == "__main__":
    main()
