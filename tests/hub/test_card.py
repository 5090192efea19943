"""The model card: figures of the run and no others, in the Hub's forms, without anything private."""

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from PIL import Image as PILImage

from spikenlp import (
    SpikingBertConfig,
    SpikingBertForMaskedLM,
    SpikingBertForQuestionAnswering,
    SpikingBertForSequenceClassification,
    SpikingBertForTokenClassification,
    SpikingBertModel,
    SpikingVGGConfig,
    SpikingVGGModel,
)
from spikenlp.analysis import describe_spikes
from spikenlp.data.augmentation import ImageTransform
from spikenlp.hub import eval_result_entries, eval_results, model_card, write_card
from spikenlp.hub.results import GLUE_DEV_ROWS, by_step, hub_dataset, steps_table
from tests.conftest import TINY_DENSE
from tests.models.test_vision import make

RESULTS = {
    "task": "sst2",
    "data": "the files in glue",
    "samples": {"train": 67349, "validation": 872},
    "base_model": "someone/MiniLM-L6",
    "seed": 7,
    "run": {
        "command": "glue_tmc.py --task_name sst2",
        "commit": "abc123",
        "versions": {"torch": "2.13.0"},
        "hardware": {"processor": "2 x Processor", "accelerator": None},
    },
    "dense": {"accuracy": 0.9, "loss": 0.3},
    "config": {"num_timesteps": 2, "neuron": "rounding", "ternary": True},
    "before_training": {"accuracy": 0.5, "accuracy_t1": 0.4, "accuracy_t2": 0.5},
    "training": {"steps": 800, "loss": 0.5, "temporal_loss": "tmc", "theta_weight": "auto"},
    "spiking": {
        "accuracy": 0.85,
        "accuracy_t1": 0.8125,
        "accuracy_t2": 0.8512,
        "loss_t1": 0.5,
        "loss_t2": 0.4,
        "ece_t1": 0.031,
        "ece_t2": 0.047,
        "runtime": 1.0,
    },
    "spiking_float32": {"accuracy": 0.8486, "ece": 0.052},
    "energy_samples": 32,
    "energy_microjoules": {"spiking, float32": [1.25, 2.5], "dense, float32": [4.0, 4.0]},
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SpikingBertForSequenceClassification(SpikingBertConfig(**TINY_DENSE, num_timesteps=2))


def changed(**fields):
    return {k: v for k, v in {**copy.deepcopy(RESULTS), **fields}.items() if v is not None}


def test_the_table_holds_each_step_and_what_it_is_compared_with():
    rows = [
        [c.strip() for c in line.split("|")[1:-1]] for line in steps_table(RESULTS).splitlines()
    ]
    assert rows == [
        ["", "accuracy", "ece", "energy (µJ)"],
        ["---", "---", "---", "---"],
        ["step 1", "0.8125", "0.0310", "1.250"],
        ["step 2", "0.8512", "0.0470", "2.500"],
        ["step 2, in float32", "0.8486", "0.0520", ""],
        ["before training", "0.5000", "", ""],
        ["dense", "0.9000", "", "4.000"],
    ]


def test_the_card_survives_the_hubs_parser_and_holds_the_run(model):
    card = ModelCard(str(model_card(model, RESULTS, name="ann/sst2-tiny")))
    assert card.data.model_name == "sst2-tiny"
    assert card.data.base_model == "someone/MiniLM-L6"
    assert card.data.datasets == ["nyu-mll/glue"]
    assert card.data.metrics == ["accuracy"]
    assert card.data.pipeline_tag == "text-classification"
    measured = {r.metric_name: r.metric_value for r in card.data.eval_results}
    assert measured == {
        "accuracy, step 1 of 2": 0.8125,
        "accuracy, step 2 of 2": 0.8512,
        "ece, step 1 of 2": 0.031,
        "ece, step 2 of 2": 0.047,
        "energy_microjoules, step 1 of 2": 1.25,
        "energy_microjoules, step 2 of 2": 2.5,
    }
    for said in ("T = 2 time steps of rounding neurons", "**Seed**: 7", "theta_weight=auto"):
        assert said in card.text
    assert "yan2025tmc" in card.text
    assert "wang2020minilm" in card.text


def test_figures_are_of_the_task_of_the_head():
    config = SpikingBertConfig(**TINY_DENSE, num_timesteps=2)
    figures = {"spiking": {"accuracy": 0.5, "accuracy_t1": 0.25, "accuracy_t2": 0.5}}
    for kind, task in (
        (SpikingBertForMaskedLM, "fill-mask"),
        (SpikingBertForTokenClassification, "token-classification"),
    ):
        card = model_card(kind(config), figures, name="ann/tiny")
        assert {result.task_type for result in card.data.eval_results} == {task}


def test_its_field_spikes_is_what_describe_spikes_sees(model):
    drivers = describe_spikes(model)
    card = model_card(model, name="x")
    ternary = sum(d.driver == "ternary" for d in drivers)
    assert card.data.spikes == {
        "products": len(drivers),
        "ternary": ternary,
        "float": len(drivers) - ternary,
        "alphabet": "{-1, 0, 1}",
    }
    assert all(d.name in card.text for d in drivers)
    binary = SpikingBertModel(SpikingBertConfig(**TINY_DENSE, ternary=False))
    assert model_card(binary, name="x").data.spikes["alphabet"] == "{0, 1}"
    collapsed = SpikingBertModel(SpikingBertConfig(**TINY_DENSE, collapsed=True))
    assert "spikes" not in model_card(collapsed, name="x").data
    assert "collapsed twin" in model_card(collapsed, name="x").text


def test_eval_results_are_read_back_by_the_hubs_parser(model, tmp_path):
    write_card(tmp_path, model, RESULTS, name="x")
    written = yaml.safe_load((tmp_path / ".eval_results" / "sst2.yaml").read_text())
    entries = parse_eval_result_entries(written)
    assert entries == eval_result_entries(RESULTS)
    assert [(e.dataset_id, e.task_id, e.value) for e in entries] == [
        ("nyu-mll/glue", "sst2", 0.8512),
        ("nyu-mll/glue", "sst2", 0.8125),
    ]
    assert entries[0].notes.startswith("accuracy at time step 2 of 2")
    assert "ECE 0.0470" in entries[0].notes
    assert "2.500 uJ" in entries[0].notes


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "nyu-mll/glue"),
        ({"data": "someone/other"}, "someone/other"),
        ({"samples": {"train": 100, "validation": 871}}, None),
        ({"samples": None}, None),
        ({"data": "DEMO: synthetic question pairs"}, None),
    ],
)
def test_local_files_count_as_glue_only_if_they_have_its_rows(fields, expected, model, tmp_path):
    results = changed(**fields)
    assert hub_dataset(results) == expected
    write_card(tmp_path, model, RESULTS, name="x")
    write_card(tmp_path, model, results, name="x")
    assert (tmp_path / ".eval_results" / "sst2.yaml").exists() == (expected is not None)


