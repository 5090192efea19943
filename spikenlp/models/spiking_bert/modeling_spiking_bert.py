"""Spiking BERT: transformers' BERT whose encoder exchanges spikes over T time steps.

Here is the architecture "default"; "spikingbert" is in `spikenlp.models.spiking_bert.equilibrium`,
the heads serve both. The embedding is a float current, computed once and injected at each step. In each layer

    query, key, value <- spikes of the residual stream      (one neuron population, shared)
    key, value        -> spikes                             softmax attention on them
    attention.output  <- spikes of the attention context
    intermediate      <- spikes of the residual stream
    output            <- spikes of GELU(intermediate)

Softmax, LayerNorm, GELU and residual sums are float, and act over time as `config.nonlinearity`
says (`spikenlp.models.over_time`). Sub-modules bear the names of transformers' BERT, neurons apart.
Inside, tensors are [T, B, ...]; whatever leaves the model has the batch first. No state is kept
between calls.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.models.bert.modeling_bert import BertEmbeddings
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs
from typing_extensions import Self

from spikenlp.models.checkpoint import SpikingCheckpoint
from spikenlp.models.initialization import init_neuron
from spikenlp.models.over_time import NONLINEARITIES, OverTime
from spikenlp.models.spiking_bert.configuration_spiking_bert import SpikingBertConfig
from spikenlp.models.spiking_bert.equilibrium import (
    SpikingBertRateEncoder,
    SpikingBertRateLayer,
    SpikingBertRateSelfAttention,
)
from spikenlp.models.spiking_bert.parts import (
    AttentionScores,
    InitialHiddenState,
    SpikingBlock,
    SpikingSelfAttention,
    TimeSharedDropout,
    check_tokens,
)
from spikenlp.neurons import PLIF, SpikingLinear
from spikenlp.neurons.linear import first_token

if TYPE_CHECKING:
    from spikenlp.inference import AnytimeStep


@dataclass
class SpikingBertModelOutput(BaseModelOutputWithPooling):
    """`last_hidden_state` [B, L, D], `pooler_output` [B, D] and `hidden_states` are means over time.

    timestep_hidden_state: [B, T, L, D], with `output_timesteps=True`; its mean is the above.
    timestep_pooler_output: [B, T, D], likewise.
    timestep_readout: [B, T, ...], with `timestep_readout=...`; its mean is the readout of the mean.
    attention_scores: of each layer [B, heads, L, L], with `output_attention_scores=True`: those of
        the mean query and key, before mask and softmax.
    """

    timestep_hidden_state: Tensor | None = None
    timestep_pooler_output: Tensor | None = None
    timestep_readout: Tensor | None = None
    attention_scores: tuple[Tensor, ...] | None = None


@dataclass
class SpikingMaskedLMOutput(MaskedLMOutput):
    """`timestep_logits` [B, T, L, V], with `output_timesteps=True`; `logits` [B, L, V] is its mean.

    With `masked_positions`, [N, T, V] and [N, V] of these N positions alone.
    """

    timestep_logits: Tensor | None = None
    attention_scores: tuple[Tensor, ...] | None = None


@dataclass
class SpikingSequenceClassifierOutput(SequenceClassifierOutput):
    """`timestep_logits` [B, T, C], None when collapsed; `logits` [B, C] is its mean over time."""

    timestep_logits: Tensor | None = None
    attention_scores: tuple[Tensor, ...] | None = None


@dataclass
class SpikingTokenClassifierOutput(TokenClassifierOutput):
    """`timestep_logits` [B, T, L, C], None when collapsed; `logits` [B, L, C] is its mean."""

    timestep_logits: Tensor | None = None
    attention_scores: tuple[Tensor, ...] | None = None


@dataclass
class SpikingQuestionAnsweringOutput(QuestionAnsweringModelOutput):
    """`timestep_start_logits` and `timestep_end_logits` [B, T, L]; None when collapsed."""

    timestep_start_logits: Tensor | None = None
    timestep_end_logits: Tensor | None = None
    attention_scores: tuple[Tensor, ...] | None = None


class SpikingBertSelfAttention(SpikingSelfAttention):
    def forward(
        self,
        stream: Tensor,
        attention_mask: Tensor | None = None,
        first_token_only: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        spikes = self.fire(self.neuron, stream)
        query = self.query(first_token(spikes) if first_token_only else spikes)
        key = self.fire(self.key_neuron, self.key(spikes))
        value = self.fire(self.value_neuron, self.value(spikes))
        time_mean = self.over_time.time_mean
        if kwargs.get("output_attention_scores"):
            self.scores(time_mean(query), time_mean(key))
        context, weights = self.attend(query, key, value, attention_mask, **kwargs)
        return context, None if weights is None else time_mean(weights)


class SpikingBertResidual(SpikingBlock):
    """LayerNorm(residual stream + dense(spikes of the branch)): attention.output and output."""

    def __init__(self, config: SpikingBertConfig, in_features: int):
        super().__init__(config)
        self.neuron = self.make_neuron(in_features)
        self.dense = SpikingLinear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = TimeSharedDropout(config.hidden_dropout_prob)

    def forward(self, branch: Tensor, stream: Tensor) -> Tensor:
        update = self.dense(self.fire(self.neuron, branch))
        return self.LayerNorm(self.dropout(update) + stream)


class SpikingBertAttention(nn.Module):
    def __init__(self, config: SpikingBertConfig):
        super().__init__()
        self.self = SpikingBertSelfAttention(config)
        self.output = SpikingBertResidual(config, config.hidden_size)

    def forward(
        self,
        stream: Tensor,
        attention_mask: Tensor | None,
        first_token_only: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        context, _ = self.self(stream, attention_mask, first_token_only, **kwargs)
        return self.output(context, stream[:, :, :1] if first_token_only else stream)


class SpikingBertIntermediate(SpikingBlock):
    def __init__(self, config: SpikingBertConfig):
        super().__init__(config)
        self.neuron = self.make_neuron(config.hidden_size)
        self.dense = SpikingLinear(config.hidden_size, config.intermediate_size)
        self.intermediate_act_fn = ACT2FN[config.hidden_act]

    def forward(self, stream: Tensor) -> Tensor:
        return self.intermediate_act_fn(self.dense(self.fire(self.neuron, stream)))


class SpikingBertLayer(GradientCheckpointingLayer):
    """Maps the stream, [T, B, L, D], or [1, B, L, D] if it is the same at each step, to (stream, its
    mean over time [B, L, D]); with `first_token_only` to those of the first token, L = 1, which read
    keys and values of all tokens."""

    def __init__(self, config: SpikingBertConfig):
        super().__init__()
        self.config = config
        self.attention = SpikingBertAttention(config)
        self.intermediate = SpikingBertIntermediate(config)
        self.output = SpikingBertResidual(config, config.intermediate_size)

    def forward(
        self, stream: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        stream = self.attention(stream, attention_mask, **kwargs)
        stream = self.output(self.intermediate(stream), stream)
        return stream, NONLINEARITIES[self.config.nonlinearity].time_mean(stream)


class SpikingBertEncoder(nn.Module):
    def __init__(self, config: SpikingBertConfig):
        super().__init__()
        self.initial = InitialHiddenState()
        self.layer = nn.ModuleList(
            SpikingBertLayer(config) for _ in range(config.num_hidden_layers)
        )

    def forward(
        self,
        stream: Tensor,
        attention_mask: Tensor | None,
        first_token_only: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        stream = self.initial(stream[0])[None]
        for layer in self.layer:
            only = first_token_only and layer is self.layer[-1]
            if only and isinstance(attention_mask, Tensor):
                attention_mask = attention_mask[:, :, :1]  # of the first token's query
            stream, _ = layer(stream, attention_mask, first_token_only=only, **kwargs)
        return stream


class SpikingBertPooler(nn.Module):
    """tanh(dense(stream of the first token)): [T, B, L, D] -> [T, B, D]."""

    def __init__(self, config: SpikingBertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = nn.Tanh()

    def forward(self, stream: Tensor) -> Tensor:
        return self.activation(self.dense(stream[:, :, 0]))


class SpikingBertPredictionHeadTransform(nn.Module):
    def __init__(self, config: SpikingBertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.transform_act_fn = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, stream: Tensor) -> Tensor:
        return self.LayerNorm(self.transform_act_fn(self.dense(stream)))


class SpikingBertLMPredictionHead(nn.Module):
    def __init__(self, config: SpikingBertConfig):
        super().__init__()
        self.transform = SpikingBertPredictionHeadTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, stream: Tensor) -> Tensor:
        return self.decoder(self.transform(stream))


class SpikingBertOnlyMLMHead(nn.Module):
    def __init__(self, config: SpikingBertConfig):
        super().__init__()
        self.predictions = SpikingBertLMPredictionHead(config)


class SpikingBertPreTrainedModel(SpikingCheckpoint, PreTrainedModel):
    config: SpikingBertConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["BertEmbeddings", "SpikingBertLayer", "SpikingBertRateLayer"]
    _can_record_outputs = {
        "hidden_states": [
            OutputRecorder(module, index=1, capture_initial_hidden_state=False)
            for module in (InitialHiddenState, SpikingBertLayer, SpikingBertRateLayer)
        ],
        "attentions": [SpikingBertSelfAttention, SpikingBertRateSelfAttention],
        "attention_scores": AttentionScores,
    }

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        """transformers looks for the call of the attention interface in this file; it is in `parts`."""
        return True

    def post_init(self) -> None:
        super().post_init()
        for module in self.modules():
            if isinstance(module, SpikingLinear):
                module.trusts_input = True

    @property
    def head_over_time(self) -> OverTime:
        """How a head acts over time; in "spikingbert" on the rates so far, whatever is inside."""
        of_rates = self.config.architecture == "spikingbert"
        return NONLINEARITIES["running" if of_rates else self.config.nonlinearity]

    def _encode(self, head: Callable[[Tensor], Tensor], **inputs: Any) -> SpikingBertModelOutput:
        """Of the base model, with what `head` [B, L, D] -> [B, ...] needs for its time steps."""
        implicit = self.config.gradient == "implicit"
        by_step = {"timestep_readout": head} if implicit else {"output_timesteps": True}
        return self.base_model(**{**inputs, **by_step, "return_dict": True})

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SpikingBertLMPredictionHead):
            init.zeros_(module.bias)
        elif isinstance(module, BertEmbeddings):
            positions = torch.arange(module.position_ids.shape[-1]).expand((1, -1))
            init.copy_(module.position_ids, positions)
            init.zeros_(module.token_type_ids)
        else:
            init_neuron(module)
            if isinstance(module, PLIF):
                init.constant_(module.decay_logit, torch.tensor(self.config.beta).logit().item())

    @classmethod
    def from_dense(
        cls,
        dense: PreTrainedModel | str,
        *,
        calibration: Iterable[Mapping[str, Tensor]] | None = None,
        reconstruct: bool = False,
        spike_cost: float = 0.0,
        dtype: torch.dtype | str | None = None,
        **config_overrides: Any,
    ) -> Self:
        """A spiking model with the weights of a dense BERT, its amplitudes calibrated.

        Args:
            dense: a BERT of transformers with or without a head, or the path or Hub id of one; or of
                RoBERTa's family (`spikenlp.models.spiking_bert.roberta`).
            calibration: tokenised batches (dicts of tensors: input_ids, attention_mask, ...); a
                few hundred sentences of the kind that the model will see are enough. Without them
                amplitudes come from the weights alone, on random tokens, and a warning says so.
            reconstruct: then fit the weights, too, to the spikes that reach them on these batches
                (`spikenlp.models.reconstruction`), without training. Better the more sentences there are.
            spike_cost: above 0 the amplitudes are chosen for fewer spikes, too, of the order of 0.1
                (`spikenlp.models.amplitudes`).
            dtype: of the finished model, or its name, or "auto" for that of `dense`; it is computed with float32.
            config_overrides: fields of `SpikingBertConfig`, e.g. `num_timesteps=8`, or `num_labels=5` for a
                head that `dense` does not have.

        Raises:
            ValueError: `dense` is no such encoder; a field that the config does not have; calibration
                data that is not tokenised; a spike cost below 0; `reconstruct` without data, collapsed, or in "spikingbert".

        Source: `spikenlp.models.amplitudes`, our own; docs/conversion.md.
        """
        from spikenlp.models.spiking_bert import reconstruction
        from spikenlp.models.spiking_bert.conversion_spiking_bert import (
            as_batches,
            convert_dense_bert,
        )

        named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if dtype not in (None, "auto") and not isinstance(named, torch.dtype):
            raise ValueError(f"dtype must be one of torch's, its name or 'auto', got {dtype!r}")
        if reconstruct:
            if calibration is None:
                raise ValueError("reconstruct=True needs calibration data: a few hundred sentences")
            asked = {"architecture": "default", "collapsed": False} | config_overrides
            reconstruction.check_config(asked["architecture"], asked["collapsed"])
        batches = None if calibration is None else as_batches(calibration)
        model, dtype_of_dense = convert_dense_bert(
            cls, dense, batches, spike_cost, config_overrides
        )
        if batches is not None and reconstruct:
            reconstruction.reconstruct(model, batches)
        if dtype is not None:
            model.to(dtype_of_dense if dtype == "auto" else named)
        return model


class SpikingBertModel(SpikingBertPreTrainedModel):
    def __init__(self, config: SpikingBertConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.gradient_checkpointing = False
        self.embeddings = BertEmbeddings(config)
        of_rates = config.architecture == "spikingbert"
        self.encoder = (SpikingBertRateEncoder if of_rates else SpikingBertEncoder)(config)
        self.pooler = SpikingBertPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.word_embeddings = value

    def embed(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """The current [B, L, D] that is injected at each step, and the mask of attention for one."""
        check_tokens(self.config, input_ids, inputs_embeds, attention_mask)
        embedding = self.embeddings(
            input_ids=input_ids,
            position_ids=position_ids,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
        )
        # Whether a mask masks anything is read from it: on a GPU that would wait for the GPU.
        mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=embedding,
            attention_mask=attention_mask,
            allow_is_bidirectional_skip=attention_mask is None or not attention_mask.is_cuda,
        )
        padding = attention_mask is not None and attention_mask.dim() == 2
        if padding and isinstance(mask, Tensor) and mask.dim() == 4:
            mask = mask[:, :, :1]  # the same for each query
        return embedding, mask

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_timesteps: bool = False,
        timestep_readout: Callable[[Tensor], Tensor] | None = None,
        first_token_only: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor] | SpikingBertModelOutput:
        """Args as in transformers' BertModel, and

        output_timesteps: also return what each step sends.
        timestep_readout: with gradient="implicit", a head [B, L, D] -> [B, ...] that is evaluated as
            the time steps run, so that no step's hidden state needs to be kept.
        first_token_only: compute what the pooler reads and no more: in the last layer, query, attention
            output and feed-forward part of the first token. `last_hidden_state` and
            `timestep_hidden_state`, the last of `hidden_states`, `attentions` and `attention_scores` are
            then of that token: a length of 1 where its index was.
        output_attention_scores: also return `attention_scores`.

        Raises:
            ValueError: neither or both of input_ids and inputs_embeds, or what `check_tokens` refuses;
                T < 1; a `timestep_readout` without gradient="implicit"; `first_token_only` in "spikingbert".
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if "num_timesteps" in kwargs:
            raise ValueError("T is the config's: set model.config.num_timesteps before the call")
        implicit = self.config.gradient == "implicit"
        if timestep_readout is not None and not implicit:
            raise ValueError(
                "timestep_readout needs config.gradient='implicit': with 'bptt' apply the head to "
                "what output_timesteps=True returns"
            )
        if first_token_only and self.config.architecture != "default":
            raise ValueError("first_token_only is for the architecture 'default'")
        steps = 1 if self.config.collapsed else self.config.num_timesteps
        if steps < 1:
            raise ValueError(f"config.num_timesteps must be >= 1, got {steps}")
        embedding, mask = self.embed(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
        )
        if isinstance(mask, Tensor):
            mask = mask.repeat(1 if implicit else steps, *[1] * (mask.dim() - 1))
        by_step: dict[str, Tensor] = {}
        if self.config.architecture == "spikingbert":
            real = attention_mask if attention_mask is None or attention_mask.dim() == 2 else None
            readouts = self._readouts(output_timesteps, timestep_readout)
            stream, by_step = self.encoder(embedding[None], mask, real, readouts, **kwargs)
        else:
            stream = self.encoder(embedding[None], mask, first_token_only, **kwargs)
        pooled = None if self.pooler is None else self.pooler(stream)
        over_time = self.head_over_time
        output = SpikingBertModelOutput(
            last_hidden_state=over_time.time_mean(stream),
            pooler_output=None if pooled is None else over_time.time_mean(pooled),
            **by_step,
        )
        if output_timesteps and not self.config.collapsed and not implicit:
            output.timestep_hidden_state = over_time.to_current(stream).transpose(0, 1)
            if pooled is not None:
                output.timestep_pooler_output = over_time.to_current(pooled).transpose(0, 1)
        return output

    def _readouts(
        self, output_timesteps: bool, timestep_readout: Callable[[Tensor], Tensor] | None
    ) -> dict[str, Callable[[Tensor], Tensor]]:
        """What is read at each time step of `gradient="implicit"`, by name of the output."""
        readouts: dict[str, Callable[[Tensor], Tensor]] = {}
        if timestep_readout is not None:
            readouts["timestep_readout"] = timestep_readout
        if output_timesteps:
            readouts["timestep_hidden_state"] = lambda hidden: hidden
            pooler = self.pooler
            if pooler is not None:
                readouts["timestep_pooler_output"] = lambda hidden: pooler(hidden[None])[0]
        return readouts


