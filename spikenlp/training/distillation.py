"""Training from a teacher: its answers at every step, its hidden states, its attention scores.

    loss = (1 - a) task + a soft + b hidden + c scores

task: the temporal loss on z_t (collapsed: the model's own loss). soft: cross entropy of the running mean of
z_t at each step, which is the model's answer there, against the teacher's distribution: over the classes of a
sequence or of each token that has a label, for each of several labels at once over its being there or not, over
the tokens at which a span starts, and ends. hidden, scores: see `spikenlp.losses.distillation`. A batch without
labels, raw text, has the last two only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, set_seed

from spikenlp.losses.distillation import (
    attention_score_loss,
    hidden_state_loss,
    layer_map,
    soft_cross_entropy,
)
from spikenlp.losses.temporal import IGNORE_INDEX
from spikenlp.models.modes import has_several_labels, has_time_axis
from spikenlp.training.answers import (
    answer_size,
    answers_by_step,
    class_choices,
    head_of,
    per_token,
)
from spikenlp.training.arguments import SpikingTrainingArguments
from spikenlp.training.spans import POSITIONS, span_labels
from spikenlp.training.teacher_cache import (
    ROW,
    TeacherCache,
    ask,
    attention_scores,
    bytes_needed,
    check_deterministic,
    collates_alike,
)
from spikenlp.training.trainer import SpikingTrainer, check_tokenizer_fits

PROJECTIONS = "hidden_projections"
"""Attribute of the student that holds the learned projections while it is trained."""
STAGES = (4, 2, 1)
"""Times num_timesteps, in collapsed training with levels that go down by stages."""


@dataclass
class DistillationArguments(SpikingTrainingArguments):
    """`SpikingTrainingArguments` and what is learned from the teacher.

    Raises:
        ValueError: an option out of range (see the help of each field).
    """

    logit_weight: float = field(
        default=0.5,
        metadata={"help": "Weight a in [0, 1] of the teacher's answers; the labels have 1 - a."},
    )
    temperature: float = field(
        default=1.0, metadata={"help": "Temperature of the teacher's and student's answers."}
    )
    hidden_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of the mean squared distance of hidden states, sum over layers."},
    )
    attention_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the mean squared distance of attention scores before the softmax."
        },
    )
    teacher_cache_gb: float = field(
        default=2.0,
        metadata={
            "help": "The teacher is asked once for each row, before training, where rows come again and "
            "its answers take no more than this (GB of host memory); else at every step. 0: always "
            "at every step."
        },
    )
    teacher_layers: list[int] | None = field(
        default=None,
        metadata={
            "help": "Index of the teacher's hidden state (0: the embedding, which has no attention "
            "scores) for each of the student's. Default: evenly spaced."
        },
    )
    collapsed_timesteps: Literal["fixed", "random", "staged"] = field(
        default="fixed",
        metadata={
            "help": "Collapsed training at num_timesteps (fixed); at a T drawn anew for each batch, from "
            "1 to num_timesteps, so that early steps are served as well (random); or with 4, then 2, "
            "then 1 times num_timesteps, a third of the steps each, so that levels go down by stages "
            "(staged)."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.logit_weight <= 1:
            raise ValueError(f"logit_weight must be in [0, 1], got {self.logit_weight}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}")
        for name in ("hidden_weight", "attention_weight", "teacher_cache_gb"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")


class DistillationTrainer(SpikingTrainer):
    """`SpikingTrainer` with a teacher.

    Args:
        model: a spiking model that classifies sequences or tokens, or finds spans, or has no head; with
            `args.collapsed` a dense one, too.
        args: `DistillationArguments`.
        teacher: a dense (or any) model of transformers with the same vocabulary, and, for its
            answers, the same head and classes. It is put into eval mode and never trained. Where its width
            differs from the student's, a linear projection of each hidden state, drawn with
            `args.seed`, is learned beside the student (`model.hidden_projections`, in checkpoints,
            until training ends).
        further_teachers: others of the task, fine-tuned from other seeds, say, whose logits are
            averaged with the teacher's. Hidden states and attention scores are the teacher's alone.
        The rest as in `SpikingTrainer`, without `model_init`. Accumulated batches of unlike sizes weigh as their labels;
        in collapsed training, and without labels, each weighs the same.

    Raises:
        ValueError: no `model`; a vocabulary, head, number of classes, depth or number of attention heads that
            does not fit; adapters of another width than the teacher's; layers that the teacher does not have; a
            penalty on spikes with gradient="implicit"; a teacher, or a dropout within it, left in training mode;
            a batch with a row of padding only, or that leaves nothing to learn; further teachers with
            logit_weight=0; without `args.collapsed` varied `collapsed_timesteps`, with it label
            smoothing.
    """

    args: DistillationArguments
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: PreTrainedModel,
        args: DistillationArguments,
        *positional: Any,
        teacher: PreTrainedModel,
        further_teachers: Sequence[PreTrainedModel] = (),
        **kwargs: Any,
    ):
        if model is None or kwargs.get("model_init") is not None:
            raise ValueError("give the student as model: model_init is not for distillation")
        if not isinstance(args, DistillationArguments):
            raise ValueError(f"args must be DistillationArguments, got {type(args).__name__}")
        check_options(model, args)
        check_teacher(model, teacher, args)
        check_tokenizer_fits(teacher, kwargs.get("processing_class"))
        for further in further_teachers:
            check_further_teacher(model, further, args)
            check_tokenizer_fits(further, kwargs.get("processing_class"))
        states = model.config.num_hidden_layers + 1
        width, teacher_width = model.config.hidden_size, teacher.config.hidden_size
        projections: nn.ModuleList | None = None
        if args.hidden_weight and width != teacher_width:
            if hasattr(model, "peft_config"):
                raise ValueError(
                    "checkpoints of adapters keep no projection to a teacher of another width: set hidden_weight=0"
                )
            # Projections are used after the forward pass, where DDP would take them for unused.
            if args.ddp_find_unused_parameters is None:
                args.ddp_find_unused_parameters = False
            set_seed(args.seed)
            projections = nn.ModuleList(nn.Linear(width, teacher_width) for _ in range(states))
            setattr(model, PROJECTIONS, projections.to(model.device))
        super().__init__(model, args, *positional, **kwargs)
        self._projections = projections
        self.data_collator = RealRows(self.data_collator)
        self.teacher: Any = teacher
        self.further_teachers: list[Any] = list(further_teachers)
        for one in self._teachers:
            one.eval().requires_grad_(False).to(args.device)
        self._cache: TeacherCache | None = None

    @property
    def _teachers(self) -> list[Any]:
        return [self.teacher, *self.further_teachers]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        data: Any = self.train_dataset
        if self._cache is None and self._cache_fits():
            self.train_dataset = data.add_column(ROW, list(range(len(data))))
            self._cache = TeacherCache(
                self._teachers,
                data,
                self.data_collator,
                answers=self.args.logit_weight > 0,
                hidden=self.args.hidden_weight > 0,
                context=self.accelerator.autocast(),
            )
        if self._projections is None:
            return super().train(*args, **kwargs)
        setattr(self.model, PROJECTIONS, self._projections)
        try:
            return super().train(*args, **kwargs)
        finally:
            delattr(self.model, PROJECTIONS)

    def _cache_fits(self) -> bool:
        data, config, args = self.train_dataset, self.teacher.config, self.args
        columns = {"input_ids", "attention_mask"}
        if not isinstance(data, Dataset) or not columns <= set(data.column_names):
            return False
        if args.attention_weight:  # grow with the square of the length
            return False
        rows_of_a_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        seen = args.num_train_epochs * len(data)
        if args.max_steps > 0:
            seen = args.max_steps * rows_of_a_step
        if seen <= len(data):  # no row comes twice
            return False
        states = config.num_hidden_layers + 1 if args.hidden_weight else 0
        logits = answer_size(self.teacher) if args.logit_weight else 0
        of_tokens = states * config.hidden_size
        if per_token(self.teacher):
            needed = bytes_needed(data, of_tokens=of_tokens + logits, of_rows=0)
        else:
            needed = bytes_needed(data, of_tokens=of_tokens, of_rows=logits)
        if needed > args.teacher_cache_gb * 1e9:
            return False
        columns = set(data.column_names)
        if args.remove_unused_columns:
            self._set_signature_columns_if_needed()
            columns &= set(self._signature_columns or ())
        return collates_alike(data.select_columns(sorted(columns)), self.data_collator)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        if ROW not in columns:
            columns.append(ROW)

    def training_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None,
    ) -> tuple[Tensor, Any]:
        args = self.args
        rows = inputs.pop(ROW, None)
        config = self.accelerator.unwrap_model(model).config
        varied = args.collapsed and args.collapsed_timesteps != "fixed"
        timesteps = self._varied_timesteps(config) if varied else nullcontext()
        labels, mask = inputs.get("labels"), inputs.get("attention_mask")
        read = inputs if args.collapsed else {k: v for k, v in inputs.items() if k != "labels"}
        with timesteps:
            outputs = model(**read, **self.wanted_outputs())
        if self._of_spans and args.collapsed:
            positions = [inputs[name] for name in POSITIONS if name in inputs]
            labels = span_labels(positions, inputs["input_ids"].shape[1]) if positions else None
        if self._cache is None or rows is None:
            answers = self._ask_teacher(inputs)
        else:
            answers = self._cache.answers(rows, inputs["attention_mask"])
        parts = self._parts(outputs, answers, labels, mask)
        parts |= self.further_parts(outputs, answers, mask)
        if not parts:
            raise ValueError(
                "nothing to learn: the batch has no labels, and hidden_weight and attention_weight are 0"
            )
        for name, (_, value) in parts.items():
            self.add_to_log(f"loss_{name}", value)
        loss = torch.stack([weight * value for weight, value in parts.values()]).sum()
        if num_items_in_batch is not None and labels is not None:
            loss = loss * self._share(labels, num_items_in_batch)
        return loss, outputs

    def _share(self, labels: Tensor, num_items_in_batch: Tensor | int) -> Tensor:
        """How much a micro-batch of fewer or more labels counts, 1 on average: Trainer takes the mean of the
        pieces, of one process and of all."""
        pieces = self.current_gradient_accumulation_steps
        if self.args.average_tokens_across_devices:
            pieces *= self.accelerator.num_processes
        return (labels != IGNORE_INDEX).sum() * pieces / num_items_in_batch

    def _parts(
        self,
        outputs: Any,
        answers: Mapping[str, Any],
        labels: Tensor | None,
        mask: Tensor | None,
    ) -> dict[str, tuple[float, Tensor]]:
        """Name -> weight and value of the terms of the loss."""
        args = self.args
        parts: dict[str, tuple[float, Tensor]] = {}
        if labels is not None:
            if args.collapsed:
                task = outputs.loss
            else:
                assert self.compute_loss_func is not None
                task = self.compute_loss_func(outputs, labels)
            parts["task"] = 1 - args.logit_weight, task
            if args.logit_weight:
                parts["soft"] = args.logit_weight, self._soft(outputs, answers, labels, mask)
        if args.hidden_weight:
            parts["hidden"] = (
                args.hidden_weight,
                hidden_state_loss(
                    outputs.hidden_states,
                    answers["hidden_states"],
                    mask,
                    layers=args.teacher_layers,
                    projections=getattr(
                        self.accelerator.unwrap_model(self.model), PROJECTIONS, None
                    ),
                ),
            )
        if args.attention_weight:
            layers = args.teacher_layers
            parts["scores"] = (
                args.attention_weight,
                attention_score_loss(
                    outputs.attention_scores,
                    answers["attention_scores"],
                    mask,
                    layers=None if layers is None else [i - 1 if i else None for i in layers[1:]],
                ),
            )
        return parts

    def _soft(
        self, outputs: Any, answers: Mapping[str, Any], labels: Tensor, mask: Tensor | None
    ) -> Tensor:
        student = answers_by_step(outputs)
        chosen, wanted = class_choices(
            student,
            answers["answer"],
            labels,
            mask,
            head=head_of(cast(Any, self.model)),
            several_labels=self._several_labels,
        )
        if len(wanted) == 0:  # nothing has a label
            return 0 * student.sum()
        return soft_cross_entropy(chosen, wanted, temperature=self.args.temperature)

    def wanted_outputs(self) -> dict[str, Any]:
        """Options of the student's forward."""
        wanted: dict[str, Any] = {"output_hidden_states": self.args.hidden_weight > 0}
        if self.args.attention_weight:
            wanted["output_attention_scores"] = True
        return wanted

    def further_parts(
        self, outputs: Any, answers: Mapping[str, Any], mask: Tensor | None
    ) -> dict[str, tuple[float, Tensor]]:
        """Name -> weight and value of what else a subclass wants from the teacher's `answers`."""
        return {}

    @torch.no_grad()
    def _ask_teacher(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        for one in self._teachers:
            check_deterministic(one)
        inputs = {k: v for k, v in inputs.items() if k not in ("labels", *POSITIONS)}
        scored = attention_scores(self.teacher, self.args.attention_weight > 0)
        with scored as scores, self.accelerator.autocast():
            outputs = ask(self._teachers, inputs, self.args.hidden_weight > 0)
        return {**outputs, "attention_scores": scores}

    @contextmanager
    def _varied_timesteps(self, config: Any) -> Iterator[None]:
        """T of this step, from the number of the step (and the seed): the same after a resume."""
        saved, step = config.num_timesteps, self.state.global_step
        if self.args.collapsed_timesteps == "random":
            generator = torch.Generator().manual_seed(self.args.seed * 1_000_003 + step)
            config.num_timesteps = int(torch.randint(1, saved + 1, (), generator=generator))
        else:
            config.num_timesteps = STAGES[len(STAGES) * step // self.state.max_steps] * saved
        try:
            yield
        finally:
            config.num_timesteps = saved


class RealRows:
    """A data collator that refuses a row in which every position is padding."""

    def __init__(self, collator: Any):
        self.collator = collator

    def __call__(self, rows: Sequence[Any]) -> Any:
        batch = self.collator(rows)
        mask = batch.get("attention_mask")
        if mask is not None and not bool(mask.any(-1).all()):
            row = int(mask.any(-1).logical_not().nonzero()[0])
            raise ValueError(
                f"row {row} of a batch has only padding (attention_mask 0): leave empty texts out"
            )
        return batch


def check_options(model: PreTrainedModel, args: DistillationArguments) -> None:
    """Raises ValueError where an option would do nothing, or `model` has no use for it."""
    if not has_time_axis(model.config) and args.collapsed_timesteps != "fixed":
        raise ValueError(
            f"collapsed_timesteps={args.collapsed_timesteps!r} is for a spiking model, and this is a "
            f"{model.config.model_type}"
        )
    if args.attention_weight and not has_time_axis(model.config):
        raise ValueError(
            f"a {model.config.model_type} gives no attention scores to train: set attention_weight=0"
        )
    if args.collapsed_timesteps != "fixed" and not args.collapsed:
        raise ValueError(
            f"collapsed_timesteps={args.collapsed_timesteps!r} does nothing without collapsed=True"
        )
    if args.label_smoothing_factor and args.collapsed:
        raise ValueError(
            "label_smoothing_factor must be 0 with collapsed=True in distillation, got "
            f"{args.label_smoothing_factor}"
        )


def check_teacher(
    model: PreTrainedModel, teacher: PreTrainedModel, args: DistillationArguments
) -> None:
    """Raises ValueError where `model` cannot learn from `teacher`."""
    student, source = model.config, teacher.config
    check_shapes(student, source, args)
    if not args.logit_weight or head_of(model) is None:
        return
    if head_of(teacher) != head_of(model) and (head_of(teacher) or teacher.base_model is teacher):
        raise ValueError(
            f"the teacher, {type(teacher).__name__}, gives no such answers as {type(model).__name__} does: "
            "fine-tune one with the same head, or set logit_weight=0"
        )
    if answer_size(model) != answer_size(teacher):
        raise ValueError(
            f"the teacher has {source.num_labels} classes, the student {student.num_labels}"
        )
    if has_several_labels(student) != has_several_labels(source):
        raise ValueError(
            f"the student has problem_type {student.problem_type!r}, the teacher {source.problem_type!r}: "
            "one label a sample or several at once, it must be the same"
        )


def check_further_teacher(
    model: PreTrainedModel, teacher: PreTrainedModel, args: DistillationArguments
) -> None:
    """Raises ValueError where `model` cannot learn the logits of `teacher`, or does not learn logits."""
    if not args.logit_weight:
        raise ValueError(
            "further teachers give logits alone, and logit_weight is 0: leave them out"
        )
    answers_only = dataclasses.replace(args, hidden_weight=0.0, attention_weight=0.0)
    check_teacher(model, teacher, answers_only)


def check_shapes(
    student: PreTrainedConfig,
    teacher: PreTrainedConfig,
    args: DistillationArguments,
    weight_option: str = "attention_weight",
) -> None:
    """Raises ValueError where vocabulary, depth or heads of a student do not fit its teacher's.

    Args:
        weight_option: what the caller's user knows `args.attention_weight` by.
    """
    if student.vocab_size != teacher.vocab_size:
        raise ValueError(
            f"the teacher's vocabulary has {teacher.vocab_size} entries, the student's "
            f"{student.vocab_size}: both must read the same token ids"
        )
    if args.hidden_weight or args.attention_weight:
        states = student.num_hidden_layers + 1
        if args.teacher_layers is None:
            layer_map(student.num_hidden_layers, teacher.num_hidden_layers)
        elif len(args.teacher_layers) != states:
            raise ValueError(
                f"teacher_layers must name {states} hidden states (embedding first), got "
                f"{args.teacher_layers}"
            )
        elif not all(0 <= i <= teacher.num_hidden_layers for i in args.teacher_layers):
            raise ValueError(
                f"teacher_layers must be in 0..{teacher.num_hidden_layers}, the teacher's hidden states, "
                f"got {args.teacher_layers}"
            )
    if args.attention_weight and student.num_attention_heads != teacher.num_attention_heads:
        raise ValueError(
            f"attention scores need as many heads: the teacher has {teacher.num_attention_heads}, "
            f"the student {student.num_attention_heads}. Set {weight_option}=0 to leave them out"
        )
