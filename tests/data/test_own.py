"""One's own tables: their formats, classes and what is refused."""

import json

import pandas
import pytest

from spikenlp.data.own import load_own, own_task

ROWS = [("so dull", "low"), ("NA", "high"), ("1984", "mid"), ("a fine film", "high")]


def write(path, rows, columns=("text", "label")):
    records = [dict(zip(columns, row, strict=True)) for row in rows]
    if path.suffix == ".json":
        path.write_text(json.dumps(records))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        pandas.DataFrame(records).to_csv(path, sep=separator, index=False)


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".json", ".jsonl"])
def test_splits_texts_and_classes(tmp_path, kind):
    write(tmp_path / f"train{kind}", ROWS)
    write(tmp_path / f"dev{kind}", ROWS[2:])
    write(tmp_path / "test.csv", ROWS[:1])
    (tmp_path / "notes.txt").write_text("of another kind")
    data = load_own(tmp_path)
    assert list(data) == ["train", "validation", "test"]
    assert data["train"]["text"] == [text for text, _ in ROWS]
    assert data["train"].features["label"].names == ["high", "low", "mid"]
    assert [data[split]["label"][:] for split in data] == [[1, 0, 2, 0], [2, 0], [1]]


def test_classes_in_a_given_order_and_columns_of_other_names(tmp_path):
    rows = [(text, text.upper(), "x", label) for text, label in ROWS]
    for name in ("train.csv", "validation.csv"):
        write(tmp_path / name, rows, ("first", "second", "further", "stars"))
    order = ["low", "mid", "high", "highest"]
    options = {"text_columns": ["first", "second"], "label_column": "stars"}
    data = load_own(tmp_path, class_names=order, **options)
    assert data["train"].column_names == ["first", "second", "label"]
    assert data["validation"].features["label"].names == order
    assert data["validation"]["label"][:] == [0, 2, 1, 2]


@pytest.mark.parametrize(
    ("labels", "names"), [((10, 9, -1), ["-1", "9", "10"]), ((True, False), ["False", "True"])]
)
def test_numbers_are_ordered_by_size(tmp_path, labels, names):
    write(tmp_path / "train.jsonl", [("a text", label) for label in labels])
    assert load_own(tmp_path)["train"].features["label"].names == names


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (("1_0", "2_5"), ["1_0", "2_5"]),
        (("+1", "-1"), ["-1", "+1"]),
        ((" 1", "1", "0 "), ["0", "1"]),
        (("nan", "infinity"), ["infinity", "nan"]),
    ],
)
def test_what_only_python_takes_for_a_number_is_a_name(tmp_path, labels, names):
    rows = "".join(f"a text,{label}\n" for label in labels)
    (tmp_path / "train.csv").write_text("text,label\n" + rows)
    assert load_own(tmp_path)["train"].features["label"].names == names


def test_classes_may_be_called_by_decimal_numbers_if_they_are_named(tmp_path):
    write(tmp_path / "train.csv", [("a", "0.5"), ("b", "1.5"), ("c", "0.5")])
    data = load_own(tmp_path, class_names=["1.5", "0.5"])
    assert data["train"]["label"][:] == [1, 0, 1]


def test_a_row_of_more_values_than_there_are_columns_is_refused(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,1,7\nb,0,7\n")
    with pytest.raises(ValueError, match=r"train\.csv cannot be read"):
        load_own(tmp_path)


def test_what_is_written_like_a_number_stays_as_it_is_written(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n007,01\n1e3,10\n0.50,02\n")
    rows = load_own(tmp_path)["train"]
    assert rows["text"][:] == ["007", "1e3", "0.50"]
    assert rows.features["label"].names == ["01", "02", "10"]


@pytest.mark.parametrize("kind", [".csv", ".jsonl"])
def test_numbers_with_a_fraction_are_scores(tmp_path, kind):
    write(tmp_path / f"train{kind}", [("a text", 3), ("another", 0.5)])
    write(tmp_path / f"validation{kind}", [("a third", 4)])
    data = load_own(tmp_path)
    assert data["train"]["label"][:] == [3.0, 0.5]
    assert data["validation"]["label"][:] == [4.0]
    task = own_task(data["train"])
    assert (task.labels, task.metrics) == (None, ("pearson", "spearman"))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), "much"])
def test_scores_are_finite_numbers(tmp_path, wrong):
    write(tmp_path / "train.csv", [("a text", 3), ("another", 0.5)])
    write(tmp_path / "validation.csv", [("a third", 4), ("a fourth", wrong)])
    with pytest.raises(
        ValueError, match=r"validation\.csv, row 2: label .* must be a finite number"
    ):
        load_own(tmp_path)


