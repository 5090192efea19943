"""Callbacks that see what goes wrong in a training run, and say what to do about it.

| watchdog | sees | looks |
|---|---|---|
| `NonFiniteWatchdog` | a loss or gradient that is NaN or infinite | at each micro-batch |
| `FiringRateWatchdog` | layers that are dead (rate < 0.1 %) or saturated (> 99 %) | every N steps |
| `ThetaWatchdog` | TMC's theta at its bound too often | every N steps |

`SpikingTrainer` tells them of each micro-batch (`before_micro_batch`, `after_micro_batch`), because no
event of transformers' Trainer carries the batch or the loss, and the log hides a NaN loss by default
(`logging_nan_inf_filter`). Under transformers' plain Trainer `FiringRateWatchdog` works as well, and
`NonFiniteWatchdog` sees gradients alone.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from spikenlp.analysis.spikes import SpikeMonitor
from spikenlp.losses.collectives import several_processes
from spikenlp.losses.temporal import theta_at_bound
from spikenlp.neurons import SpikingNeuron
from spikenlp.training.arguments import SpikingTrainingArguments

logger = logging.getLogger(__name__)

SHOWN = 8
"""Names and rows that a message lists before it only counts."""


class Watchdog(TrainerCallback):
    """A callback that `SpikingTrainer` also tells of each micro-batch; `reports` holds what it said."""

    def __init__(self) -> None:
        self.reports: list[str] = []

    def before_micro_batch(self, trainer: Any, inputs: Mapping[str, Any]) -> None:
        """`inputs`: the batch as the data loader gives it, on any device."""

    def after_micro_batch(self, trainer: Any, inputs: Mapping[str, Any], loss: Tensor) -> None:
        """After the backward pass, before clipping; `loss`: of this micro-batch, detached."""

    def close(self) -> None:
        """When training ends, by an error too: takes off the model what it put there."""

    def report(self, message: str) -> None:
        self.reports.append(message)
        logger.warning(message)


def watchdogs(model: nn.Module, args: SpikingTrainingArguments) -> list[Watchdog]:
    """The watchdogs, with their defaults, that a run has a use for.

    >>> SpikingTrainer(model, args, callbacks=watchdogs(model, args))  # doctest: +SKIP
    """
    found: list[Watchdog] = [NonFiniteWatchdog()]
    if any(isinstance(module, SpikingNeuron) for module in model.modules()):
        found.append(FiringRateWatchdog())
    if args.temporal_loss == "tmc" and args.theta_odds and not args.collapsed:
        found.append(ThetaWatchdog())
    return found


# --- losses and gradients ------------------------------------------------------------------------


@dataclass
class _MicroBatch:
    """What a micro-batch left, on the device: the host reads it once a step."""

    inputs: Mapping[str, Any]
    loss: Tensor
    broken: Tensor
    """Whether each of loss and gradients so far is not finite, [1 + gradients]."""
    names: list[str]
    """Of the gradients."""


class NonFiniteWatchdog(Watchdog):
    """Stops at, or skips, an optimizer step whose loss or gradient is NaN or infinite.

    The message says the step, the parameters with such a gradient, the rows of the batch whose logits,
    labels or inputs are not finite, the first layer that sends such a value, and what to do. For the
    last two the batch runs through the model once more, with other dropout. All processes stop or skip
    together, each with a message on its own batch.

    A skipped step leaves weights, optimizer and the model's buffers (batch norm's statistics) as they
    were; the step counts, and the learning rate's schedule goes on. With fp16 an overflow of the scaled
    gradient alone is left to torch's GradScaler, which skips such steps and lowers its scale.

    Args:
        action: "stop" raises, with the weights as they were before the step; "skip" goes on.
        max_skips_in_a_row: with "skip", it stops after so many steps without one good one.

    Raises:
        ValueError: an argument outside the above; "skip" with DeepSpeed, which steps by itself.
        FloatingPointError: in training, where it stops.

    >>> SpikingTrainer(model, args, callbacks=[NonFiniteWatchdog(action="skip")])  # doctest: +SKIP
    """

    def __init__(
        self, action: Literal["stop", "skip"] = "stop", *, max_skips_in_a_row: int = 10
    ) -> None:
        super().__init__()
        if action not in ("stop", "skip"):
            raise ValueError(f"action must be 'stop' or 'skip', got {action!r}")
        if max_skips_in_a_row < 1:
            raise ValueError(f"max_skips_in_a_row must be >= 1, got {max_skips_in_a_row}")
        self.action = action
        self.max_skips_in_a_row = max_skips_in_a_row
        self.skipped: list[int] = []
        """Steps that were skipped, from 1."""
        self._in_a_row = 0
        self._micro_batches: list[_MicroBatch] = []
        self._buffers: list[Tensor] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.action == "skip" and args.deepspeed:
            raise ValueError("action='skip' has no effect on DeepSpeed's optimizer: use 'stop'")
        self._in_a_row = 0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._micro_batches = []
        self._buffers = [buffer.clone() for buffer in kwargs["model"].buffers()]

    def before_micro_batch(self, trainer: Any, inputs: Mapping[str, Any]) -> None:
        # A loss that raises would leave this process' peers waiting for its gradient.
        if trainer.compute_loss_func is not None:
            trainer.compute_loss_func.non_finite = "nan"

    @torch.no_grad()
    def after_micro_batch(self, trainer: Any, inputs: Mapping[str, Any], loss: Tensor) -> None:
        if trainer.compute_loss_func is not None:
            trainer.compute_loss_func.non_finite = "raise"
        names: list[str] = []
        broken = [~loss.isfinite().all()[None]]
        if trainer.accelerator.scaler is None:
            names, gradients = broken_gradients(trainer.model)
            broken.append(gradients)
        self._micro_batches.append(_MicroBatch(inputs, loss, torch.cat(broken), names))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model, scaler = kwargs["model"], getattr(kwargs.get("optimizer"), "scaler", None)
        broken = [batch.broken for batch in self._micro_batches]
        if not broken and scaler is None:  # transformers' own Trainer, which tells of no batch
            broken = [broken_gradients(model)[1]]
        if not _any_process(broken, args.device):
            self._in_a_row = 0
            self._micro_batches = []  # the next step's batches are loaded before it begins
            return
        step = state.global_step + 1
        message = f"step {step}: {self._diagnose(model, args)}"
        if scaler is None:
            model.zero_grad(set_to_none=True)  # an optimizer changes nothing without a gradient
        for buffer, before in zip(model.buffers(), self._buffers, strict=True):
            buffer.copy_(before)
        self._in_a_row += 1
        if self.action == "stop":
            self.reports.append(message)
            raise FloatingPointError(f"{message} The weights are those from before the step.")
        self.skipped.append(step)
        self.report(f"{message} The step is skipped.")
        if self._in_a_row >= self.max_skips_in_a_row:
            raise FloatingPointError(
                f"{message} {self._in_a_row} steps in a row were skipped; the weights are those from "
                "before them."
            )

    def _diagnose(self, model: nn.Module, args: TrainingArguments) -> str:
        for batch in self._micro_batches:
            loss_broken, *broken = batch.broken.tolist()
            names = [name for name, bad in zip(batch.names, broken, strict=True) if bad]
            if loss_broken:
                return diagnose(
                    model, f"the loss is {batch.loss.item()}", batch.inputs, names, args
                )
            if names:
                return diagnose(model, "the gradient is not finite", batch.inputs, names, args)
        if self._micro_batches:
            what = "another process' loss or gradient is not finite"
            return diagnose(model, what, self._micro_batches[-1].inputs, [], args)
        names, gradients = broken_gradients(model)
        names = [name for name, bad in zip(names, gradients.tolist(), strict=True) if bad]
        return diagnose(model, "the gradient is not finite", None, names, args)


def broken_gradients(model: nn.Module) -> tuple[list[str], Tensor]:
    """Names of the parameters that have a gradient, and whether it holds a NaN or an infinity: a
    boolean tensor on the device."""
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    if not found:
        return [], torch.zeros(0, dtype=torch.bool, device=next(model.parameters()).device)
    # The sum of magnitudes: the largest is not defined where a process holds no row of a parameter.
    dtype = functools.reduce(torch.promote_types, (g.dtype for g in found.values()), torch.float32)
    norms: Any = torch._foreach_norm(list(found.values()), 1, dtype=dtype)
    norms = torch.stack([norm.to(norms[0].device) for norm in norms])
    norms = norms.full_tensor() if hasattr(norms, "full_tensor") else norms
    return list(found), ~norms.isfinite()


def _any_process(broken: list[Tensor], device: torch.device) -> bool:
    flag = torch.cat(broken).any() if broken else torch.zeros((), dtype=torch.bool, device=device)
    if several_processes():
        flag = flag.float()
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)


def diagnose(
    model: nn.Module,
    what: str,
    batch: Mapping[str, Any] | None,
    gradients: list[str],
    args: TrainingArguments,
) -> str:
    """What is wrong, where, and what a practitioner would try."""
    said = [what]
    parameters = [n for n, p in model.named_parameters() if not bool(p.isfinite().all())]
    inputs: list[str] = []
    layer = ""
    if batch is not None:
        layer, rows = trace_non_finite(model, batch, args.device)
        inputs = [name for name in rows if name != "logits"]
        said += [f"{name} not finite in {_rows(bad)}" for name, bad in rows.items()]
        if not rows:
            said.append("every row's inputs, labels and logits are finite")
    if layer:
        said.append(f"the first layer to send a non-finite value is {layer}")
    if parameters:
        said.append(f"parameters not finite: {_listed(parameters)}")
    if gradients:
        said.append(f"gradients not finite: {_listed(gradients)}")
    if inputs:
        advice = "take these rows out of the data, or repair them"
    elif parameters:
        advice = (
            "go back to the last checkpoint from before; then lower the learning rate, warm up longer "
            "and clip (max_grad_norm=1)"
        )
    elif args.fp16:
        advice = "use bf16 in place of fp16, whose largest number is 65504; else float32"
    else:
        advice = (
            "lower the learning rate, clip (max_grad_norm=1), warm up longer; run this batch in float32 "
            "to see whether bf16 is the cause; look for amplitudes or thresholds near 0, and recalibrate"
        )
    return f"{'; '.join(said)}. Advice: {advice}."


def trace_non_finite(
    model: nn.Module, inputs: Mapping[str, Any], device: torch.device
) -> tuple[str, dict[str, list[int]]]:
    """The first module whose output is not finite ("" if there is none), and for the batch's inputs,
    labels and logits the rows that are not, in a forward pass without gradient."""
    moved = {k: v.to(device) for k, v in inputs.items() if isinstance(v, Tensor)}
    known = inspect.signature(model.forward).parameters
    fed = {k: v for k, v in moved.items() if k in known and "label" not in k}
    first: list[str] = []

    def look(name: str):
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not first and any(not bool(x.isfinite().all()) for x in _tensors(output)):
                first.append(name)

        return hook

    devices = [device] if device.type == "cuda" else []
    kept = [buffer.clone() for buffer in model.buffers()]
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(torch.no_grad())
        for name, module in model.named_modules():
            handle = module.register_forward_hook(look(name or type(model).__name__))
            stack.callback(handle.remove)
        outputs = model(**fed)
    for buffer, before in zip(model.buffers(), kept, strict=True):
        buffer.copy_(before)
    if isinstance(outputs, Mapping) and isinstance(outputs.get("logits"), Tensor):
        moved["logits"] = outputs["logits"]
    rows = {}
    for name, value in moved.items():
        if value.dim() and value.is_floating_point():
            bad = value.isfinite().logical_not().reshape(len(value), -1).any(1)
            if bool(bad.any()):
                rows[name] = bad.nonzero()[:, 0].tolist()
    return (first[0] if first else ""), rows


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        yield from (x for value in output.values() for x in _tensors(value))
    elif isinstance(output, tuple | list):
        yield from (x for value in output for x in _tensors(value))


def _listed(names: list[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _rows(rows: list[int]) -> str:
    return f"{'row' if len(rows) == 1 else 'rows'} {_listed([str(row) for row in rows])}"


# --- firing rates --------------------------------------------------------------------------------


class FiringRateWatchdog(Watchdog):
    """Warns of layers of neurons that hardly fire, and of layers that always do.

    Rates are those of training batches, up to the last time step at which a neuron fires, padding left out, every
    `every` steps; a layer is reported
    when it becomes dead or saturated, and not again while it stays so. Steps of the collapsed twin,
    which sends no spikes, are not looked at. With torch_compile a step that is looked at runs eagerly.

    Args:
        every: optimizer steps from one look to the next, the first being at step 1.
        dead, saturated: bounds of the rate (spikes of either sign per neuron and step), in [0, 1]. Neurons that send
            bursts are not looked at for the second: theirs may exceed 1.

    Raises:
        ValueError: an argument outside the above; in training, a model without spiking neurons.

    >>> SpikingTrainer(model, args, callbacks=[FiringRateWatchdog(every=50)])  # doctest: +SKIP
    """

    def __init__(self, every: int = 100, *, dead: float = 0.001, saturated: float = 0.99) -> None:
        super().__init__()
        self.every = _checked_every(every)
        if not 0 <= dead < saturated <= 1:
            raise ValueError(
                f"0 <= dead < saturated <= 1 must hold, got dead={dead}, saturated={saturated}"
            )
        self.dead, self.saturated = dead, saturated
        self.rates: dict[str, float] = {}
        """Of the last look, by layer."""
        self._known: set[tuple[str, bool]] = set()
        self._looking = ExitStack()
        self._monitor: SpikeMonitor | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._looking.close()
        if state.global_step % self.every or getattr(args, "collapsed", False):
            return
        if args.torch_compile:
            self._looking.enter_context(_eagerly())
        self._monitor = self._looking.enter_context(SpikeMonitor(kwargs["model"]))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._looking.close()
        if self._monitor is None:
            return
        layers = self._monitor.layers
        ends = (c.rate_by_step.nonzero().amax() + 1 for c in layers.values() if c.rate > 0)
        ran = int(max(ends, default=1))  # with `settle_tolerance` fewer than T
        self.rates = {k: c.spikes_per_neuron / min(ran, len(c.positive)) for k, c in layers.items()}
        self._monitor = None
        dead = {(name, False) for name, rate in self.rates.items() if rate < self.dead}
        saturated = {
            (name, True)
            for name, rate in self.rates.items()
            if rate > self.saturated and layers[name].burst == 1
        }
        new = (dead | saturated) - self._known
        self._known = dead | saturated
        if not state.is_local_process_zero:
            return
        for kind, bound, advice in (
            (False, f"dead (rate < {self.dead:.2%})", DEAD_ADVICE),
            (True, f"saturated (rate > {self.saturated:.0%})", SATURATED_ADVICE),
        ):
            names = [name for name in self.rates if (name, kind) in new]
            if names:
                shown = _listed([f"{name} ({self.rates[name]:.2%})" for name in names])
                self.report(
                    f"step {state.global_step}: {len(names)} of {len(self.rates)} layers of neurons "
                    f"became {bound}: {shown}. Advice: {advice}."
                )

    def close(self) -> None:
        self._looking.close()


DEAD_ADVICE = (
    "a layer without spikes passes nothing on and learns slowly or not at all. Recalibrate amplitudes or "
    "thresholds on a few batches (calibrate, or from_dense with calibration=...), lower "
    "neuron_learning_rate and spike_weight, or start classic neurons from a lower v_threshold or a wider "
    "surrogate"
)
SATURATED_ADVICE = (
    "a layer that always fires tells its inputs apart no more. Recalibrate amplitudes or thresholds on a "
    "few batches (the input has outgrown them), lower neuron_learning_rate and the learning rate, add "
    "spike_weight, or normalise what the layer reads"
)


@contextmanager
def _eagerly() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"):
        yield


def _checked_every(every: int) -> int:
    if every < 1:
        raise ValueError(f"every must be >= 1 optimizer steps, got {every}")
    return every


# --- TMC's theta ---------------------------------------------------------------------------------


class ThetaWatchdog(Watchdog):
    """Warns where TMC's theta lies at its bound (`THETA_MAX`, confidence 0.9999) too often.

    There the theta term is constant and TMC is the plain cross entropy. Looked at every `every` steps;
    what counts is the mean share of the last `window` looks. It warns when that passes `share`, and
    again only after it has fallen below. It needs `SpikingTrainer` with temporal_loss="tmc".

    Args:
        every: optimizer steps from one look to the next.
        share: of the thetas (of each step, and with theta_reduction="sample" each sample), in (0, 1).
        window: looks, >= 1.

    Raises:
        ValueError: an argument outside the above; in training, another loss than TMC.

    >>> SpikingTrainer(model, args, callbacks=[ThetaWatchdog(share=0.2)])  # doctest: +SKIP
    """

    def __init__(self, every: int = 10, *, share: float = 0.5, window: int = 10) -> None:
        super().__init__()
        self.every = _checked_every(every)
        if not 0 < share < 1:
            raise ValueError(f"share must be in (0, 1), got {share}")
        if window < 1:
            raise ValueError(f"window must be >= 1 looks, got {window}")
        self.share = share
        self.looks: deque[float] = deque(maxlen=window)
        """Shares of the thetas at their bound, of the last looks."""
        self._too_often = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        loss = getattr(args, "temporal_loss", None)
        if loss != "tmc" or not getattr(args, "theta_odds", True):
            raise ValueError(
                "ThetaWatchdog watches the theta of temporal_loss='tmc' (theta_odds=True); this run "
                f"has {loss!r}"
            )

    def before_micro_batch(self, trainer: Any, inputs: Mapping[str, Any]) -> None:
        if trainer.state.global_step % self.every == 0 and trainer.compute_loss_func is not None:
            args = trainer.args

            def look(timestep_logits: Tensor, labels: Tensor) -> None:
                at_bound = theta_at_bound(
                    timestep_logits,
                    labels,
                    theta_reduction=args.theta_reduction,
                    theta_scope=args.theta_scope,
                )
                self.looks.append(float(at_bound.float().mean()))

            trainer.compute_loss_func.observer = look

    def after_micro_batch(self, trainer: Any, inputs: Mapping[str, Any], loss: Tensor) -> None:
        if trainer.compute_loss_func is None or trainer.compute_loss_func.observer is None:
            return
        trainer.compute_loss_func.observer = None
        share = sum(self.looks) / max(len(self.looks), 1)
        before, self._too_often = self._too_often, share > self.share
        if self._too_often and not before and trainer.is_local_process_zero():
            sample = trainer.args.theta_reduction == "sample"
            self.report(
                f"step {trainer.state.global_step + 1}: {share:.0%} of TMC's thetas lie at their bound "
                f"(mean of the last {len(self.looks)} looks; more than {self.share:.0%} is too often), "
                "where the theta term has no gradient and TMC is cross entropy. Advice: the model is "
                "surer than 0.9999 of its training labels, so stop earlier, lower the learning rate, add "
                "label_smoothing_factor or dropout, or look for labels that leak into the inputs"
                + ("; theta_reduction='batch' reaches the bound later." if sample else ".")
            )
