"""From a dense BERT to a spiking one: weights by name, amplitudes by calibration.

Calibration runs the network densely (neurons pass their input on) over a few batches and gives each
channel of each rounding neuron the amplitude that minimises the mean squared error between its
activations and their (2T + 1)-level rounding (binary: T + 1 levels, and an offset), over a grid of
fractions of the channel's range. A token counts as much as the model's decision depends on it there:
its error is weighted by the norm of the gradient of the margin between the two best scores. Classic
neurons take the same amplitude as threshold and as amplitude, i.e. they fire at what they send. Padding
is left out. It is deterministic.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.bert import modeling_bert
from transformers.utils import ModelOutput

from spikenlp.models.spiking_bert.configuration_spiking_bert import SpikingBertConfig
from spikenlp.neurons import RoundingIF, SpikingNeuron

logger = logging.getLogger(__name__)

GRID = torch.arange(2, 41) / 40
"""Candidate ranges, as fractions of a channel's range on the calibration data."""
SMALLEST_AMPLITUDE = 1e-3
SMALLEST_WEIGHT = 1e-3
"""Of a token in the calibration error, as a fraction of the mean weight."""
NOT_OF_A_DENSE_CONFIG = {
    "model_type",
    "architectures",
    "transformers_version",
    "dtype",
    "attention_probs_dropout_prob",
    "is_decoder",
    "add_cross_attention",
    "use_cache",
    "_name_or_path",
    "return_dict",
    "output_hidden_states",
    "output_attentions",
}


def convert_dense_bert(
    spiking_class: type[PreTrainedModel],
    dense: PreTrainedModel | str,
    calibration: Iterable[Mapping[str, Tensor]] | None,
    config_overrides: dict[str, Any],
) -> Any:
    """See `SpikingBertPreTrainedModel.from_dense`."""
    if not isinstance(dense, PreTrainedModel):
        dense = load_dense_bert(dense, spiking_class)
    if dense.config.model_type != "bert" or dense.config.is_decoder:
        raise ValueError(
            f"from_dense needs a BERT encoder (model_type 'bert', is_decoder False), got "
            f"{type(dense).__name__} of model_type {dense.config.model_type!r}. A spiking checkpoint "
            "is loaded with from_pretrained"
        )
    model = spiking_class(spiking_config(dense.config, config_overrides))
    load_dense_weights(model, dense)
    model.to(dense.device).eval()
    if calibration is None:
        warnings.warn(
            "from_dense without calibration data: amplitudes are fitted to what the weights make "
            "of random tokens. Pass a few hundred tokenised sentences as calibration=... for a "
            "model that loses less.",
            stacklevel=3,
        )
        calibration = random_token_batches(model.config)
    calibrate(model, calibration)
    return model


def spiking_config(dense: PreTrainedConfig, overrides: dict[str, Any]) -> SpikingBertConfig:
    """The config of the spiking twin of a dense BERT."""
    fields = {k: v for k, v in dense.to_dict().items() if k not in NOT_OF_A_DENSE_CONFIG}
    known = set(SpikingBertConfig().to_dict()) | {"num_labels", "attn_implementation"}
    if unknown := sorted(set(overrides) - known):
        raise ValueError(f"SpikingBertConfig has no field {unknown}")
    return SpikingBertConfig(**{**fields, **overrides})


def load_dense_bert(path: str, spiking_class: type[PreTrainedModel]) -> PreTrainedModel:
    """The dense twin of `spiking_class` (BertForX for SpikingBertForX), loaded from `path`."""
    config = AutoConfig.from_pretrained(path)
    if config.model_type != "bert":
        hint = (
            " (already spiking: use from_pretrained)" if config.model_type == "spiking_bert" else ""
        )
        raise ValueError(
            f"{path} is of model_type {config.model_type!r}{hint}; from_dense converts 'bert' only"
        )
    dense_class = getattr(modeling_bert, spiking_class.__name__.removeprefix("Spiking"))
    return dense_class.from_pretrained(path)


