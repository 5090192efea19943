"""Callbacks for SpikingTrainer, and for any Trainer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from spikenlp.analysis.temporal import NORM_KEY, gradient_norm_tensors


class GradientNorms(TrainerCallback):
    """Adds the L2 norm of each module's gradient to what the Trainer logs, as grad_norm/<module>.

    Modules are those of `spikenlp.analysis.temporal.gradient_norms`. Norms are of the logged step and
    before clipping (`max_grad_norm`), as is the Trainer's own grad_norm: the root of the sum of their
    squares. They are in `trainer.state.log_history` and `trainer_state.json`, which
    `spikenlp.analysis.plots.plot_gradient_norms` draws; not in TensorBoard and the like, whose
    callbacks come first.

        SpikingTrainer(model, args, callbacks=[GradientNorms()], ...)
    """

    def __init__(self) -> None:
        self._norms: dict[str, Tensor] = {}

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self._norms = gradient_norm_tensors(kwargs["model"])

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        logs = kwargs["logs"]
        if not self._norms or "grad_norm" not in logs:
            return
        norms = torch.stack(list(self._norms.values())).tolist()
        # Clipping has scaled all gradients by the same factor.
        clipped = math.hypot(*norms)
        scale = logs["grad_norm"] / clipped if clipped else 1.0
        named = {NORM_KEY + k: scale * x for k, x in zip(self._norms, norms, strict=True)}
        state.log_history[-1].update(named)
