import pytest
from transformers import BertConfig, GPT2Config

from spikenlp import SpikingBertConfig
from spikenlp.cli import main

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
    assert printed.splitlines()[-1].startswith("T = 3")


def test_inspect_a_dense_bert_compares_it_with_its_spiking_twin(tmp_path, capsys):
    BertConfig(**TINY).save_pretrained(tmp_path)
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
    with pytest.raises(SystemExit, match="spikenlp: "):
        main(["inspect", str(tmp_path / "nothing")])