def test_a_test_set_is_told_apart_from_what_is_validated_on():
    spiking = {"accuracy_t1": 0.8, "test_accuracy_t1": 0.7, "test_ece_t1": 0.1}
    samples = {"validation": 500, "test": 2189}
    results = changed(task="r8", data="someone/topics", samples=samples, spiking=spiking)
    of_test = [r for r in eval_results(results) if r.dataset_split == "test"]
    found = [(r.metric_type, r.metric_name, r.metric_value) for r in of_test]
    assert found == [
        ("accuracy", "accuracy, step 1 of 1", 0.7),
        ("ece", "ece, step 1 of 1", 0.1),
    ]
    entries = [(e.task_id, e.value) for e in eval_result_entries(results)]
    assert entries == [("r8", 0.8), ("r8", 0.7)]
    in_files = changed(samples={"test": 872})
    assert hub_dataset(in_files, "test") == hub_dataset(RESULTS)


def test_mnlis_two_splits_stay_apart():
    spiking = {
        f"{part}_{k}_t{t}": t / 10 + i
        for i, part in enumerate(("matched", "mismatched"))
        for k in ("accuracy", "ece")
        for t in (1, 2)
    }
    rows = {f"validation_{p}": GLUE_DEV_ROWS[f"mnli_{p}"] for p in ("matched", "mismatched")}
    results = changed(task="mnli", spiking=spiking, samples=rows)
    assert {(r.dataset_split, r.metric_type) for r in eval_results(results)} == {
        ("validation_matched", "accuracy"),
        ("validation_matched", "ece"),
        ("validation_matched", "energy_microjoules"),
        ("validation_mismatched", "accuracy"),
        ("validation_mismatched", "ece"),
    }
    assert [(e.task_id, e.value) for e in eval_result_entries(results)] == [
        ("mnli_matched", 0.2),
        ("mnli_matched", 0.1),
        ("mnli_mismatched", 1.2),
        ("mnli_mismatched", 1.1),
    ]


