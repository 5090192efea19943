"""Training step of spiking BERT against dense BERT of the same size: time, memory, where time goes.

    python benchmarks/training_step.py --output results/benchmarks/training_step_cpu.json

Forward, loss and backward in float32 (`--dtype bfloat16`: autocast), no dropout, all positions real.
"kept" is what autograd keeps between forward and backward, parameters apart; "peak" is the most that
the step holds at once besides parameters, gradients included. "plain autograd" is the
same spiking network with every neuron and every linear layer left to autograd. "all tokens" computes the
last layer for all of them, as the dense model does, and not for the first alone, which is all that is
read. On CPU freed memory
is kept for the next step, as the recipes do (`spikenlp.training.cpu`), for all rows; `--return_memory`
leaves the C library's default.
"""

from __future__ import annotations

import gc
from collections import defaultdict

import torch
import torch.nn.functional as F
from measure import (
    arguments,
    finish,
    kernel_seconds,
    peak_bytes,
    saved_bytes,
    synchronize,
    table,
    time_in_turn,
)
from torch.profiler import ProfilerActivity, profile
from transformers import BertConfig, BertForSequenceClassification

from spikenlp import SpikingBertConfig, SpikingBertForSequenceClassification
from spikenlp.neurons import RoundingIF, SpikingLinear
from spikenlp.training.cpu import keep_freed_memory

KINDS = {
    "matmul": ("aten::mm", "aten::addmm", "aten::bmm", "gemm", "cutlass", "nvjet", "cublas"),
    "attention": (
        "scaled_dot_product",
        "_flash_attention",
        "_efficient_attention",
        "flash_",
        "fmha",
    ),
    "neurons": ("CompiledFxGraph", "_RoundingSpike", "triton_"),
    "activation and norm": ("gelu", "Gelu", "GELU", "layer_norm", "LayerNorm"),
}


class PlainRounding(RoundingIF):
    """The rounding neuron as autograd sees it when nobody writes its backward pass."""

    def forward(self, x, *, num_timesteps=None, running=False):
        steps = num_timesteps or len(x)
        x = x.expand(steps, *x.shape[1:])
        counted = torch.arange(1, steps + 1, device=x.device).view(-1, *[1] * (x.dim() - 1))
        if running:
            sums = x * counted
            x = torch.cat([sums[:1], sums[1:] - sums[:-1]])
        v, sent = torch.zeros_like(x[0]), []
        for current in x:
            u = v + current
            z = u / self.amplitude
            z = z * (z.abs() < 1.5)
            s = (
                z
                + (
                    (u >= self.amplitude / 2).float() - (u <= -self.amplitude / 2).float() - z
                ).detach()
            )
            sent.append(self.amplitude * s)
            v = u - sent[-1]
        sent = torch.stack(sent)
        return sent.cumsum(0) / counted if running else sent


def plain_autograd(model):
    for module in model.modules():
        if isinstance(module, RoundingIF):
            module.__class__ = PlainRounding
        elif isinstance(module, SpikingLinear):
            module.__class__ = torch.nn.Linear
    return model


