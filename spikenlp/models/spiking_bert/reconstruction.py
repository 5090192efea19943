"""`reconstruct` for the spiking BERT: see `spikenlp.models.reconstruction`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Literal

from torch import Tensor, nn
from transformers import PreTrainedModel

from spikenlp.models.amplitudes import dense_neurons
from spikenlp.models.over_time import NONLINEARITIES
from spikenlp.models.reconstruction import RIDGE, RidgeFit, Seen, fitting, until_seen
from spikenlp.models.spiking_bert.parts import model_inputs

STAGES: tuple[tuple[tuple[str, ...], str | None], ...] = (
    (("attention.self.query", "attention.self.key", "attention.self.value"), None),
    (("attention.output.dense",), "attention.output.LayerNorm"),
    (("intermediate.dense",), None),
    (("output.dense",), "output.LayerNorm"),
)
"""In the order of a layer: the linear layers that read the same spikes, and the LayerNorm of the sum to which
their result is added."""


def reconstruct(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    ridge: float = RIDGE,
    target: Literal["dense", "collapsed"] = "dense",
) -> None:
    """Fits the encoder's weights to its own spikes, in place. Once: they are the target as well, so that
    another call would fit to what this one has left.

    Args:
        model: a spiking BERT of the architecture "default" at the T that it will run with; with or
            without a head.
        batches: dicts with input_ids [B, L] and what else the base model takes; a few hundred sentences
            of the kind that the model will see. Padding is left out.
        ridge: > 0; the smaller, the farther the weights go from where they were.
        target: what its weights compute without rounding ("dense"), of a model that was converted and
            calibrated, or as the collapsed twin ("collapsed"), of one that was trained as that.

    Raises:
        ValueError: another architecture; a collapsed model; weights in int8; no batch, or one without
            a token; `ridge` not above 0; activations that are not finite; another `target`, or
            "collapsed" without rounding neurons.
    """
    config = model.config
    check_config(config.architecture, config.collapsed)
    if target not in ("dense", "collapsed"):
        raise ValueError(f"target must be 'dense' or 'collapsed', got {target!r}")
    if target == "collapsed" and config.neuron != "rounding":
        raise ValueError(f"target='collapsed' needs rounding neurons, got {config.neuron!r}")
    inputs = [model_inputs(batch, model.device) for batch in batches]
    if not inputs:
        raise ValueError("reconstruction needs data: give at least one batch")
    with fitting(model, ridge) as exact, ExitStack() as stack:
        if target == "dense":
            stack.enter_context(dense_neurons(exact, lambda *_: None))
        exact.config.collapsed = target == "collapsed"
        walks = [(_Walk(model, batch), _Walk(exact, batch)) for batch in inputs]
        for index in range(config.num_hidden_layers):
            for names, norm in STAGES:
                _fit(index, names, norm, walks, ridge)
            for walk in (walk for pair in walks for walk in pair):
                walk.advance(index)


def check_config(architecture: str, collapsed: bool) -> None:
    if architecture != "default" or collapsed:
        raise ValueError(
            "reconstruct fits weights to the spikes of the architecture 'default', got "
            f"architecture={architecture!r}, collapsed={collapsed}"
        )


class _Walk:
    """One batch on its way through the layers of a model."""

    def __init__(self, model: PreTrainedModel, batch: dict[str, Tensor]):
        self.layers = model.base_model.encoder.layer
        self.time_mean = NONLINEARITIES[model.config.nonlinearity].time_mean
        mask = batch.get("attention_mask")
        if mask is not None and not mask.any():
            raise ValueError("reconstruction data holds only padding: check its attention_mask")
        self.real = slice(None) if mask is None else mask.flatten().bool()

        def keep(_: nn.Module, args: tuple, kwargs: dict) -> None:
            (self.stream, *self.rest), self.options = args, kwargs
            raise Seen

        hook = self.layers[0].register_forward_pre_hook(keep, with_kwargs=True)
        with until_seen([hook]):
            model.base_model(**batch)

    def advance(self, index: int) -> None:
        self.stream, _ = self.layers[index](self.stream, *self.rest, **self.options)

    def look(self, index: int, names: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """Means over time of input and output of sub-modules of a layer, of the N real tokens [N, ...]."""
        seen: dict[str, tuple[Tensor, Tensor]] = {}

        def keep(name: str):
            def hook(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
                seen[name] = self._tokens(args[0]), self._tokens(out)
                if len(seen) == len(names):
                    raise Seen

            return hook

        layer = self.layers[index]
        hooks = [layer.get_submodule(n).register_forward_hook(keep(n)) for n in names]
        with until_seen(hooks):
            layer(self.stream, *self.rest, **self.options)
        return seen

    def _tokens(self, x: Tensor) -> Tensor:
        return self.time_mean(x).flatten(0, 1)[self.real]


def _fit(
    index: int,
    names: tuple[str, ...],
    norm: str | None,
    walks: Sequence[tuple[_Walk, _Walk]],
    ridge: float,
) -> None:
    """Fits the linear layers of one stage."""
    fits = {name: RidgeFit() for name in names}
    for spiking, exact in walks:
        looked_at = (*names, norm) if norm else names
        found, wanted = spiking.look(index, looked_at), exact.look(index, looked_at)
        for name, fit in fits.items():
            lacking = wanted[norm][0] - found[norm][0] if norm else wanted[name][1] - found[name][1]
            fit.add(found[name][0], lacking)
    for name, fit in fits.items():
        linear = walks[0][0].layers[index].get_submodule(name)
        weight, bias = fit.change(ridge)
        linear.weight += weight.to(linear.weight)
        linear.bias += bias.to(linear.bias)
