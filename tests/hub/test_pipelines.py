"""Every pipeline of transformers that serves our heads, on saved folders."""

import numpy as np
import pytest
import torch
from transformers import pipeline

from spikenlp import (
    SpikingBertConfig,
    SpikingBertForMaskedLM,
    SpikingBertForSequenceClassification,
    SpikingBertForTokenClassification,
    SpikingBertModel,
)
from spikenlp.data import wordpiece_tokenizer
from tests.conftest import TINY_DENSE

TEXT = "a fine film about chess"
NLI = {0: "entailment", 1: "neutral", 2: "contradiction"}
LABELS = {"id2label": NLI, "label2id": {name: i for i, name in NLI.items()}}


@pytest.fixture(scope="module")
def tokenizer():
    return wordpiece_tokenizer([TEXT, "this example is positive negative"])


@pytest.fixture
def saved(tokenizer, tmp_path):
    """Saves a model of a class and gives (pipeline of its folder, model)."""

    def save(model_class, task, **fields):
        torch.manual_seed(0)
        config = SpikingBertConfig(**{**TINY_DENSE, "vocab_size": len(tokenizer), **fields})
        model = model_class(config).eval()
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return pipeline(task, model=str(tmp_path)), model

    return save


def logits_of(model, tokenizer, *text):
    with torch.no_grad():
        return model(**tokenizer(*text, return_tensors="pt")).logits[0]


def test_text_classification(saved, tokenizer):
    classify, model = saved(SpikingBertForSequenceClassification, "text-classification", **LABELS)
    expected = logits_of(model, tokenizer, TEXT).softmax(-1)
    found = {row["label"]: row["score"] for row in classify(TEXT, top_k=None)}
    assert found == pytest.approx({NLI[i]: float(p) for i, p in enumerate(expected)}, abs=1e-5)


def test_zero_shot_classification(saved, tokenizer):
    classify, model = saved(
        SpikingBertForSequenceClassification, "zero-shot-classification", **LABELS
    )
    labels = ["positive", "negative"]
    found = classify(TEXT, labels, hypothesis_template="this example is {}")
    entailed = torch.stack(
        [logits_of(model, tokenizer, TEXT, f"this example is {label}")[0] for label in labels]
    ).softmax(0)
    scores = dict(zip(found["labels"], found["scores"], strict=True))
    assert scores == pytest.approx(dict(zip(labels, entailed.tolist(), strict=True)), abs=1e-5)


def test_token_classification(saved, tokenizer):
    tag, model = saved(SpikingBertForTokenClassification, "token-classification", **LABELS)
    found = tag(TEXT, ignore_labels=[])
    expected = logits_of(model, tokenizer, TEXT)[1:-1].argmax(-1)
    assert [row["word"] for row in found] == tokenizer.tokenize(TEXT)
    assert [row["entity"] for row in found] == [NLI[int(i)] for i in expected]


def test_fill_mask(saved, tokenizer):
    fill, model = saved(SpikingBertForMaskedLM, "fill-mask")
    text = "a fine [MASK] about chess"
    found = fill(text, top_k=3)
    expected = logits_of(model, tokenizer, text)[3].softmax(-1).topk(3)
    assert [row["token"] for row in found] == expected.indices.tolist()
    assert [row["score"] for row in found] == pytest.approx(expected.values.tolist(), abs=1e-5)


def test_feature_extraction(saved, tokenizer):
    extract, model = saved(SpikingBertModel, "feature-extraction")
    with torch.no_grad():
        expected = model(**tokenizer(TEXT, return_tensors="pt")).last_hidden_state
    np.testing.assert_allclose(extract(TEXT), expected, atol=1e-5)