class SpikingBertForMaskedLM(SpikingBertPreTrainedModel):
    _tied_weights_keys = {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    def __init__(self, config: SpikingBertConfig):
        super().__init__(config)
        self.bert = SpikingBertModel(config, add_pooling_layer=False)
        self.cls = SpikingBertOnlyMLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.cls.predictions.decoder = new_embeddings
        bias = new_embeddings.bias
        if not self.config.tie_word_embeddings:  # a file holds what two names share once
            bias = nn.Parameter(bias.detach().clone())
        self.cls.predictions.bias = bias

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        masked_positions: Tensor | None = None,
        output_timesteps: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor] | SpikingMaskedLMOutput:
        """`labels` [B, L] in [0, vocab_size), -100 is ignored: cross entropy of the mean logits.

        `masked_positions`, bool [B, L], asks for logits at these N positions alone, in the order of the
        batch: a vocabulary of logits at every position is most of what training would keep.
        """
        if masked_positions is not None and masked_positions.dtype != torch.bool:
            raise ValueError(
                f"masked_positions must be bool [B, L], got {masked_positions.dtype}: a mask, no indices"
            )
        head, over_time = self.cls.predictions, self.head_over_time
        implicit = self.config.gradient == "implicit"
        per_step = not implicit and (output_timesteps or not over_time.running)
        chosen = ... if masked_positions is None else masked_positions
        outputs = self.bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_timesteps=per_step,
            timestep_readout=(
                (lambda hidden: head(hidden[chosen])) if implicit and output_timesteps else None
            ),
            return_dict=True,
            **kwargs,
        )
        timestep_logits = outputs.timestep_readout
        if outputs.timestep_hidden_state is None:
            features = head.transform(outputs.last_hidden_state[chosen])
        else:
            currents = outputs.timestep_hidden_state.transpose(0, 1)[:, chosen]
            transformed = head.transform(over_time.to_stream(currents))
            features = over_time.time_mean(transformed)
            if output_timesteps:
                currents = over_time.to_current(transformed).transpose(0, 1)
                timestep_logits = head.decoder(currents)
        logits = head.decoder(features)
        return SpikingMaskedLMOutput(
            loss=_mean_cross_entropy(logits, None if labels is None else labels[chosen]),
            logits=logits,
            timestep_logits=timestep_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            attention_scores=outputs.attention_scores,
        )


