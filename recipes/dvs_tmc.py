"""Train a spiking classifier of event-camera recordings with a temporal loss (TMC by default).

    accelerate launch recipes/dvs_tmc.py recipes/configs/cifar10_dvs.yaml --data_dir CIFAR10-DVS
    accelerate launch recipes/dvs_tmc.py --events simulated --data_dir mnist --num_timesteps 8

`--data_dir` is the unpacked archive of CIFAR10-DVS, N-Caltech101, DVS128-Gesture or SL-Animals-DVS from
its own site, or for `--events simulated` images of one size (see image_tmc.py), of which the luminance is
turned into event streams. Recordings become T frames [2, H, W], which are kept in `--cache_dir`.

Models, validation, options and output as in image_tmc.py. Where subjects are known, those that
are validated on are not trained on. `--fold all` (SL-Animals-DVS) trains and tests each of the four folds
in its own folder, fold1 to fold4 of the output folder, whose results.json has their means.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import transformers
from common import parse_arguments, save_records, summary
from torch.utils.data import Subset
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
from spikenlp.data.augmentation import of_eight_bits
from spikenlp.data.events import FrameDataset, Saccades, SimulatedEvents, ToFrames, load_recordings
from spikenlp.data.events.recordings import FOLDS
from spikenlp.data.images import label_names, load_images
from spikenlp.provenance import run_record

FRAMES = 10
FRAME_SIZE = 48
WITHOUT_SIDES = ("cifar10_dvs", "n_caltech101")
"""Events whose classes stay what they are when they are mirrored; a hand's side, or a digit, does not."""


@dataclass
class EventArguments(SplitArguments):
    events: Literal["cifar10_dvs", "n_caltech101", "dvs_gesture", "sl_animals", "simulated"] = (
        field(default="cifar10_dvs", metadata={"help": "Which data set data_dir holds."})
    )
    fold: Literal["1", "2", "3", "4", "all"] | None = field(
        default=None, metadata={"help": "sl_animals: the fold that is tested on, or all in turn."}
    )
    frames_by: Literal["count", "time"] = field(
        default="count", metadata={"help": "Slices of as many events, or of the same duration."}
    )
    frame_size: int | None = field(
        default=None,
        metadata={
            "help": "Side of the frames (default: the checkpoint's or preset's, or 48, or the sensor's where that "
            "is less)."
        },
    )
    resize: Literal["sum", "bilinear"] = field(
        default="sum", metadata={"help": "Events of merged pixels are summed, or frames resized."}
    )
    binary: bool = field(default=False, metadata={"help": "Frames of 0 and 1 in place of counts."})
    flip: bool | None = field(
        default=None,
        metadata={
            "help": "Mirror half of the training samples (default: of cifar10_dvs and n_caltech101, whose classes "
            "have no sides)."
        },
    )
    roll: int = field(
        default=5, metadata={"help": "Roll training samples by up to so many pixels."}
    )
    cache_dir: str = field(default=".cache/events", metadata={"help": "Where frames are kept."})


def load_event_data(model_args: VisionModelArguments, data_args: EventArguments) -> VisionData:
    if data_args.data_dir is None:
        raise ValueError(f"--data_dir is needed: the unpacked archive of {data_args.events}")
    sources: dict[str, Any] = {}
    if data_args.events == "simulated":
        sources, names, description = simulated(data_args)
    else:
        if data_args.fold == "all":
            raise ValueError("--fold all is for dvs_tmc.py alone: give one fold, 1 to 4")
        fold = None if data_args.fold is None else int(data_args.fold)
        for split in ("train", "test"):
            sources[split] = load_recordings(data_args.events, data_args.data_dir, split, fold=fold)
        names = list(sources["train"].classes)
        description = f"{data_args.events}, frames by {data_args.frames_by}"
    frames = model_args.config_field("num_timesteps", FRAMES)
    usual = min(FRAME_SIZE, *sources["train"].sensor_size[:2])
    side = data_args.frame_size or model_args.config_field("image_size", usual)
    to_frames = ToFrames(
        frames,
        by=data_args.frames_by,
        frame_size=(side, side),
        resize=data_args.resize,
        binary=data_args.binary,
    )

    def framed(split: str, **augmentation: Any) -> FrameDataset:
        return FrameDataset(
            sources[split], to_frames, cache_dir=data_args.cache_dir, **augmentation
        )

    flip = data_args.events in WITHOUT_SIDES if data_args.flip is None else data_args.flip
    plain, test = framed("train"), framed("test")
    augmented = framed("train", flip=flip, roll=data_args.roll)
    kept, held_out = carve_validation(
        sources["train"].labels,
        data_args.validation_fraction,
        seed=SUBSET_SEED,
        groups=getattr(sources["train"], "groups", None),
    )
    kept = some(kept, data_args.max_train_samples)
    held_out = some(held_out, data_args.max_eval_samples)
    tested = some(range(len(test)), data_args.max_eval_samples)
    for data, indices in ((plain, [*kept, *held_out]), (test, tested)):
        data.prepare(sorted(indices))
    return VisionData(
        source=description,
        train=Subset(augmented, kept),
        calibration=Subset(plain, kept),
        validation=Subset(plain, held_out),
        test=Subset(test, tested),
        labels=names,
        config_fields={"num_channels": 2, "image_size": side, "num_timesteps": frames},
    )


