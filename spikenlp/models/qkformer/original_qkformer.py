"""QKFormer from its authors' checkpoints (Zhou et al., NeurIPS 2024): ImageNet, CIFAR and DVS.

The number of heads is in no shape: it is the authors' own, a head for 64 channels (ImageNet), 8
(CIFAR) or 16 (DVS). So is the image size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from spikenlp.models.checkpoint import check_fields
from spikenlp.models.original_checkpoints import (
    WRAPPERS,
    Names,
    indices,
    load_original,
    read_checkpoint,
    weight_of,
)
from spikenlp.models.qkformer.configuration_qkformer import QKFormerConfig

ATTENTION = ("tssa", "attn", "ssa")
"""Their names of a block's attention: token Q-K; self-attention for ImageNet; for CIFAR and DVS."""


def convert_qkformer(
    model_class: Any, checkpoint: str | Path | Mapping[str, Any], config_overrides: dict[str, Any]
) -> Any:
    """See `QKFormerForImageClassification.from_original`."""
    check_fields(QKFormerConfig, config_overrides)
    state = read_checkpoint(checkpoint)
    config = QKFormerConfig(**{**_shape_fields(state), **config_overrides})
    model = model_class(config)
    load_original(model, state, original_names(config))
    return model.eval()


def _shape_fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the checkpoint's keys and shapes say about the network."""
    stages = indices(state, r"patch_embed(\d+)\.")
    if not stages:
        raise ValueError(
            f"no QKFormer: the checkpoint has no patch_embed1.*, it has {sorted(state)[:8]} ..."
        )
    hidden = weight_of(state, "stage1.0.mlp.fc1_conv", "stage1.0.mlp.mlp1_conv")
    head = weight_of(state, "head")
    if len(stages) == 2:
        preset = QKFormerConfig.presets["dvs-cifar10"]
    elif any(f"patch_embed1.proj2_conv.{wrapper}weight" in state for wrapper in WRAPPERS):
        preset = {"num_attention_heads": max(1, head.shape[1] // 64)}
    else:
        preset = QKFormerConfig.presets["cifar"]
    return {
        **preset,
        "hidden_sizes": [
            len(weight_of(state, f"patch_embed{stage}.proj_res_conv")) for stage in stages
        ],
        "depths": [len(indices(state, rf"stage{stage}\.(\d+)\.")) for stage in stages],
        "mlp_ratio": hidden.shape[0] / hidden.shape[1],
        "num_channels": weight_of(state, "patch_embed1.proj_conv").shape[1],
        "num_labels": len(head),
    }


def original_names(config: QKFormerConfig) -> Names:
    names: dict[str, tuple[str, ...]] = {"classifier": ("head",)}

    def layer(ours: str, *theirs: str) -> None:
        for part, suffix in (("conv", "conv"), ("norm", "bn")):
            names[f"{ours}.{part}"] = tuple(f"{name}_{suffix}" for name in theirs)

    for i, depth in enumerate(config.depths):
        ours, theirs = f"qkformer.patch_embeddings.{i}", f"patch_embed{i + 1}"
        layer(f"{ours}.shortcut", f"{theirs}.proj_res")
        if i == 0:
            for j in range(4):
                layer(f"{ours}.layers.{j}", f"{theirs}.proj{j or ''}")
        else:  # the DVS code names the first of the two otherwise
            layer(f"{ours}.layers.0", f"{theirs}.proj3", f"{theirs}.proj")
            layer(f"{ours}.layers.1", f"{theirs}.proj4")
        for j in range(depth):
            ours, theirs = f"qkformer.stages.{i}.{j}", f"stage{i + 1}.{j}"
            for part, name in (
                ("query", "q"),
                ("key", "k"),
                ("value", "v"),
                ("projection", "proj"),
            ):
                layer(f"{ours}.attention.{part}", *(f"{theirs}.{a}.{name}" for a in ATTENTION))
            for k in range(2):
                layer(f"{ours}.mlp.{k}", *(f"{theirs}.mlp.{n}{k + 1}" for n in ("fc", "mlp")))
    return names
