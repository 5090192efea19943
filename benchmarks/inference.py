"""Latency and throughput of spiking BERT by T and batch size, against dense BERT.

    python benchmarks/inference.py --output results/benchmarks/inference_cpu.json

Forward passes without gradient of a classifier of MiniLM's size, all positions real. A spiking model
on this hardware does T times the work of a dense one and more: the table says how much more.
"""

from __future__ import annotations

import torch
from measure import arguments, finish, table, time_in_turn
from transformers import BertConfig, BertForSequenceClassification

from spikenlp import SpikingBertConfig, SpikingBertForSequenceClassification
from spikenlp.training.cpu import keep_freed_memory

SIZE = {
    "hidden_size": 384,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
}


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--num_timesteps", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args()
    if args.device == "cpu":
        keep_freed_memory()
    torch.manual_seed(0)
    models = {"dense": BertForSequenceClassification(BertConfig(**SIZE))}
    for steps in args.num_timesteps:
        for nonlinearity in ("step", "running"):
            config = SpikingBertConfig(**SIZE, num_timesteps=steps, nonlinearity=nonlinearity)
            models[f"{nonlinearity}, T = {steps}"] = SpikingBertForSequenceClassification(config)
    models = {
        name: model.to(args.device, getattr(torch, args.dtype)).eval()
        for name, model in models.items()
    }
    results = {}
    for batch in args.batch:
        inputs = torch.randint(1000, 30000, (batch, args.length), device=args.device)

        def run(model, inputs=inputs):
            with torch.inference_mode():
                return model(input_ids=inputs)

        measured = time_in_turn(
            {name: lambda model=model: run(model) for name, model in models.items()}, args.rounds
        )
        dense = measured["dense"]["median"]
        for found in measured.values():
            found["ratio_to_dense"] = found["median"] / dense
            found["sequences_per_second"] = batch / found["median"]
        rows = [
            [
                name,
                f"{1e3 * m['median']:.1f}",
                f"{1e3 * m['min']:.1f}-{1e3 * m['max']:.1f}",
                f"{m['ratio_to_dense']:.2f}",
                f"{m['sequences_per_second']:.1f}",
            ]
            for name, m in measured.items()
        ]
        print(f"\nB = {batch}, L = {args.length}, {args.dtype} on {args.device}")
        print(table(["forward", "ms", "range", "x dense", "sequences/s"], rows), flush=True)
        results[f"B = {batch}"] = measured
    setting = {k: v for k, v in vars(args).items() if k != "output"}
    finish({"setting": setting, "rows": results}, args.output)


if __name__ == "__main__":
    main()
