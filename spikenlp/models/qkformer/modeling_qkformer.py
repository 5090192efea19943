"""QKFormer: a hierarchical transformer whose attention adds and multiplies spikes.

    SPEDS            convolutions, batch norms, max pooling and neurons, and a shortcut, a 1x1
                     convolution with batch norm and neuron, added after the spike
    token Q-K        neuron(sum over a head's channels of q, threshold 0.5) * k, in all stages but the last
    self-attention   neuron(0.125 q (k^T v), threshold 0.5), in the last; no softmax
    block            x + attention(x), then x + mlp(x), every part ending with a neuron

Source: Zhou et al., NeurIPS 2024. Sums of spikes are small whole numbers.

Their code gives the neuron after the projection of self-attention [T * B, ...], so that its membrane
potential goes from one image of a batch to the next. Here it goes over T, as everywhere: what an image
gets is what it gets there in a batch of its own.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from typing_extensions import Self

from spikenlp.models.qkformer.configuration_qkformer import QKFormerConfig
from spikenlp.models.vision import (
    SpikingConv,
    SpikingVisionForImageClassification,
    SpikingVisionModel,
    SpikingVisionPreTrainedModel,
    fire,
    make_neuron,
)

ATTENTION_THRESHOLD = 0.5
ATTENTION_SCALE = 0.125

FIRST_EMBEDDING = {
    "imagenet": ((2, 1, 1), (True, True, False), 1),
    "cifar": ((2, 1), (False, False), 1),
    "dvs": ((8, 4, 2, 1), (False, True, True, True), 2),
}
"""Of the first stage: its width over that of each convolution, which of them pool, and after how many
the shortcut starts."""
LATER_EMBEDDING = {
    "imagenet": ((1, 1), (True, False), 0),
    "cifar": ((1, 1), (False, True), 0),
    "dvs": ((1, 1), (False, True), 0),
}


class QKFormerPatchEmbedding(nn.Module):
    """SPEDS: spiking patch embedding with a deformed shortcut, [T or 1, B, C, H, W] -> [T, B, D, h, w]."""

    def __init__(self, config: QKFormerConfig, in_channels: int, out_channels: int, first: bool):
        super().__init__()
        layout = FIRST_EMBEDDING if first else LATER_EMBEDDING
        divisors, pools, self.shortcut_start = layout[config.patch_embedding]
        sizes = [in_channels, *(out_channels // divisor for divisor in divisors)]
        self.layers = nn.ModuleList(
            SpikingConv(config, before, after, 3, pool=pool)
            for before, after, pool in zip(sizes, sizes[1:], pools, strict=False)
        )
        self.shortcut = SpikingConv(
            config,
            sizes[self.shortcut_start],
            out_channels,
            1,
            stride=2 ** sum(pools[self.shortcut_start :]),
        )

    def forward(self, x: Tensor, steps: int) -> Tensor:
        start = x
        for i, layer in enumerate(self.layers):
            start = x if i == self.shortcut_start else start
            x = layer(x, steps)
        return x + self.shortcut(start)


class QKFormerTokenAttention(nn.Module):
    """Token Q-K attention: a head's keys pass where its queries have spikes enough."""

    def __init__(self, config: QKFormerConfig, channels: int):
        super().__init__()
        self.num_attention_heads = config.num_attention_heads
        self.query = SpikingConv(config, channels, channels, 1)
        self.key = SpikingConv(config, channels, channels, 1)
        self.neuron = make_neuron(config, config.num_attention_heads, ATTENTION_THRESHOLD)
        self.projection = SpikingConv(config, channels, channels, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        heads = (self.num_attention_heads, -1)
        tokens = fire(self.neuron, self.query(x).unflatten(2, heads).sum(3))
        passed = self.key(x).unflatten(2, heads) * tokens.unsqueeze(3)
        return self.projection(passed.flatten(2, 3))


class QKFormerSelfAttention(nn.Module):
    """Spiking self-attention, linear in the number of pixels: k^T v first."""

    def __init__(self, config: QKFormerConfig, channels: int):
        super().__init__()
        self.num_attention_heads = config.num_attention_heads
        self.query = SpikingConv(config, channels, channels, 1)
        self.key = SpikingConv(config, channels, channels, 1)
        self.value = SpikingConv(config, channels, channels, 1)
        self.neuron = make_neuron(config, channels, ATTENTION_THRESHOLD)
        self.projection = SpikingConv(config, channels, channels, 1, bias=True)

    def split_heads(self, x: Tensor) -> Tensor:
        """[T, B, C, H, W] -> [T, B, heads, C / heads, H * W], a view."""
        return x.flatten(3).unflatten(2, (self.num_attention_heads, -1))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            self.split_heads(layer(x)) for layer in (self.query, self.key, self.value)
        )
        context = torch.matmul(torch.matmul(value, key.transpose(-1, -2)), query)
        current = (context * ATTENTION_SCALE).flatten(2, 3).unflatten(3, x.shape[-2:])
        return self.projection(fire(self.neuron, current))


