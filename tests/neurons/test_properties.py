"""What holds of every neuron, over drawn shapes, dtypes, T and currents, also those that are not finite."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spikenlp.neurons import IF, LIF, PLIF, RoundingIF
from spikenlp.neurons.modules import NeuronState

NEURONS = {
    "IF": IF,
    "IF, ternary, hard": lambda **o: IF(ternary=True, reset="hard", v_reset=0.1, **o),
    "LIF": lambda **o: LIF(0.7, amplitude=0.3, learn_amplitude=True, learn_threshold=True, **o),
    "LIF, input decays": lambda **o: LIF(decay_input=True, reset="hard", surrogate="sigmoid", **o),
    "PLIF, ternary": lambda **o: PLIF(ternary=True, surrogate="arctan", detach_reset=False, **o),
    "RoundingIF": RoundingIF,
    "RoundingIF, binary": lambda **o: RoundingIF(ternary=False, **o),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

pytestmark = pytest.mark.parametrize("name", NEURONS)


@st.composite
def currents(draw, largest=1e4):
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 3)), draw(st.integers(1, 5)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    size = draw(st.sampled_from([0.0, 1e-6, 1.0, largest]))
    x = (size * torch.randn(shape, generator=generator)).clamp(-6e4, 6e4)
    return x.to(draw(st.sampled_from(DTYPES)))


@given(x=currents(), running=st.booleans(), per_channel=st.booleans())
def test_spikes_are_of_the_alphabet_and_gradients_finite(name, x, running, per_channel):
    neuron = NEURONS[name](channels=x.shape[-1] if per_channel else None)
    x = x.requires_grad_()
    sent = neuron(x, running=running)
    assert sent.dtype == x.dtype
    assert sent.shape == x.shape
    if not running:
        levels = (sent.detach().float() / neuron.amplitude.detach()).round(decimals=2)
        allowed = torch.tensor([-1.0, 0.0, 1.0] if neuron.ternary else [0.0, 1.0])
        assert bool(torch.isin(levels, allowed).all())
    wanted = [x, *neuron.parameters()]
    gradients = torch.autograd.grad(sent.float().sum(), wanted, allow_unused=True)
    assert all(bool(g.isfinite().all()) for g in gradients if g is not None)


@given(x=currents(), running=st.booleans())
def test_one_step_at_a_time_is_all_at_once(name, x, running):
    neuron = NEURONS[name]()
    together = neuron(x, running=running).detach()
    state, alone = NeuronState(), []
    for t in range(len(x)):
        sent, state = neuron.advance(x[t : t + 1], state, running=running)
        alone.append(sent)
    assert torch.equal(torch.cat(alone), together)


@given(
    x=currents(largest=3.0), bad=st.sampled_from([math.nan, math.inf, -math.inf]), data=st.data()
)
def test_a_current_that_is_not_finite_shows_from_its_step_on_and_nowhere_else(name, x, bad, data):
    """A comparison with the threshold alone would make a silent neuron of it."""
    neuron = NEURONS[name]()
    expected = neuron(x).detach()
    t, b, c = (data.draw(st.integers(0, size - 1)) for size in x.shape)
    broken = x.clone()
    broken[t, b, c] = bad
    found = neuron(broken).detach()
    assert bool(found[t:, b, c].isnan().all())
    touched = torch.zeros_like(x, dtype=torch.bool)
    touched[t:, b, c] = True
    assert torch.equal(found[~touched], expected[~touched])
    state = None
    for step, current in enumerate(broken):
        sent, state = neuron.step(current, state)
        assert bool(sent[b, c].isnan()) == (step >= t)


@given(bad=st.sampled_from([math.nan, math.inf]), running=st.booleans())
def test_a_parameter_that_is_not_finite_shows(name, bad, running):
    neuron = NEURONS[name](channels=2)
    for parameter in [*neuron.parameters(), *neuron.buffers()]:
        if "decay" in name and parameter.numel() == 1:
            continue
        before = parameter.detach().clone()
        parameter.data.view(-1)[0] = bad
        sent = neuron(torch.full((3, 2, 2), 0.4), running=running).detach()
        # beta = sigmoid(inf) = 1 is a decay that there is
        if not (parameter.numel() == 1 and bad == math.inf):
            assert not bool(sent[..., 0].isfinite().all()), parameter
        parameter.data.copy_(before)


@given(
    shape=st.lists(st.integers(0, 3), min_size=0, max_size=4), channels=st.sampled_from([None, 3])
)
def test_any_shape_gives_spikes_or_a_value_error(name, shape, channels):
    neuron = NEURONS[name](channels=channels)
    if len(shape) < 2 or shape[0] == 0 or channels not in (None, shape[-1]):
        with pytest.raises(ValueError, match=r"got shape|has size"):
            neuron(torch.ones(shape))
    else:
        assert list(neuron(torch.ones(shape)).shape) == shape


@given(dim=st.integers(3, 6))
def test_a_channel_dimension_that_the_input_lacks_is_named(name, dim):
    with pytest.raises(
        ValueError, match=f"channels=2, but dimension {dim} of the input has size none"
    ):
        NEURONS[name](channels=2, channel_dim=dim)(torch.ones(3, 2, 2))


@given(bad=st.sampled_from([math.nan, math.inf, -math.inf]), x=currents(largest=2.0))
def test_the_collapsed_neuron_shows_it_too(name, bad, x):
    if "Rounding" not in name:
        return
    neuron = NEURONS[name]()
    x = x[:1].clone()
    expected = neuron(x, num_timesteps=4, collapsed=True).detach()
    x[0, 0, 0] = bad
    found = neuron(x, num_timesteps=4, collapsed=True).detach()
    assert bool(found[0, 0, 0].isnan())
    assert torch.equal(found.flatten()[1:], expected.flatten()[1:])
