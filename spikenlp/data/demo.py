"""Synthetic English question pairs, so that a first run needs no download.

A question is a template filled with a topic; its meaning is (intent, topic). A duplicate is a pair of
different templates with the same meaning. A negative asks something else about the same topic ("How
can I learn chess?", "How long does it take to learn chess?"), and is chosen to share as many words as
the duplicate that it accompanies does: how much two questions overlap says nothing about the label.
Each meaning belongs to one split, so that no question of the dev split occurs in training; its
intent and its topic do, apart: every other topic keeps half of its intents for it.

The data are synthetic: they show that a model learns, not how good it is on real questions.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import combinations, product
from typing import NamedTuple

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from spikenlp.data.glue import GLUE_TASKS

TRAIN_PAIRS = 5600
DEV_PAIRS = 1000
CANDIDATES = 16
"""Negatives from which the one with the fitting word overlap is taken."""

TOPICS = (
    "Spanish French German Italian Korean Japanese Arabic guitar piano violin flute cello drums chess "
    "poker tennis golf swimming skiing surfing judo yoga boxing dancing cooking baking painting "
    "drawing photography pottery knitting sewing gardening calligraphy programming algebra"
).split()
INTENTS: dict[str, tuple[str, ...]] = {
    "duration": (
        "How long does it take to learn {}?",
        "How many months does a beginner need for {}?",
        "How much time do people spend to learn {}?",
        "When will I be good at {} after I start?",
        "How many hours should I plan to study {}?",
        "What is the usual time to get good at {}?",
        "How many years does it take to study {}?",
        "How soon can a beginner be good at {}?",
    ),
    "cost": (
        "How much does it cost to learn {}?",
        "What is the price of a course in {}?",
        "How expensive are lessons in {}?",
        "How much money do I need to start with {}?",
        "What do people pay for lessons in {}?",
        "Is it expensive to study {}?",
        "How much should I pay for a course in {}?",
        "What does it cost a beginner to get started with {}?",
    ),
    "place": (
        "Where can I learn {}?",
        "Which school is the best for {}?",
        "Where do people go to study {}?",
        "Where can a beginner find lessons in {}?",
        "Which place has a good course in {}?",
        "Is there a good school to learn {} near me?",
        "Where should I look for a course in {}?",
        "Which school near me gives lessons in {}?",
    ),
    "benefit": (
        "Why should I learn {}?",
        "What are the benefits of {}?",
        "Is it worth it to learn {}?",
        "What do people gain if they study {}?",
        "How useful is {} for a beginner?",
        "What good does it do to study {}?",
        "Why do people learn {}?",
        "What are the reasons to start with {}?",
    ),
}


class Question(NamedTuple):
    intent: str
    topic: str
    text: str

    @property
    def meaning(self) -> tuple[str, str]:
        return self.intent, self.topic


def demo_question_pairs() -> DatasetDict:
    """QQP's columns `question1`, `question2`, `label`; half of the pairs are duplicates.

    Returns:
        `train` with 5,600 pairs, `validation` with 1,000; always the same.
    """
    rng = random.Random(0)
    train, dev = _split_questions(rng)
    features = Features(
        {
            "question1": Value("string"),
            "question2": Value("string"),
            "label": ClassLabel(names=list(GLUE_TASKS["qqp"].labels or ())),
        }
    )
    splits = {
        name: Dataset.from_list(_pairs(questions, number, rng), features=features)
        for name, questions, number in (
            ("train", train, TRAIN_PAIRS),
            ("validation", dev, DEV_PAIRS),
        )
    }
    return DatasetDict(splits)


def word_overlap(first: str, second: str) -> float:
    """Jaccard index of the two questions' words, in [0, 1]."""
    words1, words2 = (set(text.lower().rstrip("?").split()) for text in (first, second))
    return len(words1 & words2) / len(words1 | words2)


def _split_questions(rng: random.Random) -> tuple[list[Question], list[Question]]:
    train: list[Question] = []
    dev: list[Question] = []
    for i, topic in enumerate(_shuffled(TOPICS, rng)):
        held_out = _shuffled(INTENTS, rng)[: len(INTENTS) // 2] if i % 2 else []
        for intent, templates in INTENTS.items():
            split = dev if intent in held_out else train
            split += [Question(intent, topic, template.format(topic)) for template in templates]
    return train, dev


def _pairs(questions: list[Question], number: int, rng: random.Random) -> list[dict]:
    groups: dict[str | tuple[str, str], list[Question]] = {}
    for question in questions:
        for key in (question.meaning, question.topic):
            groups.setdefault(key, []).append(question)
    duplicates = [
        pair
        for meaning in dict.fromkeys(question.meaning for question in questions)
        for pair in combinations(groups[meaning], 2)
    ]
    used: set[tuple[Question, ...]] = set()
    rows = []
    for duplicate in _shuffled(duplicates, rng)[: number // 2]:
        meaning, topic = duplicate[0].meaning, duplicate[0].topic
        negatives = [
            tuple(sorted(pair))
            for pair in product(groups[meaning], groups[topic])
            if pair[1].meaning != meaning
        ]
        negative = min(
            _shuffled((pair for pair in negatives if pair not in used), rng)[:CANDIDATES],
            key=lambda pair: abs(_overlap(pair) - _overlap(duplicate)),
        )
        used.add(negative)
        for pair, label in ((duplicate, 1), (negative, 0)):
            one, two = _shuffled([question.text for question in pair], rng)
            rows.append({"question1": one, "question2": two, "label": label})
    return _shuffled(rows, rng)


def _overlap(pair: tuple[Question, ...]) -> float:
    return word_overlap(*(question.text for question in pair))


def _shuffled(items: Iterable, rng: random.Random) -> list:
    """By `random()` alone, the one method whose sequence Python promises to keep."""
    return sorted(items, key=lambda _: rng.random())
