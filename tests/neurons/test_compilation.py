"""Which loops are compiled."""

import pytest
import torch

from spikenlp.losses import spikes_per_neuron
from spikenlp.neurons import IF, RoundingIF, compilation


def count_and_back(x, **options):
    sent = RoundingIF()(x.requires_grad_(), **options)
    return lambda: spikes_per_neuron(sent).backward()


@pytest.mark.parametrize(
    ("run", "compiled"),
    [
        (lambda: IF()(torch.rand(32, 10, 10)), True),
        (lambda: IF()(torch.rand(33, 10, 10)), False),
        (lambda: IF()(torch.rand(1, 10, 10), num_timesteps=33), False),
        (lambda: RoundingIF()(torch.rand(1, 10, 10), num_timesteps=100, collapsed=True), True),
        (count_and_back(torch.rand(32, 10, 10)), True),
        (count_and_back(torch.rand(33, 10, 10)), False),
        (count_and_back(torch.rand(1, 10, 10), num_timesteps=100, collapsed=True), True),
    ],
    ids=[
        "32 steps",
        "33 steps",
        "33 steps of one current",
        "no loop",
        "32 counted",
        "33 counted",
        "levels counted",
    ],
)
def test_loops_over_many_steps_are_not_unrolled_by_the_compiler(run, compiled, monkeypatch):
    asked = []
    monkeypatch.setattr(compilation, "MIN_COMPILED_NUMEL", 1)
    monkeypatch.setattr(
        compilation, "_compiled", lambda function, *rest: asked.append(function) or function
    )
    run()
    assert bool(asked) == compiled


def test_sizes_of_one_and_inference_mode_have_loops_of_their_own(monkeypatch):
    asked = set()
    monkeypatch.setattr(compilation, "MIN_COMPILED_NUMEL", 1)
    monkeypatch.setattr(
        compilation, "_compiled", lambda function, *rest: asked.add(rest) or function
    )
    shapes = [(2, 8, 4, 3), (2, 1, 4, 3), (2, 8, 1, 3), (2, 5, 6, 3)]
    for shape in shapes:
        for mode in (torch.no_grad(), torch.inference_mode()):
            with mode:
                RoundingIF()(torch.rand(shape))
    assert len(asked) == 3 * 2, "Dynamo keeps eight versions of each"


def test_what_dynamo_keeps_no_more_versions_of_runs_eagerly(monkeypatch):
    def refuse(*args, **kwargs):
        raise torch._dynamo.exc.FailOnRecompileLimitHit("cache_size_limit reached")

    x = torch.rand(3, 4, 5)
    expected = IF()(x)
    monkeypatch.setattr(compilation, "MIN_COMPILED_NUMEL", 1)
    with monkeypatch.context() as patch:
        patch.setattr(compilation, "_compiled", lambda *specialisation: refuse)
        assert torch.equal(IF()(x), expected)
    asked = []
    monkeypatch.setattr(
        compilation, "_compiled", lambda function, *rest: asked.append(1) or function
    )
    IF()(x)
    assert asked, "the next call is compiled again"
