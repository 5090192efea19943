"""Configuration of QKFormer, the hierarchical spiking transformer."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from spikenlp.models.vision import SpikingVisionConfig

_IMAGENET = {"image_size": 224}
_DVS = {
    "patch_embedding": "dvs",
    "hidden_sizes": (128, 256),
    "depths": (1, 1),
    "num_attention_heads": 16,
    "num_channels": 2,
    "image_size": 128,
    "num_timesteps": 16,
}


@strict
class QKFormerConfig(SpikingVisionConfig):
    """The fields of `SpikingVisionConfig`, and the shape of the network; the default is HST-10-384.

    Zhou et al., QKFormer, NeurIPS 2024. The neuron is that of SpikingJelly's clock_driven mode: tau = 2
    with the input decaying too, hard reset, detached, sigmoid surrogate with alpha = 4.

    `QKFormerConfig.preset(name)`: "hst-10-384", "hst-10-512" and "hst-10-768" for ImageNet; "cifar",
    "dvs-cifar10" and "dvs-gesture", its authors' variants for these.

    Args:
        hidden_sizes: channels of each stage. Stages but the last have token Q-K attention, the last
            one spiking self-attention.
        depths: blocks of each stage.
        num_attention_heads: of each stage.
        mlp_ratio: width of the MLP's hidden layer, in hidden sizes.
        patch_embedding: "imagenet", "cifar" or "dvs": which convolutions of the embeddings halve the
            image, and where the shortcut starts.

    Raises:
        ValueError: another neuron than "if" or "lif"; other numbers of hidden sizes and depths; hidden
            sizes that are not multiples of the heads, or the first not of what its embedding needs.
    """

    model_type = "qkformer"
    default_num_labels = 1000
    never_left_out = (*SpikingVisionConfig.never_left_out, "num_attention_heads")
    presets = {
        "hst-10-384": _IMAGENET,
        "hst-10-512": {**_IMAGENET, "hidden_sizes": (128, 256, 512), "num_attention_heads": 8},
        "hst-10-768": {**_IMAGENET, "hidden_sizes": (192, 384, 768), "num_attention_heads": 12},
        "cifar": {
            "patch_embedding": "cifar",
            "depths": (1, 1, 2),
            "num_attention_heads": 8,
            "image_size": 32,
            "num_labels": 10,
        },
        "dvs-cifar10": {**_DVS, "mlp_ratio": 1, "num_labels": 10},
        "dvs-gesture": {**_DVS, "num_labels": 11},
    }

    hidden_sizes: list[int] | tuple[int, ...] = (96, 192, 384)
    depths: list[int] | tuple[int, ...] = (1, 2, 7)
    num_attention_heads: int = 6
    mlp_ratio: float | int = 4
    patch_embedding: Literal["imagenet", "cifar", "dvs"] = "imagenet"
    image_size: int = 224
    decay_input: bool = True
    detach_reset: bool = True
    surrogate: Literal["triangle", "rectangle", "sigmoid", "arctan"] = "sigmoid"

    def validate_qkformer(self):
        """Run by `@strict` when a config is built or loaded."""
        if self.neuron not in ("if", "lif"):
            raise ValueError(f"neuron must be 'if' or 'lif' in a QKFormer, got {self.neuron!r}")
        if len(self.depths) != len(self.hidden_sizes):
            raise ValueError(
                f"depths={self.depths} and hidden_sizes={self.hidden_sizes} must be equally long"
            )
        heads = self.num_attention_heads
        if heads < 1 or any(size % heads for size in self.hidden_sizes):
            raise ValueError(
                f"hidden_sizes={self.hidden_sizes} must be multiples of num_attention_heads={heads}"
            )
        divisor = 8 if self.patch_embedding == "dvs" else 2
        if self.hidden_sizes[0] % divisor:
            raise ValueError(
                f"hidden_sizes[0]={self.hidden_sizes[0]} must be a multiple of {divisor} with "
                f"patch_embedding={self.patch_embedding!r}"
            )
        if not self.mlp_ratio > 0:
            raise ValueError(f"mlp_ratio must be > 0, got {self.mlp_ratio}")


__all__ = ["QKFormerConfig"]
