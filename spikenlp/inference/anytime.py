"""An answer after every time step, and an end as soon as each example is sure of it.

    zbar_t = (z_1 + ... + z_t) / t               the logits of a stop at step t
    p_t    = softmax(zbar_t / tau_t)             tau_t: temperature of step t, calibrated (Guo et al.,
    conf_t = max_c p_t[c]                        ICML 2017), 1 without calibration
    exit   = the first t with conf_t > threshold_t, or T

Confidence never exceeds 1: with a threshold of 1 nothing stops early.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spikenlp.inference.policy import ExitPolicy
from spikenlp.inference.state import AnytimeState, advance, start
from spikenlp.models.modes import check_chooses_one_label

if TYPE_CHECKING:
    from spikenlp.models.spiking_bert import SpikingBertForSequenceClassification


@dataclass(frozen=True)
class AnytimeStep:
    """What is known after one time step."""

    step: int
    """t, counted from the first step of the state that the run started from."""
    logits: Tensor
    """zbar_t [B, C]."""
    prediction: Tensor
    """int64 [B]."""
    confidence: Tensor
    """conf_t, float32 [B], in [1 / C, 1]."""
    energy: Tensor | None
    """Picojoules that each example has spent so far, float64 [B]; None where it is not counted."""
    state: AnytimeState
    """To go on from."""


@dataclass(frozen=True)
class EarlyExitOutput:
    """Each example at the step t where it stopped."""

    logits: Tensor
    """zbar_t [B, C]."""
    probabilities: Tensor
    """p_t, float32 [B, C]; its largest is the confidence, and the prediction."""
    steps: Tensor
    """t, int64 [B]."""
    energy: Tensor | None
    """Picojoules, float64 [B] on the CPU, where it was asked for."""


def anytime(
    model: SpikingBertForSequenceClassification,
    inputs: Mapping[str, Any] | None = None,
    *,
    state: AnytimeState | None = None,
    num_timesteps: int | None = None,
    temperature: float | Sequence[float] = 1.0,
    energy: bool = True,
) -> Iterator[AnytimeStep]:
    """Yields what the model knows after each time step; stop whenever it is enough.

    Args:
        model: a single-label classifier in eval mode.
        inputs: what `model(**inputs)` takes.
        state: in place of inputs: go on from `AnytimeStep.state`. T steps and T more are one run of
            2 T, bit for bit.
        num_timesteps: steps of this run, >= 1 (default: the config's).
        temperature: > 0, one for all steps or one for each (the last holds for later ones).
        energy: count each example's operations, by the conventions of `spikenlp.analysis.energy`,
            which takes time; a run that goes on counts if the one before it did. Threads that count wait for
            each other; no other thread may run the model meanwhile.

    Raises:
        ValueError: neither or both of inputs and state; a state of a model of another shape, or of no rows; a model that has
            no confidence (regression, several labels at once) or does not run step by step
            (collapsed, or another architecture than "default").

    >>> for step in model.anytime(tokenizer("a fine film", return_tensors="pt")):  # doctest: +SKIP
    ...     if step.confidence > 0.9:
    ...         break
    """
    if (inputs is None) == (state is None):
        raise ValueError("give exactly one of inputs and state")
    check_chooses_one_label(model.config)
    policy = ExitPolicy(temperatures=_sequence(temperature))
    steps = steps_of(model, num_timesteps)
    if state is None:
        assert inputs is not None
        state = start(model, inputs, count_energy=energy)

    def run(state: AnytimeState) -> Iterator[AnytimeStep]:
        for _ in range(steps):
            state = advance(model, state)
            logits = state.logits
            probabilities = confidence_of(logits, policy.temperature(state.step))
            confidence, prediction = probabilities.max(-1)
            yield AnytimeStep(state.step, logits, prediction, confidence, state.energy, state)

    return run(state)


def early_exit(
    model: SpikingBertForSequenceClassification,
    inputs: Mapping[str, Any],
    threshold: float | Sequence[float] | ExitPolicy,
    *,
    num_timesteps: int | None = None,
    energy: bool = False,
) -> EarlyExitOutput:
    """Classifies a batch; an example leaves it as soon as its confidence exceeds the threshold.

    Args:
        model: a single-label classifier in eval mode.
        inputs: what `model(**inputs)` takes.
        threshold: in [0, 1], one for all steps or one for each (the last holds for later ones), or
            the policy that `calibrate_exit` found. An example stops where its confidence is greater:
            at 1 none stops early.
        num_timesteps: T >= 1, where all that are left stop (default: the policy's, or the config's).
        energy: count each example's operations, which takes time.

    Raises:
        ValueError: a threshold outside [0, 1]; `num_timesteps` < 1; see `anytime`.

    >>> early_exit(model, batch, 0.9).steps  # doctest: +SKIP
    tensor([1, 4, 2, 1])
    """
    check_chooses_one_label(model.config)
    policy = as_policy(threshold)
    last = steps_of(model, policy.num_timesteps if num_timesteps is None else num_timesteps)
    state = start(model, inputs, count_energy=energy)
    left = torch.arange(len(state), device=state.embedding.device)
    found: list[tuple[Tensor, ...]] = []
    for step in range(1, last + 1):
        state = advance(model, state)
        logits = state.logits
        probabilities = confidence_of(logits, policy.temperature(step))
        stops = probabilities.amax(-1) > policy.threshold(step)
        if step == last:
            stops = torch.ones_like(stops)
        gone = stops.nonzero()[:, 0]
        if not len(gone):
            continue
        spent = logits.new_zeros(0) if state.energy is None else state.energy[gone.cpu()]
        found.append(
            (
                left[gone],
                logits[gone],
                probabilities[gone],
                gone.new_full((len(gone),), step),
                spent,
            )
        )
        if len(gone) == len(left):
            break
        stay = (~stops).nonzero()[:, 0]
        left, state = left[stay], state.select(stay)
    rows, logits, probabilities, steps, spent = (
        torch.cat(parts) for parts in zip(*found, strict=True)
    )
    order = rows.argsort()
    return EarlyExitOutput(
        logits=logits[order],
        probabilities=probabilities[order],
        steps=steps[order],
        energy=spent[order.cpu()] if energy else None,
    )


def as_policy(threshold: float | Sequence[float] | ExitPolicy) -> ExitPolicy:
    """The policy that `early_exit`'s argument stands for."""
    return threshold if isinstance(threshold, ExitPolicy) else ExitPolicy(_sequence(threshold))


def confidence_of(logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature) in float32."""
    return (logits.float() / temperature).softmax(-1)


def _sequence(value: float | Sequence[float]) -> tuple[float, ...]:
    return tuple(np.atleast_1d(np.asarray(value, dtype=np.float64)).tolist())


def steps_of(model: SpikingBertForSequenceClassification, num_timesteps: int | None) -> int:
    steps = num_timesteps if num_timesteps is not None else int(model.config.num_timesteps or 0)
    if steps < 1:
        raise ValueError(f"num_timesteps must be >= 1, got {steps}")
    return steps
