"""Training with temporal losses."""

from spikenlp.training.arguments import SpikingTrainingArguments
from spikenlp.training.distillation import DistillationArguments, DistillationTrainer
from spikenlp.training.embedding_distillation import (
    EmbeddingDistillationArguments,
    EmbeddingDistillationTrainer,
)
from spikenlp.training.loss_function import TemporalLossFunction
from spikenlp.training.masked_lm import MaskedLMTrainer
from spikenlp.training.trainer import SpikingTrainer, TimestepMetrics, check_tokenizer_fits

__all__ = [
    "DistillationArguments",
    "DistillationTrainer",
    "EmbeddingDistillationArguments",
    "EmbeddingDistillationTrainer",
    "MaskedLMTrainer",
    "SpikingTrainer",
    "SpikingTrainingArguments",
    "TemporalLossFunction",
    "TimestepMetrics",
    "check_tokenizer_fits",
]
