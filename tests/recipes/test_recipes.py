"""The recipes as a user runs them, and the folders that they leave. What needs no process of its own runs in
this one, whose imports are made."""

import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    PreTrainedTokenizerFast,
    pipeline,
)

from spikenlp import SpikingBertConfig
from spikenlp.data import demo_question_pairs, get_task, wordpiece_tokenizer
from spikenlp.data.own import load_own

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "recipes"))

import compare_losses  # noqa: E402
import distill  # noqa: E402
import glue_tmc  # noqa: E402
import qqp_tmc  # noqa: E402
import task_data  # noqa: E402
import truecasing  # noqa: E402

from tests.recipes.running import run_here, spike_cost_of, succeed  # noqa: E402

QUICK = ["--max_steps", "3", "--max_train_samples", "96", "--max_eval_samples", "32"]
QUICK += ["--disable_tqdm", "True", "--use_cpu", "True"]


def refused(recipe, *arguments):
    """What a recipe says before it stops."""
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        run_here(recipe, *arguments)
    return str(error.value)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    launcher = ("accelerate.commands.launch",)
    options = {"launcher": launcher, "variables": {}}  # with compiled neurons, as a user has them
    return folder, succeed("qqp_tmc.py", "--output_dir", folder, *QUICK, **options)


@pytest.fixture(scope="module")
def dense_model(tmp_path_factory):
    """A small dense BERT with a tokenizer, as a user would have it on disk."""
    from transformers import BertModel

    folder = tmp_path_factory.mktemp("dense")
    pairs = demo_question_pairs()["train"]
    tokenizer = wordpiece_tokenizer([*pairs["question1"], *pairs["question2"]])
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def qqp_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glue") / "QQP"
    folder.mkdir()
    for split, name in (("train", "train.tsv"), ("validation", "dev.tsv")):
        rows = demo_question_pairs()[split].select(range(200))
        lines = ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"]
        lines += [f"0\t1\t2\t{r['question1']}\t{r['question2']}\t{r['label']}" for r in rows]
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.slow
def test_without_arguments_it_says_that_the_data_are_a_demo(demo):
    _, printed = demo
    assert "DEMO DATA: synthetic question pairs" in printed
    assert "T = 4, spikes {-1, 0, 1}" in printed
    assert "processes       1 on cpu" in printed
    assert "auto = 0.138" in printed


@pytest.mark.slow
def test_the_folder_holds_all_that_is_needed(demo):
    folder, _ = demo
    results = json.loads((folder / "results.json").read_text())
    for t in range(1, 5):
        assert 0 <= results["spiking"][f"accuracy_t{t}"] <= 1
        assert results["spiking"][f"loss_t{t}"] > 0
    assert {"accuracy", "f1"} <= results["spiking"].keys()
    assert results["training"]["steps"] == 3
    assert results["training"]["seconds"] > 0
    assert yaml.safe_load((folder / "arguments.yaml").read_text())["temporal_loss"] == "tmc"
    assert str(folder.parent) not in json.dumps(results)
    assert (folder / "model.safetensors").is_file()
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.id2label == {0: "not_duplicate", 1: "duplicate"}
    classify = pipeline("text-classification", model=str(folder))
    answer = classify({"text": "Why should I learn chess?", "text_pair": "Is chess useful?"})
    assert answer["label"] in ("not_duplicate", "duplicate")
    assert AutoTokenizer.from_pretrained(folder)("chess")["input_ids"]


@pytest.mark.slow
def test_the_same_command_again_goes_on_instead_of_starting_over(demo):
    folder, _ = demo
    run_here(qqp_tmc, "--output_dir", folder, *QUICK)
    printed = run_here(qqp_tmc, "--output_dir", folder, *QUICK, "--max_steps", "4")
    assert "resuming from" in printed
    training = json.loads((folder / "results.json").read_text())["training"]
    assert (training["steps"], training["seconds"], training["loss"]) == (4, None, None)
    said = refused(qqp_tmc, "--output_dir", folder, *QUICK, "--learning_rate", "0.05")
    assert "learning_rate 5e-05 -> 0.05" in said
    assert yaml.safe_load((folder / "arguments.yaml").read_text())["learning_rate"] == 5e-5
    said = refused(qqp_tmc, "--output_dir", folder, *QUICK, "--temporal_loss", "tet")
    assert "temporal_loss 'tmc' -> 'tet'" in said


