"""Tiny models that several test modules share."""

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

# "quick": the same few examples in every run. HYPOTHESIS_PROFILE=many: others each time.
quick = hypothesis.settings(
    derandomize=True,
    max_examples=25,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile("quick", quick)
hypothesis.settings.register_profile("many", quick, derandomize=False, max_examples=200)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_configure():
    """A core for each worker: recipes use all cores that they see, in this process and in their own, and
    workers that compete for them wait for each other's threads."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


def forget_what_there_is():
    """What thousands of tests and compiled graphs hold, each collection of garbage would go through again:
    transformers' Trainer makes several."""
    gc.collect()
    gc.freeze()


def pytest_collection_finish():
    forget_what_there_is()


@pytest.fixture(autouse=True, scope="module")
def nothing_left_to_collect_twice():
    yield
    forget_what_there_is()


TINY_DENSE = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    # Activations as large as those of a trained model.
    "initializer_range": 0.2,
}


@pytest.fixture
def dense():
    """A dense BERT classifier of random weights."""
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**TINY_DENSE, num_labels=2)).eval()


@pytest.fixture
def batches():
    """Four tokenised batches of 8, padded on the right."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(4):
        lengths = torch.randint(4, 13, (8,), generator=generator)
        mask = (torch.arange(12) < lengths[:, None]).long()
        ids = torch.randint(5, 120, (8, 12), generator=generator) * mask
        made.append({"input_ids": ids, "attention_mask": mask})
    return made
