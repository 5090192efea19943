"""spikenlp: spiking language models in the Hugging Face ecosystem, trained across time steps.

Importing it registers every model with transformers' Auto classes.
"""

from spikenlp.models.qkformer import (
    QKFormerConfig,
    QKFormerForImageClassification,
    QKFormerModel,
)
from spikenlp.models.quantization import Int8Config
from spikenlp.models.spiking_bert import (
    SpikingBertConfig,
    SpikingBertForMaskedLM,
    SpikingBertForQuestionAnswering,
    SpikingBertForSequenceClassification,
    SpikingBertForTokenClassification,
    SpikingBertModel,
)
from spikenlp.models.spiking_resnet import (
    SpikingResNetConfig,
    SpikingResNetForImageClassification,
    SpikingResNetModel,
)
from spikenlp.models.spiking_vgg import (
    SpikingVGGConfig,
    SpikingVGGForImageClassification,
    SpikingVGGModel,
)

__version__ = "0.1.0"

__all__ = [
    "Int8Config",
    "QKFormerConfig",
    "QKFormerForImageClassification",
    "QKFormerModel",
    "SpikingBertConfig",
    "SpikingBertForMaskedLM",
    "SpikingBertForQuestionAnswering",
    "SpikingBertForSequenceClassification",
    "SpikingBertForTokenClassification",
    "SpikingBertModel",
    "SpikingResNetConfig",
    "SpikingResNetForImageClassification",
    "SpikingResNetModel",
    "SpikingVGGConfig",
    "SpikingVGGForImageClassification",
    "SpikingVGGModel",
]

_OF_TRAINING = (
    "DistillationArguments",
    "DistillationTrainer",
    "FiringRateWatchdog",
    "MaskedLMTrainer",
    "NonFiniteWatchdog",
    "SpikingTrainer",
    "SpikingTrainingArguments",
    "ThetaWatchdog",
    "watchdogs",
)


def __dir__() -> list[str]:
    return sorted({*globals(), *_OF_TRAINING, "pretrained"})


def __getattr__(name: str):
    # The Trainer is imported on first use: it is what makes an import of transformers slow.
    if name in _OF_TRAINING:
        from spikenlp import training

        return getattr(training, name)
    if name == "pretrained":
        from spikenlp.hub.classifier import pretrained

        return pretrained
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
