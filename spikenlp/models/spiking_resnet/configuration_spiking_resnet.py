"""Configuration of the spiking ResNet."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from spikenlp.models.vision import ABOVE_ONE, SpikingVisionConfig

_IMAGENET = {
    "stem": "imagenet",
    "head_size": None,
    "image_size": 224,
    "num_labels": 1000,
    "neuron": "if",
    "v_threshold": 1.0,
    "detach_reset": True,
    "surrogate": "arctan",
}
_34 = {**_IMAGENET, "hidden_sizes": (64, 128, 256, 512), "depths": (3, 4, 6, 3)}
_101 = {
    **_IMAGENET,
    "hidden_sizes": (256, 512, 1024, 2048),
    "depths": (3, 4, 23, 3),
    "layer_type": "bottleneck",
}


@strict
class SpikingResNetConfig(SpikingVisionConfig):
    """The fields of `SpikingVisionConfig`, and the shape of the network; the default is ResNet-19.

    ResNet-19 (Zheng et al., AAAI 2021; as in TET and TMC): a stem of 64 channels, stages of 3, 3 and 2
    basic blocks at 128, 256 and 512, a hidden layer of 256 in the head. The neuron fires where u > 1,
    as that of TET and TMC does (`ABOVE_ONE`).

    `SpikingResNetConfig.preset(name)`: "resnet-19"; "spiking-resnet-34" and "-101"; "sew-resnet-34" and
    "-101" (Fang et al., NeurIPS 2021), for ImageNet, with the neuron of the latter's authors, which
    fires at 1, too.

    Args:
        embedding_size: channels of the stem.
        hidden_sizes: channels that the blocks of each stage send; all stages but the first halve the
            image.
        depths: blocks of each stage.
        layer_type: "basic": two 3x3 convolutions; "bottleneck": 1x1, 3x3 and 1x1, a quarter as wide
            inside.
        residual: "spiking": the neuron reads the sum of branch and shortcut; "sew": branch and
            shortcut have a neuron each and spikes are added (SEW, ADD).
        stem: "cifar": 3x3; "imagenet": 7x7 of stride 2, and max pooling.
        head_size: units of a hidden layer of spikes in the head, or None for a linear head.

    Raises:
        ValueError: other numbers of hidden sizes and depths; bottleneck widths that are not
            multiples of 4.
    """

    model_type = "spiking_resnet"
    presets = {
        "resnet-19": {},
        "spiking-resnet-34": _34,
        "spiking-resnet-101": _101,
        "sew-resnet-34": {**_34, "residual": "sew"},
        "sew-resnet-101": {**_101, "residual": "sew"},
    }

    embedding_size: int = 64
    hidden_sizes: list[int] | tuple[int, ...] = (128, 256, 512)
    depths: list[int] | tuple[int, ...] = (3, 3, 2)
    layer_type: Literal["basic", "bottleneck"] = "basic"
    residual: Literal["spiking", "sew"] = "spiking"
    stem: Literal["cifar", "imagenet"] = "cifar"
    head_size: int | None = 256
    v_threshold: float | int = ABOVE_ONE

    def validate_resnet(self):
        """Run by `@strict` when a config is built or loaded."""
        if len(self.depths) != len(self.hidden_sizes):
            raise ValueError(
                f"depths={self.depths} and hidden_sizes={self.hidden_sizes} must be equally long"
            )
        if self.layer_type == "bottleneck" and any(size % 4 for size in self.hidden_sizes):
            raise ValueError(
                f"hidden_sizes={self.hidden_sizes} must be multiples of 4 in bottleneck blocks"
            )
        for name in ("embedding_size", "head_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")


__all__ = ["SpikingResNetConfig"]
