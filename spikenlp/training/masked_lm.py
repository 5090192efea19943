"""Masked language modelling with temporal losses.

A vocabulary of logits for each token and each time step, [B, T, L, V], would be most of what a training step
keeps: 2 GB for 32 x 128 tokens, T = 4 and BERT's vocabulary. Only masked tokens have a label, 15% of them, so
the head is asked for these alone, [N, T, V], in training and in evaluation. SDT needs the mean over time alone,
[N, V].
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import EvalPrediction

from spikenlp.losses.temporal import IGNORE_INDEX
from spikenlp.training.arguments import SpikingTrainingArguments
from spikenlp.training.loss_function import TemporalLossFunction
from spikenlp.training.trainer import SpikingTrainer

NO_LABELS = (
    "masked language models learn from, and are scored on, the tokens that labels mark as masked, and the batch has "
    "no labels: use ReproducibleMasking (spikenlp.data) or DataCollatorForLanguageModeling"
)


class MaskedLMLossFunction(TemporalLossFunction):
    """A temporal loss of the logits of masked tokens alone, [N, T, V], or of their mean, [N, V]."""

    def __call__(
        self, outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        if labels is not None:
            labels = labels[labels != IGNORE_INDEX]
            if len(labels) == 0 and not self._joins_processes:
                return 0 * outputs.logits.sum()
        if outputs.get("timestep_logits") is None:
            outputs = {"timestep_logits": outputs.logits[:, None]}
        return super().__call__(outputs, labels, num_items_in_batch)


class MaskedLMTrainer(SpikingTrainer):
    """`SpikingTrainer` for `SpikingBertForMaskedLM`, on batches with `labels` [B, L], -100 where unmasked.

    Every temporal loss works, each masked token being a sample; `args.collapsed` trains the collapsed twin.
    Evaluation reports, over all masked tokens, the cross entropy of the running mean of the logits at each
    step (`loss_t1` ... `loss_tT`), its exponential (`perplexity`, `perplexity_t1` ...) and the share of
    tokens predicted right (`accuracy`, `accuracy_t1` ...), the plain names being those of step T. `loss` is
    the temporal loss, as in training.

    Args:
        args: `SpikingTrainingArguments`. The rest as in transformers' Trainer, apart from
            `compute_metrics` and `preprocess_logits_for_metrics`, which are the above.

    Raises:
        ValueError: as `SpikingTrainer`; label smoothing with `args.collapsed`.
    """

    args: SpikingTrainingArguments
    loss_function = MaskedLMLossFunction

    def __init__(
        self,
        model: nn.Module | None = None,
        args: SpikingTrainingArguments | None = None,
        **kwargs: Any,
    ):
        super().__init__(model, args, **kwargs)
        self.preprocess_logits_for_metrics = token_scores
        self.compute_metrics = masked_lm_metrics
        if self.args.collapsed and self.args.label_smoothing_factor:
            raise ValueError(
                "label_smoothing_factor must be 0 with collapsed=True in masked language modelling, got "
                f"{self.args.label_smoothing_factor}"
            )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        per_step = not model.training or self.args.temporal_loss != "sdt"
        if inputs.get("labels") is None:
            raise ValueError(NO_LABELS)
        asked = {
            "masked_positions": inputs["labels"] != IGNORE_INDEX,
            "output_timesteps": per_step,
        }
        return super().compute_loss(model, {**inputs, **asked}, return_outputs, num_items_in_batch)


@torch.no_grad()
def token_scores(logits: Tensor | tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """What an evaluation keeps of a batch: sums over each sequence's masked tokens.

    Args:
        logits: of the N masked tokens: [N, V], or ([N, V], [N, T, V]).
        labels: [B, L], -100 where unmasked.

    Returns:
        float32 [B, T, 2]: cross entropy of the running mean at each step, and tokens predicted right.
    """
    if labels is None:
        raise ValueError(NO_LABELS)
    steps = logits[-1] if isinstance(logits, tuple) else logits
    masked = labels != IGNORE_INDEX
    if steps.dim() == 2:
        steps = steps[:, None]
    sequence, target = masked.nonzero()[:, 0], labels[masked]
    total = torch.zeros_like(steps[:, 0], dtype=torch.float32)
    scores = []
    for t, step in enumerate(steps.unbind(1), start=1):
        total += step
        loss = F.cross_entropy(total / t, target, reduction="none")
        scores.append(torch.stack([loss, (total.argmax(-1) == target).float()], -1))
    sums = torch.zeros(len(labels), steps.shape[1], 2, device=labels.device)
    return sums.index_add_(0, sequence, torch.stack(scores, 1))


def masked_lm_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Loss, perplexity and accuracy a masked token from what `token_scores` made, [samples, T, 2]."""
    count = np.count_nonzero(np.asarray(prediction.label_ids) != IGNORE_INDEX)
    means = np.asarray(prediction.predictions, dtype=np.float64).sum(0) / count
    metrics: dict[str, float] = {}
    for t, (loss, accuracy) in enumerate(means.tolist(), start=1):
        at_step = {"loss": loss, "perplexity": math.exp(loss), "accuracy": accuracy}
        metrics |= {f"{name}_t{t}": value for name, value in at_step.items()}
    return {"perplexity": at_step["perplexity"], "accuracy": at_step["accuracy"], **metrics}
