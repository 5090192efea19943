"""Neurons against scalar simulations by hand and against plain autograd in float64."""

import inspect
import itertools

import pytest
import torch
from torch._dynamo.utils import counters

from spikenlp.neurons import IF, LIF, PLIF, NeuronState, RoundingIF, SpikingLinear
from spikenlp.neurons.compilation import MIN_COMPILED_NUMEL

NEURONS = {"if": IF, "lif": LIF, "plif": PLIF}
BETAS = {"if": 1.0, "lif": 0.75, "plif": 0.5}
ARGUMENTS = {"if": {}, "lif": {"beta": 0.75}, "plif": {"beta": 0.5}}


def dyadic(*shape, seed=0, scale=1.0):
    """Multiples of 1/64: exact in float32 over a few steps, so that ties are ties."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale * 64).round() / 64


def simulate(xs, beta=1.0, v_th=1.0, alpha=1.0, ternary=False, hard=False, v_reset=0.0):
    """One neuron in python floats: what it sends at each step."""
    v, sent = 0.0, []
    for x in xs:
        u = beta * v + x
        s = (1 if u >= v_th else 0) - (1 if ternary and -u >= v_th else 0)
        v = (v_reset if s else u) if hard else u - v_th * s
        sent.append(alpha * s)
    return sent


def simulate_all(x, **options):
    """`simulate` for every neuron of x [T, N]."""
    columns = [simulate(x[:, n].tolist(), **options) for n in range(x.shape[1])]
    return torch.tensor(columns).T.reshape(x.shape)


class Step(torch.autograd.Function):
    """Heaviside step of d with a surrogate derivative, H(0) = 1."""

    @staticmethod
    def forward(ctx, d, surrogate):
        ctx.save_for_backward(d)
        ctx.surrogate = surrogate
        return (d >= 0).to(d.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.surrogate(ctx.saved_tensors[0]), None


REFERENCE_SURROGATES = {
    "triangle": lambda d: (1 - d.abs()).clamp(min=0),
    "rectangle": lambda d: (d.abs() < 0.5).to(d.dtype),
    "sigmoid": lambda d: 4 * torch.sigmoid(4 * d) * torch.sigmoid(-4 * d),
    "arctan": lambda d: 1 / (1 + (torch.pi * d) ** 2),
}


def plain_autograd(
    x, beta, v_th, alpha, *, ternary, hard, detach_reset, surrogate="triangle", v_reset=0.0
):
    """The equations of the classic neurons, differentiated by autograd; x [T, ...] in float64."""
    surrogate = REFERENCE_SURROGATES[surrogate]
    v, sent = torch.zeros_like(x[0]), []
    for current in x:
        u = beta * v + current
        up = Step.apply(u - v_th, surrogate)
        down = Step.apply(-u - v_th, surrogate) if ternary else torch.zeros_like(up)
        s, fired = up - down, up + down
        sent.append(alpha * s)
        if detach_reset:
            s, fired = s.detach(), fired.detach()
        v = u * (1 - fired) + v_reset * fired if hard else u - v_th * s
    return torch.stack(sent)


def gradients(function, x, grad, of=None):
    """Output of `function` and gradients of (output * grad).sum(): x, then parameters by name.

    The parameters are those of the neuron `of`, or of `function`, a neuron.
    """
    neuron = function if of is None else of
    x = x.detach().clone().requires_grad_()
    out = function(x)
    names = [name for name, p in neuron.named_parameters() if p.requires_grad]
    parameters = [p for p in neuron.parameters() if p.requires_grad]
    found = torch.autograd.grad(out, [x, *parameters], grad.to(out.dtype))
    return out.detach(), dict(zip(["x", *names], found, strict=True))


def set_parameter(neuron, name, values):
    with torch.no_grad():
        getattr(neuron, name).copy_(torch.as_tensor(values))


def relative_error(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


# Classic neurons: spikes


@pytest.mark.parametrize("kind", NEURONS)
@pytest.mark.parametrize("ternary", [False, True])
@pytest.mark.parametrize("reset", ["soft", "hard"])
@pytest.mark.parametrize("v_threshold", [1.0, 0.75])
def test_spikes_equal_a_scalar_simulation(kind, ternary, reset, v_threshold):
    x = dyadic(8, 60, scale=0.8)
    v_reset = 0.25 if reset == "hard" else 0.0
    neuron = NEURONS[kind](
        **ARGUMENTS[kind],
        v_threshold=v_threshold,
        ternary=ternary,
        reset=reset,
        v_reset=v_reset,
        amplitude=1.5,
    )
    expected = simulate_all(
        x,
        beta=BETAS[kind],
        v_th=v_threshold,
        alpha=1.5,
        ternary=ternary,
        hard=reset == "hard",
        v_reset=v_reset,
    )
    assert expected.unique().tolist() == ([-1.5, 0.0, 1.5] if ternary else [0.0, 1.5])
    assert torch.equal(neuron(x), expected)


def test_defaults():
    x = dyadic(6, 40)
    assert torch.equal(IF()(x), simulate_all(x))
    assert torch.equal(LIF()(x), simulate_all(x, beta=0.5))
    assert torch.equal(PLIF()(x), simulate_all(x, beta=0.5))
    assert PLIF().decay_logit.sigmoid().item() == pytest.approx(0.5)
    assert PLIF(beta=0.9).decay_logit.sigmoid().item() == pytest.approx(0.9)


@pytest.mark.parametrize("ternary", [False, True])
def test_a_membrane_exactly_at_the_threshold_fires(ternary):
    x = torch.tensor([[0.5, -0.5, 1.0, -1.0], [0.5, -0.5, 0.0, 0.0]])
    minus = -1.0 if ternary else 0.0
    expected = torch.tensor([[0.0, 0.0, 1.0, minus], [1.0, minus, 0.0, 0.0]])
    assert torch.equal(IF(ternary=ternary)(x), expected)
    below = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    assert IF(ternary=ternary)(below.view(1, 1)).item() == 0


@pytest.mark.parametrize("kind", NEURONS)
def test_thresholds_and_amplitudes_per_channel(kind):
    x = dyadic(8, 5, 3)
    thresholds, amplitudes = [0.5, 1.0, 1.75], [2.0, 1.0, 0.5]
    neuron = NEURONS[kind](**ARGUMENTS[kind], ternary=True, channels=3)
    assert neuron.v_threshold.shape == neuron.amplitude.shape == (3,)
    set_parameter(neuron, "v_threshold", thresholds)
    set_parameter(neuron, "amplitude", amplitudes)
    expected = torch.stack(
        [
            simulate_all(x[..., c], beta=BETAS[kind], v_th=th, alpha=a, ternary=True)
            for c, (th, a) in enumerate(zip(thresholds, amplitudes, strict=True))
        ],
        dim=-1,
    )
    assert torch.equal(neuron(x), expected)


def test_constant_current_fires_at_its_rate():
    currents = torch.tensor([0.03, 0.11, 0.25, 0.5, 0.617, 0.9, 0.99])
    rate = IF()(currents.expand(1000, -1)).mean(0)
    torch.testing.assert_close(rate, currents, rtol=0, atol=1.5e-3)


# Classic neurons: gradients


@pytest.mark.parametrize("kind", NEURONS)
@pytest.mark.parametrize("ternary", [False, True])
@pytest.mark.parametrize("reset", ["soft", "hard"])
@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize("surrogate", REFERENCE_SURROGATES)
def test_gradients_equal_plain_autograd(kind, ternary, reset, detach_reset, surrogate):
    generator = torch.Generator().manual_seed(1)
    x = 0.8 * torch.randn(6, 4, 5, 3, generator=generator)
    grad = torch.randn(6, 4, 5, 3, generator=generator)
    thresholds, amplitudes = [0.6, 1.0, 1.3], [0.7, 1.0, 1.9]
    v_reset = 0.2 if reset == "hard" else 0.0
    neuron = NEURONS[kind](
        **ARGUMENTS[kind],
        ternary=ternary,
        reset=reset,
        v_reset=v_reset,
        detach_reset=detach_reset,
        surrogate=surrogate,
        channels=3,
        learn_threshold=True,
        learn_amplitude=True,
        state_dtype=torch.float32,
    )
    set_parameter(neuron, "v_threshold", thresholds)
    set_parameter(neuron, "amplitude", amplitudes)
    out, actual = gradients(neuron, x, grad)

    double = {"dtype": torch.float64, "requires_grad": True}
    leaves = {
        "x": x.double().requires_grad_(),
        "v_threshold": torch.tensor(thresholds, **double),
        "amplitude": torch.tensor(amplitudes, **double),
    }
    beta = BETAS[kind]
    if kind == "plif":
        leaves["decay_logit"] = torch.zeros(1, **double)
        beta = leaves["decay_logit"].sigmoid()
    reference = plain_autograd(
        leaves["x"],
        beta,
        leaves["v_threshold"],
        leaves["amplitude"],
        ternary=ternary,
        hard=reset == "hard",
        v_reset=v_reset,
        detach_reset=detach_reset,
        surrogate=surrogate,
    )
    expected = torch.autograd.grad(reference, list(leaves.values()), grad.double())
    torch.testing.assert_close(out.double(), reference.detach(), rtol=1e-6, atol=1e-6)
    assert set(actual) == set(leaves)
    for name, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(
            actual[name].double(), gradient, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("kind", NEURONS)
@pytest.mark.parametrize("ternary", [False, True])
@pytest.mark.parametrize("reset", ["soft", "hard"])
@pytest.mark.parametrize("detach_reset", [True, False])
def test_bfloat16_state_gives_the_same_spikes_and_close_gradients(
    kind, ternary, reset, detach_reset
):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(6, 400, generator=generator)
    grad = torch.randn(6, 400, generator=generator)
    results = {}
    for state_dtype in (torch.float32, torch.bfloat16):
        neuron = NEURONS[kind](
            **ARGUMENTS[kind],
            ternary=ternary,
            reset=reset,
            detach_reset=detach_reset,
            learn_threshold=True,
            learn_amplitude=True,
            state_dtype=state_dtype,
        )
        results[state_dtype] = gradients(neuron, x, grad)
    (exact_out, exact), (out, rounded) = results.values()
    assert torch.equal(out, exact_out)
    for name in exact:
        limit = 1e-2 if name == "x" else 5e-2  # sums over all neurons cancel
        assert relative_error(rounded[name], exact[name]) < limit, name
    torch.testing.assert_close(rounded["amplitude"], exact["amplitude"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("neuron_class", [IF, RoundingIF])
@pytest.mark.parametrize("ternary", [False, True])
def test_the_spikes_of_the_backward_pass_are_those_of_the_forward_pass(neuron_class, ternary):
    """d out / d amplitude shows them; the membrane lies a hair off each threshold."""
    threshold = 1.0 if neuron_class is IF else 0.5
    hair = torch.tensor([-1e-3, -1e-4, -1e-6, 0.0, 1e-6, 1e-4, 1e-3])
    x = torch.cat([threshold + hair, -threshold + hair])[None]
    channels = {"channels": x.shape[1]}
    if neuron_class is IF:
        neuron = IF(ternary=ternary, learn_amplitude=True, **channels)
        straight_through = torch.zeros_like(x)
    else:
        neuron = RoundingIF(ternary=ternary, **channels)
        kept = x.bfloat16().float()  # the window is that of the state, its end a hair off too
        straight_through = x * (kept.abs() < 1.5 if ternary else (kept > -0.5) & (kept < 1.5))
    out, found = gradients(neuron, x, torch.ones_like(x))
    torch.testing.assert_close(found["amplitude"], (out - straight_through)[0], rtol=0, atol=5e-3)


@pytest.mark.parametrize("ternary", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("neuron_class", [IF, RoundingIF])
def test_spikes_made_again_from_the_state_are_those_that_were_sent(neuron_class, dtype, ternary):
    """Thresholds whose inverse is not exact, membranes as near to them as float32 has."""
    channels = 4000
    threshold = 0.3 + torch.rand(channels, generator=torch.Generator().manual_seed(0))
    neuron = neuron_class(channels=channels, ternary=ternary, state_dtype=dtype)
    set_parameter(neuron, "amplitude" if neuron_class is RoundingIF else "v_threshold", threshold)
    at = threshold / 2 if neuron_class is RoundingIF else threshold
    below, above = (torch.nextafter(at, at + side) for side in (-1, 1))
    x = torch.stack([below, at, above, -below, -at, -above])[None].requires_grad_()
    sent = neuron(x)
    record = sent.spike_record
    assert record.state.dtype == dtype
    again = record.again(record.state, record.amplitude, record.offset, **record.options)
    assert torch.equal(again, sent)
    fired = sent != (0 if neuron_class is IF or ternary else -neuron.offset)
    down = [ternary] * 2
    assert fired.all(-1).tolist() == [[False, True, True, False, *down]]


def test_inference_keeps_no_state(make):
    x = torch.randn(4, 5, 8, requires_grad=True)
    with torch.no_grad():
        assert not hasattr(make(channels=8)(x), "spike_record")


# Rounding neuron: what it sends


@pytest.mark.parametrize("steps", [1, 2, 4, 7, 32])
@pytest.mark.parametrize("ternary", [False, True])
def test_sums_sent_and_received_differ_by_half_an_amplitude_at_most(steps, ternary):
    generator = torch.Generator().manual_seed(steps)
    amplitudes = torch.tensor([0.3, 1.0, 2.7])
    x = (2 * torch.rand(steps, 200, 3, generator=generator) - 1) * amplitudes
    neuron = RoundingIF(channels=3, ternary=ternary)
    set_parameter(neuron, "amplitude", amplitudes)
    if not ternary:
        set_parameter(neuron, "offset", 0.5 * amplitudes)
        x = x / 2
    owed = (x - neuron(x)).double().cumsum(0).abs()
    assert (owed <= amplitudes / 2 * (1 + 1e-5)).all()


def hand_rounding(x, alpha, steps, ternary, offset=0.0):
    """(2T + 1)-level rounding (binary: T + 1) of one number, in python floats."""
    level = int((x + offset) / alpha * steps // 1)
    level += (x + offset) / alpha * steps - level >= 0.5
    level = max(-steps if ternary else 0, min(steps, level))
    return alpha * level / steps - offset


def collapsed(neuron, x, steps):
    return neuron(x[None], num_timesteps=steps, collapsed=True)[0]


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("ternary", "offset"), [(True, 0.0), (False, 0.0), (False, 0.7)])
@pytest.mark.parametrize("alpha", [1.0, 1.6])
def test_the_mean_sent_is_the_mean_received_rounded(steps, ternary, offset, alpha):
    x = torch.linspace(-2.013, 2.017, 331)
    neuron = RoundingIF(ternary=ternary)
    set_parameter(neuron, "amplitude", [alpha])
    if not ternary:
        set_parameter(neuron, "offset", [offset])
    expected = torch.tensor([hand_rounding(v, alpha, steps, ternary, offset) for v in x.tolist()])
    inside = x.abs() <= alpha if ternary else ((x + offset) >= 0) & ((x + offset) <= alpha)
    mean = neuron(x.expand(steps, -1)).mean(0)
    torch.testing.assert_close(mean[inside], expected[inside], rtol=0, atol=2e-6)
    torch.testing.assert_close(collapsed(neuron, x, steps), expected, rtol=0, atol=2e-6)


def test_rounding_neuron_fires_at_exactly_half_its_amplitude():
    x = torch.tensor([[0.5, -0.5, 0.25]])
    assert RoundingIF()(x).tolist() == [[1.0, -1.0, 0.0]]
    assert RoundingIF(ternary=False)(x).tolist() == [[1.0, 0.0, 0.0]]


def gaussian_error(neuron, points, alphas, steps=4):
    """Smallest MSE over `alphas` of the mean sent for inputs at the normal quantiles `points`."""
    errors = []
    for alpha in alphas:
        set_parameter(neuron, "amplitude", [alpha])
        if not isinstance(neuron, RoundingIF):
            set_parameter(neuron, "v_threshold", [alpha])
        mean = neuron(points.expand(steps, -1)).mean(0)
        errors.append((mean - points).double().square().mean().item())
    assert 0 < errors.index(min(errors)) < len(errors) - 1
    return min(errors)


def test_rounding_has_less_error_on_a_gaussian_than_firing_at_the_amplitude():
    quantiles = (torch.arange(20_001, dtype=torch.float64) + 0.5) / 20_001
    points = torch.special.ndtri(quantiles).float()
    alphas = torch.linspace(1.0, 3.5, 51).tolist()
    rounding = gaussian_error(RoundingIF(), points, alphas)
    usual = gaussian_error(IF(ternary=True), points, alphas)
    assert rounding == pytest.approx(0.031, abs=1e-3)
    assert usual == pytest.approx(0.079, abs=2e-3)


# Rounding neuron: gradients


def rounding_by_hand(x, grad, amplitude, offset, ternary):
    """Output and closed-form gradients for x [T, N, C], amplitude and offset [C]; float64."""
    received = x + (0 if offset is None else offset)
    v = torch.zeros_like(x[0])
    out, grad_x, grad_amplitude, grad_offset = [], [], 0.0, 0.0
    for current, g in zip(received, grad, strict=True):
        u = v + current
        s = (u >= amplitude / 2).double() - (ternary * (-u >= amplitude / 2).double())
        lowest = -1.5 if ternary else -0.5
        inside = ((u > lowest * amplitude) & (u < 1.5 * amplitude)).double()
        v = u - amplitude * s
        out.append(amplitude * s - (0 if offset is None else offset))
        grad_x.append(g * inside)
        grad_amplitude = grad_amplitude + (g * (s - inside * current / amplitude)).sum(0)
        grad_offset = grad_offset + (g * (inside - 1)).sum(0)
    found = {"x": torch.stack(grad_x), "amplitude": grad_amplitude}
    if offset is not None:
        found["offset"] = grad_offset
    return torch.stack(out), found


@pytest.mark.parametrize("ternary", [False, True])
@pytest.mark.parametrize("scale", [0.5, 2.0])
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
def test_rounding_gradients_equal_their_closed_form(ternary, scale, state_dtype):
    generator = torch.Generator().manual_seed(3)
    x = scale * torch.randn(5, 40, 3, generator=generator)
    grad = torch.randn(5, 40, 3, generator=generator)
    amplitude, offset = torch.tensor([0.6, 1.0, 2.3]), torch.tensor([0.3, 0.0, 1.1])
    neuron = RoundingIF(channels=3, ternary=ternary, state_dtype=state_dtype)
    set_parameter(neuron, "amplitude", amplitude)
    if not ternary:
        set_parameter(neuron, "offset", offset)
    out, actual = gradients(neuron, x, grad)
    expected_out, expected = rounding_by_hand(
        x.double(), grad.double(), amplitude.double(), None if ternary else offset.double(), ternary
    )
    torch.testing.assert_close(out.double(), expected_out, rtol=1e-5, atol=1e-6)
    assert set(actual) == set(expected)
    exact = state_dtype == torch.float32
    for name in expected:
        error = relative_error(actual[name], expected[name])
        assert error < (1e-5 if exact else 2e-2), f"{name}: {error}"


class StraightThroughRound(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        return (u + 0.5).floor()

    @staticmethod
    def backward(ctx, grad):
        return grad


def test_rounding_closed_form_is_autograd_through_the_reset():
    """Inside the window, BPTT with d s / d u = 1 / alpha and the reset in the graph is local."""
    generator = torch.Generator().manual_seed(4)
    x = (2 * torch.rand(6, 50, generator=generator) - 1).double().requires_grad_()
    grad = torch.randn(6, 50, generator=generator).double()
    alpha = torch.tensor([1.25], dtype=torch.float64, requires_grad=True)
    v, sent = torch.zeros(50, dtype=torch.float64), []
    for current in x:
        u = v + current
        out = alpha * StraightThroughRound.apply(u / alpha)
        v = u - out
        sent.append(out)
    expected = torch.autograd.grad(torch.stack(sent), [x, alpha], grad)
    neuron = RoundingIF(state_dtype=torch.float32)
    set_parameter(neuron, "amplitude", [1.25])
    _, actual = gradients(neuron, x.detach().float(), grad.float())
    torch.testing.assert_close(expected[0], grad)
    torch.testing.assert_close(actual["x"].double(), grad.float().double())
    torch.testing.assert_close(actual["amplitude"].double(), expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ternary", [False, True])
def test_the_window_is_open_at_its_ends(ternary):
    """Nothing passes at |u| = 1.5 alpha (binary: also not at -0.5 alpha)."""
    ends = torch.tensor([[-1.5, -0.5, 1.5]])
    hair = 2.0**-6
    shifts = {
        "outer": torch.tensor([-hair, -hair, hair]),
        "inner": torch.tensor([hair, hair, -hair]),
    }
    expected = {
        "at": [0.0, 1.0, 0.0] if ternary else [0.0, 0.0, 0.0],
        "outer": [0.0, 1.0, 0.0] if ternary else [0.0, 0.0, 0.0],
        "inner": [1.0, 1.0, 1.0] if ternary else [0.0, 1.0, 1.0],
    }
    for name, x in {"at": ends, **{k: ends + v for k, v in shifts.items()}}.items():
        _, found = gradients(RoundingIF(ternary=ternary), x, torch.ones(1, 3))
        assert found["x"].tolist() == [expected[name]], name


def test_amplitude_gradient_does_not_depend_on_how_a_batch_is_cut():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(4, 6, 3, generator=generator)
    grad = torch.randn(4, 6, 3, generator=generator)
    neuron = RoundingIF(channels=3)
    whole = gradients(neuron, x, grad)[1]["amplitude"]
    pieces = sum(
        gradients(neuron, a, b)[1]["amplitude"]
        for a, b in zip(x.split(2, dim=1), grad.split(2, dim=1), strict=True)
    )
    torch.testing.assert_close(whole, pieces, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ternary", [False, True])
@pytest.mark.parametrize("steps", [1, 4])
def test_collapsed_gradients_equal_their_closed_form(ternary, steps):
    generator = torch.Generator().manual_seed(6)
    x = 1.2 * torch.randn(300, 2, generator=generator)
    grad = torch.randn(300, 2, generator=generator)
    amplitude, offset = torch.tensor([0.8, 1.9]), torch.tensor([0.5, 0.9])
    neuron = RoundingIF(channels=2, ternary=ternary, state_dtype=torch.float32)
    set_parameter(neuron, "amplitude", amplitude)
    if not ternary:
        set_parameter(neuron, "offset", offset)
    shift = 0 if ternary else offset
    leaf = x.clone().requires_grad_()
    out = collapsed(neuron, leaf, steps)
    parameters = [neuron.amplitude] if ternary else [neuron.amplitude, neuron.offset]
    actual = torch.autograd.grad(out, [leaf, *parameters], grad)

    z = ((x + shift) / amplitude).double()
    edge = 1 / (2 * steps)
    inside = ((z > (-1 - edge if ternary else -edge)) & (z < 1 + edge)).double()
    level = (out.detach() + shift).double() / amplitude
    torch.testing.assert_close(level * steps, (level * steps).round(), rtol=0, atol=1e-5)
    expected = [grad * inside, (grad * (level - inside * z)).sum(0)]
    if not ternary:
        expected.append((grad * (inside - 1)).sum(0))
    for found, closed_form in zip(actual, expected, strict=True):
        torch.testing.assert_close(found.double(), closed_form, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ternary", [False, True])
@pytest.mark.parametrize("steps", [1, 4, 100, 500])
def test_collapsed_in_bfloat16_state_has_the_same_levels(ternary, steps):
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(3000, 2, generator=generator)
    ties = (torch.arange(-steps - 1, steps + 1).repeat(2, 1).T + 0.5) / steps
    x = torch.cat([x, ties])
    grad = torch.randn(x.shape, generator=generator)
    linear = SpikingLinear(2, 3)
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        neuron = RoundingIF(channels=2, ternary=ternary, state_dtype=dtype)
        out, gradients_of_neuron = gradients(
            lambda x, n=neuron: collapsed(n, x, steps), x, grad, neuron
        )
        sent = neuron(x[None], num_timesteps=steps, collapsed=True)
        (of_weight,) = torch.autograd.grad(linear(sent).sum(), linear.weight)
        torch.testing.assert_close(of_weight, sent.detach().sum((0, 1)).expand(3, -1))
        found.append([out, gradients_of_neuron])
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1]["x"], found[1][1]["x"])
    assert relative_error(found[0][1]["amplitude"], found[1][1]["amplitude"]) < 0.05


# Every neuron: shapes, dtypes, state


def every_neuron(**options):
    """One of each kind, with per-channel values where `channels` is given."""
    classic = {"learn_threshold": True, "learn_amplitude": True, **options}
    neurons = [
        IF(ternary=True, **classic),
        LIF(reset="hard", detach_reset=False, **classic),
        PLIF(surrogate="arctan", **classic),
        RoundingIF(**options),
        RoundingIF(ternary=False, **options),
    ]
    channels = options.get("channels")
    for neuron, name in itertools.product(neurons, ["v_threshold", "amplitude"]):
        if channels and hasattr(neuron, name):
            set_parameter(neuron, name, torch.linspace(0.5, 1.5, channels))
    return neurons


ALL_NEURONS = ["if", "lif", "plif", "rounding", "rounding-binary"]


@pytest.fixture(params=range(len(ALL_NEURONS)), ids=ALL_NEURONS)
def make(request):
    return lambda **options: every_neuron(**options)[request.param]


@pytest.mark.parametrize("steps", [1, 5])
def test_step_form_equals_the_multi_step_form(make, steps):
    neuron = make(channels=3)
    x = torch.randn(steps, 6, 3, generator=torch.Generator().manual_seed(0))
    v, sent = None, []
    for current in x:
        out, v = neuron.step(current, v)
        sent.append(out)
    assert torch.equal(torch.stack(sent), neuron(x))
    assert v.shape == x.shape[1:]
    assert v.dtype == torch.float32


def test_step_form_takes_a_membrane_from_the_caller():
    out, v = IF().step(torch.tensor([0.25, 0.25]), torch.tensor([0.25, 1.0]))
    assert out.tolist() == [0.0, 1.0]
    assert v.tolist() == [0.5, 0.25]


@pytest.mark.parametrize("channel_dim", [2, -3])
def test_channel_dim(make, channel_dim):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 2, 3, 5, 6, generator=generator)
    grad = torch.randn(4, 2, 3, 5, 6, generator=generator)
    out, found = gradients(make(channels=3, channel_dim=channel_dim), x, grad)
    last_out, last = gradients(make(channels=3), x.movedim(2, -1), grad.movedim(2, -1))
    assert torch.equal(out, last_out.movedim(-1, 2))
    torch.testing.assert_close(found.pop("x"), last.pop("x").movedim(-1, 2))
    for name in found:
        torch.testing.assert_close(found[name], last[name], rtol=1e-4, atol=1e-4)


def test_time_is_no_channel_dimension(make):
    with pytest.raises(ValueError, match="channel_dim must not be 0"):
        make(channels=3, channel_dim=0)


def test_non_contiguous_input_and_gradient(make):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 7, 5, generator=generator).permute(2, 1, 0)
    grad = torch.randn(7, 3, 5, generator=generator).permute(2, 0, 1)
    neuron = make(channels=3)
    out, found = gradients(neuron, x, grad)
    same_out, same = gradients(neuron, x.contiguous(), grad.contiguous())
    assert torch.equal(out, same_out)
    for name in found:
        torch.testing.assert_close(found[name], same[name])


def slow_running_mean(x):
    return torch.stack([x[: t + 1].mean(0) for t in range(len(x))])


def slow_increments(x):
    return torch.stack([(t + 1) * x[t] - (t * x[t - 1] if t else 0) for t in range(len(x))])


def test_running_means_in_and_out(make):
    """As the neuron between an increment and a running mean, each written out."""
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(5, 40, 3, generator=generator) for _ in range(2))
    options = {"channels": 3, "state_dtype": torch.float32}
    neuron = make(**options)
    out, found = gradients(lambda x: neuron(x, running=True), x, grad, neuron)
    expected_out, expected = gradients(
        lambda x: slow_running_mean(neuron(slow_increments(x))), x, grad, neuron
    )
    torch.testing.assert_close(out, expected_out)
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("running", [False, True])
def test_one_current_for_all_steps(make, running):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 40, 3, generator=generator)
    grad = torch.randn(4, 40, 3, generator=generator)
    neuron = make(channels=3)
    out, found = gradients(lambda x: neuron(x, num_timesteps=4, running=running), x, grad, neuron)
    expected_out, expected = gradients(
        lambda x: neuron(x.expand(4, -1, -1), running=running), x, grad, neuron
    )
    assert torch.equal(out, expected_out)
    assert found["x"].shape == x.shape
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)


def test_steps_that_do_not_fit_are_refused(make):
    with pytest.raises(ValueError, match=r"num_timesteps=4.*\(3, 2\)"):
        make()(torch.zeros(3, 2), num_timesteps=4)


@pytest.mark.parametrize("steps", [1, 32])
def test_one_and_many_steps(make, steps):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(steps, 50, 2, generator=generator)
    out, found = gradients(make(channels=2), x, torch.randn(x.shape, generator=generator))
    assert out.shape == x.shape
    assert out.abs().sum() > 0
    for name, gradient in found.items():
        assert torch.isfinite(gradient).all(), name
    shorter = make(channels=2)(x[: max(1, steps // 2)])
    assert torch.equal(out[: len(shorter)], shorter)


@pytest.mark.parametrize("shape", [(4, 0, 3), (4, 2, 0, 3)])
def test_zero_size_batch(make, shape):
    neuron = make(channels=3)
    out, found = gradients(neuron, torch.zeros(shape), torch.zeros(shape))
    assert out.shape == found["x"].shape == shape
    for name, parameter in neuron.named_parameters():
        assert torch.equal(found[name], torch.zeros_like(parameter)), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_and_out(make, dtype):
    """Spikes are those of the float32 dynamics on the same numbers."""
    x = dyadic(6, 200, 2).to(dtype)
    neuron = make(channels=2)
    with torch.no_grad():
        for name in ("v_threshold", "amplitude"):
            if hasattr(neuron, name):
                getattr(neuron, name).fill_(0.75)
    out, found = gradients(neuron, x, torch.ones_like(x))
    assert out.dtype == found["x"].dtype == dtype
    assert torch.equal(out.float(), neuron(x.float()))
    for name, parameter in neuron.named_parameters():
        assert found[name].dtype == parameter.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_the_dynamics_in_float32(make, dtype):
    x = dyadic(6, 200, 2).requires_grad_()
    neuron = make(channels=2)
    with torch.no_grad():
        for name in ("v_threshold", "amplitude"):
            if hasattr(neuron, name):
                getattr(neuron, name).fill_(0.75)
    with torch.autocast("cpu", dtype=dtype):
        out = neuron(x)
    assert torch.equal(out.float(), neuron(x))
    found, expected = (torch.autograd.grad(y.float().sum(), x)[0] for y in (out, neuron(x)))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("how", "dtype", "ternary"),
    [
        *(("eager", d, t) for d in (torch.bfloat16, torch.float16) for t in (False, True)),
        *(
            pytest.param(how, dtype, dtype == torch.bfloat16, marks=pytest.mark.slow)
            for how in ("compiled", "in a model")
            for dtype in (torch.bfloat16, torch.float16)
        ),
    ],
)
def test_rounding_subtracts_exactly_what_it_sends_in_half_precision(dtype, ternary, how):
    """An amplitude that the dtype cannot hold must not make the debt grow with T."""
    steps = 4
    samples = MIN_COMPILED_NUMEL // steps if how == "compiled" else 500
    generator = torch.Generator().manual_seed(0)
    amplitude = 1.0033
    assert torch.tensor(amplitude).to(dtype).item() < amplitude
    neuron = RoundingIF(ternary=ternary)
    set_parameter(neuron, "amplitude", [amplitude])
    low = -0.9 if ternary else 0.0
    x = (low + (0.9 - low) * torch.rand(steps, samples, generator=generator)).to(dtype)
    out = torch.compile(neuron, fullgraph=True)(x) if how == "in a model" else neuron(x)
    assert out.dtype == dtype
    assert len(out.unique()) == (3 if ternary else 2)
    owed = (x.double() - out.double()).cumsum(0).abs()
    assert owed.max() <= amplitude / 2 * (1 + 1e-5)


def test_no_state_is_kept_between_calls(make):
    neuron = make(channels=2)
    before = {k: v.clone() for k, v in neuron.state_dict().items()}
    attributes = set(vars(neuron))
    x = torch.randn(4, 10, 2, generator=torch.Generator().manual_seed(0))
    first = neuron(x)
    neuron(torch.full((9, 3, 2), 0.4))
    assert torch.equal(neuron(x), first)
    assert set(vars(neuron)) == attributes
    assert before.keys() == neuron.state_dict().keys()
    for name, value in neuron.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_samples_do_not_see_each_other(make):
    neuron = make(channels=2)
    x = torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(neuron(x)[:, 2:3], neuron(x[:, 2:3]))


def test_without_a_gradient_the_output_is_the_same(make):
    neuron = make(channels=2)
    x = torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = neuron(x)
    assert not out.requires_grad
    assert torch.equal(out, neuron(x.requires_grad_()).detach())


def test_what_learns_is_what_was_asked_for():
    def learned(neuron):
        return {name for name, p in neuron.named_parameters() if p.requires_grad}

    assert learned(IF()) == set()
    assert learned(LIF(learn_threshold=True)) == {"v_threshold"}
    assert learned(PLIF(learn_amplitude=True)) == {"amplitude", "decay_logit"}
    assert learned(RoundingIF()) == {"amplitude"}
    assert learned(RoundingIF(ternary=False)) == {"amplitude", "offset"}
    assert RoundingIF().amplitude.tolist() == [1.0]
    assert RoundingIF(channels=3).amplitude.tolist() == [1.0] * 3
    assert RoundingIF(ternary=False).offset.tolist() == [0.0]


@pytest.mark.slow
@pytest.mark.filterwarnings("error:torch.compile found no")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eager_and_compiled_agree(make, dtype):
    generator = torch.Generator().manual_seed(0)
    neuron = make(channels=64)
    torch.compiler.reset()
    counters.clear()
    for batch in (1100, 1301):
        x = torch.randn(4, batch, 64, generator=generator).to(dtype)
        grad = torch.randn(x.shape, generator=generator).to(dtype)
        out, found = gradients(neuron, x, grad)
        with torch.compiler.set_stance("force_eager"):
            eager_out, eager = gradients(neuron, x, grad)
        assert (out != eager_out).float().mean() < 1e-5
        for name in eager:
            assert relative_error(found[name], eager[name]) < 1e-3, name
    graphs = counters["stats"]["unique_graphs"]
    assert 1 <= graphs <= 3, "one graph forward, one backward, whatever the batch size"


def test_compilation_can_be_switched_off():
    x = torch.randn(2, 1 << 17)
    expected, membrane = [], torch.zeros(1 << 17)
    for current in x:
        membrane = membrane + current
        spikes = (membrane >= 1).float()
        membrane = membrane - spikes
        expected.append(spikes)
    with torch._dynamo.config.patch(disable=True):  # what TORCH_COMPILE_DISABLE=1 sets on import
        assert torch.equal(IF()(x), torch.stack(expected))


@pytest.mark.slow
def test_views_gradients_and_widths_cause_no_recompilation():
    torch.compiler.reset()
    counters.clear()
    batch = 4000
    for width in (64, 65, 96, 128):
        neuron = RoundingIF(width)
        x = torch.randn(6, batch, width)
        views = [x[:4], x[1:5], x[2:].view(4, batch * width).view(4, batch, width), x[:4].clone()]
        for view in views:
            neuron(view)
            neuron(view.clone().requires_grad_())
            neuron(view.clone().requires_grad_() * 2)
            batch += 1
            x = torch.randn(6, batch, width)
    assert counters["stats"]["unique_graphs"] <= 2


@pytest.mark.slow
def test_traces_into_a_compiled_model_without_a_graph_break(make):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 8, generator=generator)
    neuron = make(channels=8)

    def model(x):
        return (neuron(x.tanh() * 2) + x).square()

    results = []
    for run in (model, torch.compile(model, fullgraph=True)):
        leaf = x.clone().requires_grad_()
        out = run(leaf)
        parameters = [p for p in neuron.parameters() if p.requires_grad]
        results.append([out, *torch.autograd.grad(out.sum(), [leaf, *parameters])])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-4)


# Errors


def test_no_time_step_is_refused(make):
    with pytest.raises(ValueError, match=r"T.*\(0, 2, 3\)"):
        make()(torch.zeros(0, 2, 3))


def test_channels_that_do_not_fit_are_named(make):
    for call in (lambda n: n(torch.zeros(4, 2, 5)), lambda n: n.step(torch.zeros(2, 5))):
        with pytest.raises(ValueError, match=r"channels.*3.*5"):
            call(make(channels=3))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("reset", "firm"),
        ("surrogate", "cosine"),
        ("surrogate_width", 0.0),
        ("v_threshold", 0.0),
        ("v_threshold", -1.0),
        ("amplitude", 0.0),
        ("channels", 0),
        ("state_dtype", torch.int8),
    ],
)
@pytest.mark.parametrize("kind", NEURONS)
def test_bad_arguments_are_named(kind, argument, value):
    with pytest.raises(ValueError, match=argument):
        NEURONS[kind](**{argument: value})


@pytest.mark.parametrize(
    ("neuron_class", "beta"), [(LIF, 0.0), (LIF, 1.5), (PLIF, 0.0), (PLIF, 1.0)]
)
def test_beta_out_of_range_is_named(neuron_class, beta):
    with pytest.raises(ValueError, match=f"beta.*{beta}"):
        neuron_class(beta=beta)


def test_collapsed_refuses_no_time_steps():
    with pytest.raises(ValueError, match=r"num_timesteps.*0"):
        RoundingIF()(torch.zeros(1, 3), num_timesteps=0, collapsed=True)


def test_collapsed_refuses_an_input_that_varies_over_time():
    with pytest.raises(ValueError, match=r"constant over time.*\(4, 3\)"):
        RoundingIF()(torch.zeros(4, 3), collapsed=True)


@pytest.mark.parametrize("size", [3, 2])
def test_collapsed_neurons_have_the_amplitudes_of_their_channels(size):
    """As many samples as channels, too, where amplitudes along the wrong axis would fit."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, size, 2, 4, 4, generator=generator)
    neuron = RoundingIF(channels=2, channel_dim=2)
    set_parameter(neuron, "amplitude", [0.8, 1.9])
    last = RoundingIF(channels=2)
    set_parameter(last, "amplitude", [0.8, 1.9])
    found = neuron(x, num_timesteps=4, collapsed=True)
    expected = last(x.movedim(2, -1), num_timesteps=4, collapsed=True).movedim(-1, 2)
    assert torch.equal(found, expected)


