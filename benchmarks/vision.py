"""Training steps of the vision models at CIFAR size: time and memory, beside dense twins and SpikingJelly.

    python benchmarks/vision.py --output results/benchmarks/vision_cpu.json

Images of 3 x 32 x 32, T = 4, forward, cross entropy of the mean logits and backward in float32
(`--dtype bfloat16`: autocast). "kept" is what autograd keeps between forward and backward, parameters
apart; "peak" is the most that the step holds at once besides parameters, gradients included. "dense"
is the network of the same shape with ReLU, one pass. SpikingJelly's rows are its own ResNets and
QKFormers, and its VGG with the layers of VGGSNN, of the same shapes, in multi-step mode (its QKFormer
has other biases, before batch norms, which undo them); where it is not installed they are left out.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from types import ModuleType
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
RESNETS = {
    "SEW-ResNet-34": "sew-resnet-34",
    "SEW-ResNet-101": "sew-resnet-101",
    "Spiking ResNet-34": "spiking-resnet-34",
    "Spiking ResNet-101": "spiking-resnet-101",
}
HSTS = {f"HST-10-{size}": size for size in (384, 512, 768)}
MODELS: dict[str, tuple[Any, Any]] = {
    "VGGSNN": (SpikingVGGForImageClassification, SpikingVGGConfig(**CIFAR)),
    "ResNet-19": (SpikingResNetForImageClassification, SpikingResNetConfig(**CIFAR)),
    **{
        name: (SpikingResNetForImageClassification, SpikingResNetConfig.preset(preset, **CIFAR))
        for name, preset in RESNETS.items()
    },
    "QKFormer, CIFAR": (QKFormerForImageClassification, QKFormerConfig.preset("cifar")),
    **{
        name: (QKFormerForImageClassification, QKFormerConfig.preset(name.lower(), **CIFAR))
        for name in HSTS
    },
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


def spikingjelly_model(name: str) -> ModuleType:
    """A module of SpikingJelly's models, some of which import a downloader from torchvision, unused here."""
    stubs = {}
    if find_spec("torchvision") is None:
        stubs = {
            k: ModuleType(k) for k in ("torchvision", "torchvision._internally_replaced_utils")
        }
        stubs["torchvision"].__path__ = []
        stubs["torchvision._internally_replaced_utils"].load_state_dict_from_url = None  # type: ignore[attr-defined]
    sys.modules.update(stubs)
    try:
        return importlib.import_module(f"spikingjelly.activation_based.model.{name}")
    finally:
        for stub in stubs:
            del sys.modules[stub]


def peer_resnet(preset: str, steps: int) -> Peer:
    kind, _, depth = preset.split("-")
    module = spikingjelly_model(f"{kind}_resnet")
    from spikingjelly.activation_based import functional, neuron, surrogate

    net = getattr(module, f"{kind}_resnet{depth}")(
        num_classes=10,
        spiking_neuron=neuron.IFNode,
        surrogate_function=surrogate.ATan(),
        detach_reset=True,
        **({"cnf": "ADD"} if kind == "sew" else {}),
    )
    functional.set_step_mode(net, "m")
    return Peer(net, steps)


def peer_vgg(steps: int) -> Peer:
    module = spikingjelly_model("spiking_vgg")
    from spikingjelly.activation_based import functional, layer, neuron

    sizes = [64, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"]
    lif = {"tau": 2.0, "decay_input": False}
    net = module.SpikingVGG(
        sizes, True, num_classes=10, init_weights=False, spiking_neuron=neuron.LIFNode, **lif
    )
    for i, part in enumerate(net.features):
        if isinstance(part, layer.MaxPool2d):
            net.features[i] = layer.AvgPool2d(2)
    net.avgpool = layer.AdaptiveAvgPool2d(2)  # of 2 x 2 pixels
    net.classifier = layer.Linear(sizes[-2] * 4, 10)
    functional.set_step_mode(net, "m")
    return Peer(net, steps)


def peer_qkformer(size: int, steps: int) -> Peer:
    heads = QKFormerConfig.preset(f"hst-10-{size}").num_attention_heads
    net = spikingjelly_model("qkformer").QKFormer(
        T=steps, num_classes=10, embed_dims=size, num_heads=(heads,) * 3
    )
    return Peer(net)


PEERS: dict[str, Callable[[int], Peer]] = {
    "VGGSNN": peer_vgg,
    **{name: partial(peer_resnet, preset) for name, preset in RESNETS.items()},
    **{name: partial(peer_qkformer, size) for name, size in HSTS.items()},
}


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
    with_peers = find_spec("spikingjelly") is not None
    if not with_peers:
        print("SpikingJelly is not installed: its rows are left out")

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
        if with_peers and name in PEERS:
            nets["SpikingJelly"] = PEERS[name](options.num_timesteps)
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
