"""A spiking VGG as a NIR graph (Pedersen et al., Nature Communications 2024), for neuromorphic tools.

NIR's neurons are differential equations; one Euler step of length dt = 1 is one of our time steps:

    IF    v' = R I                    u_t = v_{t-1} + x_t                        R = 1
    LIF   tau v' = (0 - v) + R I      u_t = (1 - 1/tau) v_{t-1} + (R/tau) x_t    tau = 1 / (1 - beta),
                                                                                 R = tau, or 1 where the
                                                                                 input decays too
    fires where v > v_threshold       ours fires where u >= v_th: v_threshold is the float32 before v_th
    v becomes v_reset where it fired  hard reset

Batch norms are folded into the convolutions, amplitudes into the weights after them. NIR has no soft
reset, no negative spikes, and nothing that acts on several time steps or normalises: what of a model needs
one of these is named, and the model refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from spikenlp.export.check import Agreement, compare
from spikenlp.export.extra import import_extra
from spikenlp.export.program import Steps, check_float32, inputs_of
from spikenlp.models.modes import has_several_labels
from spikenlp.models.spiking_vgg import SpikingVGGForImageClassification
from spikenlp.neurons import IF, LIF, PLIF, RoundingIF
from spikenlp.neurons.dynamics import floored

REFUSED: dict[type[nn.Module], str] = {
    nn.Embedding: "a table of token vectors is no NIR node",
    nn.LayerNorm: "NIR has no normalisation of activations",
    nn.MaxPool2d: "NIR has no maximum",
    nn.ReLU: "the model is dense: it has no neuron to export",
    RoundingIF: "it fires at half of what it subtracts, and NIR's neurons reset to a value",
}


def write_nir(model: PreTrainedModel, path: Path, batch: Mapping[str, Tensor] | None) -> Agreement:
    """See `spikenlp.export.export`."""
    (nir,) = import_extra("nir")
    refuse(model)
    check_float32(model, "NIR")
    inputs = inputs_of(model, batch)
    steps = Steps(model, list(inputs), neurons=True).eval()
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        expected = [x.cpu() for x in steps(*inputs.values())]
    nir.write(path, to_nir(model))
    pixels = inputs["pixel_values"].cpu()
    if pixels.dim() == 4:  # an image is the same at each step
        pixels = pixels[:, None].expand(-1, model.config.num_timesteps, -1, -1, -1)
    found = run_nir(nir.read(path), pixels.transpose(0, 1))
    several = has_several_labels(model.config)
    return compare(steps.order, expected, found, several_labels=several)


def refuse(model: nn.Module) -> None:
    """Raises ValueError where NIR cannot express `model`: the first layer of each kind, and why."""
    config = getattr(model, "config", None)
    reasons: dict[str, str] = {}
    for name, module in model.named_modules():
        reason = _reason(module)
        if reason is not None and reason not in reasons:
            reasons[reason] = f"{name} ({type(module).__name__}): {reason}"
    if getattr(config, "nonlinearity", None) == "running":
        reasons["running"] = (
            "nonlinearity='running': a mean over the time steps so far is no NIR node"
        )
    if getattr(model, "is_quantized", False):
        reasons["int8"] = "weights in int8: fold and export the float model"
    if not isinstance(model, SpikingVGGForImageClassification) and not reasons:
        reasons["chain"] = (
            f"{type(model).__name__}: only a chain of layers is written, SpikingVGGForImageClassification"
        )
    if reasons:
        raise ValueError("NIR cannot express this model. " + "; ".join(reasons.values()))


def _reason(module: nn.Module) -> str | None:
    if hasattr(module, "attend"):
        return "NIR has no softmax"
    if isinstance(module, IF) and (module.ternary or module.reset != "hard"):
        return (
            f"NIR's neurons send spikes {{0, 1}} and reset to a value, this one has "
            f"ternary={module.ternary}, reset={module.reset!r}"
        )
    return next((why for kind, why in REFUSED.items() if isinstance(module, kind)), None)


@torch.no_grad()
def to_nir(model: Any) -> Any:
    """The NIR graph of a `SpikingVGGForImageClassification`; a neuron's node bears its name."""
    (nir,) = import_extra("nir")
    folded = model.fold_batch_norm().cpu()
    size, channels = model.config.image_size, model.config.num_channels
    shape = (channels, size, size)
    nodes: dict[str, Any] = {"input": nir.Input({"input": np.array(shape)})}
    gain = torch.ones(channels)
    """What the spikes that the next layer reads stand for, by channel."""
    for i, stage in enumerate(folded.vgg.stages):
        for j, layer in enumerate(stage.layers):
            prefix = f"vgg.stages.{i}.layers.{j}"
            conv, neuron = layer.conv, layer.neuron
            nodes[f"{prefix}.conv"] = nir.Conv2d(
                input_shape=shape[1:],
                weight=_array(conv.weight * gain.view(1, -1, 1, 1)),
                stride=conv.stride,
                padding=conv.padding,
                dilation=conv.dilation,
                groups=conv.groups,
                bias=_array(conv.bias),
            )
            shape = (conv.out_channels, *shape[1:])
            nodes[f"{prefix}.neuron"] = _neuron(nir, neuron, shape)
            gain = floored(neuron.amplitude.float()).expand(conv.out_channels)
        pool = stage.pool
        pair = [np.array([n, n]) for n in (pool.kernel_size, pool.stride, pool.padding)]
        nodes[f"vgg.stages.{i}.pool"] = nir.AvgPool2d(*pair)
        shape = (shape[0], shape[1] // pool.kernel_size, shape[2] // pool.kernel_size)
    nodes["flatten"] = nir.Flatten({"input": np.array(shape)}, start_dim=0)
    head = folded.classifier
    by_feature = gain.repeat_interleave(shape[1] * shape[2])
    nodes["classifier"] = nir.Affine(_array(head.weight * by_feature), _array(head.bias))
    nodes["output"] = nir.Output({"output": np.array([head.out_features])})
    names = list(nodes)
    return nir.NIRGraph(
        nodes,
        list(itertools.pairwise(names)),
        metadata={"dt": 1.0, "made_by": "spikenlp"},
    )


def _neuron(nir: Any, neuron: IF, shape: tuple[int, ...]) -> Any:
    def everywhere(values: Tensor | float, dtype: Any = np.float32) -> np.ndarray:
        by_channel = torch.as_tensor(values, dtype=torch.float64).reshape(-1)
        return by_channel.view(-1, 1, 1).expand(shape).numpy().astype(dtype)

    threshold = torch.nextafter(neuron.v_threshold.float(), torch.tensor(-torch.inf))
    fires = {"v_threshold": everywhere(threshold), "v_reset": everywhere(neuron.v_reset)}
    beta = float(neuron.decay()) if isinstance(neuron, PLIF) else getattr(neuron, "beta", 1.0)
    if beta == 1:
        return nir.IF(r=everywhere(1.0), **fires)
    tau = 1 / (1 - beta)
    r = 1.0 if isinstance(neuron, LIF) and neuron.decay_input else tau
    return nir.LIF(
        tau=everywhere(tau, np.float64),
        r=everywhere(r, np.float64),
        v_leak=everywhere(0.0),
        **fires,
    )


def _array(values: Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()


@torch.no_grad()
def run_nir(graph: Any, frames: Tensor) -> list[Tensor]:
    """A chain of NIR nodes, by Euler steps of length 1, on `frames` [T, B, C, H, W].

    Returns:
        The output [B, T, ...], and for each neuron in order its current and spikes, [B, T, ...].

    Raises:
        ValueError: a node that is none of those that `to_nir` writes.
    """
    after = dict(graph.edges)
    node, seen = "input", []
    x = frames
    while node != "output":
        node = after[node]
        at = graph.nodes[node]
        kind = type(at).__name__
        if kind in ("IF", "LIF"):
            seen.append(x)
            x = _fire(at, x)
            seen.append(x.to(torch.int8))
        elif kind != "Output":
            x = torch.stack([_apply(at, kind, step) for step in x])
    return [y.transpose(0, 1) for y in (x, *seen)]


def _fire(node: Any, currents: Tensor) -> Tensor:
    threshold, reset = (torch.as_tensor(a) for a in (node.v_threshold, node.v_reset))
    decay, gain = torch.ones(()), torch.as_tensor(node.r)
    if hasattr(node, "tau"):
        decay, gain = (
            torch.as_tensor(a).float() for a in (1 - 1 / node.tau, np.asarray(node.r) / node.tau)
        )
    v, spikes = torch.zeros_like(currents[0]), []
    for current in currents:
        u = decay * v + gain * current
        fired = u > threshold
        v = torch.where(fired, reset, u)
        spikes.append(fired)
    return torch.stack(spikes).float()


def _apply(node: Any, kind: str, x: Tensor) -> Tensor:
    if kind == "Conv2d":
        weight, bias = torch.as_tensor(node.weight), torch.as_tensor(node.bias)
        stride, padding, dilation = (
            tuple(int(n) for n in a) for a in (node.stride, node.padding, node.dilation)
        )
        return F.conv2d(x, weight, bias, stride, padding, dilation, int(node.groups))
    if kind == "AvgPool2d":
        kernel, stride, padding = (
            tuple(int(n) for n in a) for a in (node.kernel_size, node.stride, node.padding)
        )
        return F.avg_pool2d(x, kernel, stride, padding)
    if kind == "Flatten":
        return x.flatten(1)
    if kind == "Affine":
        return F.linear(x, torch.as_tensor(node.weight), torch.as_tensor(node.bias))
    raise ValueError(f"run_nir does not know the NIR node {kind}")
