"""Losses for spiking networks; each takes outputs of any network, ours or not."""

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
    "few_class_weight",
    "get_temporal_loss",
    "gradient_scaling_factor",
    "sdt_loss",
    "tet_loss",
    "tmc_loss",
    "trt_loss",
    "trt_weight_penalty",
]