class SpikingBertForSequenceClassification(SpikingBertPreTrainedModel):
    def __init__(self, config: SpikingBertConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = SpikingBertModel(config)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor] | SpikingSequenceClassifierOutput:
        """`labels`: [B] classes, [B] floats with one output, or [B, C] floats (multi-label).

        The loss is that of BERT on the mean logits (SDT); temporal losses are the Trainer's. The last
        layer is computed for the first token alone, unless hidden states or attentions are asked for.
        """
        outputs = self._encode(
            lambda x: self.classifier(self.dropout(self.bert.pooler(x[None])[0])),
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            first_token_only=self._first_token_only(kwargs),
            **kwargs,
        )
        if outputs.timestep_readout is not None:
            timestep_logits = outputs.timestep_readout
            logits = timestep_logits.mean(1)
        elif self.config.collapsed:
            timestep_logits = None
            logits = self.classifier(self.dropout(outputs.pooler_output))
        else:
            pooled = outputs.timestep_pooler_output
            mask = self.dropout(torch.ones_like(pooled[:, :1]))
            timestep_logits = self.classifier(pooled * mask)
            logits = timestep_logits.mean(1)
        return SpikingSequenceClassifierOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            timestep_logits=timestep_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            attention_scores=outputs.attention_scores,
        )

    def anytime(
        self, inputs: Mapping[str, Any] | None = None, **options: Any
    ) -> "Iterator[AnytimeStep]":
        """Prediction, confidence and energy after each step: `spikenlp.inference.anytime`."""
        from spikenlp.inference import anytime

        return anytime(self, inputs, **options)

    def _first_token_only(self, asked: Mapping[str, Any]) -> bool:
        """Whether nobody sees what the last layer makes of the other tokens."""
        outputs = ("output_hidden_states", "output_attentions", "output_attention_scores")
        seen = any(asked.get(name, getattr(self.config, name, False)) for name in outputs)
        return self.config.architecture == "default" and not seen

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.config.problem_type is None:
            if self.num_labels == 1:
                self.config.problem_type = "regression"
            elif labels.is_floating_point():
                self.config.problem_type = "multi_label_classification"
            else:
                self.config.problem_type = "single_label_classification"
        if self.config.problem_type == "regression":
            return F.mse_loss(logits.float().reshape(-1), labels.float().reshape(-1))
        if self.config.problem_type == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits.float(), labels.float())
        return F.cross_entropy(logits.float(), labels.reshape(-1))


