"""A neuron that runs one step at a time with its state: what the multi-step form sends, to the bit."""

import pytest
import torch

from spikenlp.neurons import IF, LIF, PLIF, NeuronState, RoundingIF
from spikenlp.neurons.compilation import MIN_COMPILED_NUMEL

STEPS, CHANNELS = 5, 16
NEURONS = {
    "if": lambda: IF(0.7, channels=CHANNELS, ternary=True),
    "if-hard": lambda: IF(0.7, channels=CHANNELS, reset="hard", v_reset=0.1),
    "lif": lambda: LIF(0.6, channels=CHANNELS, amplitude=0.9),
    "plif": lambda: PLIF(0.4, channels=CHANNELS, ternary=True),
    "rounding": lambda: RoundingIF(CHANNELS),
    "rounding-binary": lambda: RoundingIF(CHANNELS, ternary=False),
    "rounding-layer": RoundingIF,
}


def make(name):
    neuron = NEURONS[name]()
    with torch.no_grad():
        for parameter in neuron.parameters():
            parameter.mul_(torch.linspace(0.7, 1.4, len(parameter)))
        if getattr(neuron, "offset", None) is not None:
            neuron.offset.add_(torch.linspace(0, 0.3, CHANNELS))
    return neuron


def one_at_a_time(neuron, x, running, constant=False):
    state, sent = NeuronState(constant=constant), []
    for t in range(STEPS):
        out, state = neuron.advance(x[:1] if constant else x[t : t + 1], state, running=running)
        sent.append(out)
    return torch.cat(sent), state


def check(name, running, rows):
    neuron = make(name)
    x = torch.randn(STEPS, rows, CHANNELS, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = neuron(x, running=running)
    found, state = one_at_a_time(neuron, x, running)
    assert torch.equal(found, expected)
    assert state.step == STEPS
    assert (state.received is not None) == (state.sent is not None) == running


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("name", NEURONS)
def test_steps_one_at_a_time_are_the_multi_step_form(name, running):
    check(name, running, rows=6)


LARGE = MIN_COMPILED_NUMEL // CHANNELS


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        # A step of it is small and runs eagerly, where the run is compiled.
        ("rounding", LARGE // 2),
        ("rounding", LARGE),
        pytest.param("plif", LARGE, marks=pytest.mark.slow),
        pytest.param("rounding-binary", LARGE, marks=pytest.mark.slow),
    ],
)
def test_compiled_too(name, rows):
    check(name, running=True, rows=rows)


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("name", NEURONS)
def test_a_current_that_does_not_change(name, running):
    neuron = make(name)
    x = torch.randn(1, 6, CHANNELS, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = neuron(x, num_timesteps=STEPS, running=running)
    assert torch.equal(one_at_a_time(neuron, x, running, constant=True)[0], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["plif", "rounding", "rounding-binary"])
def test_half_precision(name, dtype):
    neuron = make(name)
    x = torch.randn(STEPS, 6, CHANNELS, generator=torch.Generator().manual_seed(2)).to(dtype)
    with torch.no_grad():
        expected = neuron(x, running=True)
    found, _ = one_at_a_time(neuron, x, running=True)
    assert found.dtype == dtype
    assert torch.equal(found, expected)


def test_channels_that_are_not_last():
    neuron = IF(0.5, channels=3, channel_dim=2)
    with torch.no_grad():
        neuron.v_threshold.copy_(torch.tensor([0.3, 0.5, 0.9]))
    x = torch.rand(STEPS, 2, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    found, _ = one_at_a_time(neuron, x, running=False)
    assert torch.equal(found, neuron(x))


def test_rows_of_a_state_go_on_alone_and_the_state_stays_as_it_was():
    neuron, rows = make("rounding"), torch.tensor([4, 1])
    x = torch.randn(STEPS, 6, CHANNELS, generator=torch.Generator().manual_seed(4))
    state = NeuronState()
    for t in range(2):
        _, state = neuron.advance(x[t : t + 1], state, running=True)
    assert state.fired is None, "of bursts alone"
    kept = [value.clone() for value in state[2:5]]
    whole, _ = neuron.advance(x[2:3], state, running=True)
    part, after = neuron.advance(x[2:3, rows], state.select(rows), running=True)
    assert torch.equal(part, whole[:, rows])
    assert after.membrane.shape == (2, CHANNELS)
    assert all(torch.equal(a, b) for a, b in zip(kept, state[2:5], strict=True))


def test_what_does_not_fit_is_refused():
    neuron = RoundingIF(CHANNELS)
    _, state = neuron.advance(torch.zeros(1, 6, CHANNELS), NeuronState())
    with pytest.raises(ValueError, match=r"one time step, x \[1, \.\.\.\], got shape \(2, 6, 16\)"):
        neuron.advance(torch.zeros(2, 6, CHANNELS), state)
    with pytest.raises(ValueError, match=r"inputs of shape \(1, 6, 16\), got \(1, 5, 16\)"):
        neuron.advance(torch.zeros(1, 5, CHANNELS), state)
    with pytest.raises(ValueError, match="channels=16"):
        neuron.advance(torch.zeros(1, 6, 3), NeuronState())
