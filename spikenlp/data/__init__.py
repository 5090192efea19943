"""Data sets, raw text and vocabularies. Images and events: `spikenlp.data.images`, `spikenlp.data.events`."""

from spikenlp.data.demo import demo_question_pairs
from spikenlp.data.glue import GLUE_TASKS, GlueTask, load_glue
from spikenlp.data.masking import ReproducibleMasking
from spikenlp.data.orange import read_tab
from spikenlp.data.sentences import DuplicateQuestions, distinct_sentences
from spikenlp.data.splits import carve_validation
from spikenlp.data.tasks import TASKS, TextTask, get_task, load_task
from spikenlp.data.text import load_corpus, pack
from spikenlp.data.tokenization import sentencepiece_tokenizer, wordpiece_tokenizer
from spikenlp.data.topics import TOPIC_TASKS, TopicTask, load_topics

__all__ = [
    "GLUE_TASKS",
    "TASKS",
    "TOPIC_TASKS",
    "DuplicateQuestions",
    "GlueTask",
    "ReproducibleMasking",
    "TextTask",
    "TopicTask",
    "carve_validation",
    "demo_question_pairs",
    "distinct_sentences",
    "get_task",
    "load_corpus",
    "load_glue",
    "load_task",
    "load_topics",
    "pack",
    "read_tab",
    "sentencepiece_tokenizer",
    "wordpiece_tokenizer",
]