def test_the_outputs_of_question_answering_are_starts_and_ends():
    model = SpikingBertForQuestionAnswering(SpikingBertConfig(**TINY_DENSE))
    named = ("timestep_start_logits", "timestep_end_logits")
    assert all(f"`{name}`" in model_card(model, name="x").text for name in named)
    assert set(named) <= model(torch.tensor([[5, 6]])).keys()
    assert "`model(**inputs).timestep_logits`" not in model_card(model, name="x").text


def test_nothing_is_invented(model):
    bare = str(model_card(model, name="x"))
    assert "No evaluation is recorded" in bare
    assert "model-index" not in bare
    assert "license:" not in bare
    text = str(model_card(model, changed(energy_microjoules=None, dense=None), name="x"))
    assert "µJ" not in text
    assert "| dense" not in text


def test_the_licence_is_ours_only_for_what_started_from_scratch(model):
    def licence(results, **options):
        return model_card(model, results, name="x", **options).data.license

    scratch = {**changed(dense=None), "base_model": None}
    assert licence(scratch) == "apache-2.0"
    assert "trained from scratch" in str(model_card(model, scratch, name="x"))
    assert licence(RESULTS) is None
    assert licence(changed(base_model=None, dense=None)) is None  # unknown, which is not "none"
    assert licence(RESULTS, licence="mit") == "mit"


def test_results_of_another_model_are_refused(model, monkeypatch):
    other = changed(config={"num_timesteps": 4})
    with pytest.raises(ValueError, match="num_timesteps=4, this one has 2"):
        model_card(model, other, name="x")
    monkeypatch.setattr(model.config, "burst", 3)
    with pytest.raises(ValueError, match="burst=1, this one has 3"):
        model_card(model, changed(config={"num_timesteps": 2}), name="x")
    with pytest.raises(ValueError, match=r"accuracy at steps \[1, 3\]"):
        by_step({"accuracy_t1": 0.1, "accuracy_t3": 0.2})


def test_what_a_run_knew_about_its_machine_is_not_in_the_card(model, tmp_path, monkeypatch):
    monkeypatch.setenv("USER", "annlee")
    monkeypatch.setenv("HOME", "/home/annlee")
    monkeypatch.setenv("MY_TOKEN", "0123456789abcdef")
    run = {
        "command": "glue_tmc.py --data_dir /home/annlee/glue --hub_token hf_abcdefghijklmnop",
        "hardware": {"processor": "annlee's machine 0123456789abcdef"},
    }
    results = changed(run=run, data="files in /home/annlee/glue", base_model="/mnt/models/my bert")
    write_card(tmp_path, model, results, name="x")
    for file in tmp_path.rglob("*.*"):
        for private in (b"annlee", b"/home", b"/mnt", b"hf_abc", b"0123456789abcdef"):
            assert file.is_dir() or private not in file.read_bytes(), file
    card = (tmp_path / "README.md").read_text()
    assert "--data_dir glue --hub_token <secret>" in card
    assert "base_model:" not in card  # a folder's name is not a Hub id
    assert "**Base model**: my bert" in card