def test_integer_currents_are_refused(make):
    with pytest.raises(ValueError, match="int64"):
        make()(torch.ones(4, 2, dtype=torch.int64))


def test_signatures_are_the_documented_ones():
    assert list(inspect.signature(RoundingIF).parameters)[:2] == ["channels", "ternary"]
    assert next(iter(inspect.signature(IF).parameters)) == "v_threshold"
    for neuron_class in (LIF, PLIF):
        assert list(inspect.signature(neuron_class).parameters)[:2] == ["beta", "v_threshold"]


@pytest.mark.parametrize("reset", ["soft", "hard"])
def test_decay_input_is_spikingjellys_update(reset):
    """u = v + (x - v) / tau, in python floats; dyadic currents, so that ties are ties."""
    for beta in (0.5, 0.75):
        neuron = LIF(beta, decay_input=True, reset=reset)
        x = dyadic(6, 50, seed=3, scale=2.0)
        for n in range(50):
            v, expected = 0.0, []
            for current in x[:, n].tolist():
                u = v + (current - v) * (1 - beta)
                fired = u >= 1.0
                expected.append(float(fired))
                v = (0.0 if reset == "hard" else u - 1.0) if fired else u
            assert neuron(x[:, n : n + 1]).flatten().tolist() == expected
            v, stepped = None, []
            for t in range(6):
                s, v = neuron.step(x[t, n : n + 1], v)
                stepped.append(s.item())
            assert stepped == expected


