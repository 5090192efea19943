"""Sharing a spiking model: its card, its upload, releases."""

from spikenlp.hub.card import model_card, write_card
from spikenlp.hub.classifier import Answer, SpikingClassifier, pretrained
from spikenlp.hub.publish import push_model, stage, upload
from spikenlp.hub.results import eval_result_entries, eval_results
from spikenlp.privacy import find_leaks, scrub

__all__ = [
    "Answer",
    "SpikingClassifier",
    "eval_result_entries",
    "eval_results",
    "find_leaks",
    "model_card",
    "pretrained",
    "push_model",
    "scrub",
    "stage",
    "upload",
    "write_card",
]
