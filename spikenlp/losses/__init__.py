"""Losses for spiking networks; each takes outputs of any network, ours or not."""

from spikenlp.losses.distillation import (
    attention_score_loss,
    embedding_loss,
    hidden_state_loss,
    layer_map,
    similarity_loss,
    soft_cross_entropy,
)
from spikenlp.losses.spikes import count_spikes, spikes_per_neuron
from spikenlp.losses.temporal import (
    TEMPORAL_LOSSES,
    few_class_weight,
    get_temporal_loss,
    gradient_scaling_factor,
    sdt_loss,
    tet_loss,
    tmc_loss,
    trt_loss,
    trt_weight_penalty,
)

__all__ = [
    "TEMPORAL_LOSSES",
    "attention_score_loss",
    "count_spikes",
    "embedding_loss",
    "few_class_weight",
    "get_temporal_loss",
    "gradient_scaling_factor",
    "hidden_state_loss",
    "layer_map",
    "sdt_loss",
    "similarity_loss",
    "soft_cross_entropy",
    "spikes_per_neuron",
    "tet_loss",
    "tmc_loss",
    "trt_loss",
    "trt_weight_penalty",
]
