"""What the spiking image classifiers share.

    pixel_values [B, C, H, W]     one image: the same current at each of the T time steps
    pixel_values [B, T, C, H, W]  T frames, one a time step

Inside, tensors are [T, B, C, H, W]; a convolution and its batch norm see time folded into the batch,
so that the norm's statistics are over T * B (tdBN, Zheng et al., AAAI 2021). What comes before the
first neuron is the same at each step of an image and is computed once, [1, B, C, H, W]. Whatever
leaves a model has the batch first. The logits of step t are the head on what step t sends,
`timestep_logits` [B, T, classes], and `logits` is their mean. No state is kept between calls.

`config.neuron` is "if" or "lif" (hard reset to 0, fires where u >= v_threshold), "rounding" (binary
`RoundingIF`, one amplitude per channel), or "relu": the dense network of the same shape.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)
from transformers.utils.generic import can_return_tuple
from typing_extensions import Self

from spikenlp.models.checkpoint import SpikingCheckpoint, SpikingConfig
from spikenlp.models.initialization import init_neuron
from spikenlp.neurons import IF, LIF, RoundingIF, SpikingNeuron

ABOVE_ONE = 1 + 2**-23
"""The float32 after 1. Membrane potentials are float32, so that u >= ABOVE_ONE says u > 1, the rule of TET
and TMC, under autocast too. A model cast to half precision rounds it to 1, and fires at 1 as well."""


@strict
class SpikingVisionConfig(SpikingConfig):
    """Fields of every spiking image classifier.

    Args:
        num_channels: of the input.
        image_size: height and width of the input.
        num_timesteps: T >= 1 of an image; frames bring their own.
        neuron: see the module.
        beta: decay of "lif".
        decay_input: the input of "lif" decays too, u = beta * v + (1 - beta) * x.
        v_threshold: "if" and "lif" fire where u >= v_threshold > 0.
        detach_reset: no gradient of "if" and "lif" through the spike inside the reset.
        surrogate: surrogate gradient of "if" and "lif", at its default width.
        batch_norm: False: convolutions with a bias and no norm, what `fold_batch_norm` makes.

    Raises:
        ValueError: a field outside the above.
    """

    keys_to_ignore_at_inference = ["timestep_logits", "hidden_states"]
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    default_num_labels: ClassVar[int] = 10

    num_channels: int = 3
    image_size: int = 32
    num_timesteps: int = 4
    neuron: Literal["if", "lif", "rounding", "relu"] = "lif"
    beta: float | int = 0.5
    decay_input: bool = False
    v_threshold: float | int = 1.0
    detach_reset: bool = False
    surrogate: Literal["triangle", "rectangle", "sigmoid", "arctan"] = "triangle"
    batch_norm: bool = True

    def __post_init__(self, **kwargs):
        if self.id2label is None:
            kwargs.setdefault("num_labels", self.default_num_labels)
        for name in ("hidden_sizes", "depths"):
            if hasattr(self, name):
                setattr(self, name, list(getattr(self, name)))
        super().__post_init__(**kwargs)

    def to_diff_dict(self) -> dict[str, Any]:
        """What is saved. transformers leaves two labels out, as its default; here it is another."""
        labels = {"id2label": self.id2label, "label2id": self.label2id}
        return {**super().to_diff_dict(), **labels}

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """The config of a published network, `overrides` on top.

        Raises:
            ValueError: an unknown name; the message has the known ones.
        """
        if name not in cls.presets:
            raise ValueError(f"{cls.__name__} has presets {sorted(cls.presets)}, got {name!r}")
        fields = dict(cls.presets[name])
        if overrides.get("id2label") is not None:
            fields.pop("num_labels", None)
        return cls(**{**fields, **overrides})

    def validate_vision(self):
        """Run by `@strict` when a config is built or loaded."""
        for name in ("num_channels", "image_size", "num_timesteps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not 0 < self.beta <= 1:
            raise ValueError(f"beta must be in (0, 1], got {self.beta}")
        if not self.v_threshold > 0:
            raise ValueError(f"v_threshold must be > 0, got {self.v_threshold}")
        if self.decay_input and self.beta == 1:
            raise ValueError("beta must be < 1 with decay_input=True, got 1")
        for name in ("hidden_sizes", "depths"):
            values = getattr(self, name, (1,))
            if not values or min(values) < 1:
                raise ValueError(f"{name} must be a list of numbers >= 1, got {values}")


@dataclass
class SpikingVisionModelOutput(BaseModelOutputWithPoolingAndNoAttention):
    """`last_hidden_state` [B, C, H, W], `pooler_output` [B, D] and `hidden_states` are means over time.

    timestep_pooler_output: [B, T, D], whose mean is `pooler_output`.
    """

    timestep_pooler_output: Tensor | None = None


@dataclass
class SpikingImageClassifierOutput(ImageClassifierOutputWithNoAttention):
    """`timestep_logits` [B, T, C]; `logits` [B, C] is its mean over time."""

    timestep_logits: Tensor | None = None


# --- layers --------------------------------------------------------------------------------------


def make_neuron(
    config: SpikingVisionConfig, channels: int, threshold: float | None = None
) -> nn.Module:
    """The neuron that `config` asks for, for [T, B, channels, ...]; `threshold`: other than its own."""
    if config.neuron == "relu":
        return nn.ReLU()
    if config.neuron == "rounding":
        return RoundingIF(channels, ternary=False, channel_dim=2)
    classic: dict[str, Any] = {
        "v_threshold": config.v_threshold if threshold is None else threshold,
        "reset": "hard",
        "detach_reset": config.detach_reset,
        "surrogate": config.surrogate,
        "channel_dim": 2,
    }
    if config.neuron == "if":
        return IF(**classic)
    return LIF(config.beta, decay_input=config.decay_input, **classic)


def fire(neuron: nn.Module, x: Tensor, steps: int | None = None) -> Tensor:
    """Spikes [T, ...] of x [T, ...], or of x [1, ...] that is the same at each of the `steps`."""
    return neuron(x, num_timesteps=steps) if isinstance(neuron, SpikingNeuron) else neuron(x)


def fold_time(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer` on [T, B, ...] with time folded into the batch."""
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class BatchNormOverTime(nn.BatchNorm2d):
    """Batch norm of [T * B, C, H, W]; with `repeats`, of so many copies of its input.

    Copies change neither mean nor variance, so they are not made; only the running variance, which is
    the unbiased one, N / (N - 1) times the variance of N values, knows their number.
    """

    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, input: Tensor, repeats: int = 1) -> Tensor:
        if repeats == 1 or not self.training:
            return super().forward(input)
        # Autograd keeps the running variance it is given: a copy, since this one changes again.
        updated = self.running_var.clone()
        output = F.batch_norm(
            input, self.running_mean, updated, self.weight, self.bias, True, self.momentum, self.eps
        )
        count = input.numel() // self.num_features
        unbiased = repeats * (count - 1) / (repeats * count - 1)
        kept = (1 - self.momentum) * self.running_var
        self.running_var.copy_(kept + unbiased * (updated - kept))
        self.num_batches_tracked.add_(1)
        return output


