"""Surrogate gradients are densities: each equals its formula and integrates to 1."""

import math

import pytest
import torch

from spikenlp.neurons import IF, SURROGATES

DEFAULT_WIDTHS = {"triangle": 1.0, "rectangle": 1.0, "sigmoid": 4.0, "arctan": 2.0}
WIDTHS = [0.5, 1.0, 2.0, 4.0]


def formula(name, d, a):
    """The surrogate `name` of width `a` at the distance `d`, in python floats."""
    if name == "triangle":
        return max(0.0, a - abs(d)) / a**2
    if name == "rectangle":
        return float(abs(d) < a / 2) / a
    if name == "sigmoid":
        s = 1 / (1 + math.exp(-a * d))
        return a * s * (1 - s)
    return a / 2 / (1 + (math.pi / 2 * a * d) ** 2)


def derivative_of_spike(name, width, distances):
    """d spike / d u as the neuron's backward pass gives it, with u = v_th + distance."""
    neuron = IF(surrogate=name, surrogate_width=width, state_dtype=torch.float32)
    x = (1.0 + distances).float()[None].requires_grad_()
    neuron(x).sum().backward()
    return x.grad[0].double()


def test_the_four_surrogates_are_there():
    assert set(SURROGATES) >= set(DEFAULT_WIDTHS)


@pytest.mark.parametrize("name", DEFAULT_WIDTHS)
def test_default_width(name):
    d = torch.linspace(-3, 3, 25)
    assert torch.equal(
        derivative_of_spike(name, None, d), derivative_of_spike(name, DEFAULT_WIDTHS[name], d)
    )


@pytest.mark.parametrize("name", DEFAULT_WIDTHS)
@pytest.mark.parametrize("width", WIDTHS)
def test_surrogate_equals_its_formula(name, width):
    d = torch.linspace(-3, 3, 97, dtype=torch.float64)
    expected = torch.tensor([formula(name, float(x), width) for x in d], dtype=torch.float64)
    torch.testing.assert_close(derivative_of_spike(name, width, d), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", DEFAULT_WIDTHS)
@pytest.mark.parametrize("width", WIDTHS)
def test_surrogate_integrates_to_one(name, width):
    reach, points = 50.0, 200_001
    d = torch.linspace(-reach, reach, points, dtype=torch.float64)
    area = derivative_of_spike(name, width, d).sum().item() * 2 * reach / (points - 1)
    tail = 1 - 2 / math.pi * math.atan(math.pi / 2 * width * reach) if name == "arctan" else 0.0
    assert area + tail == pytest.approx(1, abs=2e-3)
