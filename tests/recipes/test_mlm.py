"""Tokenizer, pretraining and topic classification as a user runs them, on text files of its own."""

import json
import random
import shutil
import sys
from functools import partial

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    pipeline,
)

from spikenlp import (
    SpikingBertForMaskedLM,
    SpikingBertForSequenceClassification,
    SpikingTrainingArguments,
)
from spikenlp.data import demo_question_pairs, wordpiece_tokenizer
from tests.data.tab_files import write_r8
from tests.recipes.running import ROOT, run_here, spike_cost_of, succeed

sys.path.insert(0, str(ROOT / "recipes"))

import glue_tmc
import mlm
from corpus import CorpusArguments
from mlm import MaskedLMModelArguments, TextArguments, build_model, load_blocks, parse_overrides
from student import StudentArguments
from task_data import DataArguments, load_inputs

WORDS = (
    "profit shares company bank oil grain ship trade rate dollar report year quarter loss".split()
)
CPU = ["--use_cpu", "True", "--disable_tqdm", "True"]
SMALL = "hidden_size=32,num_hidden_layers=1,num_attention_heads=2,intermediate_size=64"


def documents(number, seed):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=20)) for _ in range(number)]


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("\n".join(documents(200, seed=0)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer_folder(text_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    said = succeed(
        "train_tokenizer.py",
        *("--corpus_files", text_file, "--vocab_size", 90, "--output_dir", folder),
        *("--model_max_length", 64),
    )
    assert "200 documents" not in said  # 5% are held out
    assert "190 documents" in said
    return folder


def pretraining(text_file, tokenizer_folder, out):
    return [
        *("--corpus_files", text_file, "--tokenizer_name", tokenizer_folder),
        *("--config_overrides", SMALL, "--max_seq_length", 16, "--num_timesteps", 2),
        *("--temporal_loss", "tet", "--hidden_dropout_prob", 0.1, "--learning_rate", 1e-3),
        *("--max_steps", 6, "--save_steps", 3, "--per_device_train_batch_size", 8),
        *("--max_eval_samples", 32, "--output_dir", out, *CPU),
    ]


@pytest.fixture(scope="module")
def pretrained(text_file, tokenizer_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained") / "out"
    succeed("mlm.py", *pretraining(text_file, tokenizer_folder, folder))
    return folder


@pytest.mark.slow
def test_pretraining_leaves_a_masked_language_model(pretrained):
    results = json.loads((pretrained / "results.json").read_text())
    assert results["training"]["steps"] == 6
    for phase in ("before_training", "spiking"):
        assert results[phase]["perplexity"] == results[phase]["perplexity_t2"] > 1
        assert 0 <= results[phase]["accuracy_t1"] <= 1
    assert results["spiking"]["loss_t2"] < results["before_training"]["loss_t2"]
    assert results["config"]["hidden_size"] == 32
    assert str(pretrained.parent) not in json.dumps(results)
    assert yaml.safe_load((pretrained / "arguments.yaml").read_text())["max_seq_length"] == 16
    model = AutoModelForMaskedLM.from_pretrained(pretrained)
    assert model.config.num_timesteps == 2
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    assert tokenizer.model_max_length == 64
    assert len(tokenizer) == model.config.vocab_size
    fill = pipeline("fill-mask", model=str(pretrained))
    assert len(fill("the company [MASK] of the bank")) == 5


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_weights_of_one_that_ran_through(
    pretrained, text_file, tokenizer_folder, tmp_path
):
    out = tmp_path / "out"
    shutil.copytree(pretrained / "checkpoint-3", out / "checkpoint-3")
    said = run_here(mlm, *pretraining(text_file, tokenizer_folder, out))
    assert "resuming from" in said
    through, resumed = (load_file(folder / "model.safetensors") for folder in (pretrained, out))
    start = load_file(out / "checkpoint-3" / "model.safetensors")
    assert through.keys() == resumed.keys()
    for name, weight in through.items():
        assert torch.equal(weight, resumed[name]), name
    assert not torch.equal(
        start["bert.embeddings.LayerNorm.weight"], through["bert.embeddings.LayerNorm.weight"]
    )


@pytest.mark.slow
def test_a_finished_run_keeps_its_record(pretrained, text_file, tokenizer_folder):
    before = json.loads((pretrained / "results.json").read_text())
    run_here(mlm, *pretraining(text_file, tokenizer_folder, pretrained))
    after = json.loads((pretrained / "results.json").read_text())
    assert before["training"]["seconds"] > 0
    assert after["training"] == before["training"]
    assert after["spiking"]["loss"] == before["spiking"]["loss"]


@pytest.mark.slow
def test_r8_from_a_pretrained_model_is_chosen_on_validation_and_reported_on_test(
    pretrained, tmp_path
):
    rows = [(("earn", "grain")[i % 2], text) for i, text in enumerate(documents(80, seed=1))]
    folder = write_r8(tmp_path / "datasets", rows[:60], rows[60:])
    out = tmp_path / "out"
    said = run_here(
        glue_tmc,
        *("--task_name", "r8", "--data_dir", folder, "--model_name_or_path", pretrained),
        *("--max_seq_length", 16, "--max_steps", 2, "--output_dir", out, *CPU),
        *("--eval_strategy", "steps", "--eval_steps", 1, "--save_steps", 1),
        *("--load_best_model_at_end", "True", "--metric_for_best_model", "accuracy"),
    )
    assert "54 train, 6 validation, 20 test" in said
    results = json.loads((out / "results.json").read_text())
    for key in ("accuracy", "macro_f1", "test_accuracy", "test_macro_f1", "test_accuracy_t2"):
        assert 0 <= results["spiking"][key] <= 1
    state = json.loads((out / "trainer_state.json").read_text())
    on_validation = [e["eval_accuracy"] for e in state["log_history"] if "eval_accuracy" in e]
    assert state["best_metric"] == max(on_validation[:2])
    assert len(json.loads((out / "config.json").read_text())["id2label"]) == 8


@pytest.fixture(scope="module")
def dense_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    torch.manual_seed(0)
    tokenizer = wordpiece_tokenizer(documents(200, seed=0))
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_on_from_a_dense_model_with_a_yaml_file(text_file, dense_model, tmp_path):
    job = tmp_path / "job.yaml"
    job.write_text(f"corpus_files: [{text_file}]\nmax_seq_length: 16\nmax_steps: 2\n")
    options = ["--model_name_or_path", dense_model, "--output_dir", tmp_path / "out", *CPU]
    options += ["--num_timesteps", "4", "--temporal_loss", "tmc", "--max_eval_samples", 32]
    run_here(mlm, job, *options)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    dense, converted = results["dense"], results["before_training"]
    assert dense["loss_t1"] == pytest.approx(dense["loss"])  # one batch: the model's own mean
    assert dense["perplexity_t1"] == dense["perplexity"]
    assert converted["perplexity_t4"] == pytest.approx(dense["perplexity"], rel=0.1)
    assert results["training"]["theta_weight"] == "auto"


def test_amplitudes_are_calibrated_at_the_spike_cost(text_file, dense_model, tmp_path):
    options = ["--corpus_files", text_file, "--max_seq_length", 16, "--output_dir", tmp_path, *CPU]
    options += ["--spike_cost", 0.3]
    for start in ([], ["--model_name_or_path", dense_model]):
        assert spike_cost_of(partial(run_here, mlm, *options, *start)) == 0.3


@pytest.mark.parametrize(
    ("model", "text", "message"),
    [
        ({}, {"max_seq_length": 64}, "--max_seq_length 64 exceeds the model's 32 positions"),
        ({"config_overrides": SMALL}, {}, "is for a model from scratch: leave out"),
    ],
)
def test_a_model_that_is_given_keeps_its_shape(model, text, message, text_file, dense_model):
    model_args = MaskedLMModelArguments(model_name_or_path=str(dense_model), **model)
    text_args = TextArguments(corpus_files=[str(text_file)], **{"max_seq_length": 16, **text})
    blocks = load_blocks(model_args, text_args, 0)
    with pytest.raises(ValueError, match=message):
        build_model(blocks, model_args, text_args, None, {})


def test_a_spiking_checkpoint_is_trained_on(text_file, dense_model, tmp_path):
    model = SpikingBertForMaskedLM.from_dense(str(dense_model), num_timesteps=2)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(dense_model).save_pretrained(tmp_path)
    model_args = MaskedLMModelArguments(model_name_or_path=str(tmp_path))
    text_args = TextArguments(corpus_files=[str(text_file)], max_seq_length=16)
    blocks = load_blocks(model_args, text_args, 0)
    loaded = build_model(blocks, model_args, text_args, None, {})
    assert loaded.config.num_timesteps == 2
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def built(recipe, asked, max_seq_length, text_file, folder):
    """The model that a recipe makes, of options of its model, for texts of `max_seq_length`."""
    if recipe == "mlm":
        model_args = MaskedLMModelArguments(**asked)
        text_args = TextArguments(corpus_files=[str(text_file)], max_seq_length=max_seq_length)
        return build_model(load_blocks(model_args, text_args, 0), model_args, text_args, None, {})
    model_args = glue_tmc.ModelArguments(**asked)
    options = {"max_seq_length": max_seq_length, "max_train_samples": 64}
    data_args = DataArguments(task_name="qqp", **options)
    inputs = load_inputs(model_args, data_args, demo_question_pairs(), "demo")
    args = SpikingTrainingArguments(output_dir=str(folder), use_cpu=True)
    return glue_tmc.build_model(inputs, model_args, args, {})


@pytest.mark.parametrize("recipe", ["mlm", "glue"])
def test_a_spiking_checkpoint_is_calibrated_anew_for_another_number_of_steps(
    recipe, text_file, dense_model, tmp_path
):
    kind = SpikingBertForMaskedLM if recipe == "mlm" else SpikingBertForSequenceClassification
    before = kind.from_dense(str(dense_model), num_timesteps=2)
    before.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(dense_model).save_pretrained(tmp_path)
    asked = {"model_name_or_path": str(tmp_path), "num_timesteps": 1}
    model = built(recipe, asked, 16, text_file, tmp_path)
    assert model.config.num_timesteps == 1
    for name, weight in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight) == ("amplitude" not in name), name


@pytest.mark.parametrize("recipe", ["mlm", "glue"])
def test_what_changes_no_spike_leaves_amplitudes_as_they_were(
    recipe, text_file, dense_model, tmp_path
):
    kind = SpikingBertForMaskedLM if recipe == "mlm" else SpikingBertForSequenceClassification
    before = kind.from_dense(
        str(dense_model), architecture="spikingbert", num_timesteps=4, settle_tolerance=0.1
    )
    with torch.no_grad():
        before.bert.encoder.neuron.v_threshold += 0.01  # as training would
    before.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(dense_model).save_pretrained(tmp_path)
    for field in ({"gradient": "bptt"}, {"settle_tolerance": 1e-3}):
        asked = {"model_name_or_path": str(tmp_path), **field}
        model = built(recipe, asked, 16, text_file, tmp_path / "out")
        for name, weight in before.state_dict().items():
            assert torch.equal(model.state_dict()[name], weight), name


@pytest.mark.parametrize("recipe", ["mlm", "glue"])
def test_what_is_trained_is_in_float32(recipe, text_file, dense_model, tmp_path):
    kind = SpikingBertForMaskedLM if recipe == "mlm" else SpikingBertForSequenceClassification
    kind.from_dense(str(dense_model), num_timesteps=2).bfloat16().save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(dense_model).save_pretrained(tmp_path)
    model = built(recipe, {"model_name_or_path": str(tmp_path)}, 16, text_file, tmp_path / "out")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("recipe", ["mlm", "glue"])
def test_a_model_from_scratch_fits_its_tokenizer_and_the_texts(recipe, text_file, tmp_path):
    tokenizer = wordpiece_tokenizer(documents(20, seed=0))
    tokenizer.pad_token = "[MASK]"
    tokenizer.save_pretrained(tmp_path)
    asked = {"tokenizer_name": str(tmp_path), "num_timesteps": 1}
    model = built(recipe, asked, 200, text_file, tmp_path)
    assert model.config.max_position_embeddings == 200
    assert model.config.pad_token_id == tokenizer.mask_token_id != 0


def test_overrides_have_the_types_of_the_config():
    assert parse_overrides("hidden_size=64, hidden_act=relu,layer_norm_eps=1e-6") == {
        "hidden_size": 64,
        "hidden_act": "relu",
        "layer_norm_eps": 1e-6,
    }
    assert parse_overrides(None) == {}
    for wrong in ("hidden=64", "ternary=False", "hidden_size"):
        with pytest.raises(ValueError, match="config_overrides"):
            parse_overrides(wrong)
    for taken in ("hidden_dropout_prob=0.2", "vocab_size=999", "pad_token_id=1"):
        with pytest.raises(ValueError, match="leave it out"):
            parse_overrides(taken, StudentArguments().spiking_fields())


def test_blocks_come_in_the_same_random_order(text_file):
    text_args = TextArguments(
        corpus_files=[str(text_file)], max_seq_length=16, max_train_samples=50
    )
    one, two = (load_blocks(StudentArguments(), text_args, seed) for seed in (0, 1))
    assert one.train.to_list() == two.train.to_list()
    assert (len(one.train), len(one.validation)) == (50, 15)
    whole = TextArguments(corpus_files=[str(text_file)], max_seq_length=16)
    in_order = load_blocks(StudentArguments(), whole, 0).train
    assert len(in_order) > 250
    assert in_order.select(range(50)).to_list() == one.train.to_list()


def test_calibration_batches_cover_the_rows_asked_for(text_file):
    text_args = TextArguments(corpus_files=[str(text_file)], max_seq_length=16)
    blocks = load_blocks(StudentArguments(), text_args, 0)
    batches = blocks.calibration_batches(2)
    assert [len(batch["input_ids"]) for batch in batches] == [32, 32]
    assert all("labels" not in batch for batch in batches)


def test_without_a_validation_split_there_is_nothing_to_evaluate_on(text_file):
    text_args = TextArguments(corpus_files=[str(text_file)], corpus_validation_share=0.0)
    with pytest.raises(ValueError, match="nothing to evaluate on"):
        load_blocks(StudentArguments(), text_args, 0)


def test_a_corpus_names_its_source_without_its_folder(text_file):
    assert CorpusArguments(corpus_files=[str(text_file)]).load_corpus()[1] == "corpus.txt"


def test_its_help_can_be_printed(capsys):
    with pytest.raises(SystemExit) as end:
        run_here(mlm, "--help")
    assert end.value.code == 0
