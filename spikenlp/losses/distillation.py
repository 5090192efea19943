"""Losses between a student and its teacher: answers, hidden states, attention scores, embeddings.

    soft cross entropy   -tau^2 sum_c softmax(teacher / tau)_c log softmax(student / tau)_c
    hidden states        sum_l mean (P_l h_l - H_m(l))^2       over real tokens and channels
    attention scores     sum_l mean (a_l - A_m(l))^2           over heads and pairs of real tokens
    embeddings           mean |e - E|^2                        of length 1, at each time step
    similarities         mean_i KL(softmax_j(E_i E_j / tau) || softmax_j(e_i e_j / tau)), j != i

(Hinton et al., 2015; Jiao et al., TinyBERT, EMNLP 2020; Bal & Sengupta, SpikingBERT, AAAI 2024; embeddings:
Reimers & Gurevych, EMNLP 2020; similarities: Fang et al., SEED, ICLR 2021, within a batch.) P_l is the
identity, or a learned projection where widths differ. All are computed in float32 and are means over the
samples of the batch; within a sample every real token weighs the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_cross_entropy(
    logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """Cross entropy against the teacher's distribution; with one output the squared error.

    Args:
        logits: student, [B, C], or [B, T, C]: then the mean over its T steps.
        teacher_logits: [B, C].
        temperature: tau > 0 softens both distributions; the loss is scaled by tau^2, so that its
            gradient keeps its size.

    Returns:
        float32 scalar, mean over the batch.

    Raises:
        ValueError: shapes that do not fit, a temperature that is not positive.

    >>> soft_cross_entropy(torch.zeros(1, 2), torch.zeros(1, 2)).item()
    0.6931471824645996
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    by_step = logits[:, None] if logits.dim() == 2 else logits
    if by_step.dim() != 3 or by_step[:, 0].shape != teacher_logits.shape:
        raise ValueError(
            f"student logits {list(logits.shape)} do not fit teacher logits "
            f"{list(teacher_logits.shape)}: give [B, C] or [B, T, C] and [B, C], of the same batch and "
            "classes; logits of tokens are not taken"
        )
    target = teacher_logits.float()
    if logits.dim() == 3:
        target = target[:, None].expand(logits.shape)
    if logits.shape[-1] == 1:
        return F.mse_loss(logits.float(), target)
    target = (target / temperature).softmax(-1)
    log_p = (logits.float() / temperature).log_softmax(-1)
    return -(target * log_p).sum(-1).mean() * temperature**2


def layer_map(student_layers: int, teacher_layers: int) -> list[int]:
    """For each hidden state 0..`student_layers` of the student (0: the embedding) the teacher's.

    Evenly spaced, first to first and last to last: 4 layers of 12 learn from 0, 3, 6, 9, 12.

    Raises:
        ValueError: a student deeper than the teacher.

    >>> layer_map(4, 12)
    [0, 3, 6, 9, 12]
    """
    if not 1 <= student_layers <= teacher_layers:
        raise ValueError(
            f"a student of {student_layers} layers cannot learn layer by layer from a teacher of "
            f"{teacher_layers}: it must have at least 1 and at most as many"
        )
    return [round(i * teacher_layers / student_layers) for i in range(student_layers + 1)]


def hidden_state_loss(
    hidden: Sequence[Tensor],
    teacher_hidden: Sequence[Tensor],
    attention_mask: Tensor | None = None,
    *,
    layers: Sequence[int] | None = None,
    projections: Sequence[Callable[[Tensor], Tensor]] | None = None,
) -> Tensor:
    """Sum over layers of the mean squared distance to the teacher's hidden states.

    Args:
        hidden: the student's, embedding first, each [B, L, D].
        teacher_hidden: the teacher's, each [B, L, D'].
        attention_mask: [B, L], 0 at padding, which is left out.
        layers: for each student state the index of the teacher's; None: `layer_map`.
        projections: for each student state a map from D to D'; None: D = D'.

    Returns:
        float32 scalar. A sample without a real token counts as 0.

    Raises:
        ValueError: lengths or widths that do not fit.

    >>> h = [torch.zeros(2, 3, 4), torch.ones(2, 3, 4)]
    >>> hidden_state_loss(h, [torch.zeros(2, 3, 4)] * 2).item()
    1.0
    """
    if layers is None:
        layers = layer_map(len(hidden) - 1, len(teacher_hidden) - 1)
    if len(layers) != len(hidden):
        raise ValueError(f"{len(layers)} teacher layers are given for {len(hidden)} hidden states")
    if not all(0 <= i < len(teacher_hidden) for i in layers):
        raise ValueError(
            f"layers {list(layers)} of a teacher that has {len(teacher_hidden)} states"
        )
    total = hidden[0].new_zeros((), dtype=hidden[0].float().dtype)
    for i, (state, j) in enumerate(zip(hidden, layers, strict=True)):
        mapped = state if projections is None else projections[i](state)
        target = teacher_hidden[j]
        if mapped.shape != target.shape:
            raise ValueError(
                f"hidden state {i} has shape {list(mapped.shape)}, the teacher's {j} "
                f"{list(target.shape)}: widths that differ need `projections`"
            )
        real = None if attention_mask is None else attention_mask.bool()
        difference = _real_difference(mapped, target, None if real is None else real[..., None])
        total = total + _mean_of_real(difference.square().mean(-1), real)
    return total


