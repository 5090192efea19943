"""spikenlp: spiking language models in the Hugging Face ecosystem, trained across time steps.

Importing it registers every model with transformers' Auto classes.
"""

from spikenlp.models.spiking_bert import (
    SpikingBertConfig,
    SpikingBertForMaskedLM,
    SpikingBertForQuestionAnswering,
    SpikingBertForSequenceClassification,
    SpikingBertForTokenClassification,
    SpikingBertModel,
)

__version__ = "0.1.0"

__all__ = [
    "SpikingBertConfig",
    "SpikingBertForMaskedLM",
    "SpikingBertForQuestionAnswering",
    "SpikingBertForSequenceClassification",
    "SpikingBertForTokenClassification",
    "SpikingBertModel",
]


def __getattr__(name: str):
    # The Trainer is imported on first use: it is what makes an import of transformers slow.
    if name in ("SpikingTrainer", "SpikingTrainingArguments"):
        from spikenlp import training

        return getattr(training, name)
    if name == "pretrained":
        from spikenlp.hub.classifier import pretrained

        return pretrained
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
