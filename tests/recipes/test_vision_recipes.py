"""Image and event recipes: which samples go where, the published networks, and whole small runs."""

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
import transformers
import yaml
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

from spikenlp import (
    SpikingResNetConfig,
    SpikingResNetForImageClassification,
    SpikingTrainingArguments,
    SpikingVGGConfig,
    SpikingVGGForImageClassification,
)
from spikenlp.analysis import energy_report, mean_off_diagonal, temporal_similarity
from spikenlp.data.augmentation import ImageTransform
from spikenlp.data.images import MEAN_STD, load_images
from spikenlp.models.spiking_resnet import original_spiking_resnet

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "recipes"))

import compare_vision  # noqa: E402
import dvs_tmc  # noqa: E402
import image_tmc  # noqa: E402
import vision  # noqa: E402
from common import parse_arguments  # noqa: E402

from tests.data.events.test_recordings import (  # noqa: E402
    animals_archive,
    gesture_archive,
)
from tests.models.test_vision import make  # noqa: E402
from tests.recipes.running import run_here, succeed  # noqa: E402

CONFIGS = ROOT / "recipes" / "configs"
PARAMETERS = {
    "cifar10_resnet19": (10, 12_630_858),
    "cifar100_resnet19": (100, 12_653_988),
    "imagenet_hst_768": (1000, 64_962_760),
    "imagenet_resnet34": (1000, 21_797_672),
    "imagenet_resnet101": (1000, 44_549_160),
    "cifar10_dvs": (10, 9_271_498),
    "n_caltech101": (101, 9_690_917),
    "dvs_gesture": (11, 9_276_107),
    "sl_animals": (19, 9_312_979),
}
TINY = [
    "--use_cpu",
    "True",
    "--disable_tqdm",
    "True",
    "--max_steps",
    "3",
    "--learning_rate",
    "1e-2",
]
TINY += ["--per_device_train_batch_size", "4", "--logging_steps", "1", "--save_strategy", "steps"]
TINY += ["--eval_strategy", "steps", "--eval_steps", "1", "--save_steps", "1"]
SMALL_VGG = ["--model", "spiking_vgg", "--num_timesteps", "2"]
SMALL_VGG += ["--model_config", '{"hidden_sizes": [4, 8], "depths": [1, 1]}']


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")


def images_in(folder, splits, size=8):
    """Images of two classes that one can tell apart: dark and bright."""
    folder.mkdir()
    features = Features({"img": Image(), "label": ClassLabel(names=["dark", "bright"])})
    generator = np.random.default_rng(0)
    for split, count in splits.items():
        labels = [i % 2 for i in range(count)]
        rows = [
            PILImage.fromarray(
                (generator.integers(0, 100, (size, size, 3)) + 150 * label).astype(np.uint8)
            )
            for label in labels
        ]
        Dataset.from_dict({"img": rows, "label": labels}, features).to_parquet(
            folder / f"{split}.parquet"
        )
    return folder


def arguments(kind, *options):
    cls = {"image": image_tmc.ImageArguments, "dvs": dvs_tmc.EventArguments}[kind]
    kinds = (vision.VisionModelArguments, cls, SpikingTrainingArguments)
    return parse_arguments([str(o) for o in options], kinds, **vision.VISION_DEFAULTS)


def image_data(*options):
    return image_tmc.load_image_data(*arguments("image", *options)[:2])


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_benchmarks_config_is_the_published_network(name, tmp_path):
    labels, parameters = PARAMETERS[name]
    kind = "dvs" if "resnet" not in name and "hst" not in name else "image"
    options = (CONFIGS / f"{name}.yaml", "--use_cpu", "True", "--bf16", "False")
    model_args, data_args, training_args = arguments(kind, *options)
    assert training_args.theta_weight == "1", "the literal loss"
    assert training_args.load_best_model_at_end
    assert training_args.max_grad_norm == 0, "no clipping"
    if kind == "image":
        assert data_args.policy == ("rand" if "hst" in name else "none")
        assert data_args.crop_pct == (1 if "hst" in name else 0.875)
    else:
        assert data_args.resize == ("bilinear" if name == "cifar10_dvs" else "sum")
    usual = dvs_tmc.FRAME_SIZE if kind == "dvs" else image_tmc.IMAGE_SIZE
    side = (kind == "image" and data_args.image_size) or usual
    fields = {"num_channels": 2 if kind == "dvs" else 3, "image_size": side}
    names = [str(i) for i in range(labels)]
    data = vision.VisionData("", [], [], [], [], names, fields)
    if (
        "hst" in name
    ):  # a learning rate for weights that are trained: there is no start without them
        with pytest.raises(FileNotFoundError, match="path/to/checkpoint"):
            vision.build_model(model_args, data, training_args, {})
        model_args.model_name_or_path = None
    with torch.device("meta"):
        model = vision.build_model(model_args, data, training_args, {})
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.config.neuron in ("lif", "if")
    assert model.config.num_timesteps == model_args.num_timesteps


