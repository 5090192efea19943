"""Training with temporal losses."""

from spikenlp.training.arguments import SpikingTrainingArguments
from spikenlp.training.distillation import DistillationArguments, DistillationTrainer
from spikenlp.training.loss_function import TemporalLossFunction
from spikenlp.training.masked_lm import MaskedLMTrainer
from spikenlp.training.trainer import SpikingTrainer, TimestepMetrics, check_tokenizer_fits
from spikenlp.training.watchdogs import (
    FiringRateWatchdog,
    NonFiniteWatchdog,
    ThetaWatchdog,
    watchdogs,
)

__all__ = [
    "DistillationArguments",
    "DistillationTrainer",
    "FiringRateWatchdog",
    "MaskedLMTrainer",
    "NonFiniteWatchdog",
    "SpikingTrainer",
    "SpikingTrainingArguments",
    "TemporalLossFunction",
    "ThetaWatchdog",
    "TimestepMetrics",
    "check_tokenizer_fits",
    "watchdogs",
]
