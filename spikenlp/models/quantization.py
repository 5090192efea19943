"""Weights in int8, as a quantization method of transformers.

    scale_i = max_j |w_ij| / 127        one per output channel, or per row of an embedding; 1 if all
                                        w_ij are 0
    q_ij = round(w_ij / scale_i)        int8, within [-127, 127]
    w_ij ~ scale_i q_ij                 what the layer computes with, |error| <= scale_i / 2

The weights of linear, convolutional and embedding layers are kept and stored so; activations, biases,
norms and what belongs to neurons stay float. An integer times the scale is made each time a layer runs:
int8 saves storage and memory, not time.

`from_pretrained(path, quantization_config=Int8Config())` rounds a float checkpoint. What its
`save_pretrained` writes holds the integers, and loads as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from spikenlp.neurons import SpikingLinear

METHOD = "spikenlp_int8"
LARGEST = 127


@register_quantization_config(METHOD)
@dataclass
class Int8Config(QuantizationConfigMixin):
    """Weight-only int8, symmetric, one scale per output channel or row of an embedding.

    >>> model = SpikingBertForSequenceClassification.from_pretrained(
    ...     "outputs/sst2", quantization_config=Int8Config()
    ... )
    >>> model.save_pretrained("outputs/sst2-int8")  # loads without quantization_config
    """

    quant_method: str = METHOD


def int8_of(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight [rows, ...] as int8 of its shape and scale [rows], of its dtype.

    Raises:
        ValueError: a weight that is not finite.

    >>> int8_of(torch.tensor([[0.5, -1.27], [0.0, 2.54]]))[0].tolist()
    [[50, -127], [0, 127]]
    """
    scale = weight.detach().float().flatten(1).abs().amax(1) / LARGEST
    if not scale.isfinite().all():
        row = int(scale.isfinite().logical_not().nonzero()[0])
        raise ValueError(f"a weight must be finite to be rounded to int8, row {row} is not")
    scale = torch.where(scale > 0, _no_smaller(scale, weight.dtype), 1)
    rounded = (weight.detach().float() / _by_row(scale.float(), weight)).round()
    return rounded.clamp(-LARGEST, LARGEST).to(torch.int8), scale


