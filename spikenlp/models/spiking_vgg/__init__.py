"""Spiking VGG, registered with transformers' Auto classes on import."""

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from spikenlp.models.spiking_vgg.configuration_spiking_vgg import SpikingVGGConfig
from spikenlp.models.spiking_vgg.modeling_spiking_vgg import (
    SpikingVGGForImageClassification,
    SpikingVGGModel,
    SpikingVGGPreTrainedModel,
)

AutoConfig.register("spiking_vgg", SpikingVGGConfig)
AutoModel.register(SpikingVGGConfig, SpikingVGGModel)
AutoModelForImageClassification.register(SpikingVGGConfig, SpikingVGGForImageClassification)

__all__ = [
    "SpikingVGGConfig",
    "SpikingVGGForImageClassification",
    "SpikingVGGModel",
    "SpikingVGGPreTrainedModel",
]