class ConvNorm(nn.Module):
    """Convolution that keeps the size (but for the stride) and batch norm, on [T, B, C, H, W]."""

    def __init__(
        self,
        config: SpikingVisionConfig,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        bias: bool = False,
    ):
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=kernel_size // 2,
            bias=bias or not config.batch_norm,
        )
        self.norm = BatchNormOverTime(out_channels) if config.batch_norm else None

    def forward(self, x: Tensor, steps: int | None = None) -> Tensor:
        """`steps`: x [1, ...] stands for so many; what returns is [1, ...] as well."""
        y = self.conv(x.flatten(0, 1))
        if isinstance(self.norm, BatchNormOverTime):
            y = self.norm(y, 1 if steps is None else steps // len(x))
        elif self.norm is not None:  # another, such as torch's SyncBatchNorm, put in its place
            y = self.norm(y)
        return y.unflatten(0, x.shape[:2])


class SpikingConv(ConvNorm):
    """`ConvNorm`, max pooling (3, stride 2) where `pool`, and a neuron: spikes [T, B, C, H, W]."""

    def __init__(
        self,
        config: SpikingVisionConfig,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        pool: bool = False,
        **conv: Any,
    ):
        super().__init__(config, in_channels, out_channels, kernel_size, **conv)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if pool else None
        self.neuron = make_neuron(config, out_channels)

    def forward(self, x: Tensor, steps: int | None = None) -> Tensor:
        y = super().forward(x, steps)
        if self.pool is not None:
            y = fold_time(self.pool, y)
        return fire(self.neuron, y, steps)


# --- models --------------------------------------------------------------------------------------


class SpikingVisionPreTrainedModel(SpikingCheckpoint, PreTrainedModel):
    config: SpikingVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    accepts_loss_kwargs = False

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any
    ) -> Any:
        """See `SpikingCheckpoint.from_pretrained`; another `v_threshold` than the saved one takes its place."""
        path = pretrained_model_name_or_path
        loaded = super().from_pretrained(path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        saved = {} if path is None else model.config.get_config_dict(path, **kwargs)[0]
        if saved.get("v_threshold", model.config.v_threshold) != model.config.v_threshold:
            for module in model.modules():
                if isinstance(module, SpikingNeuron) and not isinstance(module, RoundingIF):
                    module.v_threshold.fill_(module.initial_threshold)
        return loaded

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        config = self.config
        generator = torch.Generator().manual_seed(0)
        shape = (2, config.num_channels, config.image_size, config.image_size)
        return {"pixel_values": torch.randn(shape, generator=generator).to(self.dtype)}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):  # as torch does
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            bound = 1 / math.sqrt(module.in_features)
            init.uniform_(module.bias, -bound, bound)
        else:
            init_neuron(module)

    def neurons_of_sums(self) -> dict[str, str]:
        """By name, the convolutions that add to a stream, each with the neuron that gets the sum."""
        return {}

    def fold_batch_norm(self) -> Self:
        """A model of the same outputs in eval mode, its batch norms in the convolutions' weights.

        Source: Jacob et al., CVPR 2018, section 3.2.
        """
        from spikenlp.models.vision_conversion import fold_batch_norm

        return fold_batch_norm(self)


