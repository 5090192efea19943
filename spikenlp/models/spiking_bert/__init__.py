"""Spiking BERT, registered with transformers' Auto classes on import."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertTokenizer,
)

from spikenlp.models.spiking_bert.configuration_spiking_bert import SpikingBertConfig
from spikenlp.models.spiking_bert.modeling_spiking_bert import (
    SpikingBertForMaskedLM,
    SpikingBertForQuestionAnswering,
    SpikingBertForSequenceClassification,
    SpikingBertForTokenClassification,
    SpikingBertModel,
    SpikingBertPreTrainedModel,
)

AutoConfig.register("spiking_bert", SpikingBertConfig)
AutoTokenizer.register(SpikingBertConfig, tokenizer_class=BertTokenizer)
AutoModel.register(SpikingBertConfig, SpikingBertModel)
AutoModelForMaskedLM.register(SpikingBertConfig, SpikingBertForMaskedLM)
AutoModelForSequenceClassification.register(SpikingBertConfig, SpikingBertForSequenceClassification)
AutoModelForTokenClassification.register(SpikingBertConfig, SpikingBertForTokenClassification)
AutoModelForQuestionAnswering.register(SpikingBertConfig, SpikingBertForQuestionAnswering)

__all__ = [
    "SpikingBertConfig",
    "SpikingBertForMaskedLM",
    "SpikingBertForQuestionAnswering",
    "SpikingBertForSequenceClassification",
    "SpikingBertForTokenClassification",
    "SpikingBertModel",
    "SpikingBertPreTrainedModel",
]
