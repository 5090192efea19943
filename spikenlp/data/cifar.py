"""CIFAR's own Python archives (cifar-10-batches-py, cifar-100-python), read without running anything.

The files are pickles of a dict of bytes, lists and one uint8 array. A pickle can name any function and
have it called; here the three names that build a numpy array are resolved, to functions that build
arrays of bytes, and no other.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE
_LAYOUTS = {
    "cifar10": (
        {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
        "batches.meta",
        (b"labels", b"label_names"),
    ),
    "cifar100": (
        {"train": ["train"], "test": ["test"]},
        "meta",
        (b"fine_labels", b"fine_label_names"),
    ),
}


_PLAIN_ARRAY = "numpy.ndarray"


def _reconstruct(subtype: Any, shape: Any, typecode: Any) -> np.ndarray:
    """numpy's `_reconstruct`: the empty array that the pickle then fills."""
    if subtype != _PLAIN_ARRAY or shape != (0,):
        raise pickle.UnpicklingError(f"it has an array of {subtype} and shape {shape}")
    return np.empty(shape, np.uint8)


def _dtype(code: Any, *flags: Any) -> np.dtype:
    """numpy's `dtype`, of bytes only: an array of objects could hold anything."""
    if code not in ("u1", b"u1"):
        raise pickle.UnpicklingError(f"it has an array of {code!r}")
    return np.dtype(np.uint8)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _PLAIN_ARRAY,
    ("numpy", "dtype"): _dtype,
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}") from None


def unpickle_arrays(data: bytes) -> Any:
    """A pickle of dicts, lists, text, bytes, numbers and numpy arrays of uint8.

    Raises:
        ValueError: truncated data, or a pickle that names anything else (nothing of it is called).
    """
    try:
        return _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:
        raise ValueError(f"not a pickle of plain data and uint8 arrays: {error}") from error


def find_cifar(folder: Path) -> str | None:
    """ "cifar10" or "cifar100" where the folder holds such an archive, else None."""
    for name, (files, meta, _) in _LAYOUTS.items():
        if all((folder / file).is_file() for file in [meta, *files["train"], *files["test"]]):
            return name
    return None


def load_cifar_archive(folder: str | Path) -> DatasetDict:
    """CIFAR-10 or CIFAR-100 from its unpacked Python archive.

    Returns:
        Splits `train` and `test` with `image` (PIL images, RGB 32x32) and `label` (the fine labels of
        CIFAR-100).

    Raises:
        FileNotFoundError: the archive's files are not all there.
        ValueError: a file that is not what it should be.
    """
    folder = Path(folder)
    name = find_cifar(folder)
    if name is None:
        raise FileNotFoundError(f"{folder} holds neither cifar-10-batches-py nor cifar-100-python")
    files, meta, (label_key, names_key) = _LAYOUTS[name]
    names = [label.decode() for label in _read(folder / meta, names_key)]
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    splits = {}
    for split, parts in files.items():
        images: list[dict[str, Any]] = []
        labels: list[int] = []
        for part in parts:
            pixels, found = _read(folder / part, b"data"), _read(folder / part, label_key)
            if np.shape(pixels) != (len(found), _PIXELS) or pixels.dtype != np.uint8:
                raise ValueError(
                    f"{folder / part} must hold uint8 [N, {_PIXELS}] and N labels, got "
                    f"{np.shape(pixels)} and {len(found)}"
                )
            images += [{"bytes": _portable_pixmap(row), "path": None} for row in pixels]
            labels += found
        splits[split] = Dataset.from_dict({"image": images, "label": labels}, features=features)
    return DatasetDict(splits)


def _read(path: Path, key: bytes) -> Any:
    try:
        content = unpickle_arrays(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(content, dict) or key not in content:
        raise ValueError(f"{path} has no {key.decode()!r}")
    return content[key]


def _portable_pixmap(row: np.ndarray) -> bytes:
    """An image file (PPM) around 3 x 1,024 bytes of red, green and blue."""
    return b"P6 %d %d 255\n" % (_SIDE, _SIDE) + row.reshape(3, -1).T.tobytes()
