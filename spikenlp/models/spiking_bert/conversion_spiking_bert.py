"""From a dense BERT to a spiking one: weights by name, amplitudes by calibration.

See `spikenlp.models.amplitudes` for how amplitudes are chosen. Padding is left out.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.bert import modeling_bert

from spikenlp.models.amplitudes import (
    Rows,
    dense_neurons,
    fit_amplitudes,
    margin,
    neurons_of,
    position_weights,
)
from spikenlp.models.checkpoint import check_fields
from spikenlp.models.spiking_bert.configuration_spiking_bert import SpikingBertConfig
from spikenlp.models.spiking_bert.parts import model_inputs
from spikenlp.models.spiking_bert.roberta import FAMILY, as_bert, bert_name
from spikenlp.neurons import SpikingNeuron

logger = logging.getLogger(__name__)

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
    spike_cost: float,
    config_overrides: dict[str, Any],
) -> tuple[Any, torch.dtype]:
    """The model (see `SpikingBertPreTrainedModel.from_dense`) and the dtype of the dense one."""
    absent: set[str] = set()
    if not isinstance(dense, PreTrainedModel):
        dense, absent = load_dense_bert(dense, spiking_class)
    elif dense.config.model_type in FAMILY:
        dense = as_bert(dense)
    if dense.config.model_type != "bert" or dense.config.is_decoder:
        raise ValueError(
            "from_dense needs a BERT or RoBERTa encoder (is_decoder False), got "
            f"{type(dense).__name__} of model_type {dense.config.model_type!r}. A spiking checkpoint "
            "is loaded with from_pretrained"
        )
    model = spiking_class(spiking_config(dense.config, config_overrides))
    load_dense_weights(model, dense, absent)
    model.to(dense.device).eval()
    if calibration is None:
        warnings.warn(
            "from_dense without calibration data: amplitudes are fitted to what the weights make "
            "of random tokens. Pass a few hundred tokenised sentences as calibration=... for a "
            "model that loses less.",
            stacklevel=3,
        )
        calibration = random_token_batches(model.config)
    calibrate(model, calibration, spike_cost)
    return model, dense.dtype


def spiking_config(dense: PreTrainedConfig, overrides: dict[str, Any]) -> SpikingBertConfig:
    """The config of the spiking twin of a dense BERT."""
    fields = {k: v for k, v in dense.to_dict().items() if k not in NOT_OF_A_DENSE_CONFIG}
    check_fields(SpikingBertConfig, overrides)
    return SpikingBertConfig(**{**fields, **overrides})


def load_dense_bert(
    path: str, spiking_class: type[PreTrainedModel]
) -> tuple[PreTrainedModel, set[str]]:
    """The dense twin of `spiking_class` (BertForX for SpikingBertForX), loaded from `path`; and the names of
    its weights that are not there, as those of a head may be."""
    config = AutoConfig.from_pretrained(path)
    named = next(kind for kind in spiking_class.__mro__ if kind.__module__.startswith("spikenlp."))
    head = named.__name__.removeprefix("SpikingBert")
    if config.model_type in FAMILY:
        auto_class = getattr(transformers, f"AutoModel{head.removeprefix('Model')}")
        roberta, info = auto_class.from_pretrained(path, output_loading_info=True)
        return as_bert(roberta), set(map(bert_name, info["missing_keys"]))
    if config.model_type != "bert":
        hint = (
            " (already spiking: use from_pretrained)" if config.model_type == "spiking_bert" else ""
        )
        raise ValueError(
            f"{path} is of model_type {config.model_type!r}{hint}; from_dense converts 'bert' and "
            f"{', '.join(map(repr, FAMILY))} only"
        )
    dense_class = getattr(modeling_bert, f"Bert{head}")
    dense, info = dense_class.from_pretrained(path, output_loading_info=True)
    return dense, set(info["missing_keys"])


def load_dense_weights(
    model: PreTrainedModel, dense: PreTrainedModel, absent: Collection[str] = ()
) -> None:
    """Copies every weight that both have, and logs which are new and which are dropped; those of `dense`
    that are `absent` from its checkpoint count as new."""
    source = {f"bert.{k}": v for k, v in dense.base_model.state_dict().items()}
    if dense.base_model is not dense:
        source |= dense.state_dict()
    source = {k: v for k, v in source.items() if k not in absent}
    if model.base_model is model:
        source = {k.removeprefix("bert."): v for k, v in source.items() if k.startswith("bert.")}
    target = model.state_dict()
    if mismatched := [k for k in source if k in target and source[k].shape != target[k].shape]:
        shapes = {k: (tuple(source[k].shape), tuple(target[k].shape)) for k in mismatched}
        raise ValueError(f"weights of other shapes in the dense model (dense, spiking): {shapes}")
    result = model.load_state_dict(source, strict=False)
    neuron_keys = {
        f"{name}.{key}" for name, neuron in neurons_of(model) for key in neuron.state_dict()
    }
    if created := sorted(set(result.missing_keys) - neuron_keys):
        logger.warning("from_dense: not in the dense model, newly initialised: %s", created)
    if result.unexpected_keys:
        logger.warning("from_dense: dropped from the dense model: %s", result.unexpected_keys)
    if not set(source) & set(target):
        raise ValueError(f"{type(dense).__name__} has no weight in common with a spiking BERT")
    model.tie_weights()


def random_token_batches(config: SpikingBertConfig, batches: int = 4) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    length = min(32, config.max_position_embeddings)
    ids = torch.randint(config.vocab_size, (batches, 32, length), generator=generator)
    return [{"input_ids": batch} for batch in ids]


def calibrate(
    model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]], spike_cost: float = 0.0
) -> None:
    """Fits the amplitudes (and offsets, thresholds) of `model` to `batches`, in place.

    Args:
        model: a spiking BERT, with or without a head.
        batches: dicts with input_ids [B, L] and what else the base model takes; keys that it does
            not take (labels) are left out.
        spike_cost: above 0 for fewer spikes and more error (`spikenlp.models.amplitudes`).

    Raises:
        ValueError: no batch, or no token that is not padding; a spike cost below 0.
    """
    fit_amplitudes(
        [model_inputs(batch, model.device) for batch in batches],
        lambda batch, weighted: _tokens_of_neurons(model, batch, weighted),
        model.config.num_timesteps,
        spike_cost,
    )


def _tokens_of_neurons(model: PreTrainedModel, batch: dict[str, Tensor], weighted: bool) -> Rows:
    """What each neuron gets in the dense network, for the N real tokens (weighted: those that the head
    reads): input [N, C], weight [N, 1]."""
    inputs: dict[SpikingNeuron, Tensor] = {}

    def observe(neuron: SpikingNeuron, x: Tensor) -> None:
        inputs[neuron] = x if x.requires_grad or not weighted else x.requires_grad_()

    grads: tuple[Tensor | None, ...] | None = None
    mask = batch.get("attention_mask")
    with dense_neurons(model, observe), torch.set_grad_enabled(weighted):
        outputs = (model if weighted else model.base_model)(**batch)
        if weighted:
            grads = torch.autograd.grad(
                margin(outputs, mask), list(inputs.values()), allow_unused=True
            )
    found = {}
    for (neuron, x), grad in zip(inputs.items(), grads or [None] * len(inputs), strict=True):
        of_first_token = mask is not None and x.shape[1:3] == (len(mask), 1)
        everything = mask is None or of_first_token
        chosen = torch.ones_like(x[0, ..., 0], dtype=torch.bool) if everything else mask.bool()
        real = x.detach()[0][chosen]
        if not len(real):
            raise ValueError("calibration data holds only padding: check its attention_mask")
        weight = torch.ones_like(real[:, :1])
        if grad is not None:
            weight = position_weights(grad[0][chosen])
        found[neuron] = real.float(), weight
    return found


def as_batches(calibration: Iterable[Mapping[str, Tensor]]) -> list[Mapping[str, Tensor]]:
    """Calibration data as a list.

    Raises:
        ValueError: anything but an iterable of tokenised batches.
    """
    alone = isinstance(calibration, str | Mapping | Tensor)
    batches: list[Any] = [calibration] if alone else list(calibration)
    for batch in batches:
        tokenised = isinstance(batch, Mapping) and any(
            isinstance(batch.get(name), Tensor) for name in ("input_ids", "inputs_embeds")
        )
        if alone or not tokenised:
            raise ValueError(
                "calibration must be a list of tokenised batches, dicts with a tensor input_ids [B, L] as of "
                "tokenizer(sentences, padding=True, return_tensors='pt'), got "
                f"{'one' if alone else 'an item that is a'} {type(batch).__name__}"
            )
    return batches
