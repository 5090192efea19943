"""Spiking VGG, registered with transformers' Auto classes on import."""

from transformers import AutoModel, AutoModelForImageClassification

from spikenlp.models.checkpoint import register
from spikenlp.models.spiking_vgg.configuration_spiking_vgg import SpikingVGGConfig
from spikenlp.models.spiking_vgg.modeling_spiking_vgg import (
    SpikingVGGForImageClassification,
    SpikingVGGModel,
    SpikingVGGPreTrainedModel,
)

register(
    SpikingVGGConfig,
    {AutoModel: SpikingVGGModel, AutoModelForImageClassification: SpikingVGGForImageClassification},
)

__all__ = [
    "SpikingVGGConfig",
    "SpikingVGGForImageClassification",
    "SpikingVGGModel",
    "SpikingVGGPreTrainedModel",
]