def rates(training_args, epochs):
    """The learning rate at the start of each epoch, of 100 steps, and at the end."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], training_args.learning_rate)
    scheduler = transformers.get_scheduler(
        training_args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=training_args.get_warmup_steps(100 * epochs),
        num_training_steps=100 * epochs,
        scheduler_specific_kwargs=training_args.lr_scheduler_kwargs,
    )
    found = []
    for step in range(100 * epochs + 1):
        if step % 100 == 0:
            found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


def test_rates_fall_to_zero_and_qkformers_as_the_rest_of_its_own_schedule():
    for name in PARAMETERS:
        kind = "image" if "resnet" in name or "hst" in name else "dvs"
        options = (CONFIGS / f"{name}.yaml", "--use_cpu", "True", "--bf16", "False")
        training_args = arguments(kind, *options)[2]
        found = rates(training_args, int(training_args.num_train_epochs))
        assert found[0] == training_args.learning_rate
        if name != "imagenet_hst_768":
            assert found[-1] == pytest.approx(0, abs=1e-9)
            continue
        # In epochs: 5 of warmup, then a cosine over 208 from its base rate for 480 images to 1e-6.
        top = 6e-4 * 6 * training_args.train_batch_size / 256
        top *= training_args.gradient_accumulation_steps
        expected = [
            1e-6 + (top - 1e-6) * (1 + np.cos(np.pi * (epoch - 5) / 208)) / 2
            for epoch in range(204, 214)
        ]
        assert found == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_config_suggests_a_folder_for_each_variation(name):
    text = (CONFIGS / f"{name}.yaml").read_text()
    assert "an --output_dir of its own, for a run goes on in its folder" in text
    (command,) = re.findall(r"accelerate launch(?:.*\\\n#)*.*", text)
    assert ("--output_dir" in command) == ("--num_timesteps" in command)


def test_a_test_sees_the_share_of_an_image_that_its_config_says(tmp_path):
    folder = images_in(tmp_path / "images", {"train": 20, "test": 4}, size=16)
    options = ("--data_dir", folder, "--image_size", "8", "--crop", "resized")
    whole, middle = (image_data(*options, "--crop_pct", share).test[0] for share in (1, 0.5))
    row = load_images(data_dir=folder)["test"][0]["image"]
    transform = ImageTransform(8, *MEAN_STD["cifar10"], train=False)  # resized, not cut
    assert torch.equal(whole["pixel_values"], transform(row))
    assert torch.equal(middle["pixel_values"], transform(row.crop((4, 4, 12, 12))))


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_benchmarks_config_says_what_was_published_and_what_was_not_run(name):
    text = (CONFIGS / f"{name}.yaml").read_text()
    for row in ("published SDT", "published TET", "published TMC", "ours"):
        (line,) = [line for line in text.splitlines() if line.startswith(f"# {row} ")]
        assert line.split(row)[1].strip()
    assert "not run here" in line


def test_validation_is_carved_from_training_where_the_source_has_only_a_test_set(tmp_path):
    folder = images_in(tmp_path / "images", {"train": 40, "test": 10})
    data = image_data("--data_dir", folder, "--image_size", "8")
    assert [len(d) for d in (data.train, data.validation, data.test)] == [36, 4, 10]
    pictures = [
        {np.asarray(row["image"]).tobytes() for row in d.rows}
        for d in (data.train, data.validation, data.test)
    ]
    assert not pictures[0] & pictures[1]
    assert not (pictures[0] | pictures[1]) & pictures[2]
    assert sorted(data.validation.rows["label"]) == [0, 0, 1, 1]
    assert data.labels == ["dark", "bright"]


def test_a_validation_set_without_labelled_test_set_is_the_test_set(tmp_path):
    folder = images_in(tmp_path / "images", {"train": 40, "validation": 6})
    data = image_data("--data_dir", folder, "--image_size", "8")
    assert [len(d) for d in (data.train, data.validation, data.test)] == [36, 4, 6]
    assert data.tested_on == "validation"
    both = images_in(tmp_path / "both", {"train": 40, "validation": 6, "test": 5})
    data = image_data("--data_dir", both, "--image_size", "8", "--max_train_samples", "7")
    assert [len(d) for d in (data.train, data.validation, data.test)] == [7, 6, 5]
    assert data.tested_on == "test"
    alone = images_in(tmp_path / "alone", {"train": 40})
    with pytest.raises(ValueError, match="no validation or test split"):
        image_data("--data_dir", alone)


def test_only_training_images_are_augmented(tmp_path):
    folder = images_in(tmp_path / "images", {"train": 40, "test": 10})
    data = image_data("--data_dir", folder, "--image_size", "8", "--policy", "auto")
    for split in (data.calibration, data.validation, data.test):
        assert torch.equal(split[0]["pixel_values"], split[0]["pixel_values"])
    torch.manual_seed(0)
    assert len({data.train[0]["pixel_values"].numpy().tobytes() for _ in range(8)}) > 4


def test_only_training_images_are_mixed(tmp_path):
    folder = images_in(tmp_path / "images", {"train": 40, "test": 4})
    asked = arguments("image", "--data_dir", folder, "--image_size", 8, "--mixup", 0.4)
    data = image_tmc.load_image_data(*asked[:2])
    assert data.train[0]["labels"].shape == (2,)
    assert all(split[0]["labels"] in (0, 1) for split in (data.calibration, data.validation))


def gestures_of_three(folder):
    """DVS128-Gesture with three subjects to train on."""
    gesture_archive(folder)
    for user in (2, 3):
        for suffix in (".aedat", "_labels.csv"):
            new = folder / f"user{user:02d}_led{suffix}"
            new.write_bytes((folder / f"user01_led{suffix}").read_bytes())
    (folder / "trials_to_train.txt").write_text(
        "user01_led.aedat\nuser02_led.aedat\nuser03_led.aedat"
    )


def test_events_of_a_recording_set_follow_its_split(tmp_path):
    gestures_of_three(tmp_path / "DvsGesture")
    options = ["--events", "dvs_gesture", "--data_dir", tmp_path, "--num_timesteps", "3"]
    options += ["--frame_size", "16", "--cache_dir", tmp_path / "cache"]
    data = dvs_tmc.load_event_data(*arguments("dvs", *options)[:2])
    assert [len(d) for d in (data.train, data.validation, data.test)] == [8, 4, 4]
    assert data.test[0]["pixel_values"].shape == (3, 2, 16, 16)
    assert data.config_fields == {"num_channels": 2, "image_size": 16, "num_timesteps": 3}
    assert len(data.labels) == 11
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 16, "prepared"
    assert not data.train.dataset.flip, "a mirrored left hand is a right one, another class"
    mirrored = dvs_tmc.load_event_data(*arguments("dvs", *options, "--flip", "True")[:2])
    assert mirrored.train.dataset.flip


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ([], (10, 2, 48, 48)),
        (["--model", "qkformer", "--preset", "dvs-gesture"], (16, 2, 128, 128)),
        (["--preset", "resnet-19"], (10, 2, 48, 48)),
        (["--model", "qkformer", "--preset", "dvs-gesture", "--frame_size", "32"], (16, 2, 32, 32)),
        (["--model_config", '{"num_timesteps": 2, "image_size": 24}'], (2, 2, 24, 24)),
        (["--model_name_or_path", "saved"], (3, 2, 16, 16)),
        (["--model_name_or_path", "saved", "--num_timesteps", "2"], (2, 2, 16, 16)),
    ],
)
def test_events_become_the_frames_that_the_model_is_for(options, shape, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = {"hidden_sizes": [4], "depths": [1], "num_channels": 2}
    config = SpikingVGGConfig(image_size=16, num_timesteps=3, num_labels=11, **small)
    SpikingVGGForImageClassification(config).save_pretrained("saved")
    gestures_of_three(tmp_path / "DvsGesture")
    options = [*options, "--events", "dvs_gesture", "--data_dir", tmp_path]
    options += ["--max_train_samples", "2", "--max_eval_samples", "1"]
    model_args, data_args, training_args = arguments("dvs", *options, "--use_cpu", "True")
    data = dvs_tmc.load_event_data(model_args, data_args)
    assert data.test[0]["pixel_values"].shape == shape
    with torch.device("meta") if model_args.model_name_or_path is None else torch.device("cpu"):
        config = vision.build_model(model_args, data, training_args, {}).config
    assert (config.num_timesteps, 2, config.image_size, config.image_size) == shape


@pytest.mark.parametrize(
    ("options", "side"),
    [
        ([], 32),
        (["--preset", "sew-resnet-34"], 224),
        (["--preset", "sew-resnet-34", "--image_size", "64"], 64),
        (["--model", "qkformer", "--preset", "hst-10-384"], 224),
    ],
)
def test_images_have_the_presets_size(options, side, tmp_path):
    folder = images_in(tmp_path / "images", {"train": 20, "test": 4}, size=16)
    data = image_data("--data_dir", folder, *options)
    assert data.test[0]["pixel_values"].shape == (3, side, side)
    assert data.config_fields["image_size"] == side


def test_a_fold_tests_its_own_recordings(tmp_path):
    animals_archive(tmp_path / "animals", count=12)
    options = ["--events", "sl_animals", "--data_dir", tmp_path / "animals", "--frame_size", "8"]
    options += ["--cache_dir", tmp_path / "cache", "--num_timesteps", "2"]
    folds = [arguments("dvs", *options, "--fold", fold)[:2] for fold in (1, 4)]
    tested = [dvs_tmc.load_event_data(*fold).test.dataset.source.groups for fold in folds]
    assert [len(set(groups)) for groups in tested] == [3, 3]
    assert not set(tested[0]) & set(tested[1])


def test_all_folds_are_run_in_folders_of_their_own_and_averaged(tmp_path, monkeypatch, capsys):
    def run_one(model_args, data_args, training_args, load_data):
        fold = int(data_args.fold)
        assert training_args.output_dir == str(tmp_path / f"fold{fold}")
        metrics = {"accuracy": fold / 10, "accuracy_t1": 0.5, "accuracy_t2": fold / 5}
        return {"data": "d", "seed": 3, "config": {}, "training": {}, "spiking": metrics}

    monkeypatch.setattr(dvs_tmc, "run", run_one)
    options = ["--events", "sl_animals", "--use_cpu", "True", "--output_dir", tmp_path]
    monkeypatch.setattr(sys, "argv", ["dvs_tmc.py", *map(str, options), "--fold", "all"])
    dvs_tmc.main()
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["spiking"] == pytest.approx(
        {"accuracy": 0.25, "accuracy_t1": 0.5, "accuracy_t2": 0.5}
    )
    assert results["folds"]["spiking"]["accuracy"] == [0.1, 0.2, 0.3, 0.4]
    assert "accuracy 25.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--neuron", "rounding"], "rounding neurons start from a dense network"),
        (["--dense_first"], "--dense_first is for --neuron rounding, got None"),
        (["--dense_first", "--model_name_or_path", "x"], "excludes --dense_first"),
        (["--preset", "resnet-20"], "presets"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    model_args, _, training_args = arguments("image", "--use_cpu", "True", *options)
    data = vision.VisionData("", [], [], [], [], ["a", "b"], {})
    with pytest.raises(ValueError, match=message):
        vision.build_model(model_args, data, training_args, {})


@pytest.mark.parametrize(
    ("saved", "asked", "message"),
    [
        ("lif", "rounding", "was trained with lif neurons, not rounding"),
        ("lif", "relu", "was trained with lif neurons, not relu"),
        ("rounding", "relu", "was trained with rounding neurons, not relu"),
        (".pth", "rounding", "was trained with spiking neurons, not rounding"),
        (".pth", "relu", "was trained with spiking neurons, not relu"),
    ],
)
def test_weights_of_one_neuron_are_no_start_for_another(saved, asked, message, tmp_path):
    path = tmp_path / "x.pth"
    if saved != ".pth":
        path = tmp_path / saved
        config = SpikingVGGConfig(neuron=saved, image_size=8, hidden_sizes=[4], depths=[1])
        SpikingVGGForImageClassification(config).save_pretrained(path)
    options = ["--use_cpu", "True", "--model_name_or_path", path, "--neuron", asked]
    model_args, _, training_args = arguments("image", *options)
    data = vision.VisionData("", [], [], [], [], ["a", "b"], {})
    with pytest.raises(ValueError, match=message):
        vision.build_model(model_args, data, training_args, {})


def test_a_conversion_keeps_the_shape_of_its_network(tmp_path):
    fields = {"hidden_sizes": [4], "depths": [1], "image_size": 8, "num_labels": 2}
    config = SpikingVGGConfig(**fields, neuron="relu")
    SpikingVGGForImageClassification(config).save_pretrained(tmp_path)
    options = ["--use_cpu", "True", "--model_name_or_path", tmp_path, "--neuron", "rounding"]
    fields = '{"hidden_sizes": [4], "depths": [2], "num_timesteps": 3}'
    model_args, _, training_args = arguments("image", *options, "--model_config", fields)
    data = vision.VisionData("", [], [], [], [], ["a", "b"], {})
    with pytest.raises(ValueError, match=r"has depths \[1\], not \[2\]: a conversion changes"):
        vision.build_model(model_args, data, training_args, {})


def test_a_spiking_network_is_calibrated_anew_for_another_number_of_steps(tmp_path, capsys):
    fields = {
        "hidden_sizes": [4],
        "depths": [1],
        "image_size": 32,
        "num_labels": 2,
        "num_channels": 3,
    }
    dense = SpikingVGGForImageClassification(SpikingVGGConfig(**fields, neuron="relu")).eval()
    data = image_data("--data_dir", images_in(tmp_path / "images", {"train": 40, "test": 4}))
    data = dataclasses.replace(data, config_fields={})
    options = ["--use_cpu", "True", "--model_name_or_path"]

    def amplitudes(path, *asked):
        model_args, _, training_args = arguments("image", *options, tmp_path / path, *asked)
        model = vision.build_model(model_args, data, training_args, {})
        return torch.cat([p.flatten() for n, p in model.named_parameters() if "amplitude" in n])

    model_args, _, training_args = arguments(
        "image", *options, "dense", "--neuron", "rounding", "--num_timesteps", "2"
    )
    spiking = vision.convert(dense, model_args, data, training_args)
    spiking.save_pretrained(tmp_path / "two")
    model_args.num_timesteps = 6
    vision.convert(dense, model_args, data, training_args).save_pretrained(tmp_path / "six")
    assert torch.equal(amplitudes("two", "--num_timesteps", "6"), amplitudes("six"))
    assert capsys.readouterr().out.count("calibrated anew") == 1
    assert not torch.equal(amplitudes("two"), amplitudes("six"))


@pytest.mark.parametrize(("neuron", "asked"), [("relu", "rounding"), ("lif", "lif")])
def test_a_model_of_other_labels_is_refused(neuron, asked, tmp_path):
    fields = {"hidden_sizes": [4], "depths": [1], "image_size": 8, "num_labels": 3}
    config = SpikingVGGConfig(**fields, neuron=neuron)
    SpikingVGGForImageClassification(config).save_pretrained(tmp_path)
    options = ["--use_cpu", "True", "--model_name_or_path", tmp_path, "--neuron", asked]
    model_args, _, training_args = arguments("image", *options)
    data = vision.VisionData("the digits", [], [], [], [], ["a", "b"], {})
    with pytest.raises(ValueError, match="has 3 labels, the digits 2"):
        vision.build_model(model_args, data, training_args, {})


def test_the_file_of_a_papers_authors_says_its_size_and_its_number_of_classes(tmp_path):
    fields = {"hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8, "num_labels": 7}
    model = SpikingResNetForImageClassification(
        SpikingResNetConfig.preset("sew-resnet-34", **fields)
    )
    names = original_spiking_resnet._sew_names(model.config)
    state = {k.rpartition("."): v for k, v in model.state_dict().items()}
    theirs = {f"{names[m][0]}.{key}": v for (m, _, key), v in state.items() if m in names}
    torch.save(theirs, tmp_path / "theirs.pth")
    options = ["--use_cpu", "True", "--model_name_or_path", tmp_path / "theirs.pth"]
    model_args, _, training_args = arguments("image", *options)
    assert model_args.config_field("image_size", 32) == 224
    assert model_args.config_field("num_timesteps", 16) == 16, "which it does not say"
    data = vision.VisionData("the digits", [], [], [], [], ["a", "b"], {})
    with pytest.raises(ValueError, match="has 7 labels, the digits 2"):
        vision.build_model(model_args, data, training_args, {})
    data = dataclasses.replace(data, labels=list("abcdefg"), config_fields={"image_size": 224})
    found = vision.build_model(model_args, data, training_args, {})
    assert found.config.id2label[6] == "g"
    assert torch.equal(found.classifier.out.weight, model.classifier.out.weight)


def test_a_model_of_another_kind_is_refused(tmp_path):
    transformers.ViTConfig().save_pretrained(tmp_path)
    model_args, _, training_args = arguments(
        "image", "--use_cpu", "True", "--model_name_or_path", tmp_path
    )
    data = vision.VisionData("", [], [], [], [], ["a", "b"], {})
    with pytest.raises(ValueError, match="is a vit: choose from spiking_resnet"):
        vision.build_model(model_args, data, training_args, {})


def test_simulated_events_fill_the_sensor_and_recordings_48_pixels(tmp_path):
    folder = images_in(tmp_path / "images", {"train": 12, "test": 4})
    options = ["--events", "simulated", "--data_dir", folder, "--num_timesteps", "2"]
    options += ["--cache_dir", tmp_path / "cache", "--validation_fraction", "0.2"]
    data = dvs_tmc.load_event_data(*arguments("dvs", *options)[:2])
    assert data.train[0]["pixel_values"].shape == (2, 2, 14, 14)
    assert data.config_fields["image_size"] == 14
    gesture_archive(tmp_path / "DvsGesture")
    folder = tmp_path / "DvsGesture"
    for suffix in (".aedat", "_labels.csv"):
        new = folder / f"user02_led{suffix}"
        new.write_bytes((folder / f"user01_led{suffix}").read_bytes())
    (folder / "trials_to_train.txt").write_text("user01_led.aedat\nuser02_led.aedat")
    options = ["--events", "dvs_gesture", "--data_dir", folder, "--num_timesteps", "2"]
    options += ["--cache_dir", tmp_path / "cache"]
    data = dvs_tmc.load_event_data(*arguments("dvs", *options)[:2])
    assert data.config_fields["image_size"] == 48


def test_grey_values_of_16_bits_keep_their_shades_as_events(tmp_path):
    def rows(scale, kind, size):
        shades = np.linspace(0, 255, size * size).reshape(size, size).round()
        images = [PILImage.fromarray((shades * scale).astype(kind))] * 2
        return Dataset.from_dict({"image": images, "label": [0, 1]})

    def events(scale, kind):
        for split in ("train", "test"):
            rows(scale, kind, 8).to_parquet(tmp_path / f"{split}.parquet")
        args = arguments("dvs", "--events", "simulated", "--data_dir", tmp_path)[1]
        return dvs_tmc.simulated(args)[0]["test"][0][0]

    assert np.array_equal(events(257, np.uint16), events(1, np.uint8))
    both = datasets.concatenate_datasets([rows(1, np.uint8, 8), rows(1, np.uint8, 6)])
    both.to_parquet(tmp_path / "test.parquet")
    with pytest.raises(ValueError, match="images of one size, got 6 x 6, 8 x 8"):
        dvs_tmc.simulated(arguments("dvs", "--events", "simulated", "--data_dir", tmp_path)[1])


def test_all_folds_at_once_are_for_the_recipe_alone(tmp_path):
    options = ["--events", "sl_animals", "--data_dir", tmp_path, "--fold", "all"]
    with pytest.raises(ValueError, match=r"--fold all is for dvs_tmc\.py alone"):
        dvs_tmc.load_event_data(*arguments("dvs", *options)[:2])


def test_a_subset_is_the_same_each_time():
    assert vision.some(range(5), None) == vision.some(range(5), 9) == [0, 1, 2, 3, 4]
    drawn = vision.some(range(100, 200), 10)
    assert drawn == sorted(set(drawn)) == vision.some(range(100, 200), 10)
    assert drawn != list(range(100, 110))


@pytest.mark.slow
def test_dense_first_then_rounding_neurons_and_the_same_command_again(tmp_path):
    folder = images_in(tmp_path / "images", {"train": 40, "test": 10})
    out = tmp_path / "out"
    options = [*SMALL_VGG, *TINY, "--data_dir", folder, "--image_size", "8", "--output_dir", out]
    options += ["--neuron", "rounding", "--dense_first"]
    succeed("image_tmc.py", *options)
    results = json.loads((out / "results.json").read_text())
    assert results["samples"] == {"train": 36, "validation": 4, "test": 10}
    assert results["config"]["neuron"] == "rounding"
    assert {"accuracy_t1", "accuracy_t2", "ece_t2"} <= results["spiking"].keys()
    assert results["dense"]["accuracy"] == results["dense"]["accuracy_t1"]
    assert "accuracy_t2" not in results["dense"], "no time axis"
    assert "accuracy_t2" in results["before_training"]
    assert results["training"]["steps"] == 3
    assert results["training"]["temporal_loss"] == "tmc"
    assert (out / "dense" / "model.safetensors").is_file()
    model = transformers.AutoModelForImageClassification.from_pretrained(out)
    assert model.config.id2label == {0: "dark", 1: "bright"}
    classify = transformers.pipeline("image-classification", model=str(out))
    assert {found["label"] for found in classify(PILImage.new("RGB", (9, 7)))} == {"dark", "bright"}
    assert yaml.safe_load((out / "arguments.yaml").read_text())["temporal_loss"] == "tmc"
    assert str(tmp_path) not in json.dumps(results)
    card = (out / "README.md").read_text()
    assert "trained from scratch as a dense network, then converted" in card
    assert f"| step 2 | {results['spiking']['accuracy_t2']:.4f} |" in card
    printed = run_here(image_tmc, *options)
    assert printed.count("resuming from") == 2
    again = json.loads((out / "results.json").read_text())
    assert again["training"] == results["training"], "what is done stays as it was"
    assert again["spiking"]["accuracy"] == results["spiking"]["accuracy"], "the best model again"
    assert again["validation"]["loss"] == pytest.approx(results["validation"]["loss"])
    for checkpoint in out.glob("checkpoint-*"):  # as of a run that was killed in its first phase
        shutil.rmtree(checkpoint)
    with pytest.raises(ValueError, match=r"other options \(seed 42 -> 7\)"):
        run_here(image_tmc, *options, "--seed", "7")


@pytest.mark.slow
def test_the_model_that_is_kept_is_the_best_on_validation(tmp_path):
    folder = images_in(tmp_path / "images", {"train": 40, "test": 10})
    out = tmp_path / "out"
    options = [*SMALL_VGG, *TINY, "--data_dir", folder, "--image_size", "8", "--output_dir", out]
    run_here(image_tmc, *options, "--neuron", "lif", "--learning_rate", "0.3", "--mixup", "0.2")
    results = json.loads((out / "results.json").read_text())
    log = json.loads((out / "trainer_state.json").read_text())["log_history"]
    seen = [entry["eval_accuracy"] for entry in log if "eval_accuracy" in entry]
    assert results["training"]["best_validation_accuracy"] == max(seen)
    assert results["validation"]["accuracy"] == max(seen)


@pytest.mark.slow
def test_losses_are_compared_on_simulated_events(tmp_path):
    folder = images_in(tmp_path / "images", {"train": 40, "test": 10})
    out = tmp_path / "out"
    options = ["dvs", "--losses", "tmc_batch_literal", "tet", "--seeds", "1", "2", "--rounding"]
    options += ["--events", "simulated", "--data_dir", folder, "--cache_dir", tmp_path / "cache"]
    options += ["--frame_size", "8", *SMALL_VGG, *TINY, "--output_dir", out]
    options += ["--rounding_learning_rate", "1e-3"]
    run_here(compare_vision, *options)
    rates = {
        name: yaml.safe_load((out / name / "seed2" / "arguments.yaml").read_text())["learning_rate"]
        for name in ("tet", "dense", "rounding", "reconstructed")
    }
    assert rates == {"tet": 1e-2, "dense": 1e-2, "rounding": 1e-3, "reconstructed": 1e-3}
    record = json.loads((out / "comparison.json").read_text())
    assert set(record["losses"]) == {"tmc_batch_literal", "tet"}
    row = record["losses"]["tet"]
    assert {"accuracy_t2", "ece_t2", "firing_rate_t2"} <= row.keys()
    assert 0 < row["energy_microjoules_t1"]["mean"] < row["energy_microjoules_t2"]["mean"]
    assert -1 <= row["similarity"]["mean"] <= 1
    text = (out / "comparison.md").read_text()
    for line in ("dense: accuracy", "rounding, converted: accuracy", "rounding, trained: accuracy"):
        assert line in text
    first = [
        json.loads((out / loss / "seed1" / "trainer_state.json").read_text())["log_history"][0]
        for loss in ("tmc_batch_literal", "tet")
    ]
    assert first[0]["loss"] != first[1]["loss"]
    options[options.index("--max_steps") + 1] = "2"
    with pytest.raises(ValueError, match=r"other options.*max_steps 3 -> 2"):
        run_here(compare_vision, *options)


def test_a_network_without_dense_twin_is_compared_without_it(tmp_path, monkeypatch):
    folder = images_in(tmp_path / "images", {"train": 40, "test": 10})
    options = ["image", "--losses", "sdt", "--seeds", "1", "--data_dir", folder, *TINY]
    shape = {"patch_embedding": "cifar", "hidden_sizes": [8, 8], "depths": [1, 1]}
    shape["num_attention_heads"] = 2
    options += ["--model", "qkformer", "--model_config", json.dumps(shape), "--image_size", "16"]
    options += ["--num_timesteps", "2", "--output_dir", tmp_path / "out"]
    with pytest.raises(SystemExit):
        run_here(compare_vision, *options, "--rounding")
    assert not (tmp_path / "out").exists()
    run_here(compare_vision, *options)
    assert "dense" not in json.loads((tmp_path / "out" / "comparison.json").read_text())


@pytest.mark.parametrize("frames", [1, 3])
def test_what_a_model_does_is_looked_into_by_frame(tmp_path, frames):
    model = make("vgg", num_timesteps=frames)
    model.save_pretrained(tmp_path)
    (tmp_path / "trainer_state.json").write_text('{"log_history": []}')
    torch.manual_seed(0)
    pixels = torch.randn(5, frames, 2, 8, 8)
    test = [{"pixel_values": frames_of_one, "labels": 0} for frames_of_one in pixels]
    found = compare_vision.look_into(tmp_path, SimpleNamespace(test=test))
    assert len(found["firing_rate_by_step"]) == frames
    for t, energy in enumerate(found["energy_microjoules"]["spiking, float32"], 1):
        report = energy_report(model, {"pixel_values": pixels[:, :t]})
        assert energy == pytest.approx(report.energies["spiking, float32"] / 1e6)
    matrices = temporal_similarity(model, {"pixel_values": pixels}).values()
    if frames == 1:
        assert found["similarity"] is None
    else:
        assert found["similarity"] == pytest.approx(
            np.mean([mean_off_diagonal(m) for m in matrices])
        )


def test_what_is_looked_into_is_of_all_classes_of_a_sorted_set():
    classes = [i // 100 for i in range(1000)]
    seen = [classes[i] for i in compare_vision.spread(classes).indices]
    assert len(seen) == compare_vision.LOOKED_INTO
    assert set(seen) == set(range(10))
    assert list(compare_vision.spread([1, 2, 3]).indices) == [0, 1, 2]


def test_rivals_are_told_in_percent():
    made = {
        "dense": [{"dense": {"accuracy": a}} for a in (0.5, 0.7)],
        "rounding": [{"before_training": {"accuracy": 0.4}, "spiking": {"accuracy": 0.55}}],
    }
    assert compare_vision.rivals(made) == [
        "dense: accuracy 60.0 ± 14.1",
        "rounding, converted: accuracy 40.0",
        "rounding, trained: accuracy 55.0",
    ]
