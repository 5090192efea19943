"""Spiking ResNet, registered with transformers' Auto classes on import."""

from transformers import AutoModel, AutoModelForImageClassification

from spikenlp.models.checkpoint import register
from spikenlp.models.spiking_resnet.configuration_spiking_resnet import SpikingResNetConfig
from spikenlp.models.spiking_resnet.modeling_spiking_resnet import (
    SpikingResNetForImageClassification,
    SpikingResNetModel,
    SpikingResNetPreTrainedModel,
)

register(
    SpikingResNetConfig,
    {
        AutoModel: SpikingResNetModel,
        AutoModelForImageClassification: SpikingResNetForImageClassification,
    },
)

__all__ = [
    "SpikingResNetConfig",
    "SpikingResNetForImageClassification",
    "SpikingResNetModel",
    "SpikingResNetPreTrainedModel",
]
