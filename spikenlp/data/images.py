"""Image classification data from a hub, from files, or from CIFAR's archives, ready for the Trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, Dataset, DatasetDict, Image, load_dataset
from torch import Tensor

from spikenlp.data.cifar import find_cifar, load_cifar_archive

MEAN_STD = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mnist": ((0.1307,), (0.3081,)),
}
"""Mean and standard deviation by channel of pixels in [0, 1], as the literature uses them."""

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_SPLITS = ("train", "validation", "test")
_FOLDERS = {"val": "validation", "valid": "validation", "dev": "validation"}


def load_images(*, dataset: str | None = None, data_dir: str | Path | None = None) -> DatasetDict:
    """Images with labels, by split.

    Args:
        dataset: hub id, such as "uoft-cs/cifar10", "uoft-cs/cifar100" (its fine labels) or
            "ILSVRC/imagenet-1k".
        data_dir: a folder of one of three kinds: CIFAR's unpacked Python archive; parquet files with
            the hub's columns, whose names start with their split (train.parquet, test-00000.parquet);
            folders train/, val/ or test/ with a folder of images a class, of which train has all.

    Returns:
        Splits among `train`, `validation` and `test` with the columns `image` (decoded to PIL) and
        `label` (ClassLabel where the source names the classes, or has words for labels), with train's ids in every
        split. ImageNet's test split, whose labels are withheld, is left out.

    Raises:
        ValueError: not exactly one source; no column of images or labels; an empty split; a row without a label; a
            class that train lacks; labels that are neither ids nor words.
        FileNotFoundError: nothing of the kind in `data_dir`.

    >>> load_images(data_dir="cifar10")["train"].column_names  # doctest: +SKIP
    ['image', 'label']
    """
    if (dataset is None) == (data_dir is None):
        raise ValueError(
            "give exactly one source: dataset (a hub id such as uoft-cs/cifar10) or data_dir (a "
            "folder of parquet files, of image folders or of CIFAR's archive)"
        )
    source = str(dataset or data_dir)
    loaded = load_dataset(source) if data_dir is None else _load_folder(Path(data_dir))
    splits = {}
    for name in _SPLITS:
        if name in loaded and (split := _standard_columns(loaded[name], f"{source} ({name})")):
            splits[name] = split
    if "train" not in splits:
        raise ValueError(f"{source} has no train split with labels: found {sorted(loaded)}")
    return _with_class_ids(DatasetDict(splits), source)


def _with_class_ids(splits: DatasetDict, source: str) -> DatasetDict:
    """Labels as ids of train's classes; words in the order of the alphabet, or of numbers."""
    for name, split in splits.items():
        labels = set(split["label"])
        if None in labels or -1 in labels:
            raise ValueError(f"{source} ({name}): some rows have no label")
    kinds = {getattr(split.features["label"], "dtype", "lists") for split in splits.values()}
    if kinds <= {"string", "large_string"}:
        found = set(splits["train"]["label"])
        names = sorted(found, key=int if all(name.isdecimal() for name in found) else None)
        for name, split in splits.items():
            if unknown := sorted(set(split["label"]) - set(names)):
                raise ValueError(f"{source} ({name}) has classes that train lacks: {unknown}")
        return splits.cast_column("label", ClassLabel(names=names))
    if not all(kind.startswith(("int", "uint", "bool")) for kind in kinds):
        raise ValueError(
            f"{source}: labels must be classes, all as ids or all as words, got {', '.join(sorted(kinds))}"
        )
    return DatasetDict(
        {
            name: _with_classes_of(splits["train"], split, f"{source} ({name})")
            for name, split in splits.items()
        }
    )


def _load_folder(folder: Path) -> DatasetDict:
    if find_cifar(folder):
        return load_cifar_archive(folder)
    parquet = {
        split: [str(path) for path in sorted(folder.glob(f"{split}*.parquet"))] for split in _SPLITS
    }
    if any(parquet.values()):
        files = {split: paths for split, paths in parquet.items() if paths}
        return DatasetDict({k: Dataset.from_parquet(v, split=k) for k, v in files.items()})
    folders = {
        _FOLDERS.get(path.name, path.name): path
        for path in sorted(folder.iterdir() if folder.is_dir() else [])
        if path.is_dir() and _FOLDERS.get(path.name, path.name) in _SPLITS
    }
    if "train" not in folders:
        raise FileNotFoundError(
            f"{folder} holds no train*.parquet, no folder train/ and no CIFAR archive"
        )
    train = load_dataset("imagefolder", data_dir=str(folders.pop("train")), split="train")
    splits = {"train": train}
    for name, path in folders.items():
        found = load_dataset("imagefolder", data_dir=str(path), split="train", drop_labels=False)
        splits[name] = _with_classes_of(train, found, str(path))
    return DatasetDict(splits)


def _with_classes_of(train: Dataset, split: Dataset, source: str) -> Dataset:
    """The split with train's ids: on its own each folder numbers the classes that it has, and so may a file."""
    if "label" not in train.features:
        return split
    names = label_names(train)
    named = isinstance(split.features["label"], ClassLabel)
    own = label_names(split) if named else names
    if own == names and max(split["label"]) < len(names):
        return split
    used = [own[i] if i < len(own) else str(i) for i in sorted(set(split["label"]))]
    if unknown := [name for name in used if name not in names]:
        raise ValueError(f"{source} has classes that train lacks: {', '.join(unknown)}")
    ids = [names.index(own[i]) for i in split["label"]]
    return split.remove_columns("label").add_column("label", ids, feature=train.features["label"])


def _standard_columns(split: Dataset, source: str) -> Dataset | None:
    """The split as `image` and `label`; None where labels are withheld."""
    columns = []
    for what, wanted in (("images", _IMAGE_COLUMNS), ("labels", _LABEL_COLUMNS)):
        found = [name for name in wanted if name in split.column_names]
        if not found:
            raise ValueError(
                f"{source} has no column of {what} ({', '.join(wanted)}): found {split.column_names}"
            )
        columns.append(found[0])
    if len(split) == 0:
        raise ValueError(f"{source} is empty")
    if split[0][columns[1]] in (None, -1):
        return None
    split = split.select_columns(columns).rename_columns(
        dict(zip(columns, ("image", "label"), strict=True))
    )
    return (
        split if isinstance(split.features["image"], Image) else split.cast_column("image", Image())
    )


def label_names(split: Dataset) -> list[str]:
    """Names of the classes, in the order of their ids; numbers where the source has none."""
    feature = split.features["label"]
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    return [str(i) for i in range(max(split["label"]) + 1)]


class ImageDataset(torch.utils.data.Dataset):
    """Rows of `load_images` for the Trainer: `[i]` is {"pixel_values": float32 [C, H, W], "labels": int}.

    Args:
        rows: with the columns `image` and `label`.
        transform: PIL image to tensor, e.g. `spikenlp.data.augmentation.ImageTransform`, called anew
            each time.

    Raises:
        ValueError: another set of columns.
    """

    def __init__(self, rows: Dataset, transform: Callable[[Any], Tensor]):
        if missing := {"image", "label"} - set(rows.column_names):
            raise ValueError(
                f"rows must have the columns {sorted(missing)}: got {rows.column_names}"
            )
        self.rows, self.transform = rows, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        row = self.rows[index]
        return {"pixel_values": self.transform(row["image"]), "labels": row["label"]}