def load_dense_weights(model: PreTrainedModel, dense: PreTrainedModel) -> None:
    """Copies every weight that both have, and logs which are new and which are dropped."""
    source = {f"bert.{k}": v for k, v in dense.base_model.state_dict().items()}
    if dense.base_model is not dense:
        source |= dense.state_dict()
    if model.base_model is model:
        source = {k.removeprefix("bert."): v for k, v in source.items() if k.startswith("bert.")}
    target = model.state_dict()
    if mismatched := [k for k in source if k in target and source[k].shape != target[k].shape]:
        shapes = {k: (tuple(source[k].shape), tuple(target[k].shape)) for k in mismatched}
        raise ValueError(f"weights of other shapes in the dense model (dense, spiking): {shapes}")
    result = model.load_state_dict(source, strict=False)
    neuron_keys = {
        f"{name}.{parameter}"
        for name, neuron in neurons_of(model)
        for parameter, _ in neuron.named_parameters()
    }
    if created := sorted(set(result.missing_keys) - neuron_keys):
        logger.warning("from_dense: not in the dense model, newly initialised: %s", created)
    if result.unexpected_keys:
        logger.warning("from_dense: dropped from the dense model: %s", result.unexpected_keys)
    if not set(source) & set(target):
        raise ValueError(f"{type(dense).__name__} has no weight in common with a spiking BERT")
    model.tie_weights()


def neurons_of(model: nn.Module) -> list[tuple[str, SpikingNeuron]]:
    return [(n, m) for n, m in model.named_modules() if isinstance(m, SpikingNeuron)]


def random_token_batches(config: SpikingBertConfig, batches: int = 4) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    length = min(32, config.max_position_embeddings)
    ids = torch.randint(config.vocab_size, (batches, 32, length), generator=generator)
    return [{"input_ids": batch} for batch in ids]


@contextmanager
def dense_neurons(model: PreTrainedModel, observe):
    """Neurons pass their input on after `observe(neuron, input [1, B, L, C])` has seen it."""
    config = model.config
    names = ("num_timesteps", "collapsed", "gradient", "settle_tolerance")
    saved = {name: getattr(config, name) for name in names}
    training = model.training
    hooks = [
        neuron.register_forward_hook(lambda module, args, _: observe(module, args[0]) or args[0])
        for _, neuron in neurons_of(model)
    ]
    config.num_timesteps, config.collapsed = 1, False
    config.gradient, config.settle_tolerance = "bptt", None
    model.eval()
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for name, value in saved.items():
            setattr(config, name, value)
        model.train(training)


