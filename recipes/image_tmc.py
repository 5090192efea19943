"""Train a spiking image classifier with a temporal loss (TMC by default).

    accelerate launch recipes/image_tmc.py recipes/configs/cifar10_resnet19.yaml --data_dir cifar10
    accelerate launch recipes/image_tmc.py recipes/configs/cifar10_resnet19.yaml --data_dir cifar10 \\
        --neuron relu --output_dir outputs/cifar10_dense

Models: spiking_resnet, spiking_vgg, qkformer, each with the presets of its config class. `--neuron relu`
trains the dense network of the same shape (cross entropy, no time axis), from which `--neuron rounding
--model_name_or_path` makes a spiking one that may be trained further; `--dense_first` does both.

Data come from `--data_dir` (parquet files, image folders or CIFAR's own archive) or `--dataset` (a Hub
id). The model that is kept is the best one, by step or epoch, on a validation set: the source's own if
it has a test set beside it, else `--validation_fraction` of the training set. The test set (ImageNet's
validation set) is looked at once, at the end.

A run that was stopped goes on from its last checkpoint when the same command is given again. The
output folder gets the model, a model card, arguments.yaml, results.json (test accuracy, loss and
calibration at every time step) and the Trainer's own logs. `--push_to_hub --hub_model_id user/name`
shares what of it is public.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import transformers
from common import parse_arguments
from torch.utils.data import Dataset
from vision import (
    SUBSET_SEED,
    VISION_DEFAULTS,
    SplitArguments,
    VisionData,
    VisionModelArguments,
    run,
    some,
)

from spikenlp import SpikingTrainingArguments
from spikenlp.data import carve_validation
from spikenlp.data.augmentation import ImageTransform, MixupDataset
from spikenlp.data.images import MEAN_STD, ImageDataset, label_names, load_images

IMAGE_SIZE = 32


@dataclass
class ImageArguments(SplitArguments):
    dataset: str | None = field(
        default=None, metadata={"help": "Hub id, e.g. uoft-cs/cifar10 or ILSVRC/imagenet-1k."}
    )
    normalisation: Literal["cifar10", "cifar100", "imagenet", "mnist"] = field(
        default="cifar10", metadata={"help": "Whose mean and deviation; mnist: one channel."}
    )
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Side of the model's input (default: the checkpoint's or preset's, or 32)."
        },
    )
    crop: Literal["pad", "resized"] = field(
        default="pad", metadata={"help": "Training crop: shifted (CIFAR) or resized (ImageNet)."}
    )
    crop_pct: float = field(
        default=0.875,
        metadata={
            "help": "Share of an image's shorter side that a test sees (with resized crops)."
        },
    )
    policy: Literal["none", "auto", "rand"] = field(
        default="none", metadata={"help": "AutoAugment's policy of CIFAR-10, or RandAugment (m9)."}
    )
    cutout_size: int = field(default=0, metadata={"help": "Side of the square cut out."})
    erasing: float = field(default=0.0, metadata={"help": "Probability of random erasing."})
    mixup: float = field(
        default=0.0, metadata={"help": "alpha of mixup, 0.1 to 1; 0 mixes nothing."}
    )


def load_image_data(model_args: VisionModelArguments, data_args: ImageArguments) -> VisionData:
    splits = load_images(dataset=data_args.dataset, data_dir=data_args.data_dir)
    source = data_args.dataset or f"the files in {Path(str(data_args.data_dir)).name}"
    if len(splits) < 2:
        raise ValueError(f"{source} has no validation or test split beside train")
    names = label_names(splits["train"])
    train = splits["train"]
    if "test" in splits and "validation" in splits:
        kept, held_out = range(len(train)), splits["validation"]
    else:
        kept, chosen = carve_validation(
            train["label"], data_args.validation_fraction, seed=SUBSET_SEED
        )
        held_out = train.select(chosen)
    train = train.select(some(kept, data_args.max_train_samples))
    tested_on = "test" if "test" in splits else "validation"
    test = splits[tested_on]
    validation, test = (
        rows.select(some(range(len(rows)), data_args.max_eval_samples)) for rows in (held_out, test)
    )
    mean, std = MEAN_STD[data_args.normalisation]
    size = data_args.image_size or model_args.config_field("image_size", IMAGE_SIZE)
    plain = ImageTransform(
        size, mean, std, train=False, crop=data_args.crop, crop_pct=data_args.crop_pct
    )
    augmented = ImageTransform(
        size,
        mean,
        std,
        train=True,
        crop=data_args.crop,
        flip=data_args.normalisation != "mnist",
        policy=data_args.policy,
        cutout_size=data_args.cutout_size,
        erasing=data_args.erasing,
    )
    images: Dataset = ImageDataset(train, augmented)
    if data_args.mixup:
        images = MixupDataset(images, alpha=data_args.mixup, num_labels=len(names))
    return VisionData(
        source=source,
        train=images,
        calibration=ImageDataset(train, plain),
        validation=ImageDataset(validation, plain),
        test=ImageDataset(test, plain),
        labels=names,
        config_fields={"num_channels": len(mean), "image_size": size},
        processor=plain.image_processor(),
        tested_on=tested_on,
    )


def main() -> None:
    transformers.utils.logging.set_verbosity_warning()
    arguments = parse_arguments(
        sys.argv[1:],
        (VisionModelArguments, ImageArguments, SpikingTrainingArguments),
        **{**VISION_DEFAULTS, "output_dir": "outputs/image"},
    )
    run(*arguments, load_data=load_image_data)


if __name__ == "__main__":
    main()
