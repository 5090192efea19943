"""Choosing when to stop, on validation data.

First a temperature for each step, which makes softmax(zbar_t / tau_t) as likely as it can be (NLL;
Guo et al., ICML 2017): a confidence then means the same at every step. Then one threshold for all
steps: a threshold a step would fit the noise of a validation set of some hundred samples T - 1 times
over. It is the lowest one from which on no higher threshold loses more accuracy than is allowed, so
that a lucky dip of the curve is not taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from spikenlp.inference.anytime import confidence_of, steps_of
from spikenlp.inference.policy import ExitPolicy, exit_point
from spikenlp.inference.state import advance, start
from spikenlp.metrics.calibration import negative_log_likelihood
from spikenlp.models.modes import check_chooses_one_label

if TYPE_CHECKING:
    from spikenlp.models.spiking_bert import SpikingBertForSequenceClassification

CANDIDATES = 500
"""Thresholds tried, at quantiles of the confidences."""
TEMPERATURE_RANGE = (0.05, 20.0)


@dataclass(frozen=True)
class Answers:
    """What a model says about labelled samples, step by step."""

    timestep_logits: Tensor
    """[N, T, C], float32 on the CPU."""
    labels: np.ndarray
    """int64 [N]."""
    energy: np.ndarray | None = None
    """Picojoules up to each step, float64 [N, T]."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_timesteps(self) -> int:
        return self.timestep_logits.shape[1]

    def logits(self, step: int) -> Tensor:
        """zbar_t [N, C]."""
        return self.timestep_logits[:, :step].mean(1)

    def confidence(self, policy: ExitPolicy) -> np.ndarray:
        """[N, T], at the policy's temperatures."""
        by_step = [
            confidence_of(self.logits(t), policy.temperature(t)).amax(-1)
            for t in range(1, self.num_timesteps + 1)
        ]
        return torch.stack(by_step, 1).numpy()

    def correct(self) -> np.ndarray:
        """Whether the prediction of each step is right, bool [N, T]."""
        steps = range(1, self.num_timesteps + 1)
        predicted = torch.stack([self.logits(t).argmax(-1) for t in steps], 1)
        return predicted.numpy() == self.labels[:, None]

    def select(self, rows: np.ndarray) -> Answers:
        energy = None if self.energy is None else self.energy[rows]
        return Answers(self.timestep_logits[rows], self.labels[rows], energy)


def collect_answers(
    model: SpikingBertForSequenceClassification,
    data: Iterable[Mapping[str, Any]],
    *,
    num_timesteps: int | None = None,
    energy: bool = False,
) -> Answers:
    """Runs all steps on labelled batches (dicts with "labels" [B]), in the model's eval mode.

    Raises:
        ValueError: no data, a batch without labels, labels that are no classes; see `anytime`.
    """
    check_chooses_one_label(model.config)
    steps = steps_of(model, num_timesteps)
    logits, labels, spent = [], [], []
    for batch in data:
        if "labels" not in batch:
            raise ValueError(f"each batch needs labels, got {sorted(batch)}")
        wanted = torch.as_tensor(batch["labels"]).cpu()
        if (
            wanted.is_floating_point()
            or wanted.dim() != 1
            or wanted.numel() == 0
            or not (int(wanted.min()) >= 0 and int(wanted.max()) < model.config.num_labels)
        ):
            raise ValueError(
                f"labels must be integers [B] in [0, {model.config.num_labels}), B > 0, got {wanted}"
            )
        state = start(model, batch, count_energy=energy)
        by_step = []
        for _ in range(steps):
            state = advance(model, state)
            by_step.append(state.energy)
        logits.append(state.timestep_logits.float().cpu())
        labels.append(wanted)
        if energy:
            spent.append(torch.stack(by_step, 1))  # type: ignore[arg-type]
    if not logits:
        raise ValueError("data holds no batch")
    return Answers(
        torch.cat(logits), torch.cat(labels).numpy(), torch.cat(spent).numpy() if energy else None
    )


def fit_temperatures(answers: Answers) -> tuple[float, ...]:
    """tau_1 ... tau_T, each the one of least NLL of softmax(zbar_t / tau), in TEMPERATURE_RANGE."""

    def fit(logits: Tensor) -> float:
        def loss(log_temperature: float) -> float:
            return negative_log_likelihood(logits / np.exp(log_temperature), answers.labels)

        bounds = tuple(np.log(TEMPERATURE_RANGE))
        return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))

    steps = range(1, answers.num_timesteps + 1)
    return tuple(fit(answers.logits(t).double()) for t in steps)


def choose_policy(answers: Answers, max_accuracy_drop: float) -> ExitPolicy:
    """`calibrate_exit` on answers that are already there."""
    if not 0 <= max_accuracy_drop < 1:
        raise ValueError(f"max_accuracy_drop must lie in [0, 1), got {max_accuracy_drop}")
    temperatures = fit_temperatures(answers)
    calibrated = ExitPolicy(temperatures=temperatures)
    confidence, correct = answers.confidence(calibrated), answers.correct()
    full = exit_point(confidence, correct, 1.0)
    chosen = full
    quantiles = np.linspace(0, 1, CANDIDATES + 1)
    tried = (
        np.quantile(confidence[:, :-1], quantiles, method="lower") if full.mean_steps > 1 else []
    )
    # Below the lowest confidence there is one more, where all stop at step 1.
    for threshold in np.unique([0.0, *tried] if len(tried) else tried)[::-1]:
        point = exit_point(confidence, correct, threshold)
        if full.accuracy - point.accuracy > max_accuracy_drop + 1e-12:
            break
        chosen = point
    return ExitPolicy(
        thresholds=(chosen.threshold,),
        temperatures=temperatures,
        num_timesteps=answers.num_timesteps,
        samples=len(answers),
        max_accuracy_drop=max_accuracy_drop,
        full_accuracy=full.accuracy,
        accuracy=chosen.accuracy,
        mean_steps=chosen.mean_steps,
    )


def calibrate_exit(
    model: SpikingBertForSequenceClassification,
    data: Iterable[Mapping[str, Any]],
    max_accuracy_drop: float = 0.005,
    *,
    num_timesteps: int | None = None,
) -> ExitPolicy:
    """Temperatures and the threshold that saves the most steps for at most so much accuracy.

    Args:
        model: a single-label classifier in eval mode.
        data: labelled batches (dicts with "labels" [B]) that the model was not trained on. Report
            the result on others: on these it is chosen.
        max_accuracy_drop: against all T steps, in [0, 1): 0.005 is half a point.
        num_timesteps: T (default: the config's).

    Raises:
        ValueError: see `collect_answers`; `max_accuracy_drop` outside [0, 1).

    >>> policy = calibrate_exit(model, dev_batches, 0.005)  # doctest: +SKIP
    >>> early_exit(model, batch, policy)  # doctest: +SKIP
    """
    return choose_policy(
        collect_answers(model, data, num_timesteps=num_timesteps), max_accuracy_drop
    )
