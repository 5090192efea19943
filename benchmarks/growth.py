"""How time and memory of a training step grow with T, length and width; memory against its estimate.

    python benchmarks/growth.py --output results/benchmarks/growth_cpu.json

A step is forward, loss, backward and AdamW on a spiking BERT, from one base size along one axis at a
time. "peak" is the most that its tensors take at once, parameters and the optimizer's state included;
"estimate" is what `spikenlp inspect` says of it without running anything.
"""

from __future__ import annotations

import torch
from measure import arguments, finish, peak_bytes, table, time_in_turn

from spikenlp import SpikingBertConfig, SpikingBertForSequenceClassification
from spikenlp.analysis import estimate_memory
from spikenlp.training.cpu import keep_freed_memory

BASE = {"num_timesteps": 4, "length": 64, "hidden_size": 256}
AXES = {
    "num_timesteps": [1, 2, 4, 8, 16],
    "length": [32, 64, 128, 256, 512],
    "hidden_size": [128, 256, 384, 768],
}


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args()
    if args.device == "cpu":
        keep_freed_memory()
    autocast = None if args.dtype == "float32" else torch.bfloat16

    def build(num_timesteps: int, length: int, hidden_size: int):
        torch.manual_seed(0)
        config = SpikingBertConfig(
            hidden_size=hidden_size,
            num_attention_heads=hidden_size // 32,
            intermediate_size=4 * hidden_size,
            num_hidden_layers=args.layers,
            hidden_dropout_prob=0.0,
            num_timesteps=num_timesteps,
        )
        model = SpikingBertForSequenceClassification(config).to(args.device).train()
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        ids = torch.randint(1000, 30000, (args.batch, length), device=args.device)
        labels = torch.zeros(args.batch, dtype=torch.long, device=args.device)

        def step():
            with torch.autocast(args.device, dtype=autocast, enabled=autocast is not None):
                loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return config, step

    results: dict[str, dict] = {}
    printed = []
    for axis, values in AXES.items():
        sizes = {f"{axis} = {value}": {**BASE, axis: value} for value in values}
        built = {name: build(**size) for name, size in sizes.items()}
        timed = time_in_turn({name: step for name, (_, step) in built.items()}, args.rounds)
        smallest = timed[next(iter(timed))]["median"]
        for name, (config, step) in built.items():
            estimate = estimate_memory(config, args.batch, sizes[name]["length"], autocast=autocast)
            held = estimate.parameters + estimate.optimizer
            found = timed[name] | {
                "peak_bytes": peak_bytes(step) + held,
                "estimated_bytes": estimate.peak,
            }
            results[name] = found
            printed.append(
                [
                    name,
                    f"{1e3 * found['median']:.0f}",
                    f"{found['median'] / smallest:.2f}",
                    f"{found['peak_bytes'] / 1e6:.0f}",
                    f"{found['estimated_bytes'] / 1e6:.0f}",
                    f"{100 * (found['estimated_bytes'] / found['peak_bytes'] - 1):+.0f}",
                ]
            )
    base = ", ".join(f"{k} {v}" for k, v in BASE.items())
    print(f"\nbase: {base}; batch {args.batch}, {args.layers} layers, {args.dtype}")
    header = ["training step", "ms", "x first", "peak MB", "estimate MB", "error %"]
    print(table(header, printed))
    setting = {k: v for k, v in vars(args).items() if k != "output"}
    finish({"setting": setting, "rows": results}, args.output)


if __name__ == "__main__":
    main()
