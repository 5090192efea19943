"""Configuration of the spiking VGG."""

from huggingface_hub.dataclasses import strict

from spikenlp.models.vision import ABOVE_ONE, SpikingVisionConfig


@strict
class SpikingVGGConfig(SpikingVisionConfig):
    """The fields of `SpikingVisionConfig`, and the shape of the network; the default is VGGSNN.

    VGGSNN (Deng et al., ICLR 2022, and TMC): 3x3 convolutions of 64, 128, 256, 256, 512, 512, 512 and
    512 channels on 2 x 48 x 48 frames, average pooling by 2 after every second, a linear readout. The
    neuron fires where u > 1, as its authors' does (`ABOVE_ONE`).

    Args:
        hidden_sizes: channels of each convolution.
        depths: convolutions of each stage; a stage ends with average pooling by 2.

    Raises:
        ValueError: depths that do not add up to the number of hidden sizes, or more stages than the
            image can be halved.
    """

    model_type = "spiking_vgg"

    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 256, 256, 512, 512, 512, 512)
    depths: list[int] | tuple[int, ...] = (2, 2, 2, 2)
    num_channels: int = 2
    image_size: int = 48
    num_timesteps: int = 10
    v_threshold: float | int = ABOVE_ONE

    def validate_vgg(self):
        """Run by `@strict` when a config is built or loaded."""
        if sum(self.depths) != len(self.hidden_sizes):
            raise ValueError(
                f"depths={self.depths} must add up to the number of hidden_sizes, "
                f"{len(self.hidden_sizes)}"
            )
        if self.image_size >> len(self.depths) < 1:
            raise ValueError(
                f"image_size={self.image_size} cannot be halved {len(self.depths)} times (depths)"
            )


__all__ = ["SpikingVGGConfig"]
