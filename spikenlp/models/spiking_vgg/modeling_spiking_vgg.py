"""Spiking VGG: convolution, batch norm and neuron in a row, average pooling between the stages.

VGGSNN of Deng et al. (Temporal Efficient Training, ICLR 2022) and of TMC is the default. What a
convolution after a pooling layer reads is an average of four spikes.
"""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from typing_extensions import Self

from spikenlp.models.spiking_vgg.configuration_spiking_vgg import SpikingVGGConfig
from spikenlp.models.vision import (
    SpikingConv,
    SpikingVisionForImageClassification,
    SpikingVisionModel,
    SpikingVisionPreTrainedModel,
    fold_time,
)
from spikenlp.models.vision_conversion import FromDense


class SpikingVGGStage(nn.Module):
    """Spiking convolutions, then average pooling by 2."""

    def __init__(self, config: SpikingVGGConfig, sizes: list[int]):
        super().__init__()
        self.layers = nn.ModuleList(
            SpikingConv(config, before, after, 3, bias=True)
            for before, after in itertools.pairwise(sizes)
        )
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor, steps: int) -> Tensor:
        for layer in self.layers:
            x = layer(x, steps)
        return fold_time(self.pool, x)


class SpikingVGGPreTrainedModel(FromDense, SpikingVisionPreTrainedModel):
    config: SpikingVGGConfig
    base_model_prefix = "vgg"
    _no_split_modules = ["SpikingVGGStage"]


class SpikingVGGModel(SpikingVGGPreTrainedModel, SpikingVisionModel):
    """Features are the last stage's channels and pixels, flattened."""

    def __init__(self, config: SpikingVGGConfig):
        super().__init__(config)
        sizes = [config.num_channels, *config.hidden_sizes]
        ends = [sum(config.depths[: i + 1]) for i in range(len(config.depths))]
        self.stages = nn.ModuleList(
            SpikingVGGStage(config, sizes[end - depth : end + 1])
            for depth, end in zip(config.depths, ends, strict=True)
        )
        self.post_init()

    def stages_of(self, x: Tensor, steps: int) -> Iterator[Tensor]:
        for stage in self.stages:
            x = stage(x, steps)
            yield x

    def pool(self, stream: Tensor) -> Tensor:
        size = self.config.image_size >> len(self.config.depths)
        if stream.shape[-2:] != (size, size):
            raise ValueError(
                f"pixel_values must have image_size={self.config.image_size} as height and width: "
                f"the last stage has {tuple(stream.shape[-2:])} pixels where the head reads "
                f"{(size, size)}"
            )
        return stream.flatten(2)


class SpikingVGGForImageClassification(
    SpikingVGGPreTrainedModel, SpikingVisionForImageClassification
):
    def __init__(self, config: SpikingVGGConfig):
        super().__init__(config)
        self.vgg = SpikingVGGModel(config)
        pixels = (config.image_size >> len(config.depths)) ** 2
        self.classifier = nn.Linear(config.hidden_sizes[-1] * pixels, config.num_labels)
        self.post_init()

    @classmethod
    def from_original(
        cls, checkpoint: str | Path | Mapping[str, Any], **config_overrides: Any
    ) -> Self:
        """VGGSNN from a checkpoint of the TET or TMC authors' code.

        Args:
            checkpoint: a file written by `torch.save`, or what it holds.
            config_overrides: fields of `SpikingVGGConfig`, e.g. `num_timesteps=16`.

        Raises:
            ValueError: keys that are missing, left over, or of another shape, each named.
        """
        from spikenlp.models.spiking_vgg.original_spiking_vgg import convert_vggsnn

        return convert_vggsnn(cls, checkpoint, config_overrides)


__all__ = [
    "SpikingVGGForImageClassification",
    "SpikingVGGModel",
    "SpikingVGGPreTrainedModel",
]
