"""What the architectures of the spiking BERT share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import eager_attention_forward

from spikenlp.models.over_time import NONLINEARITIES, OverTime
from spikenlp.models.spiking_bert.configuration_spiking_bert import SpikingBertConfig
from spikenlp.neurons import IF, LIF, PLIF, RoundingIF, SpikingLinear, SpikingNeuron

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
"""What the base model reads of a batch."""


def model_inputs(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {k: batch[k].to(device) for k in INPUTS if k in batch}


def check_tokens(
    config: SpikingBertConfig,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None,
) -> None:
    """Raises ValueError for tokens that the model cannot read, where torch would say what failed inside:
    shapes, the length, a mask of another shape; on CPU also ids outside the vocabulary."""
    tokens = inputs_embeds if input_ids is None else input_ids
    assert tokens is not None
    name, shape = (
        ("input_ids", "[B, L]") if input_ids is not None else ("inputs_embeds", "[B, L, D]")
    )
    if tokens.dim() != shape.count(",") + 1 or 0 in tokens.shape:
        raise ValueError(f"{name} must be {shape}, not empty, got shape {tuple(tokens.shape)}")
    if tokens.shape[1] > config.max_position_embeddings:
        raise ValueError(
            f"{name} are {tokens.shape[1]} tokens long, more than max_position_embeddings="
            f"{config.max_position_embeddings}: truncate them (tokenizer(..., truncation=True))"
        )
    of_tokens = attention_mask is not None and attention_mask.dim() == 2
    if of_tokens and attention_mask.shape != tokens.shape[:2]:
        raise ValueError(
            f"attention_mask of shape {tuple(attention_mask.shape)} does not fit {name} of shape "
            f"{tuple(tokens.shape)}"
        )
    if input_ids is None:
        return
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"input_ids must be int64 or int32, got {input_ids.dtype}")
    has_values = type(input_ids) is Tensor  # a fake tensor, of an estimate of memory, has none
    if has_values and input_ids.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = (int(x) for x in input_ids.aminmax())
        if low < 0 or high >= config.vocab_size:
            raise ValueError(
                f"input_ids must lie in [0, {config.vocab_size}), got {low} ... {high}: does the "
                "tokenizer belong to this model?"
            )


class TimeSharedDropout(nn.Module):
    """Dropout of [T, ...] that draws one mask for all steps, as one forward of one example."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return x * F.dropout(torch.ones_like(x[:1]), self.p)


class InitialHiddenState(nn.Identity):
    """Marks what is `hidden_states[0]`, [B, L, D], for transformers' capture of outputs."""


class AttentionScores(nn.Module):
    """Scores before mask and softmax: Q K^T / sqrt(d) of the mean query and key, [B, L, D] each, as
    [B, heads, L, L]."""

    def __init__(self, num_attention_heads: int):
        super().__init__()
        self.num_attention_heads = num_attention_heads

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        query, key = (
            x.unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2) for x in (query, key)
        )
        return query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5


class SpikingBlock(nn.Module):
    """A part of the encoder that owns neurons."""

    def __init__(self, config: SpikingBertConfig):
        super().__init__()
        self.config = config

    @property
    def over_time(self) -> OverTime:
        return NONLINEARITIES[self.config.nonlinearity]

    def make_neuron(self, channels: int) -> SpikingNeuron:
        config = self.config
        if config.neuron == "rounding":
            return RoundingIF(channels, ternary=config.ternary, burst=config.burst)
        classic: dict[str, Any] = {
            "ternary": config.ternary,
            "surrogate": config.surrogate,
            "channels": channels,
            "learn_amplitude": True,
        }
        if config.neuron == "if":
            # Without a leak only the reset in the graph keeps the gradient from growing with T.
            return IF(**classic, detach_reset=config.architecture == "default")
        return (LIF if config.neuron == "lif" else PLIF)(config.beta, **classic)

    def fire(self, neuron: nn.Module, stream: Tensor) -> Tensor:
        """Spikes of `stream` [T, B, L, C] or [1, B, L, C]; when collapsed, its rounding [1, B, L, C]."""
        steps = self.config.num_timesteps
        if self.config.collapsed:
            return neuron(stream, num_timesteps=steps, collapsed=True)
        return neuron(stream, num_timesteps=steps, running=self.over_time.running)


class SpikingSelfAttention(SpikingBlock):
    """Query, key and value read spikes; keys and values are spikes; softmax attention on them."""

    def __init__(self, config: SpikingBertConfig):
        super().__init__(config)
        self.num_attention_heads = config.num_attention_heads
        self.attention_head_size = config.hidden_size // config.num_attention_heads
        self.scaling = self.attention_head_size**-0.5
        self.is_causal = False
        self.neuron = self.make_neuron(config.hidden_size)
        self.query = SpikingLinear(config.hidden_size, config.hidden_size)
        self.key = SpikingLinear(config.hidden_size, config.hidden_size)
        self.value = SpikingLinear(config.hidden_size, config.hidden_size)
        self.key_neuron = self.make_neuron(config.hidden_size)
        self.value_neuron = self.make_neuron(config.hidden_size)
        self.scores = AttentionScores(config.num_attention_heads)

    def split_heads(self, x: Tensor) -> Tensor:
        """[T, B, L, D] -> [T * B, heads, L, D / heads], a view."""
        x = x.flatten(0, 1)
        return x.unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Key and value [T, B, L, D], query [T, B, Q, D] -> context [T, B, Q, D]; with eager attention,
        maps [T, B, heads, Q, L]. Q is L, or 1 for the first token's query alone."""
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        heads = [self.split_heads(x) for x in (query, key, value)]
        if self.training and self.config._attn_implementation == "sdpa" and on_cpu_in_half(heads):
            attention = in_float32(attention)
        context, weights = attention(
            self,
            *heads,
            mask,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        if weights is not None:
            weights = weights.unflatten(0, query.shape[:2])
        return context.reshape(query.shape), weights


def on_cpu_in_half(tensors: Sequence[Tensor]) -> bool:
    return all(x.device.type == "cpu" and x.dtype.itemsize < 4 for x in tensors)


def in_float32(attention: Callable[..., Any]) -> Callable[..., Any]:
    """Attention that computes in float32 inside: PyTorch's backward of its fused one takes several times as long
    on CPU in half precision (`benchmarks/attention.py`)."""

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if mask is not None and mask.is_floating_point():
            mask = mask.float()
        with torch.autocast("cpu", enabled=False):
            context, weights = attention(
                module, query.float(), key.float(), value.float(), mask, **kwargs
            )
        return context.to(value.dtype), weights

    return attend
