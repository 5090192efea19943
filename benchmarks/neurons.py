"""Neurons: time of forward + backward and bytes kept, against peers and the machine's copy.

    python benchmarks/neurons.py --output results/benchmarks/neurons_cpu.json

The peers are the extra `peers`; those that are not installed are left out, and named. Where there is no
build of torchvision, for which spikingjelly and norse ask without need for it here:

    pip install --no-deps spikingjelly==2.0.0 snntorch==1.0.0 norse==1.1.0
    pip install loguru nir nirtorch

All rows but the rounding neuron run the same dynamics: a leaky membrane, decay 0.5, threshold 1,
soft reset. "floor" is two copies of the input into memory that is there: what moving the input, the
output and their gradients once takes at the least. LIFBox of norse decays and adds its input by the
same factor. On CPU freed memory is kept for the next call, as the recipes do (`spikenlp.training.cpu`),
for all rows; `--return_memory` leaves the C library's default. On CUDA a second column has the time that
the GPU is busy ("kernels"): what a launch costs on the host is in the first column only. SpikingJelly
chooses its own kernels there (Triton from its wheel).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from measure import arguments, finish, kernel_seconds, saved_bytes, table, time_in_turn
from torch import Tensor

from spikenlp.neurons import LIF, RoundingIF
from spikenlp.training.cpu import keep_freed_memory

SHAPES = [(4, 32, 128, 768), (10, 16, 512, 12, 12), (16, 8, 128, 768)]


def plain_loop(x: Tensor) -> Tensor:
    """The equations with autograd through an arctan surrogate, as one writes them first."""
    v = torch.zeros_like(x[0])
    sent = []
    for current in x:
        u = 0.5 * v + current
        soft = torch.atan(torch.pi * (u - 1)) / torch.pi
        s = (u >= 1).to(x.dtype) + soft - soft.detach()
        v = u - s.detach()
        sent.append(s)
    return torch.stack(sent)


def spikingjelly() -> Callable[[Tensor], Tensor]:
    from spikingjelly.activation_based import functional, neuron, surrogate

    node = neuron.LIFNode(
        tau=2.0,
        decay_input=False,
        v_reset=None,
        surrogate_function=surrogate.ATan(),
        detach_reset=True,
        step_mode="m",
    )

    def run(x: Tensor) -> Tensor:
        functional.reset_net(node)
        return node(x)

    return run


def snntorch() -> Callable[[Tensor], Tensor]:
    import snntorch
    from snntorch import surrogate

    node = snntorch.Leaky(beta=0.5, spike_grad=surrogate.atan(), reset_delay=False)

    def run(x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        sent = []
        for current in x:
            s, v = node(current, v)
            sent.append(s)
        return torch.stack(sent)

    return run


def norse() -> Callable[[Tensor], Tensor]:
    from norse.torch.functional import lif_box
    from norse.torch.functional.reset import reset_subtract

    p = lif_box.LIFBoxParameters(
        tau_mem_inv=torch.tensor(500.0), reset_method=reset_subtract, alpha=torch.tensor(2.0)
    )

    def run(x: Tensor) -> Tensor:
        state = lif_box.LIFBoxFeedForwardState(v=torch.zeros_like(x[0]))
        sent = []
        for current in x:
            s, state = lif_box.lif_box_feed_forward_step(current, state, p)
            sent.append(s)
        return torch.stack(sent)

    return run


PEERS = {"SpikingJelly": spikingjelly, "snnTorch": snntorch, "norse": norse}


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--return_memory", action="store_true")
    args = parser.parse_args()
    if args.device == "cpu" and not args.return_memory:
        keep_freed_memory()
    device, dtype = args.device, getattr(torch, args.dtype)

    neurons: dict[str, Callable[[Tensor], Tensor]] = {
        "LIF": LIF(0.5, surrogate="arctan").to(device),
        "RoundingIF": RoundingIF().to(device),
        "plain loop": plain_loop,
    }
    missing = []
    for name, make in PEERS.items():
        try:
            neurons[name] = make()
        except ImportError as error:
            missing.append(f"{name} ({error})")
    if missing:
        print("not installed, left out:", ", ".join(missing))

    setting = {k: v for k, v in vars(args).items() if k != "output"}
    results = {"setting": setting, "left_out": missing, "shapes": {}}
    for shape in SHAPES:
        x = torch.randn(shape, device=device).to(dtype).requires_grad_()
        grad = torch.randn(shape, device=device).to(dtype)
        copy = torch.empty_like(x)

        def floor(x=x, grad=grad, copy=copy):
            copy.copy_(x.detach())
            copy.copy_(grad)

        def both(neuron, x=x, grad=grad):
            return lambda: torch.autograd.grad(neuron(x), x, grad)

        calls = {"floor": floor, **{k: both(f) for k, f in neurons.items()}}
        measured = time_in_turn(calls, args.rounds)
        timed = "median"
        if device == "cuda":
            timed = "kernels"
            for name, call in calls.items():
                measured[name]["kernels"] = kernel_seconds(call)
        for name, neuron in neurons.items():
            kept = saved_bytes(lambda neuron=neuron, x=x: neuron(x), x)
            measured[name]["saved_bytes_per_neuron_step"] = kept / x.numel()
        ours, lowest = measured["LIF"][timed], measured["floor"][timed]
        rows = [
            [
                name,
                f"{1e3 * m['median']:.2f}",
                f"{1e3 * m['min']:.2f}-{1e3 * m['max']:.2f}",
                *([f"{1e3 * m['kernels']:.3f}"] if device == "cuda" else []),
                f"{m[timed] / ours:.2f}",
                f"{m[timed] / lowest:.2f}",
                f"{m['saved_bytes_per_neuron_step']:.1f}" if name != "floor" else "",
            ]
            for name, m in measured.items()
        ]
        print(f"\n{list(shape)} {args.dtype} on {device}, {args.rounds} rounds")
        kernels = ["kernels, ms"] if device == "cuda" else []
        header = ["forward + backward", "ms", "range", *kernels, "x LIF", "x floor", "bytes kept"]
        print(table(header, rows), flush=True)
        results["shapes"][str(list(shape))] = measured
    finish(results, args.output)


if __name__ == "__main__":
    main()
