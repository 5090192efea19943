"""Transforms and augmentation: identities, ranges, what stays and what goes."""

import numpy as np
import pytest
import torch
from PIL import Image

from spikenlp.data.augmentation import (
    CIFAR10_POLICY,
    RANDAUGMENT_OPS,
    ImageTransform,
    MixupDataset,
    apply_op,
    auto_augment,
    cutout,
    rand_augment,
    random_erasing,
)
from spikenlp.data.images import MEAN_STD

GRADED = "rotate posterize solarize solarize_add color contrast brightness sharpness shear_x shear_y translate_x translate_y".split()


def picture(mode="RGB", size=(32, 32), seed=0):
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    array = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    return Image.fromarray(array)


def same(a, b):
    return np.array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("name", GRADED)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_at_strength_zero_nothing_happens_and_at_one_something(name, mode):
    image = picture(mode)
    assert same(apply_op(image, name, 0), image)
    if (name, mode) != ("color", "L"):
        assert not same(apply_op(image, name, 1), image)
    assert apply_op(image, name, 1).mode == mode


def test_operations_have_their_usual_meaning():
    grey = Image.new("L", (331, 331), 200)
    assert np.asarray(apply_op(grey, "invert", 0.3)).max() == 55
    assert np.asarray(apply_op(grey, "solarize", 0.5)).min() == 55
    assert np.asarray(apply_op(Image.new("L", (4, 4), 255), "posterize", 1)).max() == 0xF0
    assert np.asarray(apply_op(grey, "brightness", -0.5)).max() == 110
    moved = np.asarray(apply_op(grey, "translate_x", 1))
    assert (moved == 128).all(0).sum() == 150
    moved = np.asarray(apply_op(picture(), "rotate", 1, fill=(1, 2, 3)))
    assert moved[0, 0].tolist() == [1, 2, 3]
    assert set(np.asarray(apply_op(picture(), "auto_contrast", 0)).flatten()) >= {0, 255}
    line = np.zeros((33, 33), np.uint8)
    line[:, 16] = 255
    sheared = np.asarray(apply_op(Image.fromarray(line), "shear_x", 1))
    assert [int(sheared[row].argmax()) for row in (6, 16, 26)] == [19, 16, 13], "about the middle"
    with pytest.raises(ValueError, match="unknown operation 'blur'"):
        apply_op(grey, "blur", 1)


def test_the_policy_is_that_of_the_paper():
    assert len(CIFAR10_POLICY) == 25
    for name, probability, level in (op for policy in CIFAR10_POLICY for op in policy):
        apply_op(picture(), name, level / 9)
        assert 0 <= probability <= 1
        assert level in range(10)
    assert CIFAR10_POLICY[0] == (("invert", 0.1, 7), ("contrast", 0.2, 6))
    assert CIFAR10_POLICY[24] == (("translate_y", 0.7, 9), ("auto_contrast", 0.9, 1))


LEVELS_OF_GREY = Image.fromarray(np.arange(256, dtype=np.uint8)[None])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("posterize_hard", lambda i: i & 0x80),  # 4 - int(3.6) = 1 bit
        ("solarize", lambda i: 255 - i if i >= 26 else i),  # 256 - int(230.4)
        ("solarize_add", lambda i: i + 99 if i < 128 else i),
    ],
)
def test_at_level_nine_operations_are_those_of_timms_increasing_set(name, expected):
    assert name in RANDAUGMENT_OPS
    found = np.asarray(apply_op(LEVELS_OF_GREY, name, 0.9))[0]
    assert found.tolist() == [expected(i) for i in range(256)]
    colours = apply_op(LEVELS_OF_GREY.convert("RGB"), name, -0.9)
    assert np.array_equal(np.asarray(colours)[0, :, 2], found)


def test_timms_set_has_fifteen_operations_of_which_the_strongest_leaves_nothing():
    assert len(set(RANDAUGMENT_OPS)) == 15
    assert np.asarray(apply_op(picture(), "posterize_hard", 1)).max() == 0


