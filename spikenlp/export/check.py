"""Whether an exported graph is the model, spike by spike.

Two correct programs that add floats in another order differ in the last bits, and a membrane potential
that is within them of the threshold fires in one and not in the other: over the millions of decisions of
one batch it happens. What comes after such a spike differs too. So equality of all spikes would refuse
correct graphs, and a count of differing spikes would tell nothing. Compared is, for each neuron, what
decides:

1. Given the current that the graph computed, the neuron sends exactly the spikes that the graph sent.
   No tolerance: these are the same few float32 operations.
2. In a sample where no neuron before it sent another spike, the current that a neuron reads is the
   model's, within `TOLERANCE` of the layer's largest.
3. In samples without another spike the logits of every step are the model's, and so the answers.

A neuron translated wrongly breaks 1, anything between neurons 2, the head 3. What passes and still has
another spike was that close to the threshold: a tie. The samples that have one are reported, and those
among them whose answer it changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from spikenlp.analysis.watching import Sent, watch_neurons
from spikenlp.neurons import SpikingNeuron

TOLERANCE = 2e-5
"""Of the largest value of a layer; float32 keeps 24 bits, sums of a thousand terms about 20 of them."""


@dataclass(frozen=True)
class Agreement:
    """What an export was compared on."""

    samples: int
    timestep_logits_error: float
    """Largest difference of a logit, in samples without a tie."""
    neurons: int | None = None
    """Spike decisions that were compared, at real positions; None: the bits of the logits were."""
    ties: list[int] = field(default_factory=list)
    """Samples in which a membrane potential was so close to its threshold that float rounding decided."""
    changed_answers: list[int] = field(default_factory=list)
    """Those of `ties` whose answer differs at some step."""


@dataclass(frozen=True)
class FiringNeuron:
    name: str
    neuron: SpikingNeuron
    running: bool


def compare(
    order: Sequence[FiringNeuron],
    expected: Sequence[Tensor],
    found: Sequence[Tensor],
    real: Tensor | None = None,
    *,
    several_labels: bool = False,
) -> Agreement:
    """Compares what `Steps(neurons=True)` gave with what the exported graph gave.

    Args:
        order: the neurons.
        expected, found: logits [B, T, ...], and current and spikes of each neuron.
        real: positions [B, L] that count, or None.
        several_labels: the answer is each label by itself, there where its logit is above 0.

    Raises:
        ValueError: names the neuron and the step that does not agree; or every sample has a tie, so
            that the end of the graph was not compared.
    """
    samples = len(expected[0])
    tied = torch.zeros(samples, dtype=torch.bool)
    decisions = 0
    for i, firing in enumerate(order):
        current, spikes = (x[1 + 2 * i : 3 + 2 * i] for x in (expected, found))
        (a, of_model), (b, of_graph) = current, spikes
        _same_shape(f"spikes of {firing.name}", of_model, of_graph)
        shown = _real_positions(of_model, real)
        decisions += int(shown.expand(of_model.shape).sum())
        difference = ((a - b).abs() * shown[:, : a.shape[1]]).flatten(1).amax(1)
        allowed = TOLERANCE * float((a.abs() * shown[:, : a.shape[1]]).max())
        wrong = (difference > allowed) & ~tied
        if wrong.any() or not bool(b.isfinite().all()):
            raise ValueError(
                f"the current that {firing.name} reads differs from the model's by "
                f"{float(difference[wrong].max()) if wrong.any() else float('nan'):g} (up to {allowed:g} "
                "is float rounding): the exported graph is not kept"
            )
        again = _spikes(firing, b, of_graph.shape[1])
        changed = (again != of_graph) & shown
        if changed.any():
            sample, step = (int(n) for n in changed.nonzero()[0][:2])
            raise ValueError(
                f"{firing.name} sends {int(changed.sum())} other spikes in the exported graph than "
                f"the model does with the same current, the first at step {step + 1} of sample "
                f"{sample}: the exported graph is not kept"
            )
        tied |= ((of_model != of_graph) & shown).flatten(1).any(1)
    if tied.all():
        raise ValueError(
            f"in all {samples} samples a membrane potential is at its threshold within float rounding, "
            "so that what comes after was not compared: give a larger batch"
        )
    ties = tied.nonzero().flatten().tolist()
    agreement = Agreement(samples, 0.0, decisions, ties)
    return compare_logits(expected[0], found[0], agreement, several_labels=several_labels)


def compare_logits(
    expected: Tensor, found: Tensor, agreement: Agreement, *, several_labels: bool = False
) -> Agreement:
    """`agreement` on spikes, with what logits [B, T, ...] add to it.

    Raises:
        ValueError: logits of another shape, or that differ by more than float rounding in a sample
            without a tie.
    """
    _same_shape("timestep_logits", expected, found)
    tied = torch.zeros(len(expected), dtype=torch.bool)
    tied[agreement.ties] = True
    difference = float((expected - found)[~tied].abs().max())
    allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
    if not difference <= allowed:
        raise ValueError(
            f"timestep_logits differ by {difference:g} where all spikes are the same (up to "
            f"{allowed:g} is float rounding): the exported graph is not kept"
        )
    sums = [x.cumsum(1) for x in (expected, found)]
    answers = [(x > 0 if several_labels else x.argmax(-1)).flatten(1) for x in sums]
    changed = (answers[0] != answers[1]).any(1) & tied
    return replace(
        agreement,
        timestep_logits_error=difference,
        changed_answers=changed.nonzero().flatten().tolist(),
    )


def _same_shape(what: str, expected: Tensor, found: Tensor) -> None:
    """Raises ValueError where they would only be broadcast to each other."""
    if expected.shape != found.shape:
        raise ValueError(
            f"{what} have the shape {tuple(found.shape)} in the exported graph, and "
            f"{tuple(expected.shape)} in the model: the exported graph is not kept"
        )


def _real_positions(spikes: Tensor, real: Tensor | None) -> Tensor:
    """True where a spike [B, T, ...] counts, broadcastable to it, with a time axis of size T."""
    shown = torch.ones(1, spikes.shape[1], *[1] * (spikes.dim() - 2), dtype=torch.bool)
    if real is not None and spikes.dim() == 4 and spikes.shape[2] == real.shape[1]:
        shown = shown & real.bool()[:, None, :, None]
    return shown


@torch.no_grad()
def _spikes(firing: FiringNeuron, current: Tensor, steps: int) -> Tensor:
    """What the neuron sends at `current` [B, T or 1, ...], as int8 [B, T, ...]."""
    sent: list[Sent] = []
    options = {"running": True} if firing.running else {}
    with torch.compiler.set_stance("force_eager"), watch_neurons(firing.neuron, sent.append):
        firing.neuron(current.transpose(0, 1), num_timesteps=steps, **options)
    return sent[0].levels.round().to(torch.int8).transpose(0, 1)