class QKFormerBlock(nn.Module):
    def __init__(self, config: QKFormerConfig, channels: int, last_stage: bool):
        super().__init__()
        attention = QKFormerSelfAttention if last_stage else QKFormerTokenAttention
        inner = int(channels * config.mlp_ratio)
        self.attention = attention(config, channels)
        self.mlp = nn.Sequential(
            SpikingConv(config, channels, inner, 1, bias=True),
            SpikingConv(config, inner, channels, 1, bias=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


class QKFormerPreTrainedModel(SpikingVisionPreTrainedModel):
    config: QKFormerConfig
    base_model_prefix = "qkformer"
    _no_split_modules = ["QKFormerPatchEmbedding", "QKFormerBlock"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):  # as torch does
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=0.02)
            init.zeros_(module.bias)


class QKFormerModel(QKFormerPreTrainedModel, SpikingVisionModel):
    """Features are the channels of the last stage, averaged over pixels."""

    def __init__(self, config: QKFormerConfig):
        super().__init__(config)
        sizes = [config.num_channels, *config.hidden_sizes]
        self.patch_embeddings = nn.ModuleList(
            QKFormerPatchEmbedding(config, before, after, first=i == 0)
            for i, (before, after) in enumerate(itertools.pairwise(sizes))
        )
        last = len(config.depths) - 1
        self.stages = nn.ModuleList(
            nn.Sequential(*(QKFormerBlock(config, size, i == last) for _ in range(depth)))
            for i, (size, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True))
        )
        self.post_init()

    def stages_of(self, x: Tensor, steps: int) -> Iterator[Tensor]:
        for embedding, stage in zip(self.patch_embeddings, self.stages, strict=True):
            x = stage(embedding(x, steps))
            yield x


class QKFormerForImageClassification(QKFormerPreTrainedModel, SpikingVisionForImageClassification):
    def __init__(self, config: QKFormerConfig):
        super().__init__(config)
        self.qkformer = QKFormerModel(config)
        self.classifier = nn.Linear(config.hidden_sizes[-1], config.num_labels)
        self.post_init()

    @classmethod
    def from_original(
        cls, checkpoint: str | Path | Mapping[str, Any], **config_overrides: Any
    ) -> Self:
        """A QKFormer from a checkpoint of its authors' code, for ImageNet, CIFAR or DVS.

        Args:
            checkpoint: a file written by `torch.save`, or what it holds.
            config_overrides: fields of `QKFormerConfig`, e.g. `image_size=384`.

        Raises:
            ValueError: keys that are missing, left over, or of another shape, each named.
        """
        from spikenlp.models.qkformer.original_qkformer import convert_qkformer

        return convert_qkformer(cls, checkpoint, config_overrides)


__all__ = ["QKFormerForImageClassification", "QKFormerModel", "QKFormerPreTrainedModel"]
