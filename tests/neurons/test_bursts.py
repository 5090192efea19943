"""Rounding neurons that send several spikes in one step, against a simulation of whole numbers and autograd."""

import pytest
import torch

from spikenlp.losses import spikes_per_neuron
from spikenlp.neurons import NeuronState, RoundingIF, SpikingLinear
from spikenlp.neurons.compilation import MIN_COMPILED_NUMEL

STEPS = 6
BURSTS = pytest.mark.parametrize("burst", [2, 3, 16])
TERNARY = pytest.mark.parametrize("ternary", [True, False])


class StraightThrough(torch.autograd.Function):
    """Rounds, ties away from zero."""

    @staticmethod
    def forward(ctx, z):
        return z.sign() * (z.abs() + 0.5).floor()

    @staticmethod
    def backward(ctx, grad):
        return grad


def by_autograd(x, alpha, burst, ternary, offset):
    """What is sent, of x [T, N], alpha and c in float64, differentiated by autograd: S_t as a function of the sums
    U_t = (x_1 + ... + x_t + t c) / alpha."""
    lowest = -1 if ternary else 0
    sums = (x + offset).cumsum(0) / alpha
    total, sent = torch.zeros_like(sums[0]), []
    for t, u in enumerate(sums, 1):
        before = total
        rounded = before + StraightThrough.apply(u - before)
        most, least = before + burst, before + lowest * burst
        total = torch.where(rounded > most, most, torch.where(rounded < least, least, rounded))
        total = total.clamp(lowest * t, t)
        sent.append(alpha * (total - before) - offset)
    return torch.stack(sent)


def by_hand(x, alpha, burst, ternary, offset=0.0):
    """Spikes of x [T, N], in float64."""
    lowest = -1 if ternary else 0
    received = x.double() + offset
    total, v, spikes = torch.zeros_like(received[0]), 0.0, []
    for t, current in enumerate(received, 1):
        u = v + current
        z = u / alpha
        n = z.sign() * (z.abs() + 0.5).floor()
        n = n.clamp(lowest * burst, burst)
        s = (total + n).clamp(lowest * t, t) - total
        total, v = total + s, u - alpha * s
        spikes.append(s)
    return torch.stack(spikes)


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
    spikes = by_hand(x, 0.75, burst, ternary, offset)
    assert spikes.abs().max() > 1, "bursts occur"
    x.requires_grad_()
    sent = neuron(x)
    assert torch.equal(sent.double(), 0.75 * spikes - offset)
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    learned = [x, neuron.amplitude, *([] if ternary else [neuron.offset])]
    found = torch.autograd.grad(sent, learned, grad)
    inputs = [y.detach().double().requires_grad_() for y in learned]
    again = by_autograd(*inputs[:2], burst, ternary, inputs[2] if len(inputs) > 2 else 0.0)
    assert torch.equal(again, sent.double())
    expected = torch.autograd.grad(again, inputs, grad.double())
    tolerance = 1e-5 if state_dtype == torch.float32 else 0.03
    for actual, wanted in zip(found, expected, strict=True):
        assert ((actual - wanted).norm() / wanted.norm()).item() < tolerance


@TERNARY
def test_a_burst_of_one_is_the_plain_neuron(ternary):
    x = currents()
    spikes = by_hand(x, 0.75, 1, ternary, 0.0 if ternary else 0.25)
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
    means.requires_grad_()
    neuron(means, running=True)[-1].square().sum().backward()
    last = means[-1:].detach().clone().requires_grad_()
    twin = made(16, True, 1.6)
    twin(last, num_timesteps=STEPS, collapsed=True).square().sum().backward()
    assert not means.grad[:-1].any(), "what was before does not matter"
    torch.testing.assert_close(means.grad[-1:], last.grad)
    torch.testing.assert_close(neuron.amplitude.grad, twin.amplitude.grad, rtol=1e-4, atol=1e-4)
    plain = made(1, True, 1.6)(means, running=True)
    assert (plain[-1] - found[-1]).abs().max() > 0.2, "one spike a step comes too late"


@BURSTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_subtracted_is_what_was_sent(burst, dtype):
    """With an amplitude of which the dtype cannot hold a multiple the debt would grow with T."""
    alpha, most = 1.4999, min(burst, 5) - 0.4
    generator = torch.Generator().manual_seed(0)
    there = most * alpha * (2 * torch.rand(16, 400, generator=generator) - 1)
    back = 0.2 * (2 * torch.rand(16, 400, generator=generator) - 1) - there
    x = torch.stack([there, back], 1).flatten(0, 1)  # sums that stay small, ...
    x = torch.cat([torch.zeros(8, 400), x]).to(dtype)  # ... after steps enough for them
    sent = made(burst, True, alpha)(x)
    assert sent.dtype == dtype
    owed = (x.double() - sent.double()).cumsum(0).abs()
    assert (sent.abs() > (min(burst, 5) - 0.6) * alpha).any()
    assert owed.max() <= alpha / 2 * (1 + 1e-3)


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
    spikes = by_hand(x.detach()[..., 0], 0.75, burst, True)
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
