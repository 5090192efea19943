"""Which loops are compiled."""

import pytest
import torch

from spikenlp.neurons import IF, RoundingIF, compilation


@pytest.mark.parametrize(
    ("run", "compiled"),
    [
        (lambda: IF()(torch.rand(32, 10, 10)), True),
        (lambda: IF()(torch.rand(33, 10, 10)), False),
        (lambda: IF()(torch.rand(1, 10, 10), num_timesteps=33), False),
        (lambda: RoundingIF()(torch.rand(1, 10, 10), num_timesteps=100, collapsed=True), True),
    ],
    ids=["32 steps", "33 steps", "33 steps of one current", "no loop"],
)
def test_loops_over_many_steps_are_not_unrolled_by_the_compiler(run, compiled, monkeypatch):
    asked = []
    monkeypatch.setattr(compilation, "MIN_COMPILED_NUMEL", 1)
    monkeypatch.setattr(
        compilation, "_compiled", lambda function, *rest: asked.append(function) or function
    )
    run()
    assert bool(asked) == compiled