@pytest.mark.parametrize(
    ("train", "options", "message"),
    [
        (ROWS, {"text_columns": ["review"]}, r"train.csv has no column \['review'\], but \['text'"),
        (ROWS, {"text_columns": ["label"]}, "cannot be called 'label'"),
        (ROWS, {"text_columns": []}, "takes one or two"),
        (ROWS, {"class_names": ["low", "high"]}, "row 3: label 'mid' is none of the classes"),
        (ROWS, {"class_names": ["low", "mid", "high", "mid"]}, "each with a name of its own"),
        (ROWS[:1], {}, r"two classes or more.*got \['low'\]"),
        ([("a", "good"), ("b", "")], {}, "each with a name of its own"),
        ([("a", 0.0), ("b", 1.0)], {}, "write classes as whole numbers or names"),
        (
            [("a", 0.5), ("b", "NA")],
            {},
            r"row 2: label 'NA' must be a finite number.*--class_names",
        ),
        ([("a", 0.5), ("b", 1e39)], {}, "row 2: label .* must be a finite number"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, train, options, message):
    write(tmp_path / "train.csv", train)
    with pytest.raises(ValueError, match=message):
        load_own(tmp_path, **options)


def test_files_that_are_missing_or_too_many_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_own(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"no train file: train\.csv, train\.tsv"):
        load_own(tmp_path)
    for name in ("train.csv", "dev.csv", "validation.tsv"):
        write(tmp_path / name, ROWS)
    with pytest.raises(ValueError, match=r"a split twice: .*'validation\.tsv'"):
        load_own(tmp_path)
    (tmp_path / "dev.csv").unlink()
    write(tmp_path / "validation.tsv", [("a", "low"), ("b", "other")])
    with pytest.raises(ValueError, match=r"validation\.tsv, row 2: label 'other'"):
        load_own(tmp_path)
    write(tmp_path / "train.json", [("a", "low"), (None, "high")])
    (tmp_path / "train.csv").unlink()
    with pytest.raises(ValueError, match=r"train\.json, row 2 has no 'text'"):
        load_own(tmp_path)


WORDS = [(["Ann", "is", "in", "Rome"], ["B-PER", "O", "O", "B-LOC"]), (["No", "one"], ["O", "O"])]
SEVERAL = [("so dull", ["bad"]), ("dull but kind", ["bad", "good"]), ("a film", [])]


@pytest.mark.parametrize("kind", [".json", ".jsonl"])
def test_words_with_a_label_each(tmp_path, kind):
    write(tmp_path / f"train{kind}", WORDS)
    data = load_own(tmp_path)
    assert data["train"]["text"][0] == ["Ann", "is", "in", "Rome"]
    assert data["train"]["label"][:] == [[1, 2, 2, 0], [2, 2]]
    task = own_task(data["train"])
    assert (task.kind, task.labels) == ("tokens", ("B-LOC", "B-PER", "O"))
    assert task.metrics == ("accuracy", "macro_f1", "entity_f1")


def test_texts_with_several_labels_or_none(tmp_path):
    write(tmp_path / "train.jsonl", SEVERAL)
    write(tmp_path / "dev.jsonl", SEVERAL[2:])  # no list has an element
    data = load_own(tmp_path)
    assert data["train"]["label"][:] == [[0], [0, 1], []]
    assert data["validation"]["label"][:] == [[]]
    task = own_task(data["train"])
    assert (task.kind, task.labels) == ("several_labels", ("bad", "good"))
    assert task.metrics == ("subset_accuracy", "micro_f1", "macro_f1")


@pytest.mark.parametrize(
    ("train", "dev", "columns", "message"),
    [
        ([(["a", "b"], ["x"])], WORDS, ("text", "label"), "row 1: 2 words and 1 labels"),
        ([([], []), (["a"], ["x"])], WORDS, ("text", "label"), "row 1: 0 words"),
        ([(["a"], "x"), (["b"], "y")], [], ("text", "label"), "need a list of labels each"),
        (WORDS, SEVERAL, ("text", "label"), "dev.jsonl: 'text' is no list, and a list in"),
        (ROWS, SEVERAL, ("text", "label"), "dev.jsonl: 'label' is a list, and no list in"),
        (SEVERAL, [("a", ["fine"])], ("text", "label"), "'fine' is none of the classes"),
        ([("a", [0, 1, 0]), ("b", [1])], [], ("text", "label"), "row 1: .* not zeros and ones"),
        ([("a", ["x", None]), ("b", ["y"])], [], ("text", "label"), "row 1: .* a list of texts"),
        ([(["a", None], ["x", "y"])], [], ("text", "label"), "row 1: .* a list of texts"),
        ([("a", [["x"]]), ("b", [["y"]])], [], ("text", "label"), "row 1: .* a list of texts"),
        ([(["a"], "b", ["x"])], [], ("text", "second", "label"), "no second column of text"),
    ],
)
def test_lists_that_do_not_fit_are_named(tmp_path, train, dev, columns, message):
    write(tmp_path / "train.jsonl", train, columns)
    if dev:
        write(tmp_path / "dev.jsonl", dev, columns)
    with pytest.raises(ValueError, match=message):
        load_own(tmp_path, text_columns=columns[:-1])
