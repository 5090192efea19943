"""The answers that a student learns of its teacher: classes of sequences or tokens, several labels, spans.

A span's start and end are chosen among the tokens; in a teacher's answer [B, L, 2] both stand at each token, so
that it is kept token by token as classes [B, L, C] are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spikenlp.losses.temporal import IGNORE_INDEX
from spikenlp.models.over_time import running_mean
from spikenlp.training.several_labels import has_several_labels, label_logits
from spikenlp.training.spans import TIMESTEP_LOGITS

HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
NEVER = -1e4
"""Logit of a position that no span starts or ends at: its probability is 0 in float32."""


def head_of(model: PreTrainedModel) -> str | None:
    """Which of `HEADS` a model has, if any."""
    names = (kind.__name__ for kind in type(model).__mro__)
    return next((head for name in names for head in HEADS if name.endswith(head)), None)


def per_token(model: PreTrainedModel) -> bool:
    """Whether a model answers at each token."""
    return head_of(model) in HEADS[1:]


def answer_size(model: PreTrainedModel) -> int:
    """Logits of an answer, of one token where there is one a token."""
    return 2 if head_of(model) == "ForQuestionAnswering" else cast(Any, model.config).num_labels


def answer_of(outputs: Mapping[str, Any]) -> Tensor | None:
    """[B, C], or [B, L, C] of tokens and [B, L, 2] of spans; None of a model that has no head."""
    if outputs.get("start_logits") is not None:
        return torch.stack([outputs["start_logits"], outputs["end_logits"]], -1)
    return outputs.get("logits")


def answers_by_step(outputs: Mapping[str, Any]) -> Tensor:
    """The running mean over the time steps, [B, T, ...]; without a time axis T = 1."""
    if outputs.get(TIMESTEP_LOGITS[0]) is not None:
        steps = torch.stack([outputs[name] for name in TIMESTEP_LOGITS], -1)
    elif outputs.get("timestep_logits") is not None:
        steps = outputs["timestep_logits"]
    else:
        answer = answer_of(outputs)
        assert answer is not None
        return answer[:, None]
    return running_mean(steps.transpose(0, 1)).transpose(0, 1)


def choices(
    model: PreTrainedModel, student: Tensor, teacher: Tensor, labels: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What there is to choose among classes, one by one: logits [N, T, C] of the student and [N, C] of the teacher.

    Args:
        model: the student.
        student: its answers by step; teacher: the answer of its teacher.
        labels: of tokens [B, L], -100 where a token has none: it is left out.
        mask: [B, L], 0 at padding, which no span starts or ends at.

    Raises:
        ValueError: answers of tokens of another length.
    """
    if has_several_labels(model.config):
        return label_logits(student).transpose(1, 2).flatten(0, 1), label_logits(teacher).flatten(
            0, 1
        )
    head = head_of(model)
    if head not in HEADS[1:]:
        return student, teacher
    if student[:, 0].shape != teacher.shape:
        raise ValueError(
            f"the student answers {list(student[:, 0].shape)}, its teacher {list(teacher.shape)}: both must "
            "answer at the same tokens"
        )
    if head == "ForTokenClassification":
        labelled = labels != IGNORE_INDEX
        return student.transpose(1, 2)[labelled], teacher[labelled]
    if mask is not None:
        padding = mask[..., None] == 0
        student = student.masked_fill(padding[:, None], NEVER)
        teacher = teacher.masked_fill(padding, NEVER)
    return student.permute(0, 3, 1, 2).flatten(0, 1), teacher.transpose(1, 2).flatten(0, 1)
