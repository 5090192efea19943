"""Rounding neurons that send several spikes in one step, against a simulation of whole numbers and autograd."""

import pytest
import torch

from spikenlp.losses import spikes_per_neuron
from spikenlp.neurons import NeuronState, RoundingIF, SpikingLinear
from spikenlp.neurons.compilation import MIN_COMPILED_NUMEL

STEPS = 6
BURSTS = pytest.mark.parametrize("burst", [2, 3, 16])
TERNARY = pytest.mark.parametrize("ternary", [True, False])


def by_hand(x, alpha, burst, ternary, offset=0.0):
    """Spikes, gradients' windows and x_t + c over alpha of x [T, N], in float64."""
    lowest = -1 if ternary else 0
    received = x.double() + offset
    total, v, spikes, windows = torch.zeros_like(received[0]), 0.0, [], []
    for t, current in enumerate(received, 1):
        u = v + current
        z = u / alpha
        n = z.sign() * (z.abs() + 0.5).floor()
        n = n.clamp(lowest * burst, burst)
        s = (total + n).clamp(lowest * t, t) - total
        inside = (z < burst + 0.5) & (z > lowest * burst - 0.5)
        inside &= (total + z < t + 0.5) & (total + z > lowest * t - 0.5)
        total, v = total + s, u - alpha * s
        spikes.append(s)
        windows.append(inside.double())
    return torch.stack(spikes), torch.stack(windows), received / alpha


def made(burst, ternary, alpha=1.0, state_dtype=torch.float32):
    neuron = RoundingIF(burst=burst, ternary=ternary, state_dtype=state_dtype)
    with torch.no_grad():
        neuron.amplitude.fill_(alpha)
        if not ternary:
            neuron.offset.fill_(0.25)
    return neuron


