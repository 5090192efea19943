"""The classifier that explains itself, and weights that come with the package."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification

import spikenlp
from spikenlp import Int8Config, SpikingBertConfig, SpikingBertForSequenceClassification
from spikenlp.analysis import SpikeMonitor, energy_report
from spikenlp.data import wordpiece_tokenizer
from spikenlp.hub import SpikingClassifier, classifier
from spikenlp.hub.pack import LARGEST, pack
from spikenlp.hub.release import load
from spikenlp.models.quantization import int8_of
from tests.conftest import TINY_DENSE
from tests.hub.test_card import RESULTS

TEXT = "a fine film"
FROM_SCRATCH = {**{k: v for k, v in RESULTS.items() if k != "dense"}, "base_model": None}


def make(folder, **fields):
    tokenizer = wordpiece_tokenizer([TEXT, "a dull play"])
    torch.manual_seed(0)
    options = {"vocab_size": len(tokenizer), "num_timesteps": 2, "id2label": {0: "dull", 1: "fine"}}
    options["label2id"] = {"dull": 0, "fine": 1}
    config = SpikingBertConfig(**{**TINY_DENSE, **options, **fields})
    model = SpikingBertForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "results.json").write_text(json.dumps(FROM_SCRATCH))
    return model, tokenizer


@pytest.mark.parametrize("fields", [{}, {"architecture": "spikingbert", "neuron": "if"}])
def test_an_answer_agrees_with_the_model_its_monitor_and_its_energy_report(tmp_path, fields):
    model, tokenizer = make(tmp_path, **fields)
    answer = SpikingClassifier.from_pretrained(tmp_path)(TEXT)
    batch = tokenizer(TEXT, return_tensors="pt")
    with torch.no_grad(), SpikeMonitor(model) as monitor:
        logits = model(**batch).timestep_logits[0]
    for t in (1, 2):
        expected = logits[:t].mean(0).softmax(-1).tolist()
        assert answer.probabilities[t - 1] == pytest.approx(expected, abs=1e-5)
    assert answer.label == model.config.id2label[int(logits.mean(0).argmax())]
    assert answer.tokens == ["[CLS]", "a", "fine", "film", "[SEP]"]
    assert answer.spikes.keys() == monitor.layers.keys()
    for name, counts in monitor.layers.items():
        by_step = torch.tensor(answer.spikes[name]).mean(1)
        torch.testing.assert_close(by_step, counts.rate_by_step.float())
    total = sum(int((c.positive + c.negative).sum()) for c in monitor.layers.values())
    assert answer.spike_count == total
    report = energy_report(model, batch)
    assert answer.energy_microjoules[-1] == pytest.approx(report.energies["spiking, float32"] / 1e6)
    assert answer.dense_microjoules == pytest.approx(report.energies["dense, float32"] / 1e6)
    assert answer.energy_microjoules[0] < answer.energy_microjoules[1]
    assert str(answer).count("\n") == 3
    assert f"{total:,} spikes" in str(answer)


def test_bad_input_is_named(tmp_path):
    make(tmp_path)
    classify = SpikingClassifier.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="text must not be empty, got '  '"):
        classify("  ")
    make(tmp_path, collapsed=True)
    with pytest.raises(ValueError, match="collapsed=True"):
        SpikingClassifier.from_pretrained(tmp_path)
    make(tmp_path, problem_type="multi_label_classification")
    with pytest.raises(ValueError, match="multi_label_classification"):
        SpikingClassifier.from_pretrained(tmp_path)
    make(tmp_path, problem_type="regression")
    with pytest.raises(ValueError, match="problem_type='regression' has no confidence"):
        SpikingClassifier.from_pretrained(tmp_path)
    BertForSequenceClassification(BertConfig(**TINY_DENSE)).save_pretrained(tmp_path / "dense")
    with pytest.raises(ValueError, match="got BertForSequenceClassification"):
        SpikingClassifier.from_pretrained(tmp_path / "dense")


def test_threads_that_share_a_classifier_count_their_own_spikes(tmp_path):
    make(tmp_path)
    classify = SpikingClassifier.from_pretrained(tmp_path)
    texts = ["a fine film", "a dull film and a fine one, a dull one", "film"]
    expected = [classify(text) for text in texts]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(classify, texts * 6))
    for i, answer in enumerate(answers):
        wanted = expected[i % 3]
        assert (answer.spike_count, answer.neurons) == (wanted.spike_count, wanted.neurons)
        assert answer.energy_microjoules == pytest.approx(wanted.energy_microjoules)


def test_a_long_text_is_cut_to_what_the_model_reads(tmp_path):
    make(tmp_path)
    answer = SpikingClassifier.from_pretrained(tmp_path)(TEXT * 100)
    assert len(answer.tokens) == TINY_DENSE["max_position_embeddings"]


def test_packed_weights_classify_and_say_that_they_were_rounded(tmp_path, monkeypatch):
    model, _ = make(tmp_path / "tiny")
    folder = pack(tmp_path / "tiny", tmp_path / "weights")
    stored = load_file(folder / "model.safetensors")
    of_layers = {name for name, value in stored.items() if value.dtype == torch.int8}
    assert "classifier.weight_int8" in of_layers
    assert "bert.embeddings.word_embeddings.weight_int8" in of_layers
    for name, value in model.state_dict().items():
        if f"{name}_int8" in of_layers:
            rounded, scale = int8_of(value)
            assert torch.equal(stored[f"{name}_int8"], rounded), name
            assert torch.equal(stored[f"{name}_scale"], scale), name
        else:
            assert torch.equal(stored[name], value), name
    assert "rounded to int8 after this evaluation" in (folder / "README.md").read_text()
    monkeypatch.setattr(classifier, "WEIGHTS", tmp_path / "weights")
    classify = spikenlp.pretrained("tiny")
    assert {p.dtype for p in classify.model.parameters()} == {torch.float32, torch.int8}
    assert classify(TEXT).label in ("dull", "fine")
    with pytest.raises(ValueError, match=r"no weights named 'huge'.*there are: tiny"):
        spikenlp.pretrained("huge")


def test_what_was_evaluated_in_int8_is_packed_as_it_is(tmp_path):
    make(tmp_path / "float")
    classify = type(load(tmp_path / "float"))
    rounded = classify.from_pretrained(tmp_path / "float", quantization_config=Int8Config())
    folder = tmp_path / "tiny"
    shutil.copytree(tmp_path / "float", folder)
    rounded.save_pretrained(folder)
    packed = pack(folder, tmp_path / "weights")
    same = [(f / "model.safetensors").read_bytes() for f in (folder, packed)]
    assert same[0] == same[1]
    named = {"name": "other", "base_model": "someone/bert", "licence": "apache-2.0"}
    other = pack(folder, tmp_path / "weights", **named)
    assert other.name == "other"
    assert "base_model: someone/bert" in (other / "README.md").read_text()
    assert "after this evaluation" not in (packed / "README.md").read_text()


def test_what_is_too_large_or_has_no_record_is_not_packed(tmp_path):
    make(tmp_path / "large", vocab_size=230_000)
    with pytest.raises(ValueError, match=r"8\.\d MB in int8, more than 8"):
        pack(tmp_path / "large", tmp_path / "weights")
    make(tmp_path / "bare")
    (tmp_path / "bare" / "results.json").unlink()
    with pytest.raises(ValueError, match=r"no results\.json"):
        pack(tmp_path / "bare", tmp_path / "weights")


def packaged():
    return sorted(p.parent.name for p in classifier.WEIGHTS.glob("*/config.json"))


@pytest.mark.skipif(not packaged(), reason="no weights come with the package yet")
@pytest.mark.parametrize("name", packaged())
def test_the_weights_that_come_with_the_package_are_small_complete_and_intact(name):
    folder = classifier.WEIGHTS / name
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) <= LARGEST
    check = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    subprocess.run(check, cwd=folder, check=True)
    answer = spikenlp.pretrained(name)("A fine film.")
    assert answer.label in answer.labels
    assert answer.spike_count > 0


def test_they_are_package_data():
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    import tomllib

    root = Path(__file__).resolve().parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["spikenlp"]
    packed = {p for pattern in patterns for p in (root / "spikenlp").glob(pattern)}
    assert root / "spikenlp" / "hub" / "model_card.md" in packed
    for name in packaged():
        assert classifier.WEIGHTS / name / "model.safetensors" in packed
