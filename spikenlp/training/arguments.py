"""Arguments of `SpikingTrainer`."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from transformers import TrainingArguments

from spikenlp.losses import TEMPORAL_LOSSES
from spikenlp.training.processes import check_processes


@dataclass
class SpikingTrainingArguments(TrainingArguments):
    """`TrainingArguments`, the temporal loss and a learning rate for the neurons.

    Raises:
        ValueError: an option out of range (see the help of each field).
        RuntimeError: a launcher was asked for several processes, and they do not train together.

    Warns:
        bf16 on an x86 CPU without AVX-512, where it is much slower than float32.
    """

    temporal_loss: str = field(
        default="tmc",
        metadata={
            "help": "Loss over time steps: sdt, tet, tmc or trt (see spikenlp.losses), or one of your own that "
            "was named in spikenlp.losses.TEMPORAL_LOSSES.",
            "choices": TEMPORAL_LOSSES,
        },
    )
    theta_reduction: Literal["batch", "sample"] = field(
        default="batch",
        metadata={"help": "TMC: odds of the batch's mean confidence, or of each sample's."},
    )
    theta_scope: Literal["local", "global"] = field(
        default="local",
        metadata={
            "help": "TMC with theta_reduction batch: mean confidence of each process's own batch, or of the "
            "batches of all processes, so that N processes equal one with the N-fold batch."
        },
    )
    theta_weight: str = field(
        default="auto",
        metadata={
            "help": "TMC: weight of the theta term. 'auto' is few_class_weight(number of classes), "
            "which tends to 1 for many classes; '1' is the literal paper."
        },
    )
    theta_lambda: Literal["linear", "constant"] = field(
        default="linear",
        metadata={"help": "TMC: exponents that fall over time (the paper), or 1 (its ablation)."},
    )
    theta_odds: bool = field(
        default=True,
        metadata={
            "help": "TMC: theta is the odds of the label; False: its probability (ablation)."
        },
    )
    tet_mse_weight: float = field(
        default=0.0, metadata={"help": "TET: weight in [0, 1] of the term MSE(z, 1)."}
    )
    neuron_learning_rate: float = field(
        default=1e-3,
        metadata={
            "help": "Learning rate of the neurons' parameters (amplitude, offset, threshold, decay), "
            "on the same schedule. They get no weight decay."
        },
    )
    collapsed: bool = field(
        default=False,
        metadata={
            "help": "Train the collapsed twin: each neuron rounds, without a time axis, at about the "
            "cost of a dense step and without a temporal loss (the model's own applies). It is not "
            "spiking; evaluation and the saved model are."
        },
    )

    spike_target: float = field(
        default=0.0,
        metadata={"help": "Spikes per neuron and inference above which spike_weight is paid for."},
    )
    spike_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the mean spikes per neuron and inference, above spike_target, in the "
            "loss. Energy falls with spikes, accuracy with too few."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_processes(self.world_size)
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                choices = " or ".join(map(repr, get_args(kind)))
                raise ValueError(f"{name} must be {choices}, got {getattr(self, name)!r}")
        if self.temporal_loss not in TEMPORAL_LOSSES:
            raise ValueError(
                f"temporal_loss must be one of {sorted(TEMPORAL_LOSSES)}, got {self.temporal_loss!r}"
            )
        if self.theta_scope == "global" and self.theta_reduction != "batch":
            raise ValueError(
                "theta_scope='global' needs theta_reduction='batch', got "
                f"{self.theta_reduction!r}, which takes no mean"
            )
        if self.theta_weight != "auto":
            try:
                valid = float(self.theta_weight) >= 0
            except ValueError:
                valid = False
            if not valid:
                raise ValueError(
                    f"theta_weight must be 'auto' or a number >= 0, got {self.theta_weight!r}"
                )
        for name in ("neuron_learning_rate", "spike_target", "spike_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if not 0 <= self.tet_mse_weight <= 1:
            raise ValueError(f"tet_mse_weight must be in [0, 1], got {self.tet_mse_weight}")
        if self.batch_eval_metrics:
            raise ValueError(
                "batch_eval_metrics must be False: metrics at each time step are of the whole eval set"
            )
        if not self.eval_do_concat_batches:
            raise ValueError(
                "eval_do_concat_batches must be True: metrics at each time step are of the whole eval set"
            )
        if self.spike_target and not self.spike_weight:
            raise ValueError(
                f"spike_target={self.spike_target} does nothing without spike_weight > 0"
            )
        for name in ("collapsed", "spike_weight"):
            if self.gradient_checkpointing and getattr(self, name):
                raise ValueError(
                    f"{name}={getattr(self, name)} cannot be combined with gradient_checkpointing=True, whose "
                    "recomputation in the backward pass would run another network: leave one out"
                )
        emulated = self.bf16 and torch.backends.cpu.get_cpu_capability() == "AVX2"
        if emulated and self.device.type == "cpu":
            warnings.warn(
                "bf16 on a CPU without AVX-512 is emulated, and many times slower than float32: leave "
                "bf16 out",
                stacklevel=2,
            )

    def temporal_loss_options(self) -> dict[str, Any]:
        """Options of the chosen loss, as `get_temporal_loss` takes them."""
        options: dict[str, Any] = {}
        if self.label_smoothing_factor:
            options["label_smoothing"] = self.label_smoothing_factor
        if self.temporal_loss == "tet":
            options["mse_weight"] = self.tet_mse_weight
        elif self.temporal_loss == "tmc":
            options["theta_reduction"] = self.theta_reduction
            options["theta_scope"] = self.theta_scope
            options["theta_lambda"] = self.theta_lambda
            options["theta_odds"] = self.theta_odds
            weight = self.theta_weight
            options["theta_weight"] = weight if weight == "auto" else float(weight)
        return options