@pytest.mark.parametrize("augment", [auto_augment, rand_augment])
def test_policies_draw_from_torchs_generator(augment):
    torch.manual_seed(0)
    first = [np.asarray(augment(picture())) for _ in range(30)]
    torch.manual_seed(0)
    again = [np.asarray(augment(picture())) for _ in range(30)]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({a.tobytes() for a in first}) > 10


def test_rand_augment_uses_every_operation(monkeypatch):
    used = set()

    def note(image, name, strength, fill):
        assert abs(strength) <= 1
        assert fill == (102, 51, 255)
        used.add(name)
        return image

    monkeypatch.setattr("spikenlp.data.augmentation.apply_op", note)
    torch.manual_seed(0)
    transform = ImageTransform(32, (0.4, 0.2, 1.0), (0.5,) * 3, train=True, policy="rand")
    for _ in range(200):
        transform(picture())
    assert used == set(RANDAUGMENT_OPS)


def test_cutout_is_a_square_cut_at_the_edges():
    torch.manual_seed(0)
    ones = torch.ones(3, 32, 32)
    areas = set()
    for _ in range(300):
        holes = cutout(ones, 16)[0] == 0
        rows, columns = holes.any(1).sum().item(), holes.any(0).sum().item()
        assert holes.sum() == rows * columns
        assert 8 <= min(rows, columns) <= max(rows, columns) <= 16
        areas.add(rows * columns)
    assert 256 in areas
    assert ones.min() == 1, "the argument is left as it is"


def test_erasing_replaces_a_rectangle_with_noise():
    torch.manual_seed(0)
    plain = torch.full((3, 24, 24), 7.0)
    assert torch.equal(random_erasing(plain, 0.0), plain)
    erased = 0
    for _ in range(200):
        changed = (random_erasing(plain, 0.5) != 7).all(0)
        erased += changed.any().item()
        if changed.any():
            assert changed.sum() == changed.any(1).sum() * changed.any(0).sum()
            assert 0.01 < changed.float().mean() < 0.4
    assert 70 < erased < 130


