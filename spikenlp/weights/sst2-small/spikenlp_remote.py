"""This checkpoint is a model of the package spikenlp, which transformers finds through this file."""

try:
    from spikenlp import (
        SpikingBertConfig,
        SpikingBertForMaskedLM,
        SpikingBertForQuestionAnswering,
        SpikingBertForSequenceClassification,
        SpikingBertForTokenClassification,
        SpikingBertModel,
    )
except ImportError as error:
    raise ImportError(
        "This checkpoint is a spiking model of the package spikenlp, which is not installed or is too "
        f"old for it ({error}). Run: pip install --upgrade spikenlp"
    ) from error