class SpikingVisionModel(SpikingVisionPreTrainedModel):
    """The forward pass of the base models, which say what their stages and their pooling are."""

    def stages_of(self, x: Tensor, steps: int) -> Iterator[Tensor]:
        """The stream [T, B, C, H, W] after the stem and after each stage, of x [T or 1, B, C, H, W]."""
        raise NotImplementedError

    def pool(self, stream: Tensor) -> Tensor:
        """[T, B, C, H, W] -> features [T, B, D]."""
        return stream.mean((-2, -1))

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None, **kwargs: Any
    ) -> tuple[Tensor] | SpikingVisionModelOutput:
        """`pixel_values` [B, C, H, W] or [B, T, C, H, W], floating point.

        Raises:
            ValueError: another shape or dtype, or another number of channels than the config's.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        x, steps = self._over_time(pixel_values)
        seen = []
        stream = x
        for stream in self.stages_of(x, steps):
            if output_hidden_states:
                seen.append(stream.mean(0))
        features = self.pool(stream)
        return SpikingVisionModelOutput(
            last_hidden_state=stream.mean(0),
            pooler_output=features.mean(0),
            hidden_states=tuple(seen) if output_hidden_states else None,
            timestep_pooler_output=features.transpose(0, 1),
        )

    def _over_time(self, pixel_values: Tensor) -> tuple[Tensor, int]:
        """[T, B, C, H, W], or [1, B, C, H, W] of an image; and T."""
        channels = self.config.num_channels
        if pixel_values.dim() not in (4, 5) or pixel_values.shape[-3] != channels:
            raise ValueError(
                f"pixel_values must be [B, {channels}, H, W] (images) or [B, T, {channels}, H, W] "
                f"(frames), got shape {tuple(pixel_values.shape)}"
            )
        if not pixel_values.is_floating_point():
            raise ValueError(f"pixel_values must be floating point, got {pixel_values.dtype}")
        if pixel_values.dim() == 4:
            # A dense network does not change over time.
            return pixel_values[None], 1 if self.config.neuron == "relu" else (
                self.config.num_timesteps
            )
        if not pixel_values.shape[1]:
            raise ValueError("pixel_values needs at least one frame, got shape [B, 0, ...]")
        return pixel_values.transpose(0, 1), pixel_values.shape[1]


class SpikingVisionForImageClassification(SpikingVisionPreTrainedModel):
    """A base model with a head, `classifier`, that maps features [T, B, D] to logits [T, B, classes]."""

    def __init__(self, config: SpikingVisionConfig):
        super().__init__(config)
        self.num_labels = config.num_labels

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor] | SpikingImageClassifierOutput:
        """`pixel_values` [B, C, H, W] or [B, T, C, H, W]; `labels`: [B] classes, [B] floats with one
        output, or [B, C] floats (multi-label).

        The loss is that of transformers' image classifiers on the mean logits (SDT); temporal losses
        are the Trainer's.
        """
        outputs = self.base_model(
            pixel_values, output_hidden_states=output_hidden_states, return_dict=True
        )
        features = outputs.timestep_pooler_output.transpose(0, 1)
        timestep_logits = self.classifier(features).transpose(0, 1)
        logits = timestep_logits.mean(1)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits.float(), self.config)
        return SpikingImageClassifierOutput(
            loss=loss,
            logits=logits,
            timestep_logits=timestep_logits,
            hidden_states=outputs.hidden_states,
        )
