"""Spiking BERT, registered with transformers' Auto classes on import."""

from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertTokenizer,
)

from spikenlp.models.checkpoint import register
from spikenlp.models.spiking_bert.configuration_spiking_bert import SpikingBertConfig
from spikenlp.models.spiking_bert.conversion_spiking_bert import calibrate
from spikenlp.models.spiking_bert.modeling_spiking_bert import (
    SpikingBertForMaskedLM,
    SpikingBertForQuestionAnswering,
    SpikingBertForSequenceClassification,
    SpikingBertForTokenClassification,
    SpikingBertModel,
    SpikingBertPreTrainedModel,
)
from spikenlp.models.spiking_bert.reconstruction import reconstruct
from spikenlp.models.spiking_bert.roberta import as_bert

register(
    SpikingBertConfig,
    {
        AutoModel: SpikingBertModel,
        AutoModelForMaskedLM: SpikingBertForMaskedLM,
        AutoModelForSequenceClassification: SpikingBertForSequenceClassification,
        AutoModelForTokenClassification: SpikingBertForTokenClassification,
        AutoModelForQuestionAnswering: SpikingBertForQuestionAnswering,
    },
)
AutoTokenizer.register(SpikingBertConfig, tokenizer_class=BertTokenizer)

__all__ = [
    "SpikingBertConfig",
    "SpikingBertForMaskedLM",
    "SpikingBertForQuestionAnswering",
    "SpikingBertForSequenceClassification",
    "SpikingBertForTokenClassification",
    "SpikingBertModel",
    "SpikingBertPreTrainedModel",
    "as_bert",
    "calibrate",
    "reconstruct",
]
