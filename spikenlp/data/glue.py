"""GLUE (Wang et al., ICLR 2019): its nine tasks, from GLUE's TSV files or from a hub.

Both sources give the same `DatasetDict`: the hub's text columns and `label`, splits `train` and
`validation` (MNLI: `validation_matched`, `validation_mismatched`). The test splits, whose labels are
withheld, are left out.
"""

from __future__ import annotations

import csv
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset

logger = logging.getLogger(__name__)

LARGEST_MALFORMED_SHARE = 1e-3
"""GLUE's QQP has a few broken rows; a file with a larger share of them is not what it should be."""
LARGEST_SCORE = 5.0
"""Of a regression; STS-B's similarities lie in [0, 5]."""


@dataclass(frozen=True)
class GlueTask:
    """What tells a task apart.

    Attributes:
        name: the hub's configuration name, e.g. "sst2".
        folder: its folder in GLUE's archive, e.g. "SST-2".
        text_columns: the hub's names of the one or two texts.
        tsv_columns: their names, and the label's last, in the TSV files.
        labels: class names in the order of their ids; None for regression.
        header: the TSV files' columns where they have no header line.
        evaluation: split -> TSV file.
        metrics: what is reported, as `spikenlp.metrics.glue_metrics` names it.
    """

    name: str
    folder: str
    text_columns: tuple[str, ...]
    tsv_columns: tuple[str, ...]
    labels: tuple[str, ...] | None
    header: tuple[str, ...] | None = None
    evaluation: tuple[tuple[str, str], ...] = (("validation", "dev.tsv"),)
    metrics: tuple[str, ...] = ("accuracy",)
    kind: ClassVar[str] = "one_label"

    @property
    def files(self) -> dict[str, str]:
        """Split -> TSV file."""
        return {"train": "train.tsv", **dict(self.evaluation)}


SENTENCES = ("sentence1", "sentence2")
GLUE_TASKS = {
    task.name: task
    for task in (
        GlueTask(
            "cola",
            "CoLA",
            ("sentence",),
            ("sentence", "label"),
            ("unacceptable", "acceptable"),
            header=("source", "label", "mark", "sentence"),
            metrics=("accuracy", "mcc"),
        ),
        GlueTask("sst2", "SST-2", ("sentence",), ("sentence", "label"), ("negative", "positive")),
        GlueTask(
            "mrpc",
            "MRPC",
            SENTENCES,
            ("#1 String", "#2 String", "Quality"),
            ("not_equivalent", "equivalent"),
            metrics=("accuracy", "f1"),
        ),
        GlueTask(
            "qqp",
            "QQP",
            ("question1", "question2"),
            ("question1", "question2", "is_duplicate"),
            ("not_duplicate", "duplicate"),
            metrics=("accuracy", "f1"),
        ),
        GlueTask(
            "stsb",
            "STS-B",
            SENTENCES,
            (*SENTENCES, "score"),
            None,
            metrics=("pearson", "spearman"),
        ),
        GlueTask(
            "mnli",
            "MNLI",
            ("premise", "hypothesis"),
            (*SENTENCES, "gold_label"),
            ("entailment", "neutral", "contradiction"),
            evaluation=(
                ("validation_matched", "dev_matched.tsv"),
                ("validation_mismatched", "dev_mismatched.tsv"),
            ),
        ),
        GlueTask(
            "qnli",
            "QNLI",
            ("question", "sentence"),
            ("question", "sentence", "label"),
            ("entailment", "not_entailment"),
        ),
        GlueTask("rte", "RTE", SENTENCES, (*SENTENCES, "label"), ("entailment", "not_entailment")),
        GlueTask(
            "wnli", "WNLI", SENTENCES, (*SENTENCES, "label"), ("not_entailment", "entailment")
        ),
    )
}


def task_key(name: str | None) -> str:
    """A task's name in the table: "SST-2" -> "sst2"."""
    return (name or "").lower().replace("-", "")


def load_glue(
    task_name: str, *, data_dir: str | Path | None = None, dataset: str | None = None
) -> DatasetDict:
    """Loads a task from GLUE's TSV files or from a hub.

    Args:
        task_name: one of the nine, by the hub's name ("sst2") or that of GLUE's folder ("SST-2").
        data_dir: folder of the task's train.tsv and dev.tsv, or the one that holds GLUE's folders.
            Splits whose file is absent are left out.
        dataset: hub id, or local path, of a data set with GLUE's configurations: "nyu-mll/glue".

    Returns:
        Splits with the task's `text_columns` (strings) and `label` (ClassLabel; float32 for STS-B).

    Raises:
        ValueError: an unknown task; not exactly one source; a missing column; unreadable labels; an
            empty split.
        FileNotFoundError: no file of the task in `data_dir`.
    """
    key = task_key(task_name)
    if key not in GLUE_TASKS:
        raise ValueError(f"unknown GLUE task {task_name!r}: choose from {', '.join(GLUE_TASKS)}")
    task = GLUE_TASKS[key]
    if (data_dir is None) == (dataset is None):
        raise ValueError(
            f"give exactly one source of {task.name}: data_dir (a folder with GLUE's "
            f"{task.folder}/train.tsv and dev.tsv) or dataset (a hub id such as nyu-mll/glue)"
        )
    if data_dir is not None:
        splits = _load_tsv(task, Path(data_dir))
    else:
        splits = _load_hub(task, str(dataset))
    for name, split in splits.items():
        if len(split) == 0:
            raise ValueError(f"{task.name}: the {name} split of {data_dir or dataset} is empty")
    return DatasetDict(splits)