def test_charts_are_drawn_where_matplotlib_is_installed(model, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    write_card(tmp_path / "with", model, RESULTS, name="x")
    shown = [
        line for line in (tmp_path / "with" / "README.md").read_text().splitlines() if "![" in line
    ]
    assert len(shown) == 3
    for line in shown:
        file = tmp_path / "with" / line.partition("](")[2].rstrip(")")
        assert file.read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    write_card(tmp_path / "without", model, RESULTS, name="x")
    assert "![" not in (tmp_path / "without" / "README.md").read_text()
    assert not (tmp_path / "without" / "plots").exists()


def test_what_the_recipes_recorded_before_can_be_shown(model):
    """results.json of this repository, written before energy and samples were recorded."""
    for file in sorted((Path(__file__).resolve().parents[2] / "results" / "glue").glob("*.json")):
        results = json.loads(file.read_text())
        table = steps_table(results)
        assert f"{results['spiking']['accuracy_t4']:.4f}" in table
        assert eval_result_entries(results) == []
        assert eval_results(results)[0].dataset_type == results["task"]


IMAGE_RESULTS = {
    "data": "someone/pictures",
    "samples": {"train": 36, "validation": 4, "test": 10},
    "evaluated_on": "test",
    "base_model": None,
    "dense_first": False,
    "seed": 7,
    "training": {
        "steps": 3,
        "epochs": 1.0,
        "seconds": 2.0,
        "loss": 0.5,
        "temporal_loss": "sdt",
        "label_smoothing": 0.1,
        "best_checkpoint": "checkpoint-2",
        "best_validation_accuracy": 0.75,
    },
    "validation": {"accuracy": 0.75},
    "spiking": {
        "accuracy": 0.9,
        **{f"accuracy_t{t}": (6 + t) / 10 for t in (1, 2, 3)},
        **{f"ece_t{t}": t / 100 for t in (1, 2, 3)},
    },
}


def image_results(model, **fields):
    """A record as recipes/image_tmc.py makes it."""
    shape = ("model_type", "num_timesteps", "neuron", "hidden_sizes", "depths", "image_size")
    config = {k: getattr(model.config, k) for k in shape}
    return {
        **copy.deepcopy(IMAGE_RESULTS),
        "config": {**config, "parameters": model.num_parameters()},
        **fields,
    }


def load_example(card):
    """What the card's example leaves, its model taken from disk."""
    found = {}
    exec(card.text.partition("```python\n")[2].partition("```")[0], found)
    return found


@pytest.mark.parametrize(
    ("name", "fields", "shown", "cited", "learned"),
    [
        ("vgg", {}, "frames of 2 x 8 x 8", "deng2022tet", False),
        ("resnet", {"neuron": "rounding"}, "images of 3 x 8 x 8", "zheng2021going", True),
        ("resnet", {"residual": "sew"}, "images of 3 x 8 x 8", "fang2021deep", False),
        ("qkformer", {}, "images of 3 x 16 x 16", "zhou2024qkformer", False),
    ],
)
def test_the_card_of_a_vision_model(name, fields, shown, cited, learned, tmp_path):
    model = make(name, **fields)
    model.save_pretrained(tmp_path)
    write_card(tmp_path, model, image_results(model), name=str(tmp_path))
    card = ModelCard.load(tmp_path / "README.md")
    events = name == "vgg"
    assert card.data.pipeline_tag == (None if events else "image-classification")
    assert card.data.spikes["alphabet"] == "{0, 1}"
    assert card.data.spikes["products"] == len(describe_spikes(model))
    assert card.data.license == "apache-2.0"
    assert card.data.datasets == ["someone/pictures"]
    assert card.data.metrics == ["accuracy"]
    assert "spiking-neural-network" in card.data.tags
    assert {(r.task_type, r.dataset_split) for r in card.data.eval_results} == {
        ("image-classification", "test")
    }
    for said in (
        f"{shown}; T = 3 time steps of {model.config.neuron} neurons that send {{0, 1}}.",
        "Evaluated on 10 (test) of someone/pictures.",
        "**Base model**: none, trained from scratch\n",
        "**Loss**: sdt (label_smoothing=0.1)\n",
        "**Epochs**: 1.0\n",
        "**Kept**: the best on validation data, accuracy 0.7500\n",
    ):
        assert said in card.text
    assert cited in card.text
    assert "yan2025tmc" not in card.text
    assert ("learned amplitude" in card.text) is learned
    assert "text" not in card.text
    assert "tokenizer" not in card.text
    found = load_example(card)
    assert type(found["model"]) is type(model)
    assert found["pixel_values"].shape[1:-2] == ((3, 2) if events else (3,))
    assert found["outputs"].timestep_logits.shape == (1, 3, 10)


def test_the_card_of_a_dense_vision_model_says_that_it_does_not_spike(tmp_path):
    model = make("resnet", neuron="relu")
    results = image_results(model, dense={"accuracy": 0.9, "accuracy_t1": 0.9})
    del results["spiking"]
    write_card(tmp_path, model, results, name="x")
    card = ModelCard.load(tmp_path / "README.md")
    assert "spikes" not in card.data
    assert "spiking-neural-network" not in card.data.tags
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "image-classification"
    assert [r.metric_value for r in card.data.eval_results] == [0.9]
    assert "| step 1 | 0.9000 |" in card.text
    assert "| dense" not in card.text
    for said in (
        "images of 3 x 8 x 8; dense, without time steps.",
        "None: this is a dense network",
        "of an image there is one",
        "**Base model**: none, trained from scratch\n",
    ):
        assert said in card.text
    for wrong in ("timestep_logits", "collapsed", "neurons that send", "dense model", "stopped"):
        assert wrong not in card.text
    assert "yan2025tmc" not in str(model_card(model, name="x"))


def test_a_pipeline_is_shown_where_an_image_processor_lies_beside_the_card(tmp_path):
    model = make("resnet")
    model.save_pretrained(tmp_path)
    transform = ImageTransform(8, (0.5,) * 3, (0.5,) * 3, train=False)
    transform.image_processor().save_pretrained(tmp_path)
    write_card(tmp_path, model, name=str(tmp_path))
    found = load_example(ModelCard.load(tmp_path / "README.md"))
    (answer,) = found["answer"]([PILImage.new("RGB", (9, 7))])
    assert len(answer) == 5


def test_a_vision_model_without_a_head_and_one_made_from_a_dense_one(tmp_path):
    model = SpikingVGGModel(SpikingVGGConfig(hidden_sizes=[4], depths=[1], image_size=8))
    card = model_card(model, name="x")
    assert "AutoModel.from_pretrained" in card.text
    assert "timestep_logits" not in card.text
    model = make("resnet", neuron="rounding")
    made = image_results(model, dense={"accuracy": 0.9}, dense_first=True)
    card = model_card(model, made, name="x")
    assert "none, trained from scratch as a dense network, then converted" in card.text
    assert "whose licence applies" not in card.text
    assert card.data.license == "apache-2.0"
    card = model_card(model, {**made, "base_model": "seed1", "dense_first": False}, name="x")
    assert "**Base model**: seed1, trained for the task as a dense model" in card.text
    assert card.data.license is None


def test_results_of_another_vision_model_are_refused():
    with pytest.raises(ValueError, match=r"hidden_sizes=\[6, 8\], this one has \[8, 8\]"):
        model_card(make("resnet", hidden_sizes=[8, 8]), image_results(make("resnet")), name="x")