def simulated(data_args: EventArguments) -> tuple[dict[str, SimulatedEvents], list[str], str]:
    """Images of `data_dir` as event streams of a camera that fits them and has room for its saccades."""
    splits = load_images(data_dir=data_args.data_dir)
    # Only as many images as are asked for are decoded, with what is validated on beside them.
    train = data_args.max_train_samples
    if train is not None:
        train = round(train / (1 - data_args.validation_fraction)) + 1
    limits = {"train": train, "test": data_args.max_eval_samples}
    sources = {}
    for split, limit in limits.items():
        if split not in splits:
            raise ValueError(f"{data_args.data_dir} has no {split} split: found {sorted(splits)}")
        rows = splits[split].select(some(range(len(splits[split])), limit))
        grey = [np.asarray(of_eight_bits(row["image"]).convert("L")) for row in rows]
        if len(sizes := {image.shape for image in grey}) > 1:
            height_width = ", ".join(f"{height} x {width}" for height, width in sorted(sizes)[:3])
            raise ValueError(f"a simulated camera needs images of one size, got {height_width}")
        images = np.stack(grey)
        height, width = images.shape[1:]
        camera = Saccades(sensor=(height + 6, width + 6))
        sources[split] = SimulatedEvents(images, rows["label"], camera, name=f"simulated-{split}")
    folder = Path(str(data_args.data_dir)).name
    return sources, label_names(splits["train"]), f"simulated event streams of {folder}"


def run_folds(
    model_args: VisionModelArguments,
    data_args: EventArguments,
    training_args: SpikingTrainingArguments,
) -> dict[str, Any]:
    """Each fold's run; its metrics under `folds`, and their means where one run has its own."""
    out = Path(training_args.output_dir)
    found = [
        run(
            model_args,
            replace(data_args, fold=str(fold)),
            replace(training_args, output_dir=str(out / f"fold{fold}")),
            load_data=load_event_data,
        )
        for fold in range(1, FOLDS + 1)
    ]
    measured = [name for name in ("dense", "before_training", "spiking") if name in found[0]]
    folds = {k: {m: [f[k][m] for f in found] for m in found[0][k]} for k in measured}
    results = {
        **{k: found[0][k] for k in ("data", "seed", "config")},
        "run": run_record(),
        **{k: {m: statistics.mean(v) for m, v in folds[k].items()} for k in measured},
        "folds": folds,
    }
    if training_args.process_index == 0:
        save_records(out, results)
        print(summary(results), flush=True)
    return results


def main() -> None:
    transformers.utils.logging.set_verbosity_warning()
    model_args, data_args, training_args = parse_arguments(
        sys.argv[1:],
        (VisionModelArguments, EventArguments, SpikingTrainingArguments),
        **{**VISION_DEFAULTS, "model": "spiking_vgg", "output_dir": "outputs/dvs"},
    )
    if data_args.fold == "all":
        run_folds(model_args, data_args, training_args)
    else:
        run(model_args, data_args, training_args, load_data=load_event_data)


if __name__ == "__main__":
    main()
