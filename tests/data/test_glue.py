"""GLUE's TSV files: the right columns, labels and splits of nine tasks, and what is refused."""

import os
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from spikenlp.data import GLUE_TASKS, get_task, load_glue, load_task

ROWS = {
    "cola": 'gj04\t1\t\tThe sailors slept.\nks08\t0\t*\tThe sailors "slept.\n',
    "sst2": 'sentence\tlabel\na "charming journey . \t1\nNA\t0\n',
    "mrpc": 'Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tHe said "so.\tHe "said so.\n0\t9\t10\tA\tB\n',
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\tWhy?\tHow?\t0\n1\t3\t4\tnull\tNone\t1\n",
    "stsb": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    "0\tm\tf\t2012\t0001\tn\tn\tA plane.\tAn air plane.\t5.000\n1\tm\tf\t2012\t0002\tn\tn\tA\tB\t2.5\n",
    "qnli": "index\tquestion\tsentence\tlabel\n0\tWhen?\tThen.\tentailment\n1\tWho?\tNo.\tnot_entailment\n",
    "rte": "index\tsentence1\tsentence2\tlabel\n0\tA\tB\tnot_entailment\n1\tC\tD\tentailment\n",
    "wnli": "index\tsentence1\tsentence2\tlabel\n0\tA\tB\t1\n1\tC\tD\t0\n",
    "mnli": "index\tpromptID\tsentence1\tsentence2\tlabel1\tgold_label\n"
    "0\t1\tA\tB\tneutral\tcontradiction\n1\t2\tC\tD\tneutral\tentailment\n",
}
EXPECTED = {
    "cola": [("The sailors slept.", 1), ('The sailors "slept.', 0)],
    "sst2": [('a "charming journey . ', 1), ("NA", 0)],
    "mrpc": [('He said "so.', 'He "said so.', 1), ("A", "B", 0)],
    "qqp": [("Why?", "How?", 0), ("null", "None", 1)],
    "stsb": [("A plane.", "An air plane.", 5.0), ("A", "B", 2.5)],
    "qnli": [("When?", "Then.", 0), ("Who?", "No.", 1)],
    "rte": [("A", "B", 1), ("C", "D", 0)],
    "wnli": [("A", "B", 1), ("C", "D", 0)],
    "mnli": [("A", "B", 2), ("C", "D", 0)],
}
HUB_COLUMNS = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "stsb": ("sentence1", "sentence2"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
    "mnli": ("premise", "hypothesis"),
}
PUBLISHED_SIZES = {"sst2": 67349, "cola": 8551, "rte": 2490, "stsb": 5749}


