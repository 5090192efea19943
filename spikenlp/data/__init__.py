"""Data sets and vocabularies."""

from spikenlp.data.demo import demo_question_pairs
from spikenlp.data.glue import GLUE_TASKS, GlueTask, get_task, load_glue
from spikenlp.data.tokenization import wordpiece_tokenizer

__all__ = [
    "GLUE_TASKS",
    "GlueTask",
    "demo_question_pairs",
    "get_task",
    "load_glue",
    "wordpiece_tokenizer",
]
