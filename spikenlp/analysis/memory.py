"""What a training step will hold in memory, before anything is run.

The model is built and run forward on tensors without storage, and what autograd keeps is added up.
The rest is arithmetic: at its peak a step holds what autograd keeps or, in a small batch, all
gradients, and a few of its largest activations besides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForSequenceClassification, PreTrainedConfig

LARGEST_IN_FLIGHT = 3
"""Activations of the largest kind that are alive at once in the backward pass of a feed-forward block."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes. `activations`: kept between forward and backward; `peak`: the most that a step holds at
    once with parameters, AdamW's two moments and gradients, all in float32."""

    parameters: int
    optimizer: int
    activations: int
    peak: int


def estimate_memory(
    config: PreTrainedConfig, batch: int, length: int, *, autocast: torch.dtype | None = None
) -> MemoryEstimate:
    """Memory of a training step of a sequence classifier with AdamW; nothing is allocated.

    Args:
        config: of a spiking or of a dense model.
        batch, length: sequences a step and tokens a sequence, all real.
        autocast: torch.bfloat16 or torch.float16 for mixed precision.

    Raises:
        ValueError: batch or length < 1, or a length beyond the model's positions.
    """
    if batch < 1 or length < 1:
        raise ValueError(f"batch and length must be >= 1, got {batch} and {length}")
    longest = getattr(config, "max_position_embeddings", length)
    if length > longest:
        raise ValueError(f"length {length} is beyond the model's {longest} positions")
    kept: dict[int, int] = {}
    alive = []

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        alive.append(x)
        return x

    with FakeTensorMode(), torch.compiler.set_stance("force_eager"):
        model = AutoModelForSequenceClassification.from_config(config).train()
        parameters = {p.untyped_storage()._cdata: p.numel() * 4 for p in model.parameters()}
        ids = torch.ones(batch, length, dtype=torch.long)
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x),
            torch.autocast("cpu", dtype=autocast, enabled=autocast is not None),
        ):
            output = model(input_ids=ids, attention_mask=ids)
    del output
    sizes = [size for storage, size in kept.items() if storage not in parameters]
    activations, weights = sum(sizes), sum(parameters.values())
    in_flight = LARGEST_IN_FLIGHT * max(sizes)
    return MemoryEstimate(
        parameters=weights,
        optimizer=2 * weights,
        activations=activations,
        peak=3 * weights + max(activations, weights) + in_flight,
    )