def test_decay_input_gradient_is_that_of_the_scaled_current():
    neuron = LIF(
        decay_input=True,
        reset="hard",
        surrogate="sigmoid",
        state_dtype=torch.float32,
    )
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(6, 40, generator=generator)
    grad = torch.randn(6, 40, generator=generator)
    _, actual = gradients(neuron, x, grad)
    exact = x.double().requires_grad_()
    v, sent = torch.zeros(40, dtype=torch.float64), []
    for current in exact:
        u = v + (current - v) / 2
        s = Step.apply(u - 1, REFERENCE_SURROGATES["sigmoid"])
        v = u * (1 - s.detach())
        sent.append(s)
    (expected,) = torch.autograd.grad(torch.stack(sent), exact, grad.double())
    torch.testing.assert_close(actual["x"].double(), expected, rtol=1e-5, atol=1e-5)


def test_the_input_decays_in_float32_whatever_its_precision():
    neuron = LIF(0.9, decay_input=True)
    x = (6 * torch.randn(8, 4000, generator=torch.Generator().manual_seed(0))).half()
    sent = neuron(x)
    assert sent.dtype == torch.float16
    assert torch.equal(sent.float(), neuron(x.float()))
    v, state = None, NeuronState()
    for t, current in enumerate(x):
        one, v = neuron.step(current, v)
        other, state = neuron.advance(current[None], state)
        assert torch.equal(one, sent[t])
        assert torch.equal(other[0], sent[t])
        assert one.dtype == other.dtype == torch.float16
    x.requires_grad_()
    assert torch.autograd.grad(neuron(x).float().sum(), x)[0].dtype == torch.float16


def test_decay_input_needs_a_decay():
    with pytest.raises(ValueError, match="beta must be < 1 with decay_input"):
        LIF(1.0, decay_input=True)


def test_what_is_not_learned_is_no_parameter_but_is_saved():
    assert list(LIF().parameters()) == []
    assert set(LIF().state_dict()) == {"v_threshold", "amplitude"}
    neuron = LIF(v_threshold=0.25)
    other = LIF()
    other.load_state_dict(neuron.state_dict())
    x = torch.full((3, 1), 0.3)
    assert torch.equal(other(x), neuron(x))
