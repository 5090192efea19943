"""Training steps of the vision models at CIFAR size: time and memory, beside dense twins and SpikingJelly.

    python benchmarks/vision.py --output results/benchmarks/vision_cpu.json

Images of 3 x 32 x 32, T = 4, forward, cross entropy of the mean logits and backward in float32
(`--dtype bfloat16`: autocast). "kept" is what autograd keeps between forward and backward, parameters
apart; "peak" is the most that the step holds at once besides parameters, gradients included. "dense"
is the network of the same shape with ReLU, one pass. SpikingJelly's rows are its own SEW-ResNet-34 and
QKFormer-10-384 of the same shapes, in multi-step mode; each is left out, and that is said, where what
it imports is missing: torchvision, for the ResNet.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from measure import arguments, finish, peak_bytes, saved_bytes, table, time_in_turn
from torch import nn

from spikenlp import (
    QKFormerConfig,
    QKFormerForImageClassification,
    SpikingResNetConfig,
    SpikingResNetForImageClassification,
    SpikingVGGConfig,
    SpikingVGGForImageClassification,
)
from spikenlp.training.cpu import keep_freed_memory

CIFAR = {"image_size": 32, "num_channels": 3, "num_labels": 10}
MODELS: dict[str, tuple[Any, Any]] = {
    "VGGSNN": (SpikingVGGForImageClassification, SpikingVGGConfig(**CIFAR)),
    "ResNet-19": (SpikingResNetForImageClassification, SpikingResNetConfig(**CIFAR)),
    "SEW-ResNet-34": (
        SpikingResNetForImageClassification,
        SpikingResNetConfig.preset("sew-resnet-34", **CIFAR),
    ),
    "QKFormer, CIFAR": (QKFormerForImageClassification, QKFormerConfig.preset("cifar")),
    "HST-10-384": (
        QKFormerForImageClassification,
        QKFormerConfig.preset("hst-10-384", **CIFAR),
    ),
}


class Ours(nn.Module):
    def __init__(self, model_class, config, steps):
        super().__init__()
        self.model = model_class(config)
        self.model.config.num_timesteps = steps

    def forward(self, x):
        return self.model(x).logits


class Peer(nn.Module):
    """A network of SpikingJelly in multi-step mode, [B, C, H, W] -> logits [B, classes]."""

    def __init__(self, net: nn.Module, steps: int | None = None):
        super().__init__()
        self.net, self.steps = net, steps

    def forward(self, x):
        from spikingjelly.activation_based import functional

        functional.reset_net(self.net)
        if self.steps is None:  # it repeats the image itself
            return self.net(x)
        return self.net(x.expand(self.steps, *x.shape)).mean(0)


def peer_resnet(steps: int) -> Peer:
    from spikingjelly.activation_based import functional, neuron, surrogate
    from spikingjelly.activation_based.model import sew_resnet

    net = sew_resnet.sew_resnet34(
        cnf="ADD",
        num_classes=10,
        spiking_neuron=neuron.IFNode,
        surrogate_function=surrogate.ATan(),
        detach_reset=True,
    )
    functional.set_step_mode(net, "m")
    return Peer(net, steps)


def peer_qkformer(steps: int) -> Peer:
    from spikingjelly.activation_based.model import qkformer

    return Peer(qkformer.qkformer_10_384(T=steps, num_classes=10))


PEERS = {"SEW-ResNet-34": peer_resnet, "HST-10-384": peer_qkformer}


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--num_timesteps", type=int, default=4)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    options = parser.parse_args()
    if options.device == "cpu":
        keep_freed_memory()
    torch.manual_seed(0)
    x = torch.randn(options.batch, 3, 32, 32, device=options.device)
    labels = torch.arange(options.batch, device=options.device) % 10
    others = {}
    for name, build in PEERS.items():
        try:
            others[name] = build(options.num_timesteps)
        except ImportError as error:
            print(f"SpikingJelly's {name} is left out: {error}")

    def step_of(model: nn.Module):
        model.to(options.device).train()

        def forward() -> torch.Tensor:
            autocast = torch.autocast(
                x.device.type, torch.bfloat16, enabled=options.dtype == "bfloat16"
            )
            with autocast:
                return F.cross_entropy(model(x).float(), labels)

        def step() -> None:
            model.zero_grad(set_to_none=True)
            forward().backward()

        return forward, step

    results: dict[str, Any] = {"options": vars(options) | {"output": None}, "models": {}}
    rows = []
    for name in options.models:
        model_class, config = MODELS[name]
        nets = {"spiking": Ours(model_class, config, options.num_timesteps)}
        if model_class is not QKFormerForImageClassification:
            dense = type(config)(**{**config.to_dict(), "neuron": "relu"})
            nets["dense"] = Ours(model_class, dense, options.num_timesteps)
        if name in others:
            nets["SpikingJelly"] = others[name]
        steps = {kind: step_of(net) for kind, net in nets.items()}
        seconds = time_in_turn({kind: step for kind, (_, step) in steps.items()}, options.rounds)
        results["models"][name] = {}
        for kind, (forward, step) in steps.items():
            found = {
                "seconds": seconds[kind],
                "kept_bytes": saved_bytes(forward, *nets[kind].parameters()),
                "peak_bytes": peak_bytes(step),
                "parameters": sum(p.numel() for p in nets[kind].parameters()),
            }
            results["models"][name][kind] = found
            rows.append(
                [
                    f"{name}, {kind}",
                    f"{found['parameters'] / 1e6:.2f}",
                    f"{found['seconds']['median'] * 1e3:.0f}",
                    f"{found['kept_bytes'] / 2**20:.0f}",
                    f"{found['peak_bytes'] / 2**20:.0f}",
                ]
            )
        del nets, steps
    print(table(["model", "parameters (M)", "step (ms)", "kept (MiB)", "peak (MiB)"], rows))
    finish(results, options.output)


if __name__ == "__main__":
    main()
