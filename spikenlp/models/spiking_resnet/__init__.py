"""Spiking ResNet, registered with transformers' Auto classes on import."""

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from spikenlp.models.spiking_resnet.configuration_spiking_resnet import SpikingResNetConfig
from spikenlp.models.spiking_resnet.modeling_spiking_resnet import (
    SpikingResNetForImageClassification,
    SpikingResNetModel,
    SpikingResNetPreTrainedModel,
)

AutoConfig.register("spiking_resnet", SpikingResNetConfig)
AutoModel.register(SpikingResNetConfig, SpikingResNetModel)
AutoModelForImageClassification.register(SpikingResNetConfig, SpikingResNetForImageClassification)

__all__ = [
    "SpikingResNetConfig",
    "SpikingResNetForImageClassification",
    "SpikingResNetModel",
    "SpikingResNetPreTrainedModel",
]
