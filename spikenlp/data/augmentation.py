"""Image transforms and augmentation with PIL, numpy and torch; all randomness is torch's.

AutoAugment: Cubuk et al., CVPR 2019, the policy found on CIFAR-10. RandAugment: Cubuk et al., 2020, with
the operations and strengths of timm's "rand-m9-mstd0.5-inc1", but that it shears about the middle of the
image and moves it by up to 150 / 331 (.453) of its side in place of .45. Cutout: DeVries & Taylor, 2017.
Random erasing: Zhong et al., AAAI 2020. Mixup: Zhang et al., ICLR 2018.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset
from transformers.image_processing_utils import BaseImageProcessor

try:
    from PIL import Image, ImageEnhance, ImageOps
except ImportError as error:
    raise ImportError("images need Pillow: pip install 'spikenlp[vision]'") from error

LEVELS = 10

CIFAR10_POLICY = (
    (("invert", 0.1, 7), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.5, 8), ("equalize", 0.9, 2)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 5), ("equalize", 0.5, 1)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 7), ("auto_contrast", 0.4, 8)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 3)),
    (("equalize", 0.2, 0), ("auto_contrast", 0.6, 0)),
    (("equalize", 0.2, 8), ("equalize", 0.6, 4)),
    (("color", 0.9, 9), ("equalize", 0.6, 6)),
    (("auto_contrast", 0.8, 4), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("auto_contrast", 0.9, 3)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.9, 2), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 8), ("invert", 0.1, 3)),
    (("translate_y", 0.7, 9), ("auto_contrast", 0.9, 1)),
)
"""Sub-policies of two operations: name, probability, level in 0..9."""

RANDAUGMENT_OPS = (
    "auto_contrast equalize invert rotate posterize_hard solarize solarize_add color contrast "
    "brightness sharpness shear_x shear_y translate_x translate_y"
).split()


def _uniform() -> float:
    return float(torch.rand(()))


def apply_op(
    image: Image.Image, name: str, strength: float, fill: tuple[int, ...] | None = None
) -> Image.Image:
    """One operation on a PIL image; `strength` in [0, 1], or [-1, 1] where it has a direction.

    At 0 nothing happens, except for invert, equalize and auto_contrast, which have no strength, and
    posterize_hard. Ranges: shear .3, translation 150 / 331 of the side, rotation 30 degrees,
    enhancements by 1 +- .9, posterize from 8 to 4 bits, posterize_hard from 4 to 0, solarize from 256
    to 0, solarize_add from 0 to 110, added to what is darker than 128.

    Args:
        fill: colour of what comes into the image by moving it, one value a band (None: grey, 128).

    Raises:
        ValueError: an unknown name.
    """
    fill = fill or (128,) * len(image.getbands())
    colour = fill if len(fill) > 1 else fill[0]
    if name in ("shear_x", "shear_y", "translate_x", "translate_y"):
        width, height = image.size
        shear = 0.3 * strength
        move = 150 / 331 * strength
        matrix = {
            # about the middle of the image
            "shear_x": (1, shear, -shear * height / 2, 0, 1, 0),
            "shear_y": (1, 0, 0, shear, 1, -shear * width / 2),
            "translate_x": (1, 0, move * width, 0, 1, 0),
            "translate_y": (1, 0, 0, 0, 1, move * height),
        }[name]
        return image.transform(
            image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=colour
        )
    if name == "rotate":
        return image.rotate(30 * strength, Image.Resampling.BICUBIC, fillcolor=colour)
    if name in ("color", "contrast", "brightness", "sharpness"):
        return getattr(ImageEnhance, name.title())(image).enhance(1 + 0.9 * strength)
    if name == "posterize":
        return ImageOps.posterize(image, 8 - round(4 * abs(strength)))
    if name == "posterize_hard":
        lost = (1 << 4 + int(4 * abs(strength))) - 1
        return image.point([i & ~lost for i in range(256)] * len(fill))
    if name == "solarize":
        return ImageOps.solarize(image, 256 - int(256 * abs(strength)))
    if name == "solarize_add":
        added = int(110 * abs(strength))
        return image.point([i + added if i < 128 else i for i in range(256)] * len(fill))
    if name in ("invert", "equalize"):
        return getattr(ImageOps, name)(image)
    if name == "auto_contrast":
        return ImageOps.autocontrast(image)
    raise ValueError(f"unknown operation {name!r}")


def auto_augment(image: Image.Image) -> Image.Image:
    """One random sub-policy of AutoAugment's policy for CIFAR-10, on a PIL image."""
    policy = CIFAR10_POLICY[int(torch.randint(len(CIFAR10_POLICY), ()))]
    for name, probability, level in policy:
        sign = 1 if _uniform() < 0.5 else -1
        if _uniform() < probability:
            image = apply_op(image, name, sign * level / (LEVELS - 1))
    return image


