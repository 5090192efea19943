"""Images from parquet, folders and CIFAR's archives; no pickle that names a function is obeyed."""

import os
import pickle
import pickletools
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

from spikenlp.data.augmentation import ImageTransform
from spikenlp.data.cifar import unpickle_arrays
from spikenlp.data.images import ImageDataset, label_names, load_images

REAL = Path(os.environ.get("SPIKENLP_IMAGES_DIR", "../shared/data/images"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")


def text(value):
    """Python 2's `str` in a pickle of protocol 2."""
    return b"T" + struct.pack("<i", len(value)) + value


def number(value):
    return b"J" + struct.pack("<i", value)


def array(rows, code=b"u1"):
    """A uint8 array as Python 2's numpy pickled it in CIFAR's archives."""
    shape = number(len(rows)) + number(rows.shape[1]) + b"\x86"
    dtype = b"cnumpy\ndtype\n" + text(code) + number(0) + number(1) + b"\x87R"
    dtype += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85"
    empty += text(b"b") + b"\x87R"
    return empty + b"(" + number(1) + shape + dtype + b"\x89" + text(rows.tobytes()) + b"tb"


def cifar_pickle(**entries):
    out = b"\x80\x02}("
    for key, value in entries.items():
        out += text(key.encode())
        if isinstance(value, np.ndarray):
            out += array(value)
        else:
            items = [number(v) if isinstance(v, int) else text(v.encode()) for v in value]
            out += b"](" + b"".join(items) + b"e"
    return out + b"u."


def pixels(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 3072)).astype(np.uint8)


def cifar_archive(folder, kind):
    folder.mkdir()
    if kind == "cifar10":
        names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
        for i, name in enumerate(names):
            content = cifar_pickle(batch_label=["x"], labels=[i, 9], data=pixels(2, i))
            (folder / name).write_bytes(content)
        classes = cifar_pickle(label_names=[f"class{i}" for i in range(10)])
        (folder / "batches.meta").write_bytes(classes)
    else:
        for i, name in enumerate(("train", "test")):
            content = cifar_pickle(
                fine_labels=[99, i], coarse_labels=[0, 0], data=pixels(2, i), filenames=["a", "b"]
            )
            (folder / name).write_bytes(content)
        classes = cifar_pickle(fine_label_names=[f"class{i}" for i in range(100)])
        (folder / "meta").write_bytes(classes)
    return folder


def test_the_hand_written_pickle_is_one_that_pickle_reads():
    data = cifar_pickle(labels=[1, 2], data=pixels(2, 0))
    pickletools.dis(data, out=open(os.devnull, "w"))  # noqa: SIM115
    theirs = pickle.loads(data, encoding="bytes")
    ours = unpickle_arrays(data)
    assert ours.keys() == theirs.keys() == {b"labels", b"data"}
    assert np.array_equal(ours[b"data"], theirs[b"data"])
    assert ours[b"labels"] == theirs[b"labels"]


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_cifar_archives_give_their_pixels_and_labels(kind, tmp_path):
    data = load_images(data_dir=cifar_archive(tmp_path / "archive", kind))
    assert list(data) == ["train", "test"]
    if kind == "cifar10":
        assert data["train"]["label"] == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
        assert data["test"]["label"] == [5, 9]
        last = pixels(2, 5)[1]
    else:
        assert data["train"]["label"] == [99, 0]
        assert data["test"]["label"] == [99, 1]
        last = pixels(2, 1)[1]
    assert label_names(data["train"])[9] == "class9"
    assert np.array_equal(
        np.asarray(data["test"][1]["image"]), last.reshape(3, 32, 32).transpose(1, 2, 0)
    )


class Malicious:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "thing",
    [
        lambda path: Malicious(os.mkdir, path),
        lambda path: Malicious(eval, f"__import__('os').mkdir({path!r})"),
        lambda path: {b"data": Malicious(exec, f"import os; os.mkdir({path!r})")},
        lambda path: np.array([Malicious(os.mkdir, path)], dtype=object),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_that_names_a_function_is_refused_and_runs_nothing(thing, protocol, tmp_path):
    target = tmp_path / "made"
    data = pickle.dumps(thing(str(target)), protocol)
    with pytest.raises(ValueError, match="not a pickle of plain data"):
        unpickle_arrays(data)
    assert not target.exists()
    pickle.loads(data)
    assert target.exists(), "a plain unpickler would have run it"


@pytest.mark.parametrize(
    "data",
    [
        cifar_pickle(labels=[1], data=pixels(1, 0))[:-30],
        b"",
        pickle.dumps(np.ones(3)),
        b"\x80\x02" + array(pixels(1, 0), code=b"i1") + b".",
        pickle.dumps(np.array(["a"], dtype=object), 2),
        b"\x80\x02cbuiltins\neval\n.",
        b"\x80\x02cnumpy\nload\n.",
    ],
)
def test_other_pickles_are_refused(data):
    with pytest.raises(ValueError, match="not a pickle of plain data"):
        unpickle_arrays(data)


def test_a_broken_archive_names_its_file(tmp_path):
    folder = cifar_archive(tmp_path / "archive", "cifar100")
    (folder / "test").write_bytes(cifar_pickle(fine_labels=[1, 2, 3], data=pixels(2, 0)))
    with pytest.raises(ValueError, match=r"test must hold uint8 \[N, 3072\].*\(2, 3072\) and 3"):
        load_images(data_dir=folder)
    (folder / "test").write_bytes(cifar_pickle(labels=[1], data=pixels(1, 0)))
    with pytest.raises(ValueError, match="test has no 'fine_labels'"):
        load_images(data_dir=folder)


def parquet(path, column, labels, label="label", size=(8, 8), names=("cat", "dog")):
    images = [PILImage.new("RGB", size, (i, 0, 0)) for i in range(len(labels))]
    features = Features({column: Image(), label: ClassLabel(names=list(names))})
    path.parent.mkdir(exist_ok=True)
    Dataset.from_dict({column: images, label: labels}, features).to_parquet(path)


def test_parquet_files_of_a_hub(tmp_path):
    folder = tmp_path / "hub"
    parquet(folder / "train-00000-of-00002.parquet", "img", [0, 1], "fine_label")
    parquet(folder / "train-00001-of-00002.parquet", "img", [1], "fine_label")
    parquet(folder / "test.parquet", "img", [-1], "fine_label")
    data = load_images(data_dir=folder)
    assert list(data) == ["train"], "a split of withheld labels is left out"
    assert data["train"].column_names == ["image", "label"]
    assert data["train"]["label"] == [0, 1, 1]
    assert data["train"][1]["image"].size == (8, 8)


def test_labels_may_be_words(tmp_path):
    def write(split, labels):
        images = [PILImage.new("RGB", (8, 8), (i, 0, 0)) for i in range(len(labels))]
        data = Dataset.from_dict({"image": images, "label": labels})
        data.to_parquet(tmp_path / f"{split}.parquet")

    write("train", ["owl", "cat", "dog"])
    write("test", ["dog", "owl"])
    data = load_images(data_dir=tmp_path)
    assert label_names(data["train"]) == label_names(data["test"]) == ["cat", "dog", "owl"]
    assert {k: v["label"] for k, v in data.items()} == {"train": [2, 0, 1], "test": [1, 2]}
    write("test", ["emu"])
    with pytest.raises(ValueError, match=r"\(test\) has classes that train lacks: \['emu'\]"):
        load_images(data_dir=tmp_path)
    write("train", [0.5, 1.5])
    with pytest.raises(ValueError, match="all as ids or all as words, got float64, string"):
        load_images(data_dir=tmp_path)
    write("train", [0, 3])
    with pytest.raises(ValueError, match="all as ids or all as words, got int64, string"):
        load_images(data_dir=tmp_path)
    write("test", [3, 0, 4])
    with pytest.raises(ValueError, match=r"\(test\) has classes that train lacks: 4"):
        load_images(data_dir=tmp_path)
    write("test", [0, None])
    with pytest.raises(ValueError, match=r"\(test\): some rows have no label"):
        load_images(data_dir=tmp_path)
    write("test", [3, 0])
    assert load_images(data_dir=tmp_path)["test"]["label"] == [3, 0]


def test_files_that_number_their_classes_otherwise_get_the_ids_of_train(tmp_path):
    parquet(tmp_path / "train.parquet", "image", [0, 1])
    parquet(tmp_path / "test.parquet", "image", [0, 1, 1], names=["dog", "cat", "emu"])
    data = load_images(data_dir=tmp_path)
    assert label_names(data["test"]) == ["cat", "dog"]
    assert data["test"]["label"] == [1, 0, 0]
    parquet(tmp_path / "test.parquet", "image", [0, 2], names=["dog", "cat", "emu"])
    with pytest.raises(ValueError, match=r"\(test\) has classes that train lacks: emu"):
        load_images(data_dir=tmp_path)


def image_folders(root, **splits):
    for split, counts in splits.items():
        for name, count in counts.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                PILImage.new("RGB", (9, 7), (10 * i, 0, 0)).save(folder / f"{i}.png")
    return root


def test_image_folders(tmp_path):
    folder = image_folders(
        tmp_path / "folders", train={"n01": 2, "n02": 1}, val={"n01": 1, "n02": 1}
    )
    data = load_images(data_dir=folder)
    assert {k: v["label"] for k, v in data.items()} == {"train": [0, 0, 1], "validation": [0, 1]}
    assert label_names(data["validation"]) == ["n01", "n02"]


def test_a_class_has_the_id_that_train_gives_it(tmp_path):
    folder = image_folders(
        tmp_path / "folders",
        train={"a": 1, "b": 1, "c": 1},
        val={"c": 1},
        test={"a": 1, "c": 2},
    )
    data = load_images(data_dir=folder)
    assert {k: v["label"] for k, v in data.items()} == {
        "train": [0, 1, 2],
        "validation": [2],
        "test": [0, 2, 2],
    }
    assert label_names(data["validation"]) == label_names(data["test"]) == ["a", "b", "c"]
    image_folders(tmp_path / "folders", valid={"d": 1})
    (tmp_path / "folders" / "val").rename(tmp_path / "kept")
    with pytest.raises(ValueError, match="valid has classes that train lacks: d"):
        load_images(data_dir=folder)


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(ValueError, match="exactly one source"):
        load_images()
    with pytest.raises(ValueError, match="exactly one source"):
        load_images(dataset="a", data_dir="b")
    with pytest.raises(FileNotFoundError, match=r"no train\*\.parquet, no folder train/"):
        load_images(data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_images(data_dir=tmp_path / "nowhere")
    parquet(tmp_path / "odd" / "train.parquet", "picture", [0])
    with pytest.raises(ValueError, match=r"no column of images \(image, img\): found \['picture'"):
        load_images(data_dir=tmp_path / "odd")


def test_rows_become_what_the_trainer_takes(tmp_path):
    parquet(tmp_path / "hub" / "train.parquet", "image", [0, 1])
    rows = load_images(data_dir=tmp_path / "hub")["train"]
    data = ImageDataset(rows, ImageTransform(8, (0.5,) * 3, (0.25,) * 3, train=False))
    assert data[1]["labels"] == 1
    assert data[1]["pixel_values"].shape == (3, 8, 8)
    assert data[1]["pixel_values"].dtype == torch.float32
    with pytest.raises(ValueError, match=r"must have the columns \['label'\]"):
        ImageDataset(rows.remove_columns("label"), lambda image: image)
    plain = Dataset.from_dict({"label": [0, 2]}, Features({"label": Value("int64")}))
    assert label_names(plain) == ["0", "1", "2"]


@pytest.mark.parametrize(("name", "mode", "size"), [("cifar10", "RGB", 32), ("mnist", "L", 28)])
def test_the_real_files(name, mode, size):
    if not (REAL / name).is_dir():
        pytest.skip("no real images here: set SPIKENLP_IMAGES_DIR to their folder")
    data = load_images(data_dir=REAL / name)
    assert {k: len(v) for k, v in data.items()}["test"] == 10_000
    image = data["test"][0]["image"]
    assert (image.mode, image.size) == (mode, (size, size))
    assert sorted(set(data["test"][:500]["label"])) == list(range(10))
