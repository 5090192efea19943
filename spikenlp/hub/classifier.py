"""A text classifier that tells how it came to its answer: step by step, spikes, energy."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from spikenlp.analysis import energy_by_step, microjoules
from spikenlp.analysis.watching import Sent, unrolled, watch_neurons
from spikenlp.hub.results import MEASURED, RIVAL
from spikenlp.models.modes import check_chooses_one_label, exclusive
from spikenlp.models.spiking_bert import SpikingBertForSequenceClassification


@dataclass(frozen=True)
class Answer:
    """What a spiking classifier makes of one text. Plain numbers, for T steps, C classes, L tokens."""

    labels: list[str]
    tokens: list[str]
    probabilities: list[list[float]]
    """[T][C]: of the mean of the logits up to each step, i.e. of a model that stops there."""
    spikes: dict[str, list[list[float]]]
    """Layer of neurons -> [T][L], or [T][1] where only the first token is computed (in the last layer):
    spikes per neuron at each step and token, in [0, 1]."""
    spike_count: int
    neurons: int
    """Neurons that sent them: channels x tokens that are computed, over all layers."""
    energy_microjoules: list[float]
    """[T]: of an inference that stops at each step (float32, 45 nm, arithmetic alone)."""
    dense_microjoules: float
    """The same for the dense model of the same shape."""

    @property
    def label(self) -> str:
        return self.labels[self._best(-1)]

    @property
    def score(self) -> float:
        """Probability of `label`, in [0, 1]."""
        return max(self.probabilities[-1])

    def _best(self, step: int) -> int:
        return max(range(len(self.labels)), key=self.probabilities[step].__getitem__)

    def __str__(self) -> str:
        lines = [f"{self.label} ({self.score:.3f})"]
        for t, energy in enumerate(self.energy_microjoules):
            best = self._best(t)
            lines.append(
                f"  step {t + 1}: {self.labels[best]} ({self.probabilities[t][best]:.3f}), "
                f"{energy:.2f} uJ"
            )
        lines.append(
            f"  {self.spike_count:,} spikes, {self.spike_count / self.neurons:.2f} per neuron; a dense "
            f"model of this shape: {self.dense_microjoules:.2f} uJ"
        )
        return "\n".join(lines)


class SpikingClassifier:
    """Classifies a text and says how.

    Args:
        model: a sequence classifier of ours that chooses one of its labels, not collapsed.
        tokenizer: the one that belongs to it.

    >>> classify = SpikingClassifier.from_pretrained("outputs/sst2")
    >>> print(classify("A film that stays with you."))
    """

    def __init__(self, model: PreTrainedModel, tokenizer):
        if not isinstance(model, SpikingBertForSequenceClassification) or model.config.collapsed:
            raise ValueError(
                "SpikingClassifier needs a SpikingBertForSequenceClassification with time steps, got "
                f"{type(model).__name__} with collapsed={getattr(model.config, 'collapsed', None)}"
            )
        check_chooses_one_label(model.config)
        self.model = model.eval()
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike, **hub_options: Any) -> SpikingClassifier:
        """From a folder or Hub id (`hub_options`: `revision`, `token`, ...); weights that are stored in 16 bits
        are computed with in float32."""
        model = AutoModelForSequenceClassification.from_pretrained(
            path, dtype=torch.float32, **hub_options
        )
        return cls(model, AutoTokenizer.from_pretrained(path, **hub_options))

    @torch.no_grad()
    def __call__(self, text: str, text_pair: str | None = None) -> Answer:
        """Raises ValueError where there is no text. Longer texts than the model reads are cut. Threads wait for
        each other: spikes and energy are counted in the model."""
        if not text or not text.strip():
            raise ValueError(f"text must not be empty, got {text!r}")
        config = self.model.config
        batch = self.tokenizer(
            text,
            text_pair,
            truncation=True,
            max_length=config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.model.device)
        spikes: dict[str, torch.Tensor] = {}
        neurons = 0

        def count(sent: Sent) -> None:
            nonlocal neurons
            neurons += sent.levels[0].numel()
            spikes[sent.name] = sent.spikes().abs()[:, 0]

        with exclusive(self.model):
            with unrolled(self.model), watch_neurons(self.model, count):
                logits = self.model(**batch).timestep_logits[0].float()
            energy = microjoules(energy_by_step(self.model, batch))
        steps = torch.arange(1, len(logits) + 1, device=logits.device)[:, None]
        return Answer(
            labels=[config.id2label[i] for i in range(config.num_labels)],
            tokens=self.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist()),
            probabilities=(logits.cumsum(0) / steps).softmax(-1).tolist(),
            spikes={name: sent.mean(-1).tolist() for name, sent in spikes.items()},
            spike_count=int(sum(sent.sum() for sent in spikes.values())),
            neurons=neurons,
            energy_microjoules=energy[MEASURED],
            dense_microjoules=energy[RIVAL][-1],
        )


WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
"""Checkpoints that come with the package."""


def pretrained(name: str) -> SpikingClassifier:
    """A classifier whose weights come with spikenlp: no network, no training.

    Raises:
        ValueError: no such weights; the message names those there are.
    """
    there = sorted(p.parent.name for p in WEIGHTS.glob("*/config.json"))
    if name not in there:
        raise ValueError(
            f"no weights named {name!r} come with spikenlp; there are: {', '.join(there) or 'none'}. "
            "Others are loaded with SpikingClassifier.from_pretrained(path or Hub id)"
        )
    return SpikingClassifier.from_pretrained(WEIGHTS / name)