def where_time_goes(step, device: str) -> dict[str, float]:
    """Shares of the processor's time on CPU, of the kernels' time on CUDA."""
    cuda = device == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        step()
        synchronize()
    seconds: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        kinds = [k for k, names in KINDS.items() if any(name in event.key for name in names)]
        spent = event.self_device_time_total if cuda else event.self_cpu_time_total
        seconds[kinds[0] if kinds else "other"] += spent / 1e6
    total = sum(seconds.values())
    return {kind: seconds[kind] / total for kind in [*KINDS, "other"]}


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--num_timesteps", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden_size", type=int, default=384)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile every row")
    parser.add_argument("--return_memory", action="store_true")
    args = parser.parse_args()
    if args.device == "cpu" and not args.return_memory:
        keep_freed_memory()
    size = {
        "hidden_size": args.hidden_size,
        "num_attention_heads": args.hidden_size // 32,
        "intermediate_size": 4 * args.hidden_size,
        "num_hidden_layers": args.layers,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    torch.manual_seed(0)
    inputs = torch.randint(1000, 30000, (args.batch, args.length), device=args.device)
    labels = torch.randint(2, (args.batch,), device=args.device)

    def spiking(**fields):
        return SpikingBertForSequenceClassification(SpikingBertConfig(**size, **fields))

    rows = {"dense": BertForSequenceClassification(BertConfig(**size))}
    for steps in args.num_timesteps:
        rows[f"step, T = {steps}"] = spiking(num_timesteps=steps, nonlinearity="step")
        rows[f"running, T = {steps}"] = spiking(num_timesteps=steps)
    rows["collapsed, T = 4"] = spiking(collapsed=True)
    if 4 in args.num_timesteps and not args.compile:
        rows["step, T = 4, all tokens"] = rows["step, T = 4"]
        rows["running, T = 4, plain autograd"] = plain_autograd(spiking())
    autocast = args.dtype != "float32"
    dtype = torch.bfloat16 if autocast else None
    parameters = {name: list(model.parameters()) for name, model in rows.items()}

    def forward(name, model):
        all_tokens = "all tokens" in name

        def run():
            with torch.autocast(args.device, dtype=dtype, enabled=autocast):
                logits = model(input_ids=inputs, output_hidden_states=all_tokens).logits
                return F.cross_entropy(logits.float(), labels)

        return run

    def step(name, model):
        run = forward(name, model)

        def both():
            run().backward()
            for p in parameters[name]:
                p.grad = None

        return both

    models = {name: model.to(args.device).train() for name, model in rows.items()}
    callables = {
        k: torch.compile(m, fullgraph=True) if args.compile else m for k, m in models.items()
    }
    measured = time_in_turn({k: step(k, m) for k, m in callables.items()}, args.rounds)
    dense = measured["dense"]["median"]
    cuda = args.device == "cuda"
    shares = [f"% {kind}" for kind in (*KINDS, "other")]
    printed = []
    for name, model in callables.items():
        found = measured[name]
        gc.collect()
        found["saved_megabytes"] = saved_bytes(forward(name, model), *parameters[name]) / 1e6
        found["ratio_to_dense"] = found["median"] / dense
        found["tokens_per_second"] = inputs.numel() / found["median"]
        found["shares"] = {} if "plain" in name else where_time_goes(step(name, model), args.device)
        found["peak_megabytes"] = peak_bytes(step(name, model)) / 1e6
        if cuda:
            found["kernels"] = kernel_seconds(step(name, model), calls=3)
        printed.append(
            [
                name,
                f"{1e3 * found['median']:.0f}",
                f"{1e3 * found['min']:.0f}-{1e3 * found['max']:.0f}",
                f"{found['ratio_to_dense']:.2f}",
                f"{found['tokens_per_second']:.0f}",
                f"{found['saved_megabytes']:.0f}",
                f"{found['peak_megabytes']:.0f}",
                *([f"{1e3 * found['kernels']:.1f}"] if cuda else []),
                *(
                    f"{100 * found['shares'][kind]:.0f}" if found["shares"] else ""
                    for kind in (*KINDS, "other")
                ),
            ]
        )
    print(
        f"\nB = {args.batch}, L = {args.length}, {args.layers} layers of {args.hidden_size}, {args.dtype}"
    )
    on_gpu = ["kernels, ms"] if cuda else []
    sizes = ["MB kept", "peak MB"]
    header = ["training step", "ms", "range", "x dense", "tokens/s", *sizes, *on_gpu, *shares]
    print(table(header, printed))
    setting = {k: v for k, v in vars(args).items() if k != "output"}
    finish({"setting": setting, "rows": measured}, args.output)


if __name__ == "__main__":
    main()
