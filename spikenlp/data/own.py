"""One's own texts, or pairs of texts, and their classes, labels or scores, and words with a label each, in tables."""

from __future__ import annotations

import csv
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value, load_dataset
from datasets.exceptions import DatasetsError

from spikenlp.metrics.entities import are_entity_tags

SEPARATED: dict[str, dict[str, Any]] = {
    ".csv": {},
    ".tsv": {"sep": "\t", "quoting": csv.QUOTE_NONE},
}
"""Ending of a file -> how pandas reads it. As in GLUE's files, quotation marks of a .tsv are text."""
READERS = (*SEPARATED, ".json", ".jsonl")
WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
SPLITS = {"train": "train", "validation": "validation", "dev": "validation", "test": "test"}
"""Name of a file -> split."""
OWN_DATA = "own_data"
Kind = Literal["one_label", "several_labels", "tokens"]
"""A text has one label or score, a list of labels, or is a list of words with a label each."""
OF_SCORES = ("pearson", "spearman")
METRICS: dict[Kind, tuple[str, ...]] = {
    "one_label": ("accuracy", "macro_f1"),
    "several_labels": ("subset_accuracy", "micro_f1", "macro_f1"),
    "tokens": ("accuracy", "macro_f1"),
}


@dataclass(frozen=True)
class OwnTask:
    """What tells a task apart, as `TextTask` has it."""

    text_columns: tuple[str, ...]
    labels: tuple[str, ...] | None
    name: str = OWN_DATA
    kind: Kind = "one_label"

    @property
    def metrics(self) -> tuple[str, ...]:
        if self.labels is None:
            return OF_SCORES
        of_entities = self.kind == "tokens" and are_entity_tags(self.labels)
        return (*METRICS[self.kind], *(["entity_f1"] if of_entities else []))


def own_task(train: Dataset) -> OwnTask:
    """Of a split that `load_own` has loaded."""
    columns = tuple(name for name in train.column_names if name != "label")
    label = train.features["label"]
    kind: Kind = "one_label"
    if isinstance(label, List):
        label, kind = label.feature, "several_labels"
    if isinstance(train.features[columns[0]], List):
        kind = "tokens"
    if not isinstance(label, ClassLabel):
        return OwnTask(columns, None)
    return OwnTask(columns, tuple(label.names), kind=kind)


def read_table(path: Path, text_columns: Sequence[str], label_column: str) -> Dataset:
    """The one or two `text_columns` and the `label_column` of a table.

    Raises:
        ValueError: another kind of file, one that cannot be read or lacks a column or a value, other than one
            or two columns of text.
        FileNotFoundError: there is none.
    """
    if path.suffix not in READERS:
        raise ValueError(f"a table must end with one of {', '.join(READERS)}, got {path}")
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if len(text_columns) not in (1, 2):
        raise ValueError(f"--text_columns takes one or two, got {list(text_columns)}")
    try:
        if path.suffix in SEPARATED:
            rows = read_separated(path, label_column)
        else:
            rows = load_dataset("json", data_files=str(path), split="train")
    except (DatasetsError, ValueError, pandas.errors.ParserWarning) as error:
        raise ValueError(f"{path} cannot be read: {error.__cause__ or error}") from error
    columns = [*text_columns, label_column]
    if missing := [column for column in columns if column not in rows.column_names]:
        raise ValueError(
            f"{path} has no column {missing}, but {rows.column_names}: name --text_columns and "
            "--label_column"
        )
    rows = rows.select_columns(columns)
    for column in columns:
        if None in rows[column]:
            raise ValueError(f"{path}, row {list(rows[column]).index(None) + 1} has no {column!r}")
    return rows


