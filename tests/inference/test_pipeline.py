"""The pipeline as a user builds it, from a folder, with a real tokenizer."""

import shutil

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification, TextClassificationPipeline, pipeline

from spikenlp import SpikingBertConfig, SpikingBertForSequenceClassification
from spikenlp.data import wordpiece_tokenizer
from spikenlp.inference import ExitPolicy, SpikingTextClassificationPipeline, early_exit
from tests.conftest import TINY_DENSE
from tests.hub_cache import write_cache

TEXTS = ["why should i learn chess", "what are the benefits of chess", "a film", "i should not"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint")
    tokenizer = wordpiece_tokenizer(TEXTS)
    fields = {**TINY_DENSE, "vocab_size": len(tokenizer), "num_timesteps": 5}
    model = SpikingBertForSequenceClassification(SpikingBertConfig(**fields))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def classify(folder, **options):
    return pipeline("spiking-text-classification", model=folder, **options)


def expected(pipe, policy):
    batch = pipe.tokenizer(TEXTS, padding=True, return_tensors="pt")
    found = early_exit(pipe.model, batch, policy)
    return found.probabilities.numpy(), found.steps.tolist()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_label_score_and_steps(folder, batch_size):
    pipe = classify(folder, early_exit=0.6, batch_size=batch_size)
    assert type(pipe) is SpikingTextClassificationPipeline
    answers = pipe(TEXTS)
    probabilities, steps = expected(pipe, 0.6)
    assert [a["steps"] for a in answers] == steps
    assert len(set(steps)) > 1
    assert [a["label"] for a in answers] == [f"LABEL_{i}" for i in probabilities.argmax(1)]
    np.testing.assert_allclose([a["score"] for a in answers], probabilities.max(1), rtol=1e-4)


def test_without_early_exit_it_is_the_ordinary_pipeline(folder):
    ordinary = pipeline("text-classification", model=folder)
    assert type(ordinary) is TextClassificationPipeline, "the task of transformers is left alone"
    answers = classify(folder)(TEXTS)
    assert [a.pop("steps") for a in answers] == [5] * 4
    for answer, other in zip(answers, ordinary(TEXTS), strict=True):
        assert answer["label"] == other["label"]
        assert answer["score"] == pytest.approx(other["score"], abs=1e-6)


def test_false_at_a_call_runs_all_steps(folder):
    pipe = classify(folder, early_exit=0.0)
    assert [answer["steps"] for answer in pipe(TEXTS)] == [1] * 4
    assert [answer["steps"] for answer in pipe(TEXTS, early_exit=False)] == [5] * 4


def test_by_class_and_at_each_call(folder):
    pipe = pipeline(
        "text-classification",
        model=folder,
        pipeline_class=SpikingTextClassificationPipeline,
        early_exit=1.0,
    )
    assert pipe(TEXTS[0])[0]["steps"] == 5
    assert pipe(TEXTS[0], early_exit=0)[0]["steps"] == 1
    pair = pipe({"text": TEXTS[0], "text_pair": TEXTS[1]}, early_exit=0.0)
    assert pair["steps"] == 1
    every = pipe(TEXTS[0], top_k=None)
    assert [set(answer) for answer in every] == [{"label", "score", "steps"}] * 2
    assert sum(answer["score"] for answer in every) == pytest.approx(1)


def test_the_policy_beside_the_checkpoint(folder):
    policy = ExitPolicy((0.55,), temperatures=(2.0, 0.7), num_timesteps=3)
    policy.save(folder)
    pipe = classify(folder, early_exit=True)
    probabilities, steps = expected(pipe, policy)
    answers = pipe(TEXTS)
    assert [a["steps"] for a in answers] == steps
    assert max(steps) <= 3
    np.testing.assert_allclose([a["score"] for a in answers], probabilities.max(1), rtol=1e-4)
    assert [a["steps"] for a in classify(folder, early_exit=policy)(TEXTS)] == steps


def test_the_policy_is_that_of_the_revision(folder, tmp_path, monkeypatch):
    for name, threshold in (("main", 0.5), ("v2", 0.99)):
        shutil.copytree(folder, tmp_path / name)
        ExitPolicy((threshold,)).save(tmp_path / name)
    write_cache(tmp_path / "cache", "ann/chess", {n: tmp_path / n for n in ("main", "v2")})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for revision, threshold in (("main", 0.5), ("v2", 0.99)):
        pipe = classify("ann/chess", revision=revision, early_exit=True)
        assert pipe._forward_params["policy"].thresholds == (threshold,)


def test_a_checkpoint_without_a_policy_says_how_to_make_one(folder, tmp_path):
    path = shutil.copytree(folder, tmp_path / "without")
    (path / "early_exit.json").unlink(missing_ok=True)
    with pytest.raises(OSError, match="calibrate_exit"):
        classify(str(path), early_exit=True)


def test_a_model_of_no_checkpoint_has_no_policy_beside_it(folder):
    loaded = classify(folder)
    model = SpikingBertForSequenceClassification(SpikingBertConfig(**TINY_DENSE))
    with pytest.raises(ValueError, match="comes from none"):
        SpikingTextClassificationPipeline(model=model, tokenizer=loaded.tokenizer, early_exit=True)


def test_a_dense_model_and_a_wrong_threshold_are_refused(folder, dense):
    with pytest.raises(ValueError, match=r"thresholds must lie in \[0, 1\]"):
        classify(folder, early_exit=1.5)
    tokenizer = classify(folder).tokenizer
    assert isinstance(dense, BertForSequenceClassification)
    for options in ({}, {"early_exit": True}):
        with pytest.raises(ValueError, match="BertForSequenceClassification has no time steps"):
            pipeline("spiking-text-classification", model=dense, tokenizer=tokenizer, **options)
    config = SpikingBertConfig(**TINY_DENSE, architecture="spikingbert")
    of_rates = SpikingBertForSequenceClassification(config)
    with pytest.raises(ValueError, match="architecture='spikingbert' does not run step by step"):
        pipeline("spiking-text-classification", model=of_rates, tokenizer=tokenizer)