@pytest.mark.slow
def test_real_files_dense_first_and_yaml(qqp_files, dense_model, tmp_path):
    config = tmp_path / "job.yaml"
    config.write_text(f"task_name: qqp\ndata_dir: {qqp_files}\nlearning_rate: 5e-5\n")
    out = tmp_path / "out"
    printed = run_here(
        glue_tmc,
        config,
        *("--model_name_or_path", dense_model, "--dense_first", "--num_timesteps", 2),
        *("--output_dir", out, *QUICK),
    )
    assert "DEMO" not in printed
    results = json.loads((out / "results.json").read_text())
    assert {"dense", "before_training", "spiking"} <= results.keys()
    assert results["config"]["num_timesteps"] == 2
    again = tmp_path / "again"
    run_here(
        qqp_tmc,
        "--data_dir",
        qqp_files,
        "--model_name_or_path",
        out,
        "--output_dir",
        again,
        *QUICK,
    )
    assert json.loads((again / "results.json").read_text())["config"]["num_timesteps"] == 2
    for checkpoint in out.glob("checkpoint-*"):  # as where only the dense model was trained
        shutil.rmtree(checkpoint)
    options = [config, "--model_name_or_path", dense_model, "--dense_first", "--output_dir", out]
    said = refused(glue_tmc, *options, *QUICK, "--num_timesteps", 2, "--seed", 7)
    assert "seed 42 -> 7" in said
    options += [*QUICK, "--num_timesteps", 4, "--spike_cost", 0.3, "--temporal_loss", "tet"]
    assert spike_cost_of(lambda: run_here(glue_tmc, *options)) == 0.3


def test_amplitudes_are_calibrated_at_the_spike_cost(qqp_files, dense_model, tmp_path):
    options = ["--task_name", "qqp", "--data_dir", qqp_files, "--output_dir", tmp_path, *QUICK]
    for start in ([], ["--model_name_or_path", dense_model]):
        run = partial(run_here, glue_tmc, *options, "--spike_cost", 0.3, *start)
        assert spike_cost_of(run) == 0.3
    with pytest.raises(ValueError, match="for rounding neurons, got --neuron lif"):
        run_here(glue_tmc, *options, "--spike_cost", 0.3, "--neuron", "lif")


@pytest.fixture(scope="module")
def own_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    for split in ("train", "validation"):
        rows = demo_question_pairs()[split].select(range(96))
        records = [
            {
                "title": row["question1"],
                "body": row["question2"],
                "stars": ("low", "mid", "top")[i % 3],
            }
            for i, row in enumerate(rows)
        ]
        lines = [json.dumps(record) for record in records]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("recipe", [glue_tmc, distill])
def test_own_data_train_a_classifier_of_their_classes(recipe, own_files, dense_model, tmp_path):
    options = [
        "--task_name",
        "own_data",
        "--data_dir",
        own_files,
        "--model_name_or_path",
        dense_model,
    ]
    options += ["--text_columns", "title", "body", "--label_column", "stars"]
    options += ["--class_names", "top", "mid", "low", "--num_timesteps", "2", *QUICK]
    if recipe is distill:
        options += ["--teacher_epochs", "1", "--collapsed_steps", "2"]
    run_here(recipe, *options, "--output_dir", tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["task"], results["data"]) == ("own_data", f"the files in {own_files.name}")
    scores = results["unrolled" if recipe is distill else "spiking"]
    scores = scores.get("spiking", scores)
    assert {"accuracy", "macro_f1", "accuracy_t1", "macro_f1_t2"} <= scores.keys()
    folder = tmp_path / "unrolled" if recipe is distill else tmp_path
    answer = pipeline("text-classification", str(folder), top_k=None)(
        {"text": "a", "text_pair": "b"}
    )
    assert {label["label"] for label in answer} == {"top", "mid", "low"}
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"0": "top", "1": "mid", "2": "low"}


def of_words(question):
    words = question.split()
    return {"text": words, "label": ["B-X" if len(word) > 4 else "O" for word in words]}


def of_topics(question):
    return {"text": question, "label": [x for x in ("how", "what") if x in question.lower()]}