def read_separated(path: Path, label_column: str) -> Dataset:
    """Values as they stand there, 007 and NA as well, but for spaces around a label."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "error", pandas.errors.ParserWarning
        )  # a row of more values than the first
        table = pandas.read_csv(
            path, dtype=str, keep_default_na=False, index_col=False, **SEPARATED[path.suffix]
        )
    if table.empty:
        raise ValueError("it has no rows")
    columns: dict[str, list[Any]] = {name: table[name].tolist() for name in table.columns}
    if label_column in columns:
        columns[label_column] = [label.strip() for label in columns[label_column]]
    return Dataset.from_dict(columns)


def load_own(
    data_dir: str | Path,
    *,
    text_columns: Sequence[str] = ("text",),
    label_column: str = "label",
    class_names: Sequence[str] | None = None,
) -> DatasetDict:
    """Loads train, validation (or dev) and test, so far as they are there, from a folder of tables.

    Labels are classes; where a label of train is a number with a fraction and no `class_names` are given, scores, to be predicted as such. A row of .json or
    .jsonl may have a list of labels, or a list of words (one text column) and as many labels.

    Args:
        data_dir: with train.csv, or .tsv, .json, .jsonl, and the like of the other splits.
        class_names: in the order of their ids. Default: the labels of train, sorted.

    Returns:
        Splits with `text_columns` (of strings, or of lists of words) and `label`, a ClassLabel, a list of them, or a
        score.

    Raises:
        ValueError: as `read_table`; no train, or a split in two files; labels that are neither classes nor scores,
            or that the classes do not hold; scores that are not finite; lists in one split and none in another, of unlike lengths, of something
            else than words and labels, or with a label twice.
        FileNotFoundError: no folder.
    """
    if "label" in text_columns:
        raise ValueError("a column of text cannot be called 'label', as the classes are: rename it")
    folder = Path(data_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    found = sorted(p for p in folder.iterdir() if p.stem in SPLITS and p.suffix in READERS)
    paths = {SPLITS[path.stem]: path for path in found}
    if len(paths) < len(found):
        raise ValueError(f"{folder} has a split twice: {[path.name for path in found]}")
    if "train" not in paths:
        raise ValueError(f"{folder} has no train file: train{', train'.join(READERS)}")
    tables = {
        split: read_table(paths[split], text_columns, label_column)
        for split in dict.fromkeys(SPLITS.values())
        if split in paths
    }
    lists = {column: is_list(tables["train"], column) for column in (*text_columns, label_column)}
    for split, rows in tables.items():
        check_lists(rows, paths[split], text_columns, label_column, lists)
    found = tables["train"][label_column]
    flat = [label for labels in found for label in labels] if lists[label_column] else found
    label: Any
    if class_names is None and not lists[label_column] and any(map(has_fraction, flat)):
        label, labels = Value("float32"), scores
    else:
        names = classes_of(flat, paths["train"], class_names)
        label, labels = ClassLabel(names=names), partial(ids, names=names)
    words = Value("string")
    features = Features(
        {column: List(words) if lists[column] else words for column in text_columns}
        | {"label": List(label) if lists[label_column] else label}
    )
    return DatasetDict(
        {
            split: Dataset.from_dict(
                {column: as_text(rows[column], lists[column]) for column in text_columns}
                | {"label": labels(rows[label_column], path=paths[split])},
                features=features,
            )
            for split, rows in tables.items()
        }
    )


def is_list(rows: Dataset, column: str) -> bool:
    return isinstance(rows.features[column], List)


def as_text(values: Sequence[Any], lists: bool) -> list[Any]:
    return [list(map(str, value)) for value in values] if lists else list(map(str, values))


def check_lists(
    rows: Dataset,
    path: Path,
    text_columns: Sequence[str],
    label_column: str,
    lists: dict[str, bool],
) -> None:
    """Raises ValueError where lists, `lists` of train, are no words with a label each and no lists of labels."""
    for column, expected in lists.items():
        if is_list(rows, column) != expected:
            kinds = ("no list", "a list")
            raise ValueError(
                f"{path}: {column!r} is {kinds[not expected]}, and {kinds[expected]} in the train file"
            )
    of_words = [column for column in text_columns if lists[column]]
    for column in filter(lists.get, lists):
        for i, row in enumerate(rows[column], 1):
            if not all(isinstance(one, str | int) for one in row):
                raise ValueError(f"{path}, row {i}: {column!r} must be a list of texts, got {row}")
            if not of_words and len(set(row)) < len(row):
                raise ValueError(
                    f"{path}, row {i}: {column!r} has a label twice, {row}: a list holds the names of the labels "
                    "that a text has, not zeros and ones for all"
                )
    if not of_words:
        return
    if len(text_columns) > 1 or not lists[label_column]:
        raise ValueError(
            f"{path}: lists of words, {of_words[0]!r}, need a list of labels each, {label_column!r}, and no "
            "second column of text"
        )
    for i, (words, labels) in enumerate(zip(rows[of_words[0]], rows[label_column], strict=True), 1):
        if len(words) != len(labels) or not words:
            raise ValueError(
                f"{path}, row {i}: {len(words)} words and {len(labels)} labels, it must be as many and one at least"
            )


def has_fraction(label: Any) -> bool:
    """Whether a label is a number with a fraction, or written as one."""
    return NUMBER.fullmatch(str(label)) is not None and not float(label).is_integer()


def scores(labels: Sequence[Any], path: Path) -> list[float]:
    """Raises ValueError where one is no finite number."""
    for row, label in enumerate(labels, 1):
        if not NUMBER.fullmatch(str(label)) or math.isinf(np.float32(label)):
            raise ValueError(
                f"{path}, row {row}: label {label!r} must be a finite number, as scores are, which labels of train "
                "with a fraction stand for; classes of such names need --class_names"
            )
    return [float(label) for label in labels]


def classes_of(labels: Sequence[Any], path: Path, given: Sequence[str] | None) -> list[str]:
    """`given`, or the different labels, sorted; whole numbers by size."""
    if any(isinstance(label, list) for label in labels):
        raise ValueError(f"{path} has lists in some rows of its labels and none in others")
    found = set(map(str, labels))
    whole = all(map(WHOLE.fullmatch, found))
    if given is None and not whole and all(map(NUMBER.fullmatch, found)):
        raise ValueError(
            f"{path} has decimal numbers for labels, which are no classes, and none with a fraction, as scores "
            "have: write classes as whole numbers or names"
        )
    names = sorted(found, key=lambda name: (int(name) if whole else 0, name))
    if given is not None:
        names = list(given)
    if len(set(names)) < max(2, len(names)) or "" in names:
        raise ValueError(
            f"{path} needs two classes or more, each with a name of its own, got {names}"
        )
    return names


def ids(labels: Sequence[Any], names: Sequence[str], path: Path) -> list[Any]:
    """Of labels, or of lists of labels."""
    known = {name: i for i, name in enumerate(names)}

    def id_of(label: Any, row: int) -> int:
        if str(label) not in known:
            raise ValueError(f"{path}, row {row}: label {label!r} is none of the classes {names}")
        return known[str(label)]

    return [
        [id_of(one, row) for one in label] if isinstance(label, list) else id_of(label, row)
        for row, label in enumerate(labels, 1)
    ]
