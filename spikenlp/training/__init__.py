"""Training with temporal losses."""

from spikenlp.training.arguments import SpikingTrainingArguments
from spikenlp.training.checkpoints import (
    CheckpointError,
    ResumableTrainer,
    TrainingTerminated,
    checkpoint_problem,
    last_checkpoint,
)
from spikenlp.training.distillation import DistillationArguments, DistillationTrainer
from spikenlp.training.embedding_distillation import (
    EmbeddingDistillationArguments,
    EmbeddingDistillationTrainer,
)
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
    "CheckpointError",
    "DistillationArguments",
    "DistillationTrainer",
    "EmbeddingDistillationArguments",
    "EmbeddingDistillationTrainer",
    "FiringRateWatchdog",
    "MaskedLMTrainer",
    "NonFiniteWatchdog",
    "ResumableTrainer",
    "SpikingTrainer",
    "SpikingTrainingArguments",
    "TemporalLossFunction",
    "ThetaWatchdog",
    "TimestepMetrics",
    "TrainingTerminated",
    "check_tokenizer_fits",
    "checkpoint_problem",
    "last_checkpoint",
    "watchdogs",
]
