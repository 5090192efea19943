"""What teachers say of a batch, and of each row of a data set, asked once and kept in memory where it fits."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from spikenlp.training.answers import answer_of, without_adapters

ROW = "row_of_the_teachers_answers"
"""Column that tells a batch which rows of the data set it holds."""
ASKED_AT_ONCE = 64


def bytes_needed(dataset: Dataset, *, of_tokens: int, of_rows: int) -> int:
    """In float32, of so many numbers for each token and for each row."""
    tokens = sum(len(ids) for ids in dataset["input_ids"])
    return 4 * (tokens * of_tokens + len(dataset) * of_rows)


def check_deterministic(teacher: nn.Module) -> None:
    """Raises ValueError where `teacher`, or a dropout within it, is in training mode."""
    answering_at_random = (
        name
        for name, m in teacher.named_modules()
        if isinstance(m, _DropoutNd) and m.training and m.p
    )
    name = "" if teacher.training else next(answering_at_random, None)
    if name is not None:
        raise ValueError(
            f"the teacher is in training mode{name and f' ({name})'}, so that its dropout answers at random: call "
            "teacher.eval()"
        )


def ask(teachers: Sequence[Any], inputs: Mapping[str, Tensor], hidden: bool) -> dict[str, Any]:
    """What the first teacher says of a batch, and as `answer` the mean of the answers of all.

    The softmax of a mean of logits is the geometric mean of the teachers' distributions (Hinton, Vinyals &
    Dean, arXiv 1503.02531, section 1), at any temperature.
    """
    first, *further = teachers
    outputs = first(**inputs, output_hidden_states=hidden)
    answers = [answer_of(outputs), *(answer_of(teacher(**inputs)) for teacher in further)]
    given = [answer for answer in answers if answer is not None]
    return {**outputs, "answer": torch.stack(given).mean(0) if given else None}


@contextmanager
def attention_scores(teacher: nn.Module, wanted: bool) -> Iterator[list[Tensor]]:
    """Collects q k^T / sqrt(d) [B, heads, L, L] of each self-attention of a dense BERT."""
    from transformers.models.bert.modeling_bert import BertSelfAttention

    scores: list[Tensor] = []

    def compute(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        heads = (*hidden.shape[:2], module.num_attention_heads, -1)
        query, key = (
            layer(hidden).view(heads).transpose(1, 2) for layer in (module.query, module.key)
        )
        scores.append(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5)

    hooks = []
    if wanted:
        layers = [m for m in teacher.modules() if isinstance(m, BertSelfAttention)]
        if not layers:
            raise ValueError(f"{type(teacher).__name__} has no BertSelfAttention to take scores of")
        hooks = [m.register_forward_hook(compute, with_kwargs=True) for m in layers]
    try:
        yield scores
    finally:
        for hook in hooks:
            hook.remove()


def collates_alike(dataset: Dataset, collator: Any) -> bool:
    """Whether `collator` makes the same of rows in every batch: one that masks or drops tokens at random does
    not, nor one that pads on the left, where tokens stand at other positions beside longer rows."""
    count = min(len(dataset), ASKED_AT_ONCE)
    rows = [dataset[i * len(dataset) // count] for i in range(count)]
    once, again = collator(rows), collator(rows)
    if not bool(once["attention_mask"][:, 0].all()):
        return False
    return all(torch.equal(once[k], again[k]) for k in once if isinstance(once[k], Tensor))


class TeacherCache:
    """Answers and hidden states of teachers for each row of `dataset`.

    Rows are asked in order of their length, so that the answers do not depend on how training mixes
    them: a run that is resumed sees the same.

    Args:
        teachers: in eval mode, see `ask`; their inputs are what `collator` makes of the columns that the
            first one's forward takes, labels left out.
        answers, hidden: whether answers, hidden states are kept.
        context: what the teachers run in (autocast).

    Raises:
        ValueError: a teacher, or a dropout within it, in training mode.
    """

    def __init__(
        self,
        teachers: Sequence[Any],
        dataset: Dataset,
        collator: Any,
        *,
        answers: bool,
        hidden: bool,
        context: AbstractContextManager[Any],
    ):
        for teacher in teachers:
            check_deterministic(teacher)
        self._answers: list[Tensor] = [torch.empty(0)] * len(dataset)
        self._hidden: list[Tensor] = [torch.empty(0)] * len(dataset)
        self._states = 0
        lengths = [len(ids) for ids in dataset["input_ids"]]
        order = sorted(range(len(dataset)), key=lengths.__getitem__)
        device = next(teachers[0].parameters()).device
        taken = inspect.signature(without_adapters(teachers[0]).forward).parameters.keys() - {
            "labels"
        }
        questions = dataset.select_columns([n for n in dataset.column_names if n in taken])
        with torch.no_grad(), context:
            for start in range(0, len(order), ASKED_AT_ONCE):
                rows = order[start : start + ASKED_AT_ONCE]
                batch = collator([questions[i] for i in rows])
                inputs = {k: v.to(device) for k, v in batch.items()}
                outputs = ask(teachers, inputs, hidden)
                self._keep(rows, inputs, outputs, answers, hidden)

    def _keep(
        self,
        rows: list[int],
        inputs: Mapping[str, Tensor],
        outputs: Mapping[str, Any],
        answers: bool,
        hidden: bool,
    ) -> None:
        real = inputs["attention_mask"].bool().cpu()
        if answers and outputs["answer"] is not None:
            answer = outputs["answer"].cpu()
            for i, row in enumerate(rows):
                of_tokens = answer.dim() == 3  # [B, L, C]
                self._answers[row] = answer[i][real[i]] if of_tokens else answer[i].clone()
        if hidden:
            self._states = len(outputs["hidden_states"])
            stacked = torch.stack(outputs["hidden_states"], 2).cpu()  # [B, L, S, D]
            for i, row in enumerate(rows):
                self._hidden[row] = stacked[i][real[i]].clone()

    def answers(self, rows: Tensor, attention_mask: Tensor) -> dict[str, Any]:
        """`answer` ([B, C], or of tokens [B, L, C]) and `hidden_states` (each [B, L, D]) of the given rows, 0 at
        padding."""
        found: dict[str, Any] = {}
        indices = rows.tolist()
        kept = [self._answers[i] for i in indices]
        if kept[0].dim() == 2:
            found["answer"] = _padded(kept, attention_mask)
        elif kept[0].numel():
            found["answer"] = torch.stack(kept).to(attention_mask.device)
        if self._states:
            states = _padded([self._hidden[i] for i in indices], attention_mask)
            found["hidden_states"] = states.unbind(2)
        return found


def _padded(rows: Sequence[Tensor], attention_mask: Tensor) -> Tensor:
    """[B, L, ...] of what belongs to the real tokens of each row, 0 elsewhere."""
    kept = torch.cat(list(rows)).to(attention_mask.device)
    padded = kept.new_zeros(*attention_mask.shape, *kept.shape[1:])
    padded[attention_mask.bool()] = kept
    return padded