def attention_score_loss(
    scores: Sequence[Tensor],
    teacher_scores: Sequence[Tensor],
    attention_mask: Tensor | None = None,
    *,
    layers: Sequence[int | None] | None = None,
) -> Tensor:
    """Sum over layers of the mean squared distance of attention scores before the softmax.

    Args:
        scores: the student's q k^T / sqrt(d), each [B, heads, L, L], one a layer.
        teacher_scores: the teacher's, likewise. Padded queries and keys are left out, whatever a
            mask has put there.
        attention_mask: [B, L], 0 at padding.
        layers: for each student layer (from 0) the index of the teacher's, or None: it is left out;
            by default the evenly spaced one whose output `layer_map` matches with this layer's, i to
            3 i + 2 for 4 of 12.

    Returns:
        float32 scalar.

    Raises:
        ValueError: lengths or numbers of heads that do not fit, a layer that the teacher does not have.
    """
    if layers is None:
        layers = [i - 1 for i in layer_map(len(scores), len(teacher_scores))[1:]]
    if len(layers) != len(scores):
        raise ValueError(f"{len(layers)} teacher layers are given for {len(scores)} layers")
    if not all(j is None or 0 <= j < len(teacher_scores) for j in layers):
        raise ValueError(f"layers {list(layers)} of a teacher that has {len(teacher_scores)}")
    pairs = None
    if attention_mask is not None:
        real = attention_mask.bool()
        pairs = real[:, :, None] & real[:, None, :]
    total = scores[0].new_zeros((), dtype=scores[0].float().dtype)
    for i, (score, j) in enumerate(zip(scores, layers, strict=True)):
        if j is None:
            continue
        target = teacher_scores[j]
        if score.shape != target.shape:
            raise ValueError(
                f"attention scores of layer {i} have shape {list(score.shape)}, the teacher's "
                f"{list(target.shape)}: both need the same heads and length"
            )
        difference = _real_difference(score, target, None if pairs is None else pairs[:, None])
        total = total + _mean_of_real(difference.square().mean(1), pairs)
    return total


def embedding_loss(embeddings: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance of embeddings of length 1, 2 - 2 cosine.

    Args:
        embeddings: the student's, [B, D], or [B, T, D]: after each of T steps. Of any length > 0.
        teacher: [B, D].

    Returns:
        float32 scalar in [0, 4], mean over batch and steps.

    Raises:
        ValueError: shapes that do not fit.

    >>> embedding_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])).item()
    2.0
    """
    student, target = _unit_embeddings(embeddings, teacher)
    return (student - target[:, None]).square().sum(-1).mean()


def similarity_loss(embeddings: Tensor, teacher: Tensor, *, temperature: float = 0.05) -> Tensor:
    """How differently student and teacher see who in the batch is similar to whom.

    Args:
        embeddings: the student's, [B, D], or [B, T, D]: after each of T steps. Of any length > 0.
        teacher: [B, D].
        temperature: tau > 0 of the cosines; the smaller, the more the nearest ones count.

    Returns:
        float32 scalar >= 0: Kullback-Leibler divergence, mean over batch and steps. A batch of fewer
        than three has nothing to compare: 0.

    Raises:
        ValueError: shapes that do not fit, a temperature that is not positive.

    >>> similarity_loss(torch.eye(3), torch.eye(3)).item()
    0.0
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    student, target = _unit_embeddings(embeddings, teacher)
    batch = len(target)
    if batch < 3:
        return student.sum() * 0
    others = ~torch.eye(batch, dtype=torch.bool, device=target.device)

    def log_p(unit: Tensor) -> Tensor:
        cosines = unit @ unit.transpose(-1, -2)
        return (cosines[..., others] / temperature).unflatten(-1, (batch, -1)).log_softmax(-1)

    wanted = log_p(target)
    by_step = log_p(student.transpose(0, 1))  # [T, B, B - 1]
    return (wanted.exp() * (wanted - by_step)).sum(-1).mean()


def _unit_embeddings(embeddings: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """[B, T, D] and [B, D] in float32, of length 1."""
    by_step = embeddings[:, None] if embeddings.dim() == 2 else embeddings
    if by_step.dim() != 3 or by_step[:, 0].shape != teacher.shape:
        raise ValueError(
            f"student embeddings {list(embeddings.shape)} do not fit the teacher's "
            f"{list(teacher.shape)}: give [B, D] or [B, T, D] and [B, D]"
        )
    return F.normalize(by_step.float(), dim=-1), F.normalize(teacher.float(), dim=-1)


def _real_difference(student: Tensor, teacher: Tensor, real: Tensor | None) -> Tensor:
    """In float32, 0 where `real` is False: what stands there may be infinite, and so would its gradient be."""
    if real is not None:
        student, teacher = student.where(real, 0), teacher.where(real, 0)
    return student.float() - teacher.float()


def _mean_of_real(distance: Tensor, real: Tensor | None) -> Tensor:
    """Mean over samples of the mean of `distance` [B, ...], which is 0 where `real` [B, ...] is False."""
    if real is None:
        return distance.mean()
    return (distance.flatten(1).sum(1) / real.flatten(1).sum(1).clamp_min(1)).mean()
