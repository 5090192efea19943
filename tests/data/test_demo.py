"""The demo pairs: the same everywhere, split cleanly, and not to be solved by word overlap."""

import hashlib
import json

import pytest

from spikenlp.data import demo_question_pairs, wordpiece_tokenizer
from spikenlp.data.demo import INTENTS, TOPICS, word_overlap


@pytest.fixture(scope="module")
def data():
    return demo_question_pairs()


def questions(split):
    return {*split["question1"], *split["question2"]}


def meaning(question):
    found = {
        (intent, topic)
        for topic in TOPICS
        for intent, templates in INTENTS.items()
        for template in templates
        if template.format(topic) == question
    }
    assert len(found) == 1, question
    return found.pop()


def test_sizes_and_balance(data):
    assert len(data["train"]) >= 4000
    assert len(data["validation"]) >= 800
    for split in data.values():
        assert sum(split["label"]) == len(split) / 2


def test_labels_are_the_truth(data):
    for row in data["validation"]:
        one, two = meaning(row["question1"]), meaning(row["question2"])
        assert (one == two) == bool(row["label"])
        assert one[1] == two[1], "negatives are about the same topic"
        assert row["question1"] != row["question2"]


def test_no_question_meaning_or_pair_is_on_both_sides(data):
    train, dev = (questions(data[name]) for name in ("train", "validation"))
    assert not train & dev
    assert not {meaning(q) for q in train} & {meaning(q) for q in dev}
    for split in data.values():
        pairs = set(map(frozenset, zip(split["question1"], split["question2"], strict=True)))
        assert len(pairs) == len(split)


def test_word_overlap_does_not_tell_the_label(data):
    for split in data.values():
        pairs = zip(split["question1"], split["question2"], split["label"], strict=True)
        scored = [(word_overlap(one, two), label) for one, two, label in pairs]
        for threshold in {overlap for overlap, _ in scored}:
            right = sum((o >= threshold) == bool(y) for o, y in scored) / len(scored)
            assert 0.4 < right < 0.6


def test_the_same_on_every_machine(data):
    """A digest of all pairs: a change of Python or of this code that moves them must be noticed."""
    text = json.dumps([list(row.values()) for split in data.values() for row in split])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "ff1febea3abb4500"


def test_a_vocabulary_depends_on_the_texts_alone(data):
    texts = sorted(questions(data["train"]))
    one, two = wordpiece_tokenizer(texts), wordpiece_tokenizer(texts[::-1])
    assert one.get_vocab() == two.get_vocab()
    assert one.tokenize("How can I learn CHESS?")[-2:] == ["chess", "?"]
    assert one.unk_token not in one.tokenize("unheard of")
    assert one("chess")["input_ids"][0] == one.cls_token_id
    assert len(wordpiece_tokenizer(texts, vocab_size=70)) == 70


def test_vocabularies_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="no text"):
        wordpiece_tokenizer([])
    with pytest.raises(ValueError, match="no room"):
        wordpiece_tokenizer(["abcdefgh"], vocab_size=10)