def calibrate(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> None:
    """Fits the amplitudes (and offsets, thresholds) of `model` to `batches`, in place.

    Args:
        model: a spiking BERT, with or without a head.
        batches: dicts with input_ids [B, L] and what else the base model takes; keys that it does
            not take (labels) are left out.

    Raises:
        ValueError: no batch, or no token that is not padding.
    """
    batches = [_inputs(batch, model.device) for batch in batches]
    if not batches:
        raise ValueError("calibration data is empty: give at least one tokenised batch")
    low: dict[SpikingNeuron, Tensor] = {}
    high: dict[SpikingNeuron, Tensor] = {}
    errors: dict[SpikingNeuron, Tensor] = {}
    steps = model.config.num_timesteps
    for batch in batches:
        for neuron, (x, _) in _tokens_of_neurons(model, batch, weighted=False).items():
            lowest, highest = x.amin(0), x.amax(0)
            low[neuron] = torch.minimum(low.get(neuron, lowest), lowest)
            high[neuron] = torch.maximum(high.get(neuron, highest), highest)
    for batch in batches:
        for neuron, (x, weight) in _tokens_of_neurons(model, batch, weighted=True).items():
            found = [
                (weight * _rounding_error(x, *candidate, steps, neuron.ternary).square()).sum(0)
                for candidate in _candidates(neuron, low[neuron], high[neuron])
            ]
            errors[neuron] = errors.get(neuron, 0) + torch.stack(found)
    with torch.no_grad():
        for neuron, error in errors.items():
            best = error.argmin(0)
            candidates = _candidates(neuron, low[neuron], high[neuron])
            alphas, offsets = (torch.stack(x) for x in zip(*candidates, strict=True))
            alpha = alphas.gather(0, best[None])[0]
            neuron.amplitude.copy_(alpha)
            if isinstance(neuron, RoundingIF):
                if neuron.offset is not None:
                    neuron.offset.copy_(offsets.gather(0, best[None])[0])
            else:
                neuron.v_threshold.copy_(alpha)


def _tokens_of_neurons(
    model: PreTrainedModel, batch: dict[str, Tensor], weighted: bool
) -> dict[SpikingNeuron, tuple[Tensor, Tensor]]:
    """What each neuron gets in the dense network, for the N real tokens: input [N, C], weight [N, 1]."""
    inputs: dict[SpikingNeuron, Tensor] = {}

    def observe(neuron: SpikingNeuron, x: Tensor) -> None:
        inputs[neuron] = x if x.requires_grad or not weighted else x.requires_grad_()

    grads: tuple[Tensor | None, ...] | None = None
    with dense_neurons(model, observe), torch.set_grad_enabled(weighted):
        outputs = (model if weighted else model.base_model)(**batch)
        if weighted:
            grads = torch.autograd.grad(_margin(outputs), list(inputs.values()), allow_unused=True)
    mask = batch.get("attention_mask")
    found = {}
    for (neuron, x), grad in zip(inputs.items(), grads or [None] * len(inputs), strict=True):
        real = x.detach()[0].flatten(0, 1) if mask is None else x.detach()[0][mask.bool()]
        if not len(real):
            raise ValueError("calibration data holds only padding: check its attention_mask")
        weight = torch.ones_like(real[:, :1])
        if grad is not None:
            grad = grad[0].flatten(0, 1) if mask is None else grad[0][mask.bool()]
            weight = grad.float().norm(dim=-1, keepdim=True)
            weight = weight.clamp_min(SMALLEST_WEIGHT * weight.mean())
        found[neuron] = real.float(), weight
    return found


def _margin(outputs: ModelOutput) -> Tensor:
    """How decided the model is: best score less the second best, summed; without scores, a fixed
    random projection of the hidden states."""
    names = [n for n in ("logits", "start_logits", "end_logits") if n in outputs]
    if names and outputs[names[0]].shape[-1] > 1:
        best = [outputs[name].float().topk(2).values for name in names]
        return torch.stack([(b[..., 0] - b[..., 1]).sum() for b in best]).sum()
    scores = outputs[0].float()
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, scores.shape, generator=generator).to(scores.device) * 2 - 1
    return (signs * scores).sum()


def _candidates(neuron: SpikingNeuron, low: Tensor, high: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(amplitude, offset) per channel for each fraction of the grid."""
    if neuron.ternary:
        largest = torch.maximum(-low, high)
        return [((f * largest).clamp_min(SMALLEST_AMPLITUDE), 0 * low) for f in GRID.tolist()]
    offset = (-low).clamp_min(0) if isinstance(neuron, RoundingIF) else 0 * low
    return [
        ((f * (high + offset)).clamp_min(SMALLEST_AMPLITUDE), f * offset) for f in GRID.tolist()
    ]


def _rounding_error(x: Tensor, alpha: Tensor, offset: Tensor, steps: int, ternary: bool) -> Tensor:
    levels = ((x + offset) / alpha * steps).round()
    return levels.clamp_(-steps if ternary else 0, steps) * (alpha / steps) - offset - x


def _inputs(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    names = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
    return {k: batch[k].to(device) for k in names if k in batch}