def rand_augment(
    image: Image.Image,
    *,
    operations: int = 2,
    level: float = 9,
    spread: float = 0.5,
    fill: tuple[int, ...] | None = None,
) -> Image.Image:
    """`operations` random operations, each with probability 1/2, at a level drawn from N(level, spread)
    and clipped to [0, 10]; `fill` as in `apply_op`."""
    for index in torch.randint(len(RANDAUGMENT_OPS), (operations,)).tolist():
        strength = min(max(level + spread * float(torch.randn(())), 0), LEVELS) / LEVELS
        sign = 1 if _uniform() < 0.5 else -1
        if _uniform() < 0.5:
            image = apply_op(image, RANDAUGMENT_OPS[index], sign * strength, fill)
    return image


def cutout(pixels: Tensor, size: int) -> Tensor:
    """A copy of [C, H, W] with zeros in a square of `size` around a random pixel, cut at the edges."""
    height, width = pixels.shape[-2:]
    row, column = int(torch.randint(height, ())), int(torch.randint(width, ()))
    pixels = pixels.clone()
    top, left = max(row - size // 2, 0), max(column - size // 2, 0)
    pixels[..., top : row - size // 2 + size, left : column - size // 2 + size] = 0
    return pixels


def random_erasing(pixels: Tensor, probability: float) -> Tensor:
    """[C, H, W] with, at a given probability, noise in a rectangle of 2% to a third of the area."""
    if _uniform() >= probability:
        return pixels
    channels, height, width = pixels.shape
    for _ in range(10):
        area = height * width * (0.02 + _uniform() * (1 / 3 - 0.02))
        ratio = math.exp((2 * _uniform() - 1) * math.log(1 / 0.3))
        rows, columns = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < rows < height and 0 < columns < width:
            top = int(torch.randint(height - rows + 1, ()))
            left = int(torch.randint(width - columns + 1, ()))
            pixels = pixels.clone()
            noise = torch.randn(channels, rows, columns)
            pixels[:, top : top + rows, left : left + columns] = noise
            break
    return pixels


def of_eight_bits(image: Image.Image) -> Image.Image:
    """Grey values of 16 bits, which PIL itself clips at 255, brought to 8; other images as they are.

    Raises:
        ValueError: an image of mode I or F, whose range is not known.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(
            f"an image of mode {image.mode!r} has grey values of 32 bits, whose range is not known: scale them to "
            "0 ... 255 and convert to 'L' first"
        )
    return image


@dataclass
class ImageTransform:
    """PIL image, of 8 bits a channel or grey of 16, to normalised float32 [C, size, size].

    Args:
        size: side of the square result.
        mean, std: by channel, of pixels in [0, 1]; one channel asks for grey images.
        train: with augmentation; without, the image is only brought to size and normalised.
        crop: "pad": a crop of `size` from the image padded by `size // 8` (CIFAR); "resized": a crop of
            8% to all of the area at a ratio of 3/4 to 4/3, resized (ImageNet).
        flip: mirrored with probability 1/2.
        policy: "none", "auto" (`auto_augment`) or "rand" (`rand_augment`, filled with the mean).
        cutout_size: side of the square set to zero, 0 for none.
        erasing: probability of `random_erasing`.
        crop_pct: with crop "resized", the share of the shorter side that is seen when not training.

    Not training, an image of another size is resized so that its shorter side is size / crop_pct and
    its middle is cut out (crop "resized"), or resized to the square (crop "pad").

    Raises:
        ValueError: an option out of range; called with grey values of 32 bits, whose range is not known.

    >>> from PIL import Image
    >>> ImageTransform(32, (0.5,), (0.5,), train=False)(Image.new("L", (28, 28))).shape
    torch.Size([1, 32, 32])
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: bool
    crop: Literal["pad", "resized"] = "pad"
    flip: bool = True
    policy: Literal["none", "auto", "rand"] = "none"
    cutout_size: int = 0
    erasing: float = 0.0
    crop_pct: float = 0.875

    def __post_init__(self) -> None:
        for name, allowed in (("crop", ("pad", "resized")), ("policy", ("none", "auto", "rand"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise ValueError(f"mean and std must have 1 or 3 channels: {self.mean}, {self.std}")
        if self.size < 1 or self.cutout_size < 0 or not 0 <= self.erasing <= 1:
            raise ValueError(
                f"size must be >= 1, cutout_size >= 0 and erasing in [0, 1], got {self.size}, "
                f"{self.cutout_size}, {self.erasing}"
            )
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct must lie in (0, 1], got {self.crop_pct}")

    def __call__(self, image: Image.Image) -> Tensor:
        image = of_eight_bits(image).convert("L" if len(self.mean) == 1 else "RGB")
        if not self.train:
            return self._normalise(self._to_size(image))
        image = (
            self._random_resized_crop(image) if self.crop == "resized" else self._pad_crop(image)
        )
        if self.flip and _uniform() < 0.5:
            image = ImageOps.mirror(image)
        if self.policy == "auto":
            image = auto_augment(image)
        elif self.policy == "rand":
            image = rand_augment(image, fill=tuple(round(255 * mean) for mean in self.mean))
        pixels = self._normalise(image)
        if self.cutout_size:
            pixels = cutout(pixels, self.cutout_size)
        return random_erasing(pixels, self.erasing) if self.erasing else pixels

    def image_processor(self) -> BaseImageProcessor | None:
        """The same without augmentation as transformers' pipelines know it; None for grey images, which
        they turn into colour. It takes RGB images as they are; others bring to 8 bits and RGB before serving, as
        training does (`of_eight_bits(image).convert("RGB")`): 16 bits it clips, transparent images it lays on white."""
        if len(self.mean) == 1:
            return None
        from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

        square = {"height": self.size, "width": self.size}
        crop = self.crop == "resized"
        return BitImageProcessorPil(
            size={"shortest_edge": self._shorter_side()} if crop else square,
            crop_size=square,
            do_center_crop=crop,
            image_mean=list(self.mean),
            image_std=list(self.std),
        )

    def _shorter_side(self) -> int:
        return int(self.size / self.crop_pct)

    def _normalise(self, image: Image.Image) -> Tensor:
        array = np.asarray(image, np.float32).reshape(self.size, self.size, -1) / 255
        array = (array - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))

    def _to_size(self, image: Image.Image) -> Image.Image:
        if self.crop == "pad":
            square = (self.size, self.size)
            return image if image.size == square else image.resize(square)
        width, height = image.size
        shorter = self._shorter_side()
        width, height = (shorter * side // min(width, height) for side in (width, height))
        left, top = (width - self.size) // 2, (height - self.size) // 2
        return image.resize((width, height)).crop((left, top, left + self.size, top + self.size))

    def _pad_crop(self, image: Image.Image) -> Image.Image:
        padding = self.size // 8
        left, top = (torch.randint(-padding, padding + 1, (2,))).tolist()
        # Outside of the image PIL's crop is black.
        return self._to_size(image).crop((left, top, left + self.size, top + self.size))

    def _random_resized_crop(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        for _ in range(10):
            area = width * height * (0.08 + 0.92 * _uniform())
            ratio = math.exp((2 * _uniform() - 1) * math.log(4 / 3))
            columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < columns <= width and 0 < rows <= height:
                left = int(torch.randint(width - columns + 1, ()))
                top = int(torch.randint(height - rows + 1, ()))
                box = (left, top, left + columns, top + rows)
                return image.resize((self.size, self.size), box=box)
        return self._to_size(image)


class MixupDataset(Dataset):
    """Images for training, each mixed with another one drawn anew each time, and so their labels.

    `[i]` is {"pixel_values": float32 [C, H, W], "labels": float32 [num_labels], which sums to 1}; every
    temporal loss takes such labels, SpikingTrainer with them; a model's own loss, transformers', takes
    them for several labels at once. No benchmark of TMC uses mixup; QKFormer's authors do on CIFAR.

    Args:
        rows: a data set of {"pixel_values", "labels": class}, e.g. `spikenlp.data.images.ImageDataset`.
        alpha: of the Beta(alpha, alpha) distribution of the first image's share, > 0; its authors took
            1 on CIFAR, 0.1 to 0.4 on ImageNet.

    Raises:
        ValueError: alpha that is not positive.
    """

    def __init__(self, rows: Dataset, *, alpha: float, num_labels: int):
        if not alpha > 0:
            raise ValueError(f"alpha must be > 0, got {alpha}")
        self.rows, self.num_labels = rows, num_labels
        self.shares = torch.distributions.Beta(alpha, alpha)

    def __len__(self) -> int:
        return len(self.rows)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        share = self.shares.sample()
        one, other = self.rows[index], self.rows[int(torch.randint(len(self), ()))]
        classes = F.one_hot(torch.tensor([one["labels"], other["labels"]]), self.num_labels)
        return {
            "pixel_values": one["pixel_values"].lerp(other["pixel_values"], 1 - share),
            "labels": share * classes[0] + (1 - share) * classes[1],
        }