@pytest.mark.parametrize(
    ("row", "score", "task"),
    [
        (of_words, "entity_f1", "token-classification"),
        (of_topics, "micro_f1", "text-classification"),
    ],
)
@pytest.mark.parametrize("recipe", [glue_tmc, distill])
def test_lists_train_a_model_of_tokens_or_of_several_labels(
    recipe, row, score, task, dense_model, tmp_path
):
    files, out = tmp_path / "files", tmp_path / "out"
    files.mkdir()
    for split in ("train", "validation"):
        questions = demo_question_pairs()[split]["question1"][:96]
        lines = [json.dumps(row(question)) for question in questions]
        (files / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    options = ["--task_name", "own_data", "--data_dir", files, "--model_name_or_path", dense_model]
    options += ["--num_timesteps", "2", *QUICK, "--output_dir", out, "--bf16", "True"]
    if recipe is distill:
        options += ["--teacher_epochs", "1", "--collapsed_steps", "2", "--reconstruction_batches"]
        options += ["1", "--rival_steps", "2", "--internal_steps", "2"]
        options += ["--phases", *(phase for phase in distill.PHASES if phase != "general")]
    run_here(recipe, *options)
    results = json.loads((out / "results.json").read_text())
    for name in ("unrolled", "reconstructed") if recipe is distill else ("spiking",):
        scores = results[name].get("spiking", results[name])
        assert {score, f"{score}_t1", f"{score}_t2", "macro_f1"} <= scores.keys()
    if recipe is distill:
        assert score in results["teacher"]["dense"]
        assert score in results["rival"]["dense"]
        assert results["unrolled"]["spiking_float32"].keys() >= {score, "accuracy_t1"}
    folder = out / "unrolled" if recipe is distill else out
    answers = pipeline(task, str(folder))("how are you today")
    names = {"LABEL"} if not answers else {a.get("entity", a.get("label")) for a in answers}
    assert names <= {"LABEL", "B-X", "O", "how", "what"}


@pytest.mark.parametrize("recipe", [glue_tmc, distill])
def test_scores_train_a_regression(recipe, dense_model, tmp_path):
    files, out = tmp_path / "files", tmp_path / "out"
    files.mkdir()
    for split in ("train", "validation"):
        questions = demo_question_pairs()[split]["question1"][:96]
        rows = [{"text": question, "label": len(question) / 8} for question in questions]
        (files / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    options = ["--task_name", "own_data", "--data_dir", files, "--model_name_or_path", dense_model]
    options += ["--num_timesteps", "2", "--output_dir", out, *QUICK]
    with pytest.raises(ValueError, match="no confidence for TMC to calibrate"):
        run_here(recipe, *options)
    options += ["--temporal_loss", "tet"]
    if recipe is distill:
        options += ["--teacher_epochs", "1", "--collapsed_steps", "2"]
    run_here(recipe, *options)
    results = json.loads((out / "results.json").read_text())
    scores = results["unrolled"]["spiking"] if recipe is distill else results["spiking"]
    assert {"pearson", "spearman", "pearson_t1", "spearman_t2"} <= scores.keys()
    config = json.loads(
        ((out / "unrolled" if recipe is distill else out) / "config.json").read_text()
    )
    assert config["problem_type"] == "regression"


def test_a_word_has_its_label_at_its_first_token():
    words = [None, 0, 0, 1, 2, 2, None]
    expected = [-100, 5, -100, 7, 9, -100, -100]
    assert task_data.labels_of_tokens(words, [5, 7, 9]) == expected


def test_words_that_are_cut_off_are_counted(dense_model, tmp_path):
    row = {"text": ["how", "are", "\u200b", "you"], "label": ["x", "y", "y", "y"]}
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    options = ["--task_name", "own_data", "--data_dir", tmp_path, "--output_dir", tmp_path / "out"]
    options += ["--model_name_or_path", dense_model, "--max_seq_length", "4", *QUICK]
    assert "validation: 2 of 4 words are left out" in run_here(glue_tmc, *options)
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert record["words_left_out"] == {"train": 2, "validation": 2}


def test_a_tokenizer_that_reads_words_otherwise_than_a_text_is_refused():
    pieces = {"<unk>": 0, "new": 1, "\u0120york": 2, "york": 3}
    tokenizer = Tokenizer(models.WordLevel(pieces, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    with pytest.raises(ValueError, match="add_prefix_space=True"):
        task_data.check_reads_words(PreTrainedTokenizerFast(tokenizer_object=tokenizer))


@pytest.mark.parametrize("task", ["mrpc", "mnli"])
def test_truecasing_makes_a_table_of_words(tmp_path, capsys, monkeypatch, task):
    texts = ["Ann's in the UK.", "No 1 A"]
    data = datasets.Dataset.from_dict({get_task(task).text_columns[0]: texts})
    dev = "validation_matched" if task == "mnli" else "validation"
    monkeypatch.setattr(
        truecasing, "load_task", lambda *_, **__: datasets.DatasetDict({"train": data, dev: data})
    )
    run_here(truecasing, "--task_name", task, "--data_dir", "x", "--output_dir", tmp_path)
    table = load_own(tmp_path)
    assert table["validation"]["text"][0] == ["ann's", "in", "the", "uk."]
    names = table["train"].features["label"].feature.names
    words = [[names[i] for i in row] for row in table["validation"]["label"]]
    assert words == [["capital", "lower", "lower", "upper"], ["capital", "lower", "capital"]]


def test_a_recipe_for_one_label_a_text_says_which_take_lists(dense_model, tmp_path):
    row = json.dumps(of_words("how are you today"))
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text(f"{row}\n")
    options = ["--task_name", "own_data", "--data_dir", tmp_path, "--output_dir", tmp_path / "out"]
    said = refused(compare_losses, *options, "--model_name_or_path", dense_model, *QUICK)
    assert "distill.py and glue_tmc.py take them" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task_name", "own_data"], "give --data_dir and no --dataset"),
        (["--task_name", "own_data", "--data_dir", "{}"], r"no column \['text', 'label'\]"),
        (
            ["--task_name", "sst2", "--label_column", "x"],
            "--label_column is for --task_name own_data",
        ),
    ],
)
def test_options_of_own_data_are_for_them(options, message, own_files, dense_model, tmp_path):
    options = [option.format(own_files) for option in options]
    options += ["--model_name_or_path", dense_model, "--output_dir", tmp_path, *QUICK]
    assert re.search(message, refused(glue_tmc, *options))


@pytest.mark.slow
def test_two_processes_are_counted(tmp_path):
    launcher = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    printed = succeed("qqp_tmc.py", "--output_dir", tmp_path, *QUICK, launcher=launcher)
    assert "processes       2 on cpu" in printed
    assert "global batch 64" in printed
    assert printed.count("temporal loss   tmc") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task_name", "sst3"], "unknown task 'sst3'"),
        (["--task_name", "rte"], "exactly one source"),
        (["--task_name", "rte", "--data_dir", "/nowhere"], "no GLUE file of rte"),
        (["--task_name", "stsb", "--data_dir", "{stsb}"], "TMC to calibrate: use --temporal_loss"),
    ],
)
def test_bad_input_stops_before_training(arguments, message, tmp_path):
    stsb = tmp_path / "STS-B"
    stsb.mkdir()
    for name in ("train.tsv", "dev.tsv"):
        (stsb / name).write_text("index\tsentence1\tsentence2\tscore\n0\tA plane.\tA jet.\t4.5\n")
    arguments = [str(stsb) if a == "{stsb}" else a for a in arguments]
    assert message in refused(glue_tmc, *arguments, "--output_dir", tmp_path / "out")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_only_a_converted_model_is_reconstructed(tmp_path):
    said = refused(qqp_tmc, "--reconstruct", "True", *QUICK, "--output_dir", tmp_path)
    assert "but the model starts from scratch: leave it out" in said


@pytest.mark.parametrize("kind", [BertConfig, SpikingBertConfig])
def test_a_classifier_of_other_labels_is_refused(qqp_files, dense_model, kind, tmp_path):
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_labels": 3}
    model = AutoModelForSequenceClassification.from_config(kind(**shape))
    model.save_pretrained(tmp_path / "start")
    AutoTokenizer.from_pretrained(dense_model).save_pretrained(tmp_path / "start")
    start = ["--data_dir", qqp_files, "--model_name_or_path", tmp_path / "start"]
    said = refused(qqp_tmc, *start, "--output_dir", tmp_path / "out", *QUICK)
    assert "start has 3 labels, qqp 2" in said


def test_other_architectures_are_refused(qqp_files, tmp_path):
    from transformers import DistilBertConfig, DistilBertModel

    DistilBertModel(DistilBertConfig(dim=32, n_heads=2, n_layers=1, hidden_dim=32)).save_pretrained(
        tmp_path
    )
    wordpiece_tokenizer(["some words"]).save_pretrained(tmp_path)
    said = refused(qqp_tmc, "--data_dir", qqp_files, "--model_name_or_path", tmp_path, *QUICK)
    assert "'distilbert': give a dense BERT" in said
