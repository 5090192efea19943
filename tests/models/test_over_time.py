"""Running means and their increments against loops in float64."""

import pytest
import torch

from spikenlp.models.over_time import (
    NONLINEARITIES,
    increments,
    next_increment,
    running_mean,
)

SHAPES = [(1, 3), (2, 4, 5), (7, 2, 3, 2), pytest.param((4, 300, 256), marks=pytest.mark.slow)]


def slow_running_mean(x):
    return torch.stack([sum(x[s] for s in range(t + 1)) / (t + 1) for t in range(len(x))])


def slow_increments(y):
    return torch.stack([(t + 1) * y[t] - (t * y[t - 1] if t else 0) for t in range(len(y))])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("fast", "slow"), [(running_mean, slow_running_mean), (increments, slow_increments)]
)
def test_values_and_gradients_equal_a_loop(fast, slow, shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, requires_grad=True)
    grad = torch.randn(shape, generator=generator)
    exact = x.detach().double().requires_grad_()
    found, expected = fast(x), slow(exact)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    (found_grad,) = torch.autograd.grad(found, x, grad)
    (expected_grad,) = torch.autograd.grad(expected, exact, grad.double())
    torch.testing.assert_close(found_grad.double(), expected_grad, rtol=1e-5, atol=1e-5)


def test_each_undoes_the_other():
    x = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(running_mean(increments(x)), x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(increments(running_mean(x)), x, rtol=1e-5, atol=1e-5)


def test_what_running_sends_averages_to_the_function_of_the_mean_at_every_step():
    over_time = NONLINEARITIES["running"]
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    sent = over_time.to_current(over_time.to_stream(x).tanh())
    for t in range(1, 7):
        torch.testing.assert_close(sent[:t].mean(0), x[:t].mean(0).tanh(), rtol=1e-5, atol=1e-6)


def test_step_acts_on_each_step():
    over_time = NONLINEARITIES["step"]
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    sent = over_time.to_current(over_time.to_stream(x).tanh())
    assert torch.equal(sent, x.tanh())
    torch.testing.assert_close(over_time.time_mean(sent), x.tanh().mean(0))


@pytest.mark.parametrize("function", [running_mean, increments])
def test_float32_under_autocast(function):
    x = torch.randn(3, 4).bfloat16()
    assert function(x).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert function(x).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_increments_one_step_at_a_time(dtype):
    y = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    before, found = None, []
    for t, mean in enumerate(y, 1):
        current, before = next_increment(mean, t, before)
        found.append(current)
    assert torch.equal(torch.stack(found), increments(y))
