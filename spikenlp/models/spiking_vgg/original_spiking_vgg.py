"""VGGSNN from the checkpoints of TET (Deng et al., ICLR 2022) and TMC (Yan et al., ICML 2025).

There `features.N` is a layer of convolution (`fwd.module.0`) and batch norm (`fwd.module.1`), or a
pooling layer, which has no keys: a stage ends where a number is missing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spikenlp.models.checkpoint import check_fields
from spikenlp.models.original_checkpoints import (
    Names,
    indices,
    load_original,
    read_checkpoint,
    weight_of,
)
from spikenlp.models.spiking_vgg.configuration_spiking_vgg import SpikingVGGConfig


def convert_vggsnn(
    model_class: Any, checkpoint: str | Path | Mapping[str, Any], config_overrides: dict[str, Any]
) -> Any:
    """See `SpikingVGGForImageClassification.from_original`."""
    check_fields(SpikingVGGConfig, config_overrides)
    state = read_checkpoint(checkpoint)
    numbers = indices(state, r"features\.(\d+)\.fwd\.module\.0\.")
    if not numbers:
        raise ValueError(
            "no VGGSNN: the checkpoint has no features.N.fwd.module.0.*, it has "
            f"{sorted(state)[:8]} ..."
        )
    starts = [n for n in numbers if n - 1 not in numbers]
    if len(starts) == 1:
        raise ValueError(
            f"features {numbers} of the checkpoint have no pooling layer between them: VGGSNN has "
            "one after every second (a VGGSNNwoAP, whose convolutions stride, is not converted)"
        )
    bounds = [*starts, numbers[-1] + 1]
    depths = [sum(start <= n < end for n in numbers) for start, end in itertools.pairwise(bounds)]
    weights = [weight_of(state, f"features.{n}.fwd.module.0") for n in numbers]
    head = weight_of(state, "classifier.module")
    pixels = math.isqrt(head.shape[1] // len(weights[-1]))
    fields = {
        "hidden_sizes": [len(weight) for weight in weights],
        "depths": depths,
        "num_channels": weights[0].shape[1],
        "image_size": pixels << len(depths),
        "num_labels": len(head),
    }
    model = model_class(SpikingVGGConfig(**{**fields, **config_overrides}))
    load_original(model, state, original_names(depths, numbers))
    return model.eval()


def original_names(depths: list[int], numbers: list[int]) -> Names:
    """`numbers`: which features are layers."""
    names = {"classifier": ("classifier.module",)}
    places = [(i, j) for i, depth in enumerate(depths) for j in range(depth)]
    for (i, j), n in zip(places, numbers, strict=True):
        for k, part in enumerate(("conv", "norm")):
            names[f"vgg.stages.{i}.layers.{j}.{part}"] = (f"features.{n}.fwd.module.{k}",)
    return names
