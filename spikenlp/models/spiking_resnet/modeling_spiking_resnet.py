"""Spiking ResNet, with the neuron after the residual sum, or with sums of spikes (SEW).

    residual "spiking":  s = neuron(branch(x) + shortcut(x))
    residual "sew":      s = neuron(branch(x)) + shortcut(x), its shortcut x or neuron(conv(x))

The first is ResNet-19 of TET and TMC and SpikingJelly's spiking_resnet; the second SEW-ResNet (Fang
et al., NeurIPS 2021, ADD), whose blocks send small whole numbers.

Convolutions start as in the code of each: of ResNet-19 as torch's do, of ImageNet's by Kaiming's rule.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from typing_extensions import Self

from spikenlp.models.spiking_resnet.configuration_spiking_resnet import SpikingResNetConfig
from spikenlp.models.vision import (
    ConvNorm,
    SpikingConv,
    SpikingVisionForImageClassification,
    SpikingVisionModel,
    SpikingVisionPreTrainedModel,
    fire,
    fold_time,
    make_neuron,
)
from spikenlp.models.vision_conversion import FromDense


class SpikingResNetBlock(nn.Module):
    """A residual block, [T, B, in_channels, H, W] -> [T, B, out_channels, H / stride, W / stride]."""

    def __init__(
        self, config: SpikingResNetConfig, in_channels: int, out_channels: int, stride: int
    ):
        super().__init__()
        if config.layer_type == "basic":
            self.layers = nn.ModuleList(
                [SpikingConv(config, in_channels, out_channels, 3, stride=stride)]
            )
            self.last = ConvNorm(config, out_channels, out_channels, 3)
        else:
            inner = out_channels // 4
            self.layers = nn.ModuleList(
                [
                    SpikingConv(config, in_channels, inner, 1),
                    SpikingConv(config, inner, inner, 3, stride=stride),
                ]
            )
            self.last = ConvNorm(config, inner, out_channels, 1)
        self.sew = config.residual == "sew"
        self.shortcut = None
        if stride != 1 or in_channels != out_channels:
            layer = SpikingConv if self.sew else ConvNorm
            self.shortcut = layer(config, in_channels, out_channels, 1, stride=stride)
        self.neuron = make_neuron(config, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        branch = x
        for layer in self.layers:
            branch = layer(branch)
        branch = self.last(branch)
        shortcut = x if self.shortcut is None else self.shortcut(x)
        if self.sew:
            return fire(self.neuron, branch) + shortcut
        return fire(self.neuron, branch + shortcut)


class SpikingResNetPreTrainedModel(FromDense, SpikingVisionPreTrainedModel):
    config: SpikingResNetConfig
    base_model_prefix = "resnet"
    _no_split_modules = ["SpikingResNetBlock"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d) and self.config.stem == "cifar":
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))

    def neurons_of_sums(self) -> dict[str, str]:
        if self.config.residual == "sew":
            return {}
        return {
            f"{name}.{part}": f"{name}.neuron"
            for name, block in self.named_modules()
            if isinstance(block, SpikingResNetBlock)
            for part in ("last", "shortcut")
        }


class SpikingResNetModel(SpikingResNetPreTrainedModel, SpikingVisionModel):
    """Features are the channels of the last stage, averaged over pixels."""

    def __init__(self, config: SpikingResNetConfig):
        super().__init__(config)
        channels = config.embedding_size
        large = config.stem == "imagenet"
        self.embedder = SpikingConv(
            config, config.num_channels, channels, 7 if large else 3, stride=2 if large else 1
        )
        self.stem_pool = nn.MaxPool2d(3, stride=2, padding=1) if large else None
        self.stages = nn.ModuleList()
        for i, (size, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True)):
            strides = [2 if i else 1, *[1] * (depth - 1)]
            widths = [channels, *[size] * depth]
            self.stages.append(
                nn.Sequential(
                    *(
                        SpikingResNetBlock(config, before, after, stride)
                        for before, after, stride in zip(widths, widths[1:], strides, strict=False)
                    )
                )
            )
            channels = size
        self.post_init()

    def stages_of(self, x: Tensor, steps: int) -> Iterator[Tensor]:
        x = self.embedder(x, steps)
        if self.stem_pool is not None:
            x = fold_time(self.stem_pool, x)
        yield x
        for stage in self.stages:
            x = stage(x)
            yield x


class SpikingResNetHead(nn.Module):
    """Linear, or a hidden layer of spikes and a linear readout: [T, B, D] -> [T, B, classes]."""

    def __init__(self, config: SpikingResNetConfig):
        super().__init__()
        size, hidden = config.hidden_sizes[-1], config.head_size
        self.dense = None if hidden is None else nn.Linear(size, hidden)
        self.neuron = None if hidden is None else make_neuron(config, hidden)
        self.out = nn.Linear(hidden or size, config.num_labels)

    def forward(self, features: Tensor) -> Tensor:
        if self.dense is not None:
            features = fire(self.neuron, self.dense(features))
        return self.out(features)


class SpikingResNetForImageClassification(
    SpikingResNetPreTrainedModel, SpikingVisionForImageClassification
):
    def __init__(self, config: SpikingResNetConfig):
        super().__init__(config)
        self.resnet = SpikingResNetModel(config)
        self.classifier = SpikingResNetHead(config)
        self.post_init()

    @classmethod
    def from_original(
        cls, checkpoint: str | Path | Mapping[str, Any], **config_overrides: Any
    ) -> Self:
        """ResNet-19 of TET or TMC, or a SEW-ResNet (ADD) or Spiking ResNet of Fang et al. or SpikingJelly.

        Args:
            checkpoint: a file written by `torch.save`, or what it holds.
            config_overrides: fields of `SpikingResNetConfig`, e.g. `num_timesteps=6`;
                `residual="spiking"` for SpikingJelly's spiking_resnet, which no key tells from SEW.

        Raises:
            ValueError: keys that are missing, left over, or of another shape, each named.
        """
        from spikenlp.models.spiking_resnet.original_spiking_resnet import convert_resnet

        return convert_resnet(cls, checkpoint, config_overrides)


__all__ = [
    "SpikingResNetForImageClassification",
    "SpikingResNetModel",
    "SpikingResNetPreTrainedModel",
]
