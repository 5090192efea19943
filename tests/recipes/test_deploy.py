"""The recipe on real files: each form answers the dev set, and its figures are its own."""

import json

import pytest
import torch
from safetensors.torch import load_file

from spikenlp import SpikingBertConfig, SpikingBertForSequenceClassification
from spikenlp.data import demo_question_pairs, wordpiece_tokenizer
from tests.conftest import TINY_DENSE
from tests.recipes.running import succeed


@pytest.mark.parametrize(
    "formats",
    [[], pytest.param(["torch", "onnx"], marks=pytest.mark.slow)],
    ids=["pytorch", "exported"],
)
def test_every_form_answers_the_dev_set(tmp_path, formats):
    if "onnx" in formats:
        pytest.importorskip("onnxruntime", reason="extra `export` is not installed")
    pairs = demo_question_pairs()["validation"]
    tokenizer = wordpiece_tokenizer(pairs["question1"])
    torch.manual_seed(0)
    fields = {**TINY_DENSE, "num_hidden_layers": 1, "num_timesteps": 2}
    fields |= {"vocab_size": len(tokenizer), "max_position_embeddings": 128}
    model = SpikingBertForSequenceClassification(SpikingBertConfig(**fields))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    options = ["--checkpoint", tmp_path / "model", "--output_dir", tmp_path / "out"]
    options += ["--max_eval_samples", 24, "--batch", 12, "--formats", *formats]
    succeed("deploy.py", "--task_name", "qqp", *options)
    results = json.loads((tmp_path / "out" / "deploy.json").read_text())
    assert results["run"]["command"].startswith("deploy.py --task_name qqp")
    assert (results["samples"], results["checkpoint"]) == (24, "model")
    forms = results["forms"]
    assert list(forms) == [
        f"{kind}, {weights}" for weights in ("float32", "int8") for kind in ("pytorch", *formats)
    ]
    for name, found in forms.items():
        assert len(found["accuracy_by_step"]) == 2
        assert all(
            (24 * a) % 1 < 1e-9 or (24 * a) % 1 > 1 - 1e-9 for a in found["accuracy_by_step"]
        )
        assert set(found["ms_a_sample"]) == {"12", "1"}
        assert all(ms > 0 for ms in found["ms_a_sample"].values())
        if not name.startswith("pytorch"):
            assert found["check"]["samples"] == 12
            same = forms[f"pytorch, {name.split(', ')[1]}"]["accuracy_by_step"]
            assert abs(found["accuracy_by_step"][-1] - same[-1]) <= found["changed"] / 24 + 1e-9
        if name.startswith("torch"):  # the same bits
            assert (found["changed"], found["accuracy_by_step"]) == (0, same)
    assert forms["pytorch, int8"]["bytes"] < 0.6 * forms["pytorch, float32"]["bytes"]
    stored = load_file(tmp_path / "out" / "int8" / "model.safetensors")
    assert stored["classifier.weight_int8"].dtype == torch.int8
