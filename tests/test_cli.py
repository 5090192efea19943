import importlib.metadata

import pytest
import torch
from transformers import BertConfig, GPT2Config

import spikenlp
from spikenlp import (
    Int8Config,
    QKFormerConfig,
    QKFormerForImageClassification,
    SpikingBertConfig,
    SpikingBertForMaskedLM,
    SpikingBertForSequenceClassification,
    SpikingResNetConfig,
    SpikingResNetForImageClassification,
    SpikingVGGConfig,
    SpikingVGGForImageClassification,
    cli,
)
from spikenlp.analysis import describe_spikes, spikes_table
from spikenlp.cli import main
from spikenlp.export.program import example

TINY = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
}


def test_inspect_a_spiking_checkpoint(tmp_path, capsys):
    SpikingBertConfig(**TINY, num_timesteps=3, ternary=False).save_pretrained(tmp_path)
    main(["inspect", str(tmp_path), "--batch", "4", "--length", "16"])
    printed = capsys.readouterr().out
    assert "rounding, spikes {0, 1}, nonlinearity running, T = 3" in printed
    memory, _, products = printed.partition("\n\nproduct")
    assert memory.splitlines()[-1].startswith("T = 3")
    assert "encoder.layer.1.output.dense" in products
    assert "binary     0, 1      encoder.layer.1.output.neuron" in products


def test_inspect_a_dense_bert_compares_it_with_its_spiking_twin(tmp_path, capsys):
    BertConfig(**TINY).save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match="num_timesteps must be >= 1, got 0"):
        main(["inspect", str(tmp_path), "--num_timesteps", "0"])
    main(["inspect", str(tmp_path), "--length", "16", "--num_timesteps", "1", "8"])
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    rows = {line[0]: line[-1].strip().replace(",", "") for line in lines}
    assert {"dense", "T = 1", "T = 8"} <= set(rows)
    assert float(rows["T = 8"]) > float(rows["T = 1"])


def test_inspect_says_what_is_wrong(tmp_path):
    GPT2Config().save_pretrained(tmp_path / "gpt")
    BertConfig(**TINY).save_pretrained(tmp_path / "bert")
    with pytest.raises(SystemExit, match="model_type 'gpt2'"):
        main(["inspect", str(tmp_path / "gpt")])
    with pytest.raises(SystemExit, match="beyond the model's 512 positions"):
        main(["inspect", str(tmp_path / "bert"), "--length", "600"])
    with pytest.raises(SystemExit, match=r"there is no folder .*nothing"):
        main(["inspect", str(tmp_path / "nothing")])


def test_inspect_of_weights_in_int8_promises_no_training(tmp_path, capsys):
    SpikingBertForSequenceClassification(SpikingBertConfig(**TINY)).save_pretrained(
        tmp_path / "float"
    )
    load = SpikingBertForSequenceClassification.from_pretrained
    load(tmp_path / "float", quantization_config=Int8Config()).save_pretrained(tmp_path / "int8")
    main(["inspect", str(tmp_path / "int8")])
    printed = capsys.readouterr().out
    assert "int8, which do not train" in printed
    assert "training step" not in printed


SMALL = {"image_size": 16, "num_timesteps": 3}


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (SpikingBertForSequenceClassification, SpikingBertConfig(**TINY)),
        (SpikingBertForMaskedLM, SpikingBertConfig(**TINY, nonlinearity="step")),
        (
            SpikingBertForSequenceClassification,
            SpikingBertConfig(**TINY, architecture="spikingbert", num_timesteps=6),
        ),
        (
            SpikingVGGForImageClassification,
            SpikingVGGConfig(hidden_sizes=[4, 8], depths=[1, 1], **SMALL),
        ),
        (
            SpikingResNetForImageClassification,
            SpikingResNetConfig(hidden_sizes=[4, 8], depths=[1, 1], **SMALL),
        ),
        (QKFormerForImageClassification, QKFormerConfig(hidden_sizes=[6, 12, 24], **SMALL)),
    ],
)
def test_inspect_says_what_drives_each_product_of_every_model(
    tmp_path, capsys, model_class, config
):
    model = model_class(config)
    model.save_pretrained(tmp_path)
    main(["inspect", str(tmp_path)])
    printed = capsys.readouterr().out
    assert f"T = {config.num_timesteps}" in printed
    expected = spikes_table(describe_spikes(model, example(model, 2, 9)))
    assert printed.rstrip().endswith(expected)
    assert "float" in expected
    assert "0, 1" in expected


def test_inspect_a_collapsed_and_a_dense_twin(tmp_path, capsys):
    SpikingBertConfig(**TINY, collapsed=True).save_pretrained(tmp_path / "collapsed")
    main(["inspect", str(tmp_path / "collapsed"), "--length", "16"])
    assert "ternary" in capsys.readouterr().out
    SpikingVGGConfig(neuron="relu").save_pretrained(tmp_path / "dense")
    main(["inspect", str(tmp_path / "dense")])
    assert "neurons: relu" in capsys.readouterr().out


def test_doctor_says_what_is_installed_and_what_is_slow(capsys, monkeypatch):
    main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    found = {line[:14].strip(): line[14:] for line in lines[: lines.index("")]}
    assert found["spikenlp"] == spikenlp.__version__
    for name in ("torch", "transformers", "accelerate", "datasets", "evaluate"):
        assert found[name] == importlib.metadata.version(name)
    assert found["extra plots"] == "installed"
    assert {"python", "accelerator", "C++ compiler", "extra space", "extra export"} <= set(found)
    assert any("T times as long" in line for line in lines[lines.index("slow here:") :])

    monkeypatch.setattr(cli, "_cpp_compiler", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    main(["doctor"])
    printed = capsys.readouterr().out
    assert "C++ compiler  none" in printed
    assert "no C++ compiler was found" in printed
