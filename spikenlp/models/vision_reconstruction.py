"""`reconstruct` for the image classifiers: see `spikenlp.models.reconstruction`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from spikenlp.models.amplitudes import dense_neurons
from spikenlp.models.reconstruction import RIDGE, RidgeFit, Seen, fitting, until_seen
from spikenlp.models.vision import ConvNorm, SpikingVisionPreTrainedModel
from spikenlp.models.vision_conversion import images_of


def reconstruct(
    model: SpikingVisionPreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    ridge: float = RIDGE,
) -> None:
    """Fits the convolutions of a converted `model` to its own spikes, in place, but for the first, which
    reads none; the head stays. Once: the weights are the target as well.

    The network and its dense twin run once for each convolution, as far as that.

    Args:
        batches: dicts with `pixel_values`, a few hundred images of the kind that the model will see.
        ridge: > 0; the smaller, the farther the weights go from where they were.

    Raises:
        ValueError: no rounding neurons, or batch norm; weights in int8; no batch, or one without
            `pixel_values`; `ridge` not above 0; activations that are not finite.
    """
    config = model.config
    if config.neuron != "rounding" or config.batch_norm:
        raise ValueError(
            "reconstruct fits rounding neurons without batch norm, what from_dense makes: got neuron="
            f"{config.neuron!r}, batch_norm={config.batch_norm}"
        )
    images = images_of(model, batches)
    if not images:
        raise ValueError("reconstruction needs data: give at least one batch")
    sums = model.neurons_of_sums()
    names = [name for name, module in model.named_modules() if isinstance(module, ConvNorm)]
    with fitting(model, ridge) as exact, dense_neurons(exact, lambda _, x: x.relu()):
        for name in names[1:]:
            fit = RidgeFit()
            for x in images:
                patches, made = _look(model, x, name, sums.get(name))
                _, wanted = _look(exact, x, name, sums.get(name))
                fit.add(patches, wanted - made)
            conv = model.get_submodule(name).conv
            weight, bias = fit.change(ridge)
            conv.weight += weight.view_as(conv.weight).to(conv.weight)
            conv.bias += bias.to(conv.bias)


def _look(
    model: SpikingVisionPreTrainedModel, pixel_values: Tensor, name: str, neuron: str | None
) -> tuple[Tensor, Tensor]:
    """Means over time of what a convolution reads for each pixel that it writes, [N, inputs], and of what
    it writes, [N, outputs], or of the sum with it that `neuron` gets."""
    conv = model.get_submodule(name).conv
    seen: dict[str, Tensor] = {}

    def keep(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        read, made = (x.unflatten(0, (-1, len(pixel_values))).mean(0) for x in (args[0], out))
        seen.update(read=read, made=made)
        if neuron is None:
            raise Seen

    def keep_sum(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.update(made=args[0].mean(0))
        raise Seen

    hooks = [conv.register_forward_hook(keep)]
    if neuron is not None:
        hooks.append(model.get_submodule(neuron).register_forward_pre_hook(keep_sum))
    with until_seen(hooks):
        model(pixel_values)
    patches = F.unfold(seen["read"], conv.kernel_size, padding=conv.padding, stride=conv.stride)
    return patches.transpose(1, 2).flatten(0, 1), seen["made"].movedim(1, -1).flatten(0, -2)
