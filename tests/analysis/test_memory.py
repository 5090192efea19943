"""The estimate against the memory that PyTorch's profiler sees a step take."""

import itertools

import pytest
import torch
from torch.profiler import profile
from transformers import AutoModelForSequenceClassification, BertConfig

from spikenlp import SpikingBertConfig
from spikenlp.analysis import estimate_memory

SIZE = {
    "vocab_size": 500,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def measured_peak(config, batch, length, autocast):
    model = AutoModelForSequenceClassification.from_config(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(5, 500, (batch, length))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def step():
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            model(**inputs).logits.float().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    with profile(profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = sum(p.numel() * 4 for p in model.parameters()) * 3
    return held + max(itertools.accumulate(size for _, size in changes))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "batch", "length", "autocast"),
    [
        (BertConfig(**SIZE), 8, 96, None),
        (SpikingBertConfig(**SIZE, num_timesteps=1), 8, 96, None),
        (SpikingBertConfig(**SIZE, num_timesteps=4), 8, 96, None),
        (SpikingBertConfig(**SIZE, num_timesteps=4, nonlinearity="step"), 3, 33, None),
        (SpikingBertConfig(**SIZE, num_timesteps=4), 4, 96, torch.bfloat16),
        (SpikingBertConfig(**SIZE, collapsed=True), 8, 96, None),
        (SpikingBertConfig(**{**SIZE, "vocab_size": 20000}), 1, 16, None),
    ],
)
def test_within_fifteen_percent_of_what_is_measured(config, batch, length, autocast):
    estimate = estimate_memory(config, batch, length, autocast=autocast)
    assert estimate.peak == pytest.approx(measured_peak(config, batch, length, autocast), rel=0.15)


def test_nothing_is_allocated():
    """A step of this size would take terabytes."""
    config = SpikingBertConfig(hidden_size=8192, num_attention_heads=64, num_timesteps=16)
    assert estimate_memory(config, batch=256, length=512).peak > 1e12


@pytest.mark.parametrize(("batch", "length"), [(0, 8), (1, 0), (1, 513)])
def test_impossible_sizes_are_named(batch, length):
    with pytest.raises(ValueError, match=r"batch and length must|beyond the model's 512 positions"):
        estimate_memory(SpikingBertConfig(**SIZE), batch, length)