def test_evaluation_only_normalises():
    mean, std = MEAN_STD["cifar10"]
    image = picture()
    made = ImageTransform(32, mean, std, train=False)(image)
    array = np.asarray(image).transpose(2, 0, 1) / 255
    expected = (array - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
    np.testing.assert_allclose(made.numpy(), expected, atol=1e-6)
    assert made.is_contiguous()


@pytest.mark.parametrize(("crop", "size"), [("pad", (32, 32)), ("resized", (50, 41))])
def test_training_gives_one_size_and_many_images(crop, size):
    options = {"policy": "auto", "cutout_size": 8, "erasing": 0.2}
    transform = ImageTransform(32, (0.0,) * 3, (1.0,) * 3, train=True, crop=crop, **options)
    torch.manual_seed(0)
    made = [transform(picture(size=size)) for _ in range(20)]
    assert {tuple(m.shape) for m in made} == {(3, 32, 32)}
    assert len({m.numpy().tobytes() for m in made}) == 20


def test_the_padded_crop_is_a_shift_by_up_to_an_eighth():
    transform = ImageTransform(16, (0.0,), (1.0,), train=True, flip=False)
    array = np.zeros((16, 16), np.uint8)
    array[8, 8] = 255
    torch.manual_seed(0)
    at = {tuple(transform(Image.fromarray(array))[0].nonzero()[0].tolist()) for _ in range(400)}
    assert at == {(r, c) for r in range(6, 11) for c in range(6, 11)}


def test_large_images_keep_their_middle():
    array = np.zeros((64, 128), np.uint8)
    array[24:40, 56:72] = 255
    made = ImageTransform(28, (0.0,), (1.0,), train=False, crop="resized")(Image.fromarray(array))
    assert made.shape == (1, 28, 28)
    rows, columns = (made[0] > 0.5).nonzero(as_tuple=True)
    assert abs(rows.float().mean() - 13.5) < 1
    assert abs(columns.float().mean() - 13.5) < 1


@pytest.mark.parametrize(("crop_pct", "seen"), [(1.0, 64), (0.875, 56)])
def test_evaluation_sees_its_share_of_the_shorter_side(crop_pct, seen):
    columns = np.tile(np.arange(64, dtype=np.uint8), (64, 1))
    options = {"train": False, "crop": "resized", "crop_pct": crop_pct}
    made = ImageTransform(56, (0.0,), (1.0,), **options)(Image.fromarray(columns))[0, 28] * 255
    assert abs(float(made.max() - made.min()) - (seen - 1)) <= 1


def test_colours_follow_the_number_of_channels():
    assert ImageTransform(28, (0.5,), (0.5,), train=False)(picture(size=(28, 28))).shape[0] == 1
    grey = picture("L", (28, 28))
    assert ImageTransform(32, (0.5,) * 3, (0.5,) * 3, train=False)(grey).shape == (3, 32, 32)


def test_grey_values_of_16_bits_keep_their_range():
    values = np.array([[0, 257], [30_000, 65_535]], np.uint16)
    transform = ImageTransform(2, (0.0,), (1.0,), train=False)
    found = transform(Image.fromarray(values))
    np.testing.assert_allclose(found[0], values / 65_535, atol=0.5 / 255)
    for mode in ("I", "F"):
        with pytest.raises(ValueError, match=f"mode '{mode}' has grey values of 32 bits"):
            transform(Image.new(mode, (2, 2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "trivial"}, "policy must be one of"),
        ({"crop": "centre"}, "crop must be one of"),
        ({"erasing": 2.0}, "erasing in"),
        ({"crop_pct": 1.5}, r"crop_pct must lie in \(0, 1\], got 1.5"),
        ({"std": (1.0,)}, "1 or 3 channels"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ImageTransform(
            **{"size": 8, "mean": (0.5,) * 3, "std": (0.5,) * 3, "train": True, **options}
        )


@pytest.mark.parametrize(
    ("crop", "size", "crop_pct"),
    [
        ("pad", (28, 28), 0.875),
        ("pad", (50, 41), 0.875),
        ("resized", (28, 28), 0.875),
        ("resized", (50, 41), 0.875),
        ("resized", (37, 90), 0.875),
        ("resized", (37, 90), 1.0),
    ],
)
def test_pipelines_bring_an_image_to_the_same_input(crop, size, crop_pct):
    image = picture(size=size)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    transform = ImageTransform(28, mean, std, train=False, crop=crop, crop_pct=crop_pct)
    processor = transform.image_processor()
    found = processor(image, return_tensors="pt")["pixel_values"][0]
    assert torch.allclose(found, transform(image), atol=1e-5)
    assert ImageTransform(28, (0.5,), (0.5,), train=False).image_processor() is None


def test_mixup_mixes_images_and_labels_by_one_share():
    torch.manual_seed(0)
    units = torch.eye(4)[:, None, None]  # image i is the i-th unit vector
    rows = [{"pixel_values": units[i], "labels": i} for i in range(4)]
    mixed = MixupDataset(rows, alpha=0.8, num_labels=4)
    drawn = [mixed[2] for _ in range(200)]
    labels = torch.stack([row["labels"] for row in drawn])
    assert torch.allclose(torch.stack([row["pixel_values"][0, 0] for row in drawn]), labels)
    assert torch.allclose(labels.sum(1), torch.ones(200))
    assert ((labels > 0).sum(1) <= 2).all()
    partners = [(labels[labels[:, 2] < 1] > 0)[:, i].any() for i in (0, 1, 3)]
    assert len(mixed) == 4
    assert all(partners)
    assert (labels[:, 2] < 0.5).any()
    assert (labels[:, 2] > 0.5).any()
    with pytest.raises(ValueError, match="alpha must be > 0"):
        MixupDataset(rows, alpha=0, num_labels=4)
