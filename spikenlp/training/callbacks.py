"""Callbacks for SpikingTrainer, and for any Trainer."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from spikenlp.analysis.temporal import gradient_norms


class GradientNorms(TrainerCallback):
    """Adds the L2 norm of each layer's gradient to what the Trainer logs, as grad_norm/<module>.

    Norms are those of the step that is logged, after clipping (`max_grad_norm`).

    >>> trainer = SpikingTrainer(model, args, callbacks=[GradientNorms()], ...)
    """

    def __init__(self) -> None:
        self._norms: dict[str, float] = {}

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        step = state.global_step + 1
        logged = step % max(int(state.logging_steps), 1) == 0
        if model is not None and (logged or (step == 1 and args.logging_first_step)):
            self._norms = gradient_norms(model)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is not None and "loss" in logs and state.log_history:
            named = {f"grad_norm/{name}": norm for name, norm in self._norms.items()}
            state.log_history[-1].update(named)
