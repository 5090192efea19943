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
from spikenlp.training.several_labels import label_logits
from spikenlp.training.spans import TIMESTEP_LOGITS

HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
NEVER = -1e4
"""Logit of a position that no span starts or ends at: its probability is 0 in float32."""


def without_adapters(model: Any) -> Any:
    """The model that peft has put adapters into, or `model`."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def head_of(model: PreTrainedModel) -> str | None:
    """Which of `HEADS` a model has, if any."""
    names = (kind.__name__ for kind in type(without_adapters(model)).__mro__)
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


def class_choices(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    *,
    head: str | None,
    several_labels: bool,
) -> tuple[Tensor, Tensor]:
    """Each choice among classes by itself: logits [N, T, C] of the student and [N, C] of the teacher.

    Args:
        student: its answers by step; teacher: the answer of its teacher.
        labels: [B, L] of tokens, [B, 2] of spans: where they are -100 there is nothing to choose.
        mask: [B, L], 0 at padding, which no span starts or ends at.
        head: of the student, see `head_of`.
        several_labels: each class is a choice between its being there and not.

    Raises:
        ValueError: answers at tokens of another length.
    """
    if several_labels:
        of_labels = label_logits(student).transpose(1, 2)
        return of_labels.flatten(0, 1), label_logits(teacher).flatten(0, 1)
    if head not in HEADS[1:]:
        return student, teacher
    if student[:, 0].shape != teacher.shape:
        raise ValueError(
            f"the student answers {list(student[:, 0].shape)}, its teacher {list(teacher.shape)}: both must "
            "answer at the same tokens"
        )
    chosen = labels != IGNORE_INDEX
    if head == "ForTokenClassification":
        return student.transpose(1, 2)[chosen], teacher[chosen]
    if mask is not None:
        padding = mask[..., None] == 0
        student = student.masked_fill(padding[:, None], NEVER)
        teacher = teacher.masked_fill(padding, NEVER)
    return student.permute(0, 3, 1, 2)[chosen], teacher.transpose(1, 2)[chosen]
