"""From a dense image classifier to a spiking one: batch norm folded, amplitudes by calibration.

The dense network is the same class with `config.neuron = "relu"`. A binary rounding neuron sends, on
average over T steps, its mean input rounded to T + 1 levels between 0 and its amplitude: a ReLU that
is rounded and clipped. Convolutions, residual sums and average pooling are linear, so that nothing
else stands between the two; where spikes are max-pooled (the "imagenet" stem of a ResNet), the
maximum is taken at each step, which is not the maximum of the means.

With W and b the convolution, gamma, beta, mu, sigma^2 and eps the batch norm of its output:

    g = gamma / sqrt(sigma^2 + eps)        W' = g W        b' = g (b - mu) + beta
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import Self

from spikenlp.models.amplitudes import (
    Rows,
    dense_neurons,
    fit_amplitudes,
    margin,
    neurons_of,
    position_weights,
)
from spikenlp.models.checkpoint import check_fields
from spikenlp.models.vision import (
    ConvNorm,
    SpikingVisionConfig,
    SpikingVisionPreTrainedModel,
)
from spikenlp.neurons import SpikingNeuron


class FromDense:
    """Gives a model class `from_dense`."""

    @classmethod
    def from_dense(
        cls,
        dense: PreTrainedModel | str,
        *,
        calibration: Iterable[Mapping[str, Tensor]] | None = None,
        reconstruct: bool = False,
        spike_cost: float = 0.0,
        **config_overrides: Any,
    ) -> Self:
        """A spiking model of rounding neurons with the weights of a dense one, batch norm folded.

        Args:
            dense: a model of this class with `config.neuron = "relu"`, or the path or Hub id of one.
            calibration: batches (dicts with `pixel_values`); a few hundred images of the kind that
                the model will see are enough. Without them amplitudes come from the weights and
                norms alone, on random images, and a warning says so.
            reconstruct: then fit the convolutions, too, to the spikes that reach them on these batches
                (`spikenlp.models.reconstruction`), without training.
            spike_cost: above 0 the amplitudes are chosen for fewer spikes, too, of the order of 0.1
                (`spikenlp.models.amplitudes`).
            config_overrides: fields of the config, e.g. `num_timesteps=8`, for which amplitudes are
                calibrated.

        Raises:
            ValueError: another class or neuron; a field that the config does not have; a calibration
                without batches or a batch without `pixel_values`; `reconstruct` without calibration; a
                spike cost below 0.
        """
        from spikenlp.models import vision_reconstruction

        source = dense if isinstance(dense, PreTrainedModel) else cls.from_pretrained(dense)
        neuron = getattr(source.config, "neuron", None)
        if not isinstance(source, cls) or neuron != "relu":
            raise ValueError(
                f"from_dense needs a dense {cls.__name__} (config.neuron='relu'), got "
                f"{type(source).__name__} with neuron={neuron!r}. A spiking checkpoint is loaded with "
                "from_pretrained"
            )
        fields = {"neuron": "rounding", **config_overrides, "batch_norm": False}
        if fields["neuron"] != "rounding":
            raise ValueError(
                f"neuron must be 'rounding' in from_dense, got {fields['neuron']!r}: only rounding "
                "neurons send a ReLU's value on average"
            )
        if reconstruct and calibration is None:
            raise ValueError("reconstruct=True needs calibration data: a few hundred images")
        model = _with_folded_weights(source, fields)
        if calibration is None:
            warnings.warn(
                "from_dense without calibration data: amplitudes are fitted to what the weights make "
                "of random images. Pass a few hundred images as calibration=... for a model that "
                "loses less.",
                stacklevel=2,
            )
            calibration = random_images(model.config)
        batches = list(calibration)
        calibrate(model, batches, spike_cost)
        if reconstruct:
            vision_reconstruction.reconstruct(model, batches)
        return model


def fold_batch_norm(model: Any) -> Any:
    """See `SpikingVisionPreTrainedModel.fold_batch_norm`."""
    return _with_folded_weights(model, {"batch_norm": False})


def _with_folded_weights(model: Any, fields: dict[str, Any]) -> Any:
    """The twin of `model` whose config differs in `fields`, without batch norm; in eval mode."""
    if getattr(model, "is_quantized", False):
        raise ValueError("weights in int8 cannot be folded: take the float model")
    config = copy.deepcopy(model.config)
    for name, value in fields.items():
        check_fields(type(config), [name])
        setattr(config, name, value)
    config.validate()
    with torch.random.fork_rng(devices=[]):  # whose weights are replaced
        twin = type(model)(config)
    result = twin.load_state_dict(folded_state_dict(model), strict=False)
    neurons = {f"{name}.{key}" for name, n in neurons_of(twin) for key in n.state_dict()}
    if wrong := sorted(set(result.missing_keys) - neurons) + result.unexpected_keys:
        raise ValueError(f"weights that the models do not share: {wrong}")
    return twin.to(model.device, model.dtype).eval()


@torch.no_grad()
def folded_state_dict(model: SpikingVisionPreTrainedModel) -> dict[str, Tensor]:
    """The weights of `model` with each batch norm in the convolution before it (equations above)."""
    state = model.state_dict()
    for name, module in model.named_modules():
        if not isinstance(module, ConvNorm) or module.norm is None:
            continue
        conv, norm = module.conv, module.norm
        gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        bias = 0 if conv.bias is None else conv.bias.double()
        folded = {
            "weight": conv.weight.double() * gain.view(-1, 1, 1, 1),
            "bias": gain * (bias - norm.running_mean.double()) + norm.bias.double(),
        }
        for key in norm.state_dict():
            del state[f"{name}.norm.{key}"]
        for key, value in folded.items():
            state[f"{name}.conv.{key}"] = value.to(conv.weight.dtype)
    return state


def random_images(config: SpikingVisionConfig, batches: int = 4) -> list[dict[str, Tensor]]:
    """Unit normal images, as pixels are after normalisation."""
    generator = torch.Generator().manual_seed(0)
    shape = (batches, 32, config.num_channels, config.image_size, config.image_size)
    return [{"pixel_values": batch} for batch in torch.randn(shape, generator=generator)]


def calibrate(
    model: SpikingVisionPreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]],
    spike_cost: float = 0.0,
) -> None:
    """Fits the amplitudes of `model` to `batches` (dicts with `pixel_values`), in place; a `spike_cost` above 0
    for fewer spikes and more error (`spikenlp.models.amplitudes`).

    Raises:
        ValueError: no batch, or one without `pixel_values`; a spike cost below 0.
    """
    fit_amplitudes(
        images_of(model, batches),
        lambda x, weighted: _activations(model, x, weighted),
        model.config.num_timesteps,
        spike_cost,
    )


def images_of(
    model: SpikingVisionPreTrainedModel, batches: Iterable[Mapping[str, Tensor]]
) -> list[Tensor]:
    """The `pixel_values` of calibration batches, on the model's device and of its dtype."""
    images = []
    for batch in batches:
        if not isinstance(batch, Mapping) or not isinstance(batch.get("pixel_values"), Tensor):
            found = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
            raise ValueError(
                f"a calibration batch needs 'pixel_values', a tensor in a dict, got {found}"
            )
        images.append(batch["pixel_values"].to(model.device, model.dtype))
    return images


def _activations(model: SpikingVisionPreTrainedModel, pixel_values: Tensor, weighted: bool) -> Rows:
    """What each ReLU of the dense network sends: activations [N, C], weights of their errors [N, 1]."""
    sent: dict[SpikingNeuron, Tensor] = {}

    def observe(neuron: SpikingNeuron, x: Tensor) -> Tensor:
        activation = x.relu()
        sent[neuron] = (
            activation if activation.requires_grad else activation.requires_grad_(weighted)
        )
        return activation

    grads: tuple[Tensor | None, ...] = ()
    with dense_neurons(model, observe), torch.set_grad_enabled(weighted):
        outputs = model(pixel_values)
        if weighted:
            grads = torch.autograd.grad(margin(outputs), list(sent.values()))
    rows = {}
    for i, (neuron, x) in enumerate(sent.items()):
        activation = _channels_last(x.detach())
        weight = position_weights(_channels_last(grads[i])) if weighted else activation[:, :1]
        rows[neuron] = activation.float(), weight
    return rows


def _channels_last(x: Tensor) -> Tensor:
    """[T, B, C, ...] -> [N, C]."""
    return x.movedim(2, -1).flatten(0, -2)