def _label_feature(task: GlueTask) -> ClassLabel | Value:
    return Value("float32") if task.labels is None else ClassLabel(names=list(task.labels))


def _load_tsv(task: GlueTask, data_dir: Path) -> dict[str, Dataset]:
    folder = data_dir / task.folder if (data_dir / task.folder).is_dir() else data_dir
    present = {split: folder / name for split, name in task.files.items()}
    present = {split: path for split, path in present.items() if path.is_file()}
    if not present:
        raise FileNotFoundError(
            f"no GLUE file of {task.name} in {data_dir}: expected {', '.join(task.files.values())}, "
            f"there or in {task.folder}/"
        )
    return {split: _read_tsv(task, path) for split, path in present.items()}


def _read_tsv(task: GlueTask, path: Path) -> Dataset:
    names = list(task.header or _header(path))
    if missing := [name for name in task.tsv_columns if name not in names]:
        raise ValueError(f"{path} has no column {missing}: found {names}")
    try:
        table = pandas.read_csv(
            path,
            sep="\t",
            quoting=csv.QUOTE_NONE,
            keep_default_na=False,
            header=None,
            names=names,
            skiprows=0 if task.header else 1,
            usecols=list(task.tsv_columns),
            dtype=str,
        )
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path} is not one of GLUE's tab-separated files: {error}") from error
    rows = {
        name: [text if isinstance(text, str) else None for text in table[name]]
        for name in task.tsv_columns
    }
    *text_columns, label_column = task.tsv_columns
    labels = [_parse_label(task, text) for text in rows[label_column]]
    broken = [
        i
        for i, row in enumerate(zip(labels, *(rows[c] for c in text_columns), strict=True))
        if None in row
    ]
    if len(broken) > LARGEST_MALFORMED_SHARE * len(labels):
        expected = "a number" if task.labels is None else f"one of {list(task.labels)} or its id"
        raise ValueError(
            f"{path}: {len(broken)} of {len(labels)} rows are malformed, the first is row "
            f"{broken[0] + 1} with {label_column}={rows[label_column][broken[0]]!r} (expected {expected})"
        )
    if broken:
        logger.warning("%s: left out %d malformed rows of %d", path, len(broken), len(labels))
    dropped = set(broken)
    columns = {
        name: [text for i, text in enumerate(rows[column]) if i not in dropped]
        for name, column in zip(task.text_columns, text_columns, strict=True)
    }
    columns["label"] = [label for i, label in enumerate(labels) if i not in dropped]
    text_features = {name: Value("string") for name in task.text_columns}
    return Dataset.from_dict(
        columns, features=Features({**text_features, "label": _label_feature(task)})
    )


def _header(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline().rstrip("\r\n").split("\t")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not one of GLUE's tab-separated files: {error}") from error


def _parse_label(task: GlueTask, text: str | None) -> float | int | None:
    """A label's value: a finite number, a class name or a class id; None if it is none of these."""
    text = (text or "").strip()
    if task.labels is None:
        try:
            score = float(text)
        except ValueError:
            return None
        return score if 0 <= score <= LARGEST_SCORE else None
    if text in task.labels:
        return task.labels.index(text)
    ids = [str(i) for i in range(len(task.labels))]
    return ids.index(text) if text in ids else None


def _load_hub(task: GlueTask, dataset: str) -> dict[str, Dataset]:
    loaded = load_dataset(dataset, task.name)
    splits = {name: loaded[name] for name in task.files if name in loaded}
    columns = [*task.text_columns, "label"]
    for name, split in splits.items():
        if missing := [column for column in columns if column not in split.column_names]:
            raise ValueError(
                f"{dataset} ({task.name}, {name}) has no column {missing}: found "
                f"{split.column_names}"
            )
        found = getattr(split.features["label"], "names", None)
        if task.labels is not None and found is not None and tuple(found) != task.labels:
            raise ValueError(
                f"{dataset} ({task.name}, {name}) has the labels {found}: expected "
                f"{list(task.labels)}"
            )
        splits[name] = split.select_columns(columns).cast_column("label", _label_feature(task))
    return splits
