"""Memory of a training step by model size and T: the estimate, and a measurement of what fits here.

    python benchmarks/memory.py --output results/benchmarks/memory_estimate.json

The estimate is that of `spikenlp inspect`: parameters, AdamW's moments, gradients and what autograd keeps, of one
process. DistributedDataParallel takes another copy of the gradients in each. Measured is the most that tensors
take at once in a step of the smallest model.
"""

from __future__ import annotations

import torch
from measure import arguments, finish, peak_bytes, table

from spikenlp import SpikingBertConfig, SpikingBertForSequenceClassification
from spikenlp.analysis import estimate_memory
from spikenlp.training.cpu import keep_freed_memory

SIZES = {
    "MiniLM-L6": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12},
    "BERT-base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "BERT-large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
}
STEPS = (1, 2, 4, 8)
MEASURED = {"size": "MiniLM-L6", "batch": 4, "length": 64}


def config(size: str, steps: int) -> SpikingBertConfig:
    fields = SIZES[size]
    return SpikingBertConfig(
        **fields,
        intermediate_size=4 * fields["hidden_size"],
        hidden_dropout_prob=0.0,
        num_timesteps=steps,
    )


def measured_bytes(steps: int, device: str, autocast: torch.dtype | None) -> int:
    torch.manual_seed(0)
    model = SpikingBertForSequenceClassification(config(MEASURED["size"], steps))
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    shape = (MEASURED["batch"], MEASURED["length"])
    ids = torch.randint(1000, 30000, shape, device=device)
    labels = torch.zeros(len(ids), dtype=torch.long, device=device)

    def step() -> None:
        with torch.autocast(device, dtype=autocast, enabled=autocast is not None):
            loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    held = 3 * sum(p.numel() * 4 for p in model.parameters())
    return held + peak_bytes(step)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    args = parser.parse_args()
    if args.device == "cpu":
        keep_freed_memory()
    precisions = {"float32": None, "bfloat16": torch.bfloat16}
    estimates, measured = {}, {}
    for size in SIZES:
        for steps in STEPS:
            for name, autocast in precisions.items():
                found = estimate_memory(
                    config(size, steps), args.batch, args.length, autocast=autocast
                )
                estimates[f"{size}, T = {steps}, {name}"] = vars(found)
    for steps in STEPS:
        for name, autocast in precisions.items():
            small = config(MEASURED["size"], steps)
            estimate = estimate_memory(
                small, MEASURED["batch"], MEASURED["length"], autocast=autocast
            )
            peak = measured_bytes(steps, args.device, autocast)
            measured[f"T = {steps}, {name}"] = {
                "estimated_bytes": estimate.peak,
                "measured_bytes": peak,
                "ratio": round(estimate.peak / peak, 3),
            }
    print(f"estimated peak (GB), batch {args.batch}, {args.length} tokens, AdamW")
    rows = [
        [
            f"{size}, {name}",
            *(f"{estimates[f'{size}, T = {t}, {name}']['peak'] / 1e9:.1f}" for t in STEPS),
        ]
        for size in SIZES
        for name in precisions
    ]
    print(table(["", *(f"T = {t}" for t in STEPS)], rows))
    print(f"\n{MEASURED['size']}, batch {MEASURED['batch']}, {MEASURED['length']} tokens (MB)")
    rows = [
        [
            name,
            f"{row['estimated_bytes'] / 1e6:.0f}",
            f"{row['measured_bytes'] / 1e6:.0f}",
            str(row["ratio"]),
        ]
        for name, row in measured.items()
    ]
    print(table(["", "estimate", "measured", "ratio"], rows))
    results = {
        "batch": args.batch,
        "length": args.length,
        "estimates": estimates,
        "measured": {**MEASURED, "rows": measured},
    }
    finish(results, args.output)


if __name__ == "__main__":
    main()