def _no_smaller(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`scale` in `dtype`; the number above, where rounding down would clip the largest weight (float16 has
    few numbers below 1e-4)."""
    cast = scale.to(dtype)
    clips = cast.float() * (LARGEST + 0.5) < scale.float() * LARGEST
    if dtype.itemsize == 2 and clips.any():
        cast = torch.where(clips, (cast.view(torch.int16) + 1).view(dtype), cast)
    return cast


def _by_row(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (weight.dim() - 1))


class _MadeWeight(Tensor):
    """A weight that is made anew whenever it is asked for. What is written into it would be lost: the common ways to
    do so are errors."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # as nn.Parameter has it

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError(
            "the weight of an int8 layer is made of its integers and is not to be changed: call "
            "model.dequantize() first (to merge an adapter, say)"
        )

    data = property(lambda self: self.detach().as_subclass(_MadeWeight), _refuse)  # type: ignore[assignment]
    __setitem__ = __iadd__ = __isub__ = __imul__ = __itruediv__ = _refuse  # type: ignore[assignment]
    add_ = sub_ = mul_ = div_ = lerp_ = clamp_ = _refuse  # type: ignore[assignment]
    copy_ = fill_ = zero_ = _refuse  # type: ignore[assignment]

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.detach().clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.detach().__reduce_ex__(protocol)


class _Int8Weight(nn.Module):
    """A layer whose `weight` is made of `weight_int8` and `weight_scale` when it is asked for."""

    weight_int8: Tensor
    weight_scale: Tensor

    @property
    def weight(self) -> Tensor:
        # While tied weights are loaded the integers may still be on the meta device.
        scale = self.weight_scale.to(self.weight_int8.device)
        made = _by_row(scale, self.weight_int8) * self.weight_int8
        return made if torch.compiler.is_compiling() else made.as_subclass(_MadeWeight)


class Int8Linear(_Int8Weight, nn.Linear):  # type: ignore[override]
    pass


class Int8SpikingLinear(_Int8Weight, SpikingLinear):  # type: ignore[override]
    pass


class Int8Conv2d(_Int8Weight, nn.Conv2d):  # type: ignore[override]
    pass


class Int8Embedding(_Int8Weight, nn.Embedding):  # type: ignore[override]
    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Embedding`, of the rows that are looked up alone."""
        return self.weight_scale[input][..., None] * F.embedding(input, self.weight_int8)


_INT8: dict[type[nn.Module], type[_Int8Weight]] = {
    nn.Linear: Int8Linear,
    SpikingLinear: Int8SpikingLinear,
    nn.Conv2d: Int8Conv2d,
    nn.Embedding: Int8Embedding,
}


def _convert(model: PreTrainedModel) -> None:
    """Rounds the weights of `model` in place; on the meta device makes room for rounded ones.

    Tied weights stay tied: a decoder's channels are an embedding's rows.
    """
    made: dict[nn.Parameter, tuple[nn.Parameter, ...]] = {}
    for name, module in model.named_modules():
        if type(module) not in _INT8:
            continue
        weight = module._parameters.pop("weight")
        assert weight is not None
        if weight not in made:
            try:
                made[weight] = tuple(nn.Parameter(t, requires_grad=False) for t in _stored(weight))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        module.__class__ = _INT8[type(module)]
        module.weight_int8, module.weight_scale = made[weight]
    for attribute in ("_tied_weights_keys", "all_tied_weights_keys"):
        setattr(model, attribute, _of_parts(getattr(model, attribute), model))


def _stored(weight: Tensor) -> tuple[Tensor, Tensor]:
    if not weight.is_meta:
        return int8_of(weight)
    return torch.empty_like(weight, dtype=torch.int8), weight.new_empty(len(weight))


def _of_parts(tied: dict[str, str] | None, model: nn.Module) -> dict[str, str] | None:
    """`tied`, target -> source, with the two parts of a rounded weight in place of it."""
    if tied is None:
        return None
    parts: dict[str, str] = {}
    for target, source in tied.items():
        layer = target.removesuffix(".weight")
        if layer != target and isinstance(model.get_submodule(layer), _Int8Weight):
            parts |= {target + part: source + part for part in ("_scale", "_int8")}
        else:
            parts[target] = source
    return parts


def _of_wholes(tied: dict[str, str] | None) -> dict[str, str] | None:
    """What `_of_parts` made its parts of."""
    if tied is None:
        return None
    wholes = {t: s for t, s in tied.items() if not t.endswith("weight_scale")}
    return {t.removesuffix("_int8"): s.removesuffix("_int8") for t, s in wholes.items()}


@register_quantizer(METHOD)
class Int8Quantizer(HfQuantizer):
    """What `from_pretrained` calls before and after the weights are loaded."""

    is_trainable = False

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        if self.pre_quantized:
            _convert(model)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        if not self.pre_quantized:
            _convert(model)
        for module in model.modules():
            if isinstance(module, _Int8Weight):
                module.weight_scale.requires_grad_(False)

    def _dequantize(
        self, model: PreTrainedModel, dtype: torch.dtype | None = None
    ) -> PreTrainedModel:
        """For `model.dequantize()`: the float weights that the integers stand for, which can be trained."""
        made: dict[Tensor, nn.Parameter] = {}
        plain = {int8: kind for kind, int8 in _INT8.items()}
        for module in model.modules():
            if isinstance(module, _Int8Weight):
                stored = module.weight_int8
                if stored not in made:
                    made[stored] = nn.Parameter(module.weight.detach())
                del module.weight_int8, module.weight_scale
                module.__class__ = plain[type(module)]
                module.weight = made[stored]
        for attribute in ("_tied_weights_keys", "all_tied_weights_keys"):
            setattr(model, attribute, _of_wholes(getattr(model, attribute)))
        return model if dtype is None else nn.Module.to(model, dtype)

    def is_serializable(self) -> bool:
        return True