class SpikingBertForTokenClassification(SpikingBertPreTrainedModel):
    def __init__(self, config: SpikingBertConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = SpikingBertModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor] | SpikingTokenClassifierOutput:
        """`labels` [B, L] classes, -100 is ignored: cross entropy of the mean logits."""
        outputs = self._encode(
            lambda hidden: self.classifier(self.dropout(hidden)),
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        timestep_logits, logits = _readout(self.classifier, outputs, self.dropout)
        return SpikingTokenClassifierOutput(
            loss=_mean_cross_entropy(logits, labels),
            logits=logits,
            timestep_logits=timestep_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            attention_scores=outputs.attention_scores,
        )


class SpikingBertForQuestionAnswering(SpikingBertPreTrainedModel):
    def __init__(self, config: SpikingBertConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = SpikingBertModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor] | SpikingQuestionAnsweringOutput:
        """`start_positions`, `end_positions` [B]: positions beyond the sequence are ignored."""
        outputs = self._encode(
            self.qa_outputs,
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        timestep_logits, logits = _readout(self.qa_outputs, outputs)
        start_logits, end_logits = logits.unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            length = logits.shape[1]
            start, end = (
                positions.reshape(-1).clamp(0, length)
                for positions in (start_positions, end_positions)
            )
            loss = F.cross_entropy(start_logits.float(), start, ignore_index=length) / 2
            loss = loss + F.cross_entropy(end_logits.float(), end, ignore_index=length) / 2
        return SpikingQuestionAnsweringOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            timestep_start_logits=None if timestep_logits is None else timestep_logits[..., 0],
            timestep_end_logits=None if timestep_logits is None else timestep_logits[..., 1],
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            attention_scores=outputs.attention_scores,
        )


def _readout(
    head: nn.Linear, outputs: SpikingBertModelOutput, dropout: nn.Module | None = None
) -> tuple[Tensor | None, Tensor]:
    """Logits per step [B, T, L, C] (None when collapsed) and their mean [B, L, C] of a linear head."""
    if outputs.timestep_readout is not None:
        return outputs.timestep_readout, outputs.timestep_readout.mean(1)
    features = outputs.timestep_hidden_state
    collapsed = features is None
    if collapsed:
        features = outputs.last_hidden_state[:, None]
    if dropout is not None:
        features = features * dropout(torch.ones_like(features[:, :1]))
    logits = head(features)
    return None if collapsed else logits, logits.mean(1)


def _mean_cross_entropy(logits: Tensor, labels: Tensor | None) -> Tensor | None:
    if labels is None:
        return None
    return F.cross_entropy(logits.float().flatten(0, -2), labels.reshape(-1))


def _classifier_dropout(config: SpikingBertConfig) -> float:
    if config.classifier_dropout is not None:
        return config.classifier_dropout
    return config.hidden_dropout_prob


__all__ = [
    "SpikingBertForMaskedLM",
    "SpikingBertForQuestionAnswering",
    "SpikingBertForSequenceClassification",
    "SpikingBertForTokenClassification",
    "SpikingBertModel",
    "SpikingBertPreTrainedModel",
]
