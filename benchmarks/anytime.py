"""One step at a time against the unrolled forward, and early exit in a batch, against dense BERT.

    python benchmarks/anytime.py --output results/benchmarks/anytime_cpu.json

Forward passes without gradient of a classifier of MiniLM's size, all positions real, weights random.
"early exit" gives each step the threshold that lets its share of the batch go (`--leave`): what is
timed is the real code, thresholds that fit a task come from `recipes/early_exit.py`.
"""

from __future__ import annotations

import torch
from inference import SIZE
from measure import arguments, finish, table, time_in_turn
from transformers import BertConfig, BertForSequenceClassification

from spikenlp import SpikingBertConfig, SpikingBertForSequenceClassification
from spikenlp.inference import advance, early_exit, start
from spikenlp.training.cpu import keep_freed_memory


def thresholds_for(model, inputs, steps: int, leave: list[float]) -> list[float]:
    """Those at which the given shares of the whole batch leave after steps 1, 2, ..."""
    state, thresholds = start(model, inputs), []
    left = torch.arange(len(state))
    for step in range(1, steps):
        state = advance(model, state)
        confidence = state.logits.float().softmax(-1).amax(-1).cpu()
        share = leave[step - 1] if step <= len(leave) else 0.0
        stay = len(left) - min(round(share * len(confidence)), len(left))
        ordered = confidence[left].argsort()
        thresholds.append(float(confidence[left][ordered[stay - 1]]) if stay else 0.0)
        left = left[ordered[:stay]]
        if not stay:
            break
    return [*thresholds, 1.0]


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--num_timesteps", type=int, default=4)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--length", type=int, nargs="+", default=[32, 128])
    parser.add_argument(
        "--leave",
        type=float,
        nargs="+",
        default=[0.5, 0.25, 0.125],
        help="shares of the batch that leave after steps 1, 2, ...",
    )
    parser.add_argument("--nonlinearity", choices=["running", "step"], default="running")
    args = parser.parse_args()
    if args.device == "cpu":
        keep_freed_memory()
    torch.manual_seed(0)
    steps = args.num_timesteps
    config = SpikingBertConfig(**SIZE, num_timesteps=steps, nonlinearity=args.nonlinearity)
    model = SpikingBertForSequenceClassification(config).to(args.device).eval()
    dense = BertForSequenceClassification(BertConfig(**SIZE)).to(args.device).eval()
    results = {}
    for batch in args.batch:
        for length in args.length:
            ids = torch.randint(1000, 30000, (batch, length), device=args.device)
            inputs = {"input_ids": ids}
            found = measure(model, dense, inputs, args)
            results[f"B = {batch}, L = {length}"] = found
            unrolled = found["rows"][f"unrolled, T = {steps}"]["median"]
            rows = [
                [
                    name,
                    *(f"{1e3 * m[k]:.1f}" for k in ("median", "min", "max")),
                    f"{m['median'] / unrolled:.2f}",
                ]
                for name, m in found["rows"].items()
            ]
            print(f"\nB = {batch}, L = {length}, {args.nonlinearity}, float32 on {args.device}")
            print(table(["forward", "ms", "min", "max", "x unrolled"], rows), flush=True)
            if batch > 1:
                print(f"mean steps of early exit: {found['mean_steps']:.2f} of {steps}", flush=True)
    setting = {k: v for k, v in vars(args).items() if k != "output"}
    finish({"setting": setting, "results": results}, args.output)


@torch.no_grad()
def measure(model, dense, inputs, args) -> dict:
    steps = args.num_timesteps

    def stepwise(count_energy=False):
        state = start(model, inputs, count_energy=count_energy)
        for _ in range(steps):
            state = advance(model, state)
        return state

    rows = {
        "dense": lambda: dense(**inputs),
        f"unrolled, T = {steps}": lambda: model(**inputs),
        f"step by step, T = {steps}": stepwise,
        "the same, energy counted": lambda: stepwise(count_energy=True),
        "early exit, none leaves": lambda: early_exit(model, inputs, 1.0),
    }
    found = {}
    if len(inputs["input_ids"]) > 1:
        thresholds = thresholds_for(model, inputs, steps, args.leave)
        leaving = early_exit(model, inputs, thresholds).steps
        found = {"leaving": leaving.tolist(), "mean_steps": leaving.double().mean().item()}
        rows["early exit"] = lambda: early_exit(model, inputs, thresholds)
    states = [start(model, inputs)]
    for _ in range(steps):
        states.append(advance(model, states[-1]))
    for t, state in enumerate(states[:-1], 1):
        rows[f"step {t} alone"] = lambda state=state: advance(model, state)
    return {**found, "rows": time_in_turn(rows, args.rounds)}


if __name__ == "__main__":
    main()
