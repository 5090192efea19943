"""QKFormer, registered with transformers' Auto classes on import."""

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from spikenlp.models.qkformer.configuration_qkformer import QKFormerConfig
from spikenlp.models.qkformer.modeling_qkformer import (
    QKFormerForImageClassification,
    QKFormerModel,
    QKFormerPreTrainedModel,
)

AutoConfig.register("qkformer", QKFormerConfig)
AutoModel.register(QKFormerConfig, QKFormerModel)
AutoModelForImageClassification.register(QKFormerConfig, QKFormerForImageClassification)

__all__ = [
    "QKFormerConfig",
    "QKFormerForImageClassification",
    "QKFormerModel",
    "QKFormerPreTrainedModel",
]