def currents(samples=400, scale=1.2):
    """Multiples of 1/64, exact over a few steps, so that ties are ties."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(STEPS, samples, generator=generator) * scale * 64).round() / 64


@BURSTS
@TERNARY
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
def test_spikes_and_gradients_equal_a_simulation(burst, ternary, state_dtype):
    x, offset = currents(), 0.0 if ternary else 0.25
    neuron = made(burst, ternary, 0.75, state_dtype)
    spikes, windows, received = by_hand(x, 0.75, burst, ternary, offset)
    assert spikes.abs().max() > 1, "bursts occur"
    x.requires_grad_()
    sent = neuron(x)
    assert torch.equal(sent.double(), 0.75 * spikes - offset)
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    of_x, of_alpha, *of_offset = torch.autograd.grad(
        sent, [x, neuron.amplitude, *([] if ternary else [neuron.offset])], grad
    )
    g = grad.double()
    expected = (g * (spikes - windows * received)).sum()
    exact = state_dtype == torch.float32
    wrong = (of_x.double() != g * windows).double().mean()
    assert wrong == 0 if exact else wrong < 0.01, "bfloat16 blurs the window's ends alone"
    assert of_alpha.item() == pytest.approx(expected.item(), rel=1e-5 if exact else 0.05, abs=1e-3)
    if not ternary and exact:
        assert of_offset[0].item() == pytest.approx((g * (windows - 1)).sum().item(), rel=1e-5)


@TERNARY
def test_a_burst_of_one_is_the_plain_neuron(ternary):
    x = currents()
    spikes, _, _ = by_hand(x, 0.75, 1, ternary, 0.0 if ternary else 0.25)
    sent = made(1, ternary, 0.75)(x).double()
    assert torch.equal(sent, 0.75 * spikes - (0.0 if ternary else 0.25))


def test_without_a_limit_the_mean_is_the_rounded_mean_at_every_step():
    """As the collapsed neuron has it, for whatever came before."""
    neuron = made(16, True, 1.6)
    means = currents(scale=0.9).cumsum(0) / torch.arange(1, STEPS + 1)[:, None]
    with torch.no_grad():
        found = neuron(means, running=True)
        for t in range(1, STEPS + 1):
            expected = neuron(means[t - 1 : t], num_timesteps=t, collapsed=True)[0]
            torch.testing.assert_close(found[t - 1], expected, rtol=0, atol=2e-6)
    plain = made(1, True, 1.6)(means, running=True)
    assert (plain[-1] - found[-1]).abs().max() > 0.2, "one spike a step comes too late"


@BURSTS
@TERNARY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_subtracted_is_what_was_sent(burst, ternary, dtype):
    """With an amplitude that a burst of the dtype cannot hold the debt would grow."""
    neuron = made(burst, ternary, 1.0033)
    x = (currents(scale=0.8) if ternary else currents(scale=0.8).abs()).to(dtype)
    sent = neuron(x).double()
    units = (sent + (0.0 if ternary else 0.25)).unique()
    step = units[units > 0].min()
    assert torch.equal(units / step, (units / step).round()) or not ternary
    lowest = -1 if ternary else 0
    total = x.double().cumsum(0) + (0 if ternary else 0.25 * torch.arange(1, STEPS + 1)[:, None])
    inside = (total / step).abs().amax(0) < 1
    owed = (x.double() - sent).cumsum(0).abs()
    assert (owed[:, inside] <= step / 2 * (1 + 1e-3) + (0 if lowest else 0.02)).all()


@BURSTS
@TERNARY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_spikes_made_again_from_the_state_are_those_that_were_sent(burst, ternary, dtype):
    """Membranes as near to each half-integer as float32 has."""
    halves = torch.arange(burst + 2) + 0.5
    near = torch.cat([halves, *(torch.nextafter(halves, halves + side) for side in (-1, 1))])
    x = torch.cat([near, -near])[None].expand(STEPS, -1).clone().requires_grad_()
    sent = made(burst, ternary, 1.0, dtype)(x)
    record = sent.spike_record
    assert record.state.dtype == dtype
    again = record.again(record.state, record.amplitude, record.offset, **record.options)
    assert torch.equal(again, sent)


@TERNARY
@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize(
    "rows", [6, pytest.param(MIN_COMPILED_NUMEL // 16, marks=pytest.mark.slow)]
)
def test_steps_one_at_a_time_are_the_multi_step_form(ternary, running, rows):
    neuron = RoundingIF(16, ternary, burst=3)
    with torch.no_grad():
        neuron.amplitude.copy_(torch.linspace(0.7, 1.4, 16))
    x = torch.randn(STEPS, rows, 16, generator=torch.Generator().manual_seed(0))
    state, sent = NeuronState(), []
    with torch.no_grad():
        for t in range(STEPS):
            out, state = neuron.advance(x[t : t + 1], state, running=running)
            sent.append(out)
        assert torch.equal(torch.cat(sent), neuron(x, running=running))
    some = state.select(torch.tensor([4, 1]))
    assert torch.equal(some.fired, state.fired[[4, 1]])


@pytest.mark.slow
@pytest.mark.filterwarnings("error:torch.compile found no")
@TERNARY
def test_eager_and_compiled_agree(ternary):
    x = currents(MIN_COMPILED_NUMEL)
    whole = x.clone().requires_grad_()
    sent = made(2, ternary, 0.75, torch.bfloat16)(whole)
    sent.square().sum().backward()
    part = x[:, :500].clone().requires_grad_()
    few = made(2, ternary, 0.75, torch.bfloat16)(part)
    few.square().sum().backward()
    assert torch.equal(few, sent[:, :500])
    torch.testing.assert_close(part.grad, whole.grad[:, :500])


@BURSTS
def test_a_penalty_counts_every_spike_of_a_burst(burst):
    x = currents()[..., None].requires_grad_()
    neuron = made(burst, True, 0.75)
    spikes, _, _ = by_hand(x.detach()[..., 0], 0.75, burst, True)
    found = spikes_per_neuron(neuron(x))
    assert found.item() == pytest.approx(spikes.abs().sum(0).mean().item(), rel=1e-6)
    found.backward()
    assert x.grad.abs().sum() > 0


def test_a_linear_layer_after_it_has_the_gradients_of_an_ordinary_one():
    x = currents(5 * 8).view(STEPS, 5, 8)
    neuron, layer = RoundingIF(8, burst=2), SpikingLinear(8, 3)
    plain = torch.nn.functional.linear(neuron(x.clone()).detach(), layer.weight, layer.bias)
    (expected,) = torch.autograd.grad(plain.square().sum(), layer.weight)
    (found,) = torch.autograd.grad(layer(neuron(x)).square().sum(), layer.weight)
    torch.testing.assert_close(found, expected)


def test_bad_bursts_and_a_single_step_are_refused():
    for burst in (0, 17):
        with pytest.raises(ValueError, match=rf"burst must be in \[1, 16\], got {burst}"):
            RoundingIF(burst=burst)
    with pytest.raises(ValueError, match="call advance"):
        RoundingIF(burst=2).step(torch.zeros(3))
