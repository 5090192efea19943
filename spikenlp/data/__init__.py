"""Data sets and vocabularies. Images and events: `spikenlp.data.images`, `spikenlp.data.events`."""

from spikenlp.data.demo import demo_question_pairs
from spikenlp.data.glue import GLUE_TASKS, GlueTask, get_task, load_glue
from spikenlp.data.splits import carve_validation
from spikenlp.data.tokenization import wordpiece_tokenizer

__all__ = [
    "GLUE_TASKS",
    "GlueTask",
    "carve_validation",
    "demo_question_pairs",
    "get_task",
    "load_glue",
    "wordpiece_tokenizer",
]