def write(folder, task, text=None):
    files = ["train.tsv", "dev.tsv"]
    if task == "mnli":
        files = ["train.tsv", "dev_matched.tsv", "dev_mismatched.tsv"]
    folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        (folder / name).write_text(ROWS[task] if text is None else text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize("nested", [False, True])
def test_tsv_files_give_the_hubs_columns(task, nested, tmp_path):
    write(tmp_path / get_task(task).folder if nested else tmp_path, task)
    data = load_glue(task, data_dir=tmp_path)
    dev = ["validation_matched", "validation_mismatched"] if task == "mnli" else ["validation"]
    assert list(data) == ["train", *dev]
    for split in data.values():
        assert split.column_names == [*HUB_COLUMNS[task], "label"]
        assert [tuple(row.values()) for row in split] == EXPECTED[task]


def test_folder_names_will_do(tmp_path):
    data = load_glue("SST-2", data_dir=write(tmp_path, "sst2"))
    assert load_task("SST-2", data_dir=tmp_path)["train"].to_list() == data["train"].to_list()
    assert len(data["train"]) == 2


def test_all_nine_tasks_are_there():
    assert set(GLUE_TASKS) == set(ROWS)
    assert {get_task(task.folder).name for task in GLUE_TASKS.values()} == set(ROWS)


@pytest.mark.parametrize("name", ["sst3", "", None, "ax"])
def test_an_unknown_task_is_refused_with_the_names_of_all(name, tmp_path):
    with pytest.raises(ValueError, match=r"unknown task.*cola.*wnli, r8, r52, 20news"):
        get_task(name)
    with pytest.raises(ValueError, match=r"unknown GLUE task.*cola.*wnli$"):
        load_glue(name, data_dir=tmp_path)


def test_a_missing_column_is_named(tmp_path):
    write(tmp_path, "rte", ROWS["rte"].replace("sentence2", "hypothesis"))
    with pytest.raises(ValueError, match=r"train\.tsv has no column \['sentence2'\].*hypothesis"):
        load_glue("rte", data_dir=tmp_path)


def test_a_label_out_of_range_is_named(tmp_path):
    write(tmp_path, "wnli", ROWS["wnli"].replace("C\tD\t0", "C\tD\t7"))
    with pytest.raises(ValueError, match=r"row 2 with label='7'.*entailment"):
        load_glue("wnli", data_dir=tmp_path)


def test_a_few_broken_rows_are_left_out_with_a_warning(tmp_path, caplog):
    header, row, _ = ROWS["qqp"].splitlines(keepends=True)
    write(tmp_path, "qqp", header + 1500 * row + "7\t8\t9\tcut short\n")
    data = load_glue("qqp", data_dir=tmp_path)
    assert len(data["train"]) == 1500
    assert "1 malformed rows of 1501" in caplog.text


@pytest.mark.parametrize("score", ["nan", "inf", "-1", "5.1", "1e999"])
def test_a_score_that_is_none_is_refused(score, tmp_path):
    write(tmp_path, "stsb", ROWS["stsb"].replace("2.5\n", f"{score}\n"))
    with pytest.raises(ValueError, match=rf"row 2 with score='{score}' \(expected a number"):
        load_glue("stsb", data_dir=tmp_path)


def test_a_label_with_ten_thousand_digits_is_refused(tmp_path):
    write(tmp_path, "wnli", ROWS["wnli"].replace("C\tD\t0", "C\tD\t" + "9" * 10_000))
    with pytest.raises(ValueError, match=r"row 2 with label='9999.*entailment"):
        load_glue("wnli", data_dir=tmp_path)


@pytest.mark.parametrize("at", [3, 40])
def test_a_file_in_another_encoding_is_refused_by_name(at, tmp_path):
    write(tmp_path, "rte")
    data = bytearray((tmp_path / "train.tsv").read_bytes())
    data[at] = 0xFF
    (tmp_path / "train.tsv").write_bytes(data)
    with pytest.raises(ValueError, match=r"train\.tsv is not one of GLUE's") as raised:
        load_glue("rte", data_dir=tmp_path)
    assert type(raised.value) is ValueError


def test_an_empty_file_is_refused(tmp_path):
    write(tmp_path, "rte", ROWS["rte"].splitlines(keepends=True)[0])
    with pytest.raises(ValueError, match="train"):
        load_glue("rte", data_dir=tmp_path)


def test_a_folder_without_the_task_says_what_it_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"mnli.*dev_matched\.tsv.*MNLI/"):
        load_glue("mnli", data_dir=tmp_path)


@pytest.mark.parametrize("sources", [{}, {"data_dir": "a", "dataset": "b"}])
def test_exactly_one_source(sources):
    with pytest.raises(ValueError, match="exactly one source"):
        load_glue("rte", **sources)


def hub_copy(folder, names, column="label"):
    """A local data set with the hub's layout: one parquet file a split, a test split without labels."""
    features = Features(
        {"idx": Value("int32"), "sentence": Value("string"), column: ClassLabel(names=names)}
    )
    rows = {"idx": [0, 1], "sentence": ["a", "b"], column: [1, 0]}
    (folder / "sst2").mkdir(parents=True)
    splits = DatasetDict({n: Dataset.from_dict(rows, features) for n in ("train", "validation")})
    splits["test"] = Dataset.from_dict({**rows, column: [-1, -1]}, features)
    for name, split in splits.items():
        split.to_parquet(folder / "sst2" / f"{name}-00000-of-00001.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: sst2\n  data_files:\n"
        + "".join(f"  - split: {s}\n    path: sst2/{s}-*\n" for s in splits)
        + "---\n"
    )
    return str(folder)


def test_a_data_set_in_the_hubs_layout(tmp_path):
    data = load_glue("sst2", dataset=hub_copy(tmp_path / "glue", ["negative", "positive"]))
    assert list(data) == ["train", "validation"]
    assert [tuple(row.values()) for row in data["train"]] == [("a", 1), ("b", 0)]


def test_a_hub_data_set_with_other_labels_or_columns_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"labels \['positive', 'negative'\]"):
        load_glue("sst2", dataset=hub_copy(tmp_path / "swapped", ["positive", "negative"]))
    other = hub_copy(tmp_path / "other", ["negative", "positive"], column="target")
    with pytest.raises(ValueError, match=r"no column \['label'\].*target"):
        load_glue("sst2", dataset=other)


@pytest.mark.parametrize("task", PUBLISHED_SIZES)
def test_the_real_files_have_their_published_sizes(task):
    folder = os.environ.get("SPIKENLP_GLUE_DIR", "../shared/data/glue")
    if not Path(folder).is_dir():
        pytest.skip("GLUE's files are not here: set SPIKENLP_GLUE_DIR to their folder")
    assert len(load_glue(task, data_dir=folder)["train"]) == PUBLISHED_SIZES[task]
