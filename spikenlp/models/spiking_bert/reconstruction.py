"""Weights fitted to the spikes that reach them: layer-wise reconstruction, without training.

With the weights of a dense model a layer makes of spikes what the dense one makes of activations, and in it
carries on the errors of its input: rounding, and what neurons that saturated on the way still held back at
step T. `reconstruct` goes through the encoder from the first layer to the last and fits each weight matrix
that reads spikes by ridge regression on a few batches,

    min_{W, b}  sum_n || W s_n + b - y_n ||^2 + lambda || W - W_0 ||^2 .

s_n is the mean over time of the spikes at token n, as the layers before it, fitted already, send them; W_0
the weight before; lambda `ridge` times the mean over channels of sum_n s_n^2. y_n is what the network
without rounding computes there; where the result is added to the residual stream, y_n is what that sum
lacks, so that a layer also makes good errors of the stream. There are no labels and no gradient steps, and
amplitudes stay as they are.

Layer-wise reconstruction is known from quantization (AdaRound, Nagel et al., ICML 2020) and from spiking
convolutional networks (Li et al., ICML 2021, arXiv 2106.06984), there by gradient descent.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spikenlp.models.calibration import dense_neurons
from spikenlp.models.over_time import NONLINEARITIES
from spikenlp.models.spiking_bert.conversion_spiking_bert import model_inputs

STAGES: tuple[tuple[tuple[str, ...], str | None], ...] = (
    (("attention.self.query", "attention.self.key", "attention.self.value"), None),
    (("attention.output.dense",), "attention.output.LayerNorm"),
    (("intermediate.dense",), None),
    (("output.dense",), "output.LayerNorm"),
)
"""In the order of a layer: the linear layers that read the same spikes, and the LayerNorm of the sum to which
their result is added."""


def reconstruct(
    model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]], *, ridge: float = 0.1
) -> None:
    """Fits the encoder's weights to its own spikes, in place.

    Args:
        model: a spiking BERT of the architecture "default", converted and calibrated, at the T that it
            will run with; with or without a head.
        batches: dicts with input_ids [B, L] and what else the base model takes; a few hundred sentences
            of the kind that the model will see. Padding is left out.
        ridge: > 0; the smaller, the farther the weights go from where they were.

    Raises:
        ValueError: another architecture; a collapsed model; no batch; `ridge` not above 0.
    """
    config = model.config
    if config.architecture != "default" or config.collapsed:
        raise ValueError(
            "reconstruct fits weights to the spikes of the architecture 'default', got architecture="
            f"{config.architecture!r}, collapsed={config.collapsed}"
        )
    if not ridge > 0:
        raise ValueError(f"ridge must be > 0, got {ridge}")
    inputs = [model_inputs(batch, model.device) for batch in batches]
    if not inputs:
        raise ValueError("reconstruction needs data: give at least one batch")
    training = model.training
    exact = copy.deepcopy(model.eval())
    with torch.no_grad(), dense_neurons(exact, lambda *_: None):
        walks = [(_Walk(model, batch), _Walk(exact, batch)) for batch in inputs]
        for index in range(config.num_hidden_layers):
            for names, norm in STAGES:
                _fit(index, names, norm, walks, ridge)
            for walk in (walk for pair in walks for walk in pair):
                walk.advance(index)
    model.train(training)


class _Walk:
    """One batch on its way through the layers of a model."""

    def __init__(self, model: PreTrainedModel, batch: dict[str, Tensor]):
        self.layers = model.base_model.encoder.layer
        self.time_mean = NONLINEARITIES[model.config.nonlinearity].time_mean
        mask = batch.get("attention_mask")
        if mask is not None and not mask.any():
            raise ValueError("reconstruction data holds only padding: check its attention_mask")
        self.real = slice(None) if mask is None else mask.flatten().bool()
        calls: list = []
        hook = self.layers[0].register_forward_pre_hook(
            lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
        )
        model.base_model(**batch)
        hook.remove()
        ((self.stream, *self.rest), self.options) = calls[0]

    def advance(self, index: int) -> None:
        self.stream, _ = self.layers[index](self.stream, *self.rest, **self.options)

    def look(self, index: int, names: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """Means over time of input and output of sub-modules of a layer, of the N real tokens [N, ...]."""
        seen: dict[str, tuple[Tensor, Tensor]] = {}

        def keep(name: str):
            def hook(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
                seen[name] = self._tokens(args[0]), self._tokens(out)

            return hook

        layer = self.layers[index]
        hooks = [layer.get_submodule(n).register_forward_hook(keep(n)) for n in names]
        layer(self.stream, *self.rest, **self.options)
        for hook in hooks:
            hook.remove()
        return seen

    def _tokens(self, x: Tensor) -> Tensor:
        return self.time_mean(x).flatten(0, 1)[self.real].float()


def _fit(
    index: int,
    names: tuple[str, ...],
    norm: str | None,
    walks: Sequence[tuple[_Walk, _Walk]],
    ridge: float,
) -> None:
    """Adds to the [W b] of one stage what the normal equations say: (S' S + lambda) d = S' lacking."""
    gram: Tensor | float = 0.0
    cross: dict[str, Tensor | float] = dict.fromkeys(names, 0.0)
    for spiking, exact in walks:
        looked_at = (*names, norm) if norm else names
        found, wanted = spiking.look(index, looked_at), exact.look(index, looked_at)
        sent = found[names[0]][0]
        rows = torch.cat([sent, torch.ones_like(sent[:, :1])], 1)
        gram = gram + rows.t() @ rows
        for name in names:
            lacking = wanted[norm][0] - found[norm][0] if norm else wanted[name][1] - found[name][1]
            cross[name] = cross[name] + rows.t() @ lacking
    assert isinstance(gram, Tensor)
    penalty = gram.diagonal().new_full((len(gram),), ridge * float(gram.diagonal()[:-1].mean()))
    penalty[-1] = 0  # the bias is free
    for name in names:
        linear = walks[0][0].layers[index].get_submodule(name)
        change = torch.linalg.solve((gram + penalty.diag()).double(), cross[name].double()).t()
        linear.weight += change[:, :-1].to(linear.weight)
        linear.bias += change[:, -1].to(linear.bias)
