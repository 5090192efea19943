"""Synthetic English question pairs, so that a first run needs no download.

A question is a template filled with a topic; its meaning is (intent, topic). A duplicate is a pair of
different templates with the same meaning. A negative changes the intent ("How can I learn Polish?",
"How long does it take to learn Polish?") or the topic, and is chosen to share as many words as the
duplicate that it accompanies does: how much two questions overlap says nothing about the label.
Each meaning belongs to one split, so that no question of the dev split occurs in training; its
intent and its topic do, apart: a third of the topics keep half of their intents for it.

The data are synthetic: they show that a model learns, not how good it is on real questions.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import combinations
from typing import NamedTuple

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from spikenlp.data.glue import get_task

TRAIN_PAIRS = 5600
DEV_PAIRS = 1000
CANDIDATES = 16
"""Negatives from which the one with the fitting word overlap is taken."""

DOMAINS: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "language": (
        "Spanish French German Italian Polish Swedish Turkish Arabic Hindi Korean Japanese "
        "Dutch Greek Finnish Russian Czech Hungarian Danish Norwegian Thai Hebrew Welsh Irish "
        "Persian",
        {
            "method": (
                "How can I learn {}?",
                "What is the best way to learn {}?",
                "How should a beginner start to study {}?",
                "Which method works for someone who wants to speak {}?",
            ),
            "duration": (
                "How long does it take to learn {}?",
                "How many months do I need to speak {}?",
                "What is the time that people need to study {}?",
                "When will a beginner be fluent in {}?",
            ),
            "difficulty": (
                "Is it hard to learn {}?",
                "How difficult is {} for a beginner?",
                "What makes it hard to speak {}?",
                "Why do people find it difficult to study {}?",
            ),
            "worth": (
                "Is it worth it to learn {}?",
                "What are the benefits if I speak {}?",
                "Why should I study {}?",
                "How useful is {} for someone like me?",
            ),
        },
    ),
    "city": (
        "Paris London Berlin Madrid Rome Vienna Prague Lisbon Dublin Oslo Cairo Tokyo Delhi "
        "Lima Boston Chicago Sydney Toronto Athens Dallas Denver Munich Geneva Milan",
        {
            "sights": (
                "What are the best places to see in {}?",
                "Which sights should I visit in {}?",
                "What can a tourist do in {}?",
                "Where do people go when they visit {}?",
            ),
            "rent": (
                "How expensive is it to rent a flat in {}?",
                "What does a flat in {} cost?",
                "How much rent do people pay in {}?",
                "Is it expensive to live in a flat in {}?",
            ),
            "weather": (
                "What is the weather like in {}?",
                "How warm is it in {} when people visit?",
                "Is it cold in {} at this time?",
                "How much does it rain in {}?",
            ),
            "work": (
                "How can I find a job in {}?",
                "Where do people look for work in {}?",
                "What is the best way to get a job in {}?",
                "Which places in {} hire someone like me?",
            ),
        },
    ),
    "instrument": (
        "guitar piano violin cello flute trumpet drums harp clarinet banjo saxophone organ "
        "ukulele trombone accordion mandolin oboe viola harmonica bassoon tuba bagpipes "
        "xylophone keyboard",
        {
            "price": (
                "How much does a good {} cost?",
                "What is the price of a {}?",
                "How expensive is a new {}?",
                "What do people pay for a good {}?",
            ),
            "teacher": (
                "Where can I find a good teacher for the {}?",
                "How do I find someone who gives lessons on the {}?",
                "Which teacher is the best for a new student of the {}?",
                "Who gives good lessons on the {}?",
            ),
            "practice": (
                "How often should I practice the {}?",
                "How many hours do people practice the {}?",
                "What is a good amount of practice for the {}?",
                "How much time should a student give to the {}?",
            ),
            "care": (
                "How do I clean a {}?",
                "What is the best way to take care of a {}?",
                "How should I store a {} at home?",
                "What keeps a {} in good condition?",
            ),
        },
    ),
    "food": (
        "bread rice pasta soup pizza curry cheese honey butter salad yogurt tofu chocolate "
        "pancakes sushi noodles beans potatoes lasagna waffles omelette pudding dumplings "
        "porridge",
        {
            "recipe": (
                "How do I make {} at home?",
                "What is a good recipe for {}?",
                "How can I cook {} the best way?",
                "What do I need to make {}?",
            ),
            "health": (
                "Is it healthy to eat {}?",
                "How healthy is {} for people?",
                "What does it do to my body when I eat {}?",
                "Why do people say that {} is good for the body?",
            ),
            "storage": (
                "How long can I keep {}?",
                "What is the best way to store {} at home?",
                "Where should I keep {} after I make it?",
                "How many days does {} last?",
            ),
            "calories": (
                "How many calories are in {}?",
                "What is the number of calories in {}?",
                "How much energy do people get when they eat {}?",
                "Does {} have many calories?",
            ),
        },
    ),
    "animal": (
        "dog cat rabbit hamster parrot turtle horse goat snake lizard pony duck goose ferret "
        "pigeon hedgehog donkey canary llama gecko chinchilla alpaca sheep budgie",
        {
            "feeding": (
                "What should I feed my {}?",
                "What food is the best for a {}?",
                "What does a {} like to eat?",
                "Which food do people give to a {}?",
            ),
            "lifespan": (
                "How long does a {} live?",
                "What age can a {} reach?",
                "How many years will my {} live?",
                "How old does a {} get?",
            ),
            "training": (
                "How do I train my {}?",
                "What is the best way to train a {}?",
                "How can I teach a {} to listen?",
                "Which method do people use to teach a {}?",
            ),
            "illness": (
                "How do I know that my {} is sick?",
                "What are the signs of a sick {}?",
                "What should I do when my {} is ill?",
                "Which signs tell people that a {} is ill?",
            ),
        },
    ),
    "sport": (
        "tennis football golf chess swimming boxing rowing skiing climbing cycling hockey "
        "cricket rugby surfing judo fencing sailing archery karate baseball basketball "
        "volleyball badminton wrestling",
        {
            "start": (
                "How do I start with {}?",
                "What is the best way to begin {}?",
                "Where should a beginner start with {}?",
                "What should I know before I try {}?",
            ),
            "gear": (
                "What gear do I need for {}?",
                "Which things should I buy for {}?",
                "What equipment is the best for {}?",
                "What should a beginner buy before {}?",
            ),
            "injury": (
                "Is {} dangerous?",
                "How often do people get hurt in {}?",
                "What is the risk of an injury in {}?",
                "How can I get hurt when I try {}?",
            ),
            "career": (
                "How much do people earn with {}?",
                "Can I make money with {}?",
                "What is the best way to make a career of {}?",
                "How do people live from {}?",
            ),
        },
    ),
}


class Question(NamedTuple):
    domain: str
    intent: str
    topic: str
    text: str

    @property
    def meaning(self) -> tuple[str, str, str]:
        return self.domain, self.intent, self.topic


def demo_question_pairs(seed: int = 0) -> DatasetDict:
    """QQP's columns `question1`, `question2`, `label`; half of the pairs are duplicates.

    Returns:
        `train` with 5,600 pairs, `validation` with 1,000; the same for the same seed everywhere.
    """
    rng = random.Random(seed)
    train, dev = _split_questions(rng)
    features = Features(
        {
            "question1": Value("string"),
            "question2": Value("string"),
            "label": ClassLabel(names=list(get_task("qqp").labels or ())),
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
    for domain, (topics, intents) in DOMAINS.items():
        names = _shuffled(topics.split(), rng)
        for i, topic in enumerate(names):
            shared = i < len(names) // 3
            held_out = _shuffled(intents, rng)[: len(intents) // 2] if shared else []
            for intent, templates in intents.items():
                split = dev if intent in held_out else train
                split += [Question(domain, intent, topic, t.format(topic)) for t in templates]
    return train, dev


def _pairs(questions: list[Question], number: int, rng: random.Random) -> list[dict]:
    groups: dict[tuple, list[Question]] = {}
    for question in questions:
        domain, intent, topic = question.meaning
        for key in (question.meaning, (domain, "topic", topic), (domain, "intent", intent)):
            groups.setdefault(key, []).append(question)
    duplicates = [
        pair
        for meaning in dict.fromkeys(question.meaning for question in questions)
        for pair in combinations(groups[meaning], 2)
    ]
    used: set[frozenset[str]] = set()
    rows = []
    for first, second in _shuffled(duplicates, rng)[: number // 2]:
        negative = _negative(first, word_overlap(first.text, second.text), groups, used, rng)
        used.add(frozenset((first.text, negative.text)))
        for other, label in ((second, 1), (negative, 0)):
            one, two = _shuffled([first.text, other.text], rng)
            rows.append({"question1": one, "question2": two, "label": label})
    return _shuffled(rows, rng)


def _negative(
    question: Question,
    overlap: float,
    groups: dict[tuple, list[Question]],
    used: set[frozenset[str]],
    rng: random.Random,
) -> Question:
    """Another intent or another topic, at random, with about the overlap that is asked for."""
    kinds = [(question.domain, "topic", question.topic), (question.domain, "intent", question.intent)]
    for kind in _shuffled(kinds, rng):
        candidates = [
            other
            for other in groups[kind]
            if other.meaning != question.meaning
            and frozenset((question.text, other.text)) not in used
        ]
        if candidates:
            break
    return min(
        _shuffled(candidates, rng)[:CANDIDATES],
        key=lambda other: abs(word_overlap(question.text, other.text) - overlap),
    )


def _shuffled(items: Iterable, rng: random.Random) -> list:
    """By `random()` alone, the one method whose sequence Python promises to keep."""
    return sorted(items, key=lambda _: rng.random())
