"""QKFormer, registered with transformers' Auto classes on import."""

from transformers import AutoModel, AutoModelForImageClassification

from spikenlp.models.checkpoint import register
from spikenlp.models.qkformer.configuration_qkformer import QKFormerConfig
from spikenlp.models.qkformer.modeling_qkformer import (
    QKFormerForImageClassification,
    QKFormerModel,
    QKFormerPreTrainedModel,
)

register(
    QKFormerConfig,
    {AutoModel: QKFormerModel, AutoModelForImageClassification: QKFormerForImageClassification},
)

__all__ = [
    "QKFormerConfig",
    "QKFormerForImageClassification",
    "QKFormerModel",
    "QKFormerPreTrainedModel",
]
