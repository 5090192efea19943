"""Spiking ResNets from the checkpoints of other authors' code.

- ResNet-19 of TET (Deng et al., ICLR 2022) and TMC (Yan et al., ICML 2025), where each layer is
  registered, and saved, more than once.
- SEW-ResNet of its authors (Fang et al., NeurIPS 2021), where convolution and batch norm are
  `convN.module.0` and `.1`, and of SpikingJelly, where they are `convN` and `bnN`.
- Spiking ResNet of both. The former's has no neuron in `downsample`, so that a name is shorter; the
  latter's has the keys of its SEW-ResNet, and needs `residual="spiking"`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from spikenlp.models.checkpoint import check_fields
from spikenlp.models.original_checkpoints import (
    Names,
    indices,
    load_original,
    read_checkpoint,
    weight_of,
)
from spikenlp.models.spiking_resnet.configuration_spiking_resnet import SpikingResNetConfig


def convert_resnet(
    model_class: Any, checkpoint: str | Path | Mapping[str, Any], config_overrides: dict[str, Any]
) -> Any:
    """See `SpikingResNetForImageClassification.from_original`."""
    check_fields(SpikingResNetConfig, config_overrides)
    state = read_checkpoint(checkpoint)
    stages = indices(state, r"layer(\d+)\.")
    if not stages:
        raise ValueError(
            f"no ResNet: the checkpoint has no layer1.0.*, it has {sorted(state)[:8]} ..."
        )
    with_hidden_head = any(key.startswith("fc1.") for key in state)
    names_of = _tet_names if with_hidden_head else _sew_names
    fields = {**({} if with_hidden_head else _sew_fields(state)), **_shape_fields(state, stages)}
    config = SpikingResNetConfig(**{**fields, **config_overrides})
    model = model_class(config)
    load_original(model, state, names_of(config))
    return model.eval()


def _sew_fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    preset = SpikingResNetConfig.presets["sew-resnet-34"]
    names = ("neuron", "v_threshold", "detach_reset", "surrogate")
    spiking = any(".downsample.module." in key for key in state)
    return {**{name: preset[name] for name in names}, "residual": "spiking" if spiking else "sew"}


def _shape_fields(state: Mapping[str, Tensor], stages: list[int]) -> dict[str, Any]:
    """What the checkpoint's keys and shapes say about the network."""
    bottleneck = any(".conv3." in key for key in state)
    last = 3 if bottleneck else 2
    blocks = [f"layer{stage}.0.conv{last}" for stage in stages]
    weights = [weight_of(state, block, f"{block}.module.0") for block in blocks]
    stem = weight_of(state, "conv1")
    large = stem.shape[-1] == 7
    fields = {
        "hidden_sizes": [len(weight) for weight in weights],
        "depths": [len(indices(state, rf"layer{stage}\.(\d+)\.")) for stage in stages],
        "layer_type": "bottleneck" if bottleneck else "basic",
        "embedding_size": len(stem),
        "num_channels": stem.shape[1],
        "stem": "imagenet" if large else "cifar",
        "image_size": 224 if large else 32,
        "head_size": None,
    }
    if any(key.startswith("fc1.") for key in state):
        fields["head_size"] = len(weight_of(state, "fc1"))
        return {**fields, "num_labels": len(weight_of(state, "fc2"))}
    return {**fields, "num_labels": len(weight_of(state, "fc"))}


def _blocks(config: SpikingResNetConfig) -> list[tuple[str, str]]:
    """(our name, theirs) of each block."""
    return [
        (f"resnet.stages.{i}.{j}", f"layer{i + 1}.{j}")
        for i, depth in enumerate(config.depths)
        for j in range(depth)
    ]


def _layers(config: SpikingResNetConfig) -> list[tuple[str, int]]:
    """(our name, their number) of a block's convolutions."""
    if config.layer_type == "basic":
        return [("layers.0", 1), ("last", 2)]
    return [("layers.0", 1), ("layers.1", 2), ("last", 3)]


def _tet_names(config: SpikingResNetConfig) -> Names:
    names: dict[str, tuple[str, ...]] = {}

    def registered(ours: str, prefix: str, number: int) -> None:
        conv, norm = f"{prefix}conv{number}", f"{prefix}bn{number}"
        names[f"{ours}.conv"] = (conv, f"{conv}_s.layer.module")
        names[f"{ours}.norm"] = (*norms(norm), *norms(f"{conv}_s.bn"))

    def norms(name: str) -> tuple[str, str]:
        return f"{name}.bn", f"{name}.seqbn.module"

    registered("resnet.embedder", "", 1)
    for ours, theirs in _blocks(config):
        for layer, number in _layers(config):
            registered(f"{ours}.{layer}", f"{theirs}.", number)
        names[f"{ours}.shortcut.conv"] = (f"{theirs}.downsample.layer.module",)
        names[f"{ours}.shortcut.norm"] = norms(f"{theirs}.downsample.bn")
    for layer, fc in (("dense", "fc1"), ("out", "fc2")):
        names[f"classifier.{layer}"] = (fc, f"{fc}_s.layer.module")
    return names


def _sew_names(config: SpikingResNetConfig) -> Names:
    names: dict[str, tuple[str, ...]] = {
        "resnet.embedder.conv": ("conv1",),
        "resnet.embedder.norm": ("bn1",),
        "classifier.out": ("fc",),
    }
    for ours, theirs in _blocks(config):
        for layer, number in _layers(config):
            conv = f"{theirs}.conv{number}"
            names[f"{ours}.{layer}.conv"] = (f"{conv}.module.0", conv)
            names[f"{ours}.{layer}.norm"] = (f"{conv}.module.1", f"{theirs}.bn{number}")
        shortcut = f"{theirs}.downsample"
        for part, number in (("conv", 0), ("norm", 1)):
            names[f"{ours}.shortcut.{part}"] = (
                f"{shortcut}.0.module.{number}",
                f"{shortcut}.module.{number}",
                f"{shortcut}.{number}",
            )
    return names
