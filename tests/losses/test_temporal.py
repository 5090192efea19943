"""Temporal losses against a slow float64 twin written from their equations, one sample at a time."""

import math
import warnings

import pytest
import torch
from torch import nn

from spikenlp.losses import (
    TEMPORAL_LOSSES,
    few_class_weight,
    get_temporal_loss,
    gradient_scaling_factor,
    sdt_loss,
    tet_loss,
    tmc_loss,
    trt_weight_penalty,
)

pytestmark = pytest.mark.filterwarnings("ignore:literal TMC")

LITERAL_CONFIDENCE = (3 - math.sqrt(5)) / 2
REDUCTIONS = ("batch", "sample")
PUBLISHED_FIXED_POINTS = {
    4: [0.382, 0.556, 0.728, 0.894],
    10: [0.382, 0.519, 0.614, 0.692, 0.760, 0.821, 0.875, 0.921, 0.958, 0.985],
}
ALL_LOSSES = [
    ("sdt", {}),
    ("tet", {}),
    ("tet", {"mse_weight": 0.3}),
    ("tmc", {"theta_reduction": "batch"}),
    ("tmc", {"theta_reduction": "sample"}),
]


def softmax(z):
    """Softmax of one vector [C] of float64."""
    e = (z - z.max().detach()).exp()
    return e / e.sum()


def of_label(x, y):
    """Entry y of x [C], or its mean where y is a distribution [C]."""
    return x[y] if y.dim() == 0 else (y * x).sum()


def cross_entropy(z, y, smoothing=0.0):
    log_p = softmax(z).log()
    return -(1 - smoothing) * of_label(log_p, y) - smoothing * log_p.mean()


def samples(labels):
    """Numbers of the samples that count."""
    return [b for b, y in enumerate(labels) if y.dim() or y != -100]


def slow_sdt(z, labels, smoothing=0.0):
    kept = samples(labels)
    return sum(cross_entropy(z[b].mean(0), labels[b], smoothing) for b in kept) / len(kept)


def slow_tet(z, labels, mse_weight=0.0, mse_target=1.0, smoothing=0.0):
    steps, total, kept = z.shape[1], 0.0, samples(labels)
    for b in kept:
        for t in range(steps):
            ce = cross_entropy(z[b, t], labels[b], smoothing)
            mse = ((z[b, t] - mse_target) ** 2).mean()
            total = total + (1 - mse_weight) * ce + mse_weight * mse
    return total / (len(kept) * steps)


def slow_tmc(
    z, labels, reduction, weight=1.0, constant_lambda=False, odds=True, smoothing=0.0, history=None
):
    """TMC of z [B, T, C]; `history` [B, T, C] holds sg(z_1 + ... + z_{t-1}) fixed where given."""
    steps, kept = z.shape[1], samples(labels)
    total = 0.0
    for t in range(1, steps + 1):
        lam = 1.0 if constant_lambda else (steps - t + 1) / steps
        ps = []
        for b in kept:
            past = z[b, : t - 1].sum(0).detach() if history is None else history[b, t - 1]
            ps.append(of_label(softmax((past + z[b, t - 1]) / t), labels[b]))
        ps = torch.stack(ps)
        if reduction == "batch":
            ps = ps.mean()[None]
        terms = (ps / (1 - ps)) if odds else ps
        ce = sum(cross_entropy(z[b, t - 1], labels[b], smoothing) for b in kept) / len(kept)
        total = total + ce + weight * (terms**lam).mean()
    return total / steps


def sample_problem(batch=5, steps=4, classes=6, seed=0, scale=1.5, ignored=()):
    """float64 logits [B, T, C] that require a gradient, and labels [B]."""
    generator = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(batch, steps, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (batch,), generator=generator)
    for b in ignored:
        labels[b] = -100
    return z.requires_grad_(), labels


def value_and_gradient(loss, z):
    value = loss(z)
    return value, torch.autograd.grad(value, z)[0]


def assert_agrees(loss, slow, z, labels, rtol=2e-5):
    """Value and gradient of `loss` (float32) equal those of `slow` (float64)."""
    expected, expected_grad = value_and_gradient(lambda z: slow(z, labels), z)
    actual, actual_grad = value_and_gradient(
        lambda z: loss(z, labels), z.detach().float().requires_grad_()
    )
    assert actual.dtype == torch.float32
    assert actual.shape == ()
    torch.testing.assert_close(actual.double(), expected, rtol=rtol, atol=1e-6)
    torch.testing.assert_close(actual_grad.double(), expected_grad, rtol=rtol, atol=2e-6)


# Values and gradients


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("ignored", [(), (1, 3)])
def test_sdt_equals_its_equation(smoothing, ignored):
    z, labels = sample_problem(ignored=ignored)
    assert_agrees(
        lambda z, y: sdt_loss(z, y, label_smoothing=smoothing),
        lambda z, y: slow_sdt(z, y, smoothing),
        z,
        labels,
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labels_may_be_probabilities(smoothing):
    z, _ = sample_problem()
    labels = torch.rand(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels[labels < 0.3] = 0
    labels = labels / labels.sum(-1, keepdim=True)

    def probable(loss, **options):
        return lambda z, y: loss(z, y.to(z.dtype), label_smoothing=smoothing, **options)

    def slow(loss, *options):
        return lambda z, y: loss(z, y, *options, smoothing=smoothing)

    assert_agrees(probable(sdt_loss), slow(slow_sdt), z, labels)
    assert_agrees(probable(tet_loss, mse_weight=0.4), slow(slow_tet, 0.4), z, labels)
    for reduction in REDUCTIONS:
        loss = probable(tmc_loss, theta_reduction=reduction)
        assert_agrees(loss, slow(slow_tmc, reduction), z, labels)


@pytest.mark.parametrize(("name", "options"), [*ALL_LOSSES, ("trt", {})])
def test_one_hot_probabilities_are_classes(name, options):
    z, labels = sample_problem()
    loss = get_temporal_loss(name, **options)
    z = z.detach().float().requires_grad_()
    expected = value_and_gradient(lambda z: loss(z, labels), z)
    found = value_and_gradient(lambda z: loss(z, nn.functional.one_hot(labels, 6).bfloat16()), z)
    torch.testing.assert_close(found, expected)
    token_logits = z.reshape(1, 5, 4, 6).transpose(1, 2)
    tokens = loss(token_logits, nn.functional.one_hot(labels, 6).float()[None])
    torch.testing.assert_close(tokens, expected[0])


@pytest.mark.parametrize(("mse_weight", "mse_target"), [(0.0, 1.0), (1e-3, 1.0), (0.4, -0.5)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_tet_equals_its_equation(mse_weight, mse_target, smoothing):
    z, labels = sample_problem(ignored=(2,))
    assert_agrees(
        lambda z, y: tet_loss(
            z, y, mse_weight=mse_weight, mse_target=mse_target, label_smoothing=smoothing
        ),
        lambda z, y: slow_tet(z, y, mse_weight, mse_target, smoothing),
        z,
        labels,
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weight", [1.0, 0.5, "auto"])
@pytest.mark.parametrize("constant_lambda", [False, True])
@pytest.mark.parametrize("odds", [True, False])
def test_tmc_equals_its_equation(reduction, weight, constant_lambda, odds):
    z, labels = sample_problem(ignored=(0,))
    slow_weight = few_class_weight(z.shape[-1]) if weight == "auto" else weight
    assert_agrees(
        lambda z, y: tmc_loss(
            z,
            y,
            theta_reduction=reduction,
            theta_weight=weight,
            theta_lambda="constant" if constant_lambda else "linear",
            theta_odds=odds,
        ),
        lambda z, y: slow_tmc(z, y, reduction, slow_weight, constant_lambda, odds),
        z,
        labels,
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("steps", "classes"), [(1, 2), (2, 2), (7, 3), (3, 40)])
def test_tmc_equals_its_equation_over_shapes(reduction, steps, classes):
    z, labels = sample_problem(steps=steps, classes=classes, seed=steps)
    assert_agrees(
        lambda z, y: tmc_loss(z, y, theta_reduction=reduction, label_smoothing=0.1),
        lambda z, y: slow_tmc(z, y, reduction, smoothing=0.1),
        z,
        labels,
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_tmc_keeps_its_precision_at_odds_of_thousands(reduction):
    """p / (1 - p) taken in float32 would be off by 1e-4 here."""
    z, labels = sample_problem(batch=4, steps=3, classes=4, scale=0.3)
    with torch.no_grad():
        z[torch.arange(4), :, labels] += 9.5
    assert_agrees(
        lambda z, y: tmc_loss(z, y, theta_reduction=reduction),
        lambda z, y: slow_tmc(z, y, reduction),
        z,
        labels,
        rtol=1e-5,
    )


def test_tmc_defaults_are_the_papers():
    z, labels = sample_problem()
    torch.testing.assert_close(
        tmc_loss(z, labels).double(), slow_tmc(z, labels, "batch").detach(), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("odds", [True, False])
def test_tmc_gradient_is_that_of_the_loss_with_its_history_held_fixed(reduction, odds):
    z, labels = sample_problem(batch=3, steps=3, classes=4)
    history = (z.cumsum(1) - z).detach()

    def loss(z):
        return slow_tmc(z, labels, reduction, odds=odds, history=history)

    assert torch.autograd.gradcheck(loss, (z,))
    numeric = torch.zeros_like(z)
    for index in range(z.numel()):
        shift = torch.zeros_like(z)
        shift.view(-1)[index] = 1e-5
        with torch.no_grad():
            numeric.view(-1)[index] = (loss(z + shift) - loss(z - shift)) / 2e-5
    actual = torch.autograd.grad(
        tmc_loss(z, labels, theta_reduction=reduction, theta_odds=odds), z
    )[0]
    torch.testing.assert_close(actual, numeric, rtol=1e-4, atol=2e-6)


def test_tmc_history_has_no_gradient():
    """The term of step 2 alone must leave step 1's gradient as TMC of step 1 alone gives it."""
    z, labels = sample_problem(steps=2)
    changed = z.detach().clone()
    changed[:, 1] += 3.0
    gradients = [
        torch.autograd.grad(tmc_loss(x, labels, theta_reduction="sample"), x)[0][:, 0]
        for x in (z, changed.requires_grad_())
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "options"), ALL_LOSSES)
def test_losses_compute_in_float32_whatever_the_dtype(name, options, dtype):
    z, labels = sample_problem()
    z = z.detach().to(dtype)
    loss = get_temporal_loss(name, **options)
    actual = loss(z.requires_grad_(), labels)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, loss(z.detach().float(), labels), rtol=1e-6, atol=1e-6)
    actual.backward()
    assert z.grad.dtype == dtype


@pytest.mark.parametrize(("name", "options"), ALL_LOSSES)
def test_losses_do_not_depend_on_autocast(name, options):
    z, labels = sample_problem()
    loss = get_temporal_loss(name, **options)
    outside = loss(z.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(z.float(), labels)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)


# Closed forms of the gradient


@pytest.mark.parametrize("weight", [1.0, 0.3, "auto"])
@pytest.mark.parametrize(("steps", "classes"), [(1, 2), (2, 2), (4, 3), (4, 10), (10, 6)])
def test_tmc_sample_scales_cross_entropy_by_its_closed_forms(weight, steps, classes):
    """dL/dz[y] = g_t (P_y - 1) / BT and dL/dz[j] = g_j P_j / BT, with g_t and g_j as derived."""
    z, labels = sample_problem(batch=4, steps=steps, classes=classes, seed=classes)
    actual = torch.autograd.grad(
        tmc_loss(z, labels, theta_reduction="sample", theta_weight=weight), z
    )[0]
    w = few_class_weight(classes) if weight == "auto" else weight
    factors = gradient_scaling_factor(z, labels, theta_weight=weight)
    assert factors.shape == z.shape[:2]
    for b in range(4):
        y = labels[b].item()
        for t in range(1, steps + 1):
            lam = (steps - t + 1) / steps
            now = softmax(z[b, t - 1].detach())
            mean = softmax(z[b, :t].detach().mean(0))
            term = w * lam * (mean[y] / (1 - mean[y])) ** lam / t
            expected = torch.empty(classes, dtype=torch.float64)
            for j in range(classes):
                if j == y:
                    g = 1 - term / (1 - now[y])
                    torch.testing.assert_close(factors[b, t - 1].double(), g, rtol=1e-4, atol=1e-5)
                    expected[j] = g * (now[y] - 1)
                else:
                    expected[j] = (1 - term * mean[j] / ((1 - mean[y]) * now[j])) * now[j]
            torch.testing.assert_close(
                actual[b, t - 1], expected / (4 * steps), rtol=1e-4, atol=1e-6
            )


@pytest.mark.parametrize("weight", [1.0, "auto"])
def test_gradient_scaling_factor_agrees_with_autograd(weight):
    """g_t is the ratio of TMC's and TET's gradients of the target logit."""
    z, labels = sample_problem(batch=6, steps=5, classes=8)
    tmc = torch.autograd.grad(
        tmc_loss(z, labels, theta_reduction="sample", theta_weight=weight), z
    )[0]
    tet = torch.autograd.grad(tet_loss(z, labels), z)[0]
    index = labels[:, None, None].expand(6, 5, 1)
    ratio = (tmc.gather(-1, index) / tet.gather(-1, index))[..., 0]
    actual = gradient_scaling_factor(z, labels, theta_weight=weight)
    torch.testing.assert_close(actual.double(), ratio, rtol=1e-4, atol=1e-5)
    assert not actual.requires_grad


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_gradient_scaling_factor_at_chance(classes, steps):
    factors = gradient_scaling_factor(torch.zeros(1, steps, classes), torch.tensor([0]))
    for t in range(1, steps + 1):
        lam = (steps - t + 1) / steps
        expected = 1 - lam / t * (1 / (classes - 1)) ** lam * classes / (classes - 1)
        assert factors[0, t - 1].item() == pytest.approx(expected, abs=1e-5)


# Fixed points


def logits_of_confidence(p, classes, steps=1):
    """[1, steps, C] float64 with softmax(z_t)[0] = p at every step."""
    z = torch.zeros(1, steps, classes, dtype=torch.float64)
    z[..., 0] = math.log(p / (1 - p)) + math.log(classes - 1)
    return z.requires_grad_()


def settled_confidence(classes, weight, steps=1, step=1):
    """The p at which the gradient of step `step`'s target logit vanishes, by bisection."""

    def gradient(p):
        z = logits_of_confidence(p, classes, steps)
        loss = tmc_loss(z, torch.tensor([0]), theta_reduction="sample", theta_weight=weight)
        return torch.autograd.grad(loss, z)[0][0, step - 1, 0].item()

    low, high = 1e-4, 1 - 1e-4
    assert gradient(low) < 0 < gradient(high)
    for _ in range(22):
        middle = (low + high) / 2
        low, high = (middle, high) if gradient(middle) < 0 else (low, middle)
    return (low + high) / 2


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_literal_tmc_settles_at_0_382_whatever_the_number_of_classes(classes):
    assert settled_confidence(classes, 1.0) == pytest.approx(LITERAL_CONFIDENCE, abs=1e-3)


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
@pytest.mark.parametrize("steps", [1, 4])
def test_few_class_weight_settles_at_chance_normalised_confidence(classes, steps):
    expected = 1 / classes + LITERAL_CONFIDENCE * (1 - 1 / classes)
    assert settled_confidence(classes, "auto", steps) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("classes", "reduction"), [(2, "sample"), (5, "sample"), (5, "batch")])
def test_gradient_descent_on_the_few_class_weight_ends_at_its_fixed_point(classes, reduction):
    z = torch.zeros(3, 1, classes, requires_grad=True)
    labels = torch.tensor([0, 1, 1])
    optimizer = torch.optim.SGD([z], lr=2.0)
    for _ in range(150):
        optimizer.zero_grad()
        tmc_loss(z, labels, theta_reduction=reduction, theta_weight="auto").backward()
        optimizer.step()
    confidence = z.detach().softmax(-1)[torch.arange(3), 0, labels]
    expected = 1 / classes + LITERAL_CONFIDENCE * (1 - 1 / classes)
    torch.testing.assert_close(confidence, torch.full((3,), expected), rtol=0, atol=2e-3)


@pytest.mark.parametrize(("classes", "expected"), [(2, 0.138), (3, 0.289), (10, 0.697)])
def test_few_class_weight_values(classes, expected):
    assert few_class_weight(classes) == pytest.approx(expected, abs=5e-4)


def test_few_class_weight_rises_to_the_papers_one():
    weights = [few_class_weight(c) for c in (2, 3, 5, 10, 100, 10_000, 10**7)]
    assert weights == sorted(weights)
    assert weights[-1] == pytest.approx(1, abs=1e-5)
    assert weights[-1] < 1
    with pytest.raises(ValueError, match=r"num_classes.*1"):
        few_class_weight(1)


@pytest.mark.parametrize("steps", sorted(PUBLISHED_FIXED_POINTS))
def test_published_fixed_points_hold_where_the_logits_are_the_same_at_every_step(steps):
    for step, published in enumerate(PUBLISHED_FIXED_POINTS[steps], start=1):
        found = settled_confidence(10, 1.0, steps, step)
        assert found == pytest.approx(published, abs=1.1e-3), f"step {step} of {steps}"


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_literal_tmc_teaches_a_binary_task_the_wrong_class_at_step_1_and_auto_does_not(reduction):
    def accuracy_by_step(weight):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(256, 8, generator=generator)
        labels = (x[:, 0] + 0.5 * x[:, 1] > 0).long()
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2 * 2))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
        for _ in range(100):
            optimizer.zero_grad()
            z = net(x).view(-1, 2, 2)
            tmc_loss(z, labels, theta_reduction=reduction, theta_weight=weight).backward()
            optimizer.step()
        running = net(x).view(-1, 2, 2).cumsum(1)
        return (running.argmax(-1) == labels[:, None]).float().mean(0).tolist()

    literal, auto = accuracy_by_step(1.0), accuracy_by_step("auto")
    assert literal[0] < 0.1
    assert min(auto) > 0.95


# Extremes


def extreme_logits():
    """[5, 4, 3] of 0 and +-1e4, and labels: sure and right, sure and wrong, even, alternating."""
    z = torch.zeros(5, 4, 3)
    z[:2, :, 0] = 1e4
    z[2] = -1e4
    z[3, ::2, 0], z[3, 1::2, 0] = 1e4, -1e4
    z[4] = torch.tensor([-1e4, 1e4, -1e4])
    return z, torch.tensor([0, 1, 2, 0, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("name", "options"),
    [*ALL_LOSSES, ("tmc", {"theta_odds": False}), ("tmc", {"theta_lambda": "constant"})],
)
def test_logits_of_1e4_give_finite_loss_and_gradient(name, options, dtype):
    z, labels = extreme_logits()
    z = z.to(dtype).requires_grad_()
    loss = get_temporal_loss(name, **options)(z, labels)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradient_scaling_factor_of_logits_of_1e4_is_a_number(dtype):
    """-inf is its limit where the step is sure and the mean is not; a sure mean leaves CE alone."""
    z, labels = extreme_logits()
    factors = gradient_scaling_factor(z.to(dtype), labels)
    assert not factors.isnan().any()
    assert (factors <= 1).all()
    for sure in (0, 4):
        assert (factors[sure] == 1).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_sure_and_wrong_samples_keep_their_cross_entropy_gradient(reduction):
    """At p -> 0 theta vanishes and TMC is TET."""
    z = torch.zeros(2, 2, 3)
    z[..., 1] = 50.0
    labels = torch.tensor([0, 2])
    _, tmc = value_and_gradient(
        lambda z: tmc_loss(z, labels, theta_reduction=reduction), z.clone().requires_grad_()
    )
    _, tet = value_and_gradient(lambda z: tet_loss(z, labels), z.clone().requires_grad_())
    torch.testing.assert_close(tmc, tet)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_theta_max_bounds_theta(reduction):
    z = torch.zeros(2, 1, 2)
    z[..., 0] = 60.0
    labels = torch.tensor([0, 0])
    ce = tet_loss(z, labels).item()
    for bound in (2.0, 50.0):
        bounded = tmc_loss(z, labels, theta_reduction=reduction, theta_max=bound).item()
        assert bounded == pytest.approx(ce + bound, rel=1e-5)


# Micro-batches


@pytest.mark.parametrize(
    ("name", "options", "separable"),
    [
        ("sdt", {}, True),
        ("tet", {"mse_weight": 0.1}, True),
        ("tmc", {"theta_reduction": "sample", "theta_weight": "auto"}, True),
        ("tmc", {"theta_reduction": "batch"}, False),
    ],
)
def test_only_tmc_batch_depends_on_how_a_batch_is_cut(name, options, separable):
    z, labels = sample_problem(batch=9, ignored=(3, 8), scale=3.0)
    loss = get_temporal_loss(name, **options)
    whole, whole_grad = value_and_gradient(lambda z: loss(z, labels), z)
    kept = (labels != -100).sum()

    def in_pieces(z):
        return sum(
            loss(piece, y) * (y != -100).sum() / kept
            for piece, y in zip(z.split([4, 2, 3]), labels.split([4, 2, 3]), strict=True)
        )

    cut, cut_grad = value_and_gradient(in_pieces, z)
    assert torch.allclose(whole, cut, rtol=1e-5) is separable
    assert torch.allclose(whole_grad, cut_grad, rtol=1e-4, atol=1e-6) is separable


# Labels


@pytest.mark.parametrize(("name", "options"), ALL_LOSSES)
def test_ignored_samples_change_nothing_and_get_no_gradient(name, options):
    z, labels = sample_problem(batch=6, ignored=(1, 4))
    loss = get_temporal_loss(name, **options)
    value, grad = value_and_gradient(lambda z: loss(z, labels), z)
    kept = labels != -100
    alone, alone_grad = value_and_gradient(
        lambda z: loss(z, labels[kept]), z.detach()[kept].requires_grad_()
    )
    torch.testing.assert_close(value, alone)
    torch.testing.assert_close(grad[kept], alone_grad)
    assert (grad[~kept] == 0).all()


@pytest.mark.parametrize(("name", "options"), ALL_LOSSES)
def test_token_labels_are_samples_of_their_own(name, options):
    """[B, T, L, C] with labels [B, L] is [B * L, T, C] with labels [B * L]."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 3, 5, 4, generator=generator)
    labels = torch.randint(4, (2, 5), generator=generator)
    labels[0, 3:] = -100
    loss = get_temporal_loss(name, **options)
    value, grad = value_and_gradient(lambda z: loss(z, labels), z.clone().requires_grad_())
    flat = torch.stack([z[b, :, i] for b in range(2) for i in range(5)])
    flat_value, flat_grad = value_and_gradient(
        lambda z: loss(z, labels.flatten()), flat.requires_grad_()
    )
    torch.testing.assert_close(value, flat_value)
    torch.testing.assert_close(grad.transpose(1, 2).reshape(10, 3, 4), flat_grad)


# Regression


@pytest.mark.parametrize("label_shape", [(4,), (4, 1)])
def test_one_output_is_regression_with_mse(label_shape):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4, 3, 1, generator=generator)
    labels = torch.randn(4, generator=generator)
    expected_sdt = sum((z[b].mean() - labels[b]) ** 2 for b in range(4)) / 4
    expected_tet = sum((z[b, t, 0] - labels[b]) ** 2 for b in range(4) for t in range(3)) / 12
    torch.testing.assert_close(sdt_loss(z, labels.view(label_shape)), expected_sdt)
    torch.testing.assert_close(tet_loss(z, labels.view(label_shape)), expected_tet)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_tmc_refuses_regression(reduction):
    with pytest.raises(ValueError, match="regression"):
        tmc_loss(torch.randn(4, 3, 1), torch.randn(4), theta_reduction=reduction)


# Errors and warnings


def test_trt_against_a_loop():
    z, labels = sample_problem(ignored=(2,))
    kept, total = [0, 1, 3, 4], 0.0
    for b in kept:
        for t in range(z.shape[1]):
            target = torch.zeros(z.shape[2], dtype=z.dtype)
            target[labels[b]] = 1
            mse = ((z[b, t] - target) ** 2).mean()
            total = total + 0.7 * cross_entropy(z[b, t], labels[b], 0.1) + 0.3 * mse
    expected = total / (len(kept) * z.shape[1])
    found = TEMPORAL_LOSSES["trt"](z, labels, mse_weight=0.3, label_smoothing=0.1)
    torch.testing.assert_close(found.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="classification"):
        TEMPORAL_LOSSES["trt"](z[..., :1], torch.zeros(5))


def test_the_weight_penalty_of_trt_against_a_loop():
    weights = [
        torch.tensor([[0.5, -2.0], [0.0, 1e-3]], dtype=torch.float64),
        torch.ones(3).double(),
    ]
    expected = 0.0
    for t in (1, 2, 3):
        for w in (w for tensor in weights for w in tensor.flatten().tolist()):
            expected += w**2 * 1e-2 / (1 + (math.exp(0.4 * t) - 1) * (abs(w) + 1e-5)) / 3
    leaves = [w.clone().requires_grad_() for w in weights]
    found = trt_weight_penalty(leaves, 3, strength=1e-2, growth=0.4)
    assert found.item() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(
        lambda w: trt_weight_penalty([w], 3, strength=1.0), leaves[0][:1]
    )


def test_the_weight_penalty_of_trt_has_no_second_derivative():
    """Which would be left out in silence beside a loss that has one."""
    weight = torch.ones(3, requires_grad=True)
    loss = trt_weight_penalty([weight], 4) + weight.pow(3).sum()
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(loss, weight, create_graph=True)


def test_the_weight_penalty_of_trt_keeps_the_weights_alone():
    kept = []
    weight = torch.randn(5, 3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.append(x.numel()) or x, lambda x: x
    ):
        trt_weight_penalty([weight], 100).backward()
    assert sum(kept) == weight.numel()


@pytest.mark.parametrize("name", ["sdt", "tet", "tmc", "trt"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_classes_may_be_of_any_integer_type(name, dtype):
    z, labels = torch.randn(3, 4, 5), torch.tensor([0, 4, 2])
    loss = TEMPORAL_LOSSES[name]
    assert loss(z, labels.to(dtype)) == loss(z, labels)


@pytest.mark.parametrize("name", ["sdt", "tet", "tmc", "trt"])
@pytest.mark.parametrize(
    ("z", "labels", "message"),
    [
        (torch.zeros(2, 3, 4), torch.tensor([0, 4]), "labels"),
        (torch.zeros(2, 3, 4), torch.tensor([-1, 0]), "labels"),
        (torch.zeros(2, 3, 4), torch.tensor([0, 1, 2]), "labels"),
        (torch.zeros(2, 3, 4), torch.tensor([[0], [1]]), "labels"),
        (torch.zeros(2, 3, 4), torch.tensor([0.0, 1.0]), "labels"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 4), "sum to 1"),
        (torch.zeros(2, 3, 4), torch.tensor([[1.5, -0.5, 0, 0], [1, 0, 0, 0]]), ">= 0"),
        (torch.zeros(2, 3, 4), torch.full((2, 4), math.nan), "labels"),
        (torch.zeros(2, 3, 4), torch.full((2, 5), 0.2), "labels"),
        (torch.zeros(2, 3, 5, 4), torch.tensor([0, 1]), "labels"),
        (torch.zeros(2, 3, 5, 4), torch.zeros(2, 3, dtype=torch.long), "labels"),
        (torch.zeros(2, 4), torch.tensor([0, 1]), "timestep_logits"),
        (torch.zeros(2, 0, 4), torch.tensor([0, 1]), "timestep_logits"),
        (torch.full((2, 3, 4), math.nan), torch.tensor([0, 1]), "timestep_logits"),
        (torch.full((2, 3, 4), math.inf), torch.tensor([0, 1]), "timestep_logits"),
    ],
)
def test_bad_inputs_are_named(name, z, labels, message):
    with pytest.raises(ValueError, match=message):
        TEMPORAL_LOSSES[name](z, labels)


@pytest.mark.parametrize("name", ["sdt", "tet", "tmc", "trt"])
@pytest.mark.parametrize("smoothing", [-0.5, 1.0])
def test_label_smoothing_out_of_range_is_named(name, smoothing):
    with pytest.raises(ValueError, match="label_smoothing"):
        TEMPORAL_LOSSES[name](torch.zeros(2, 3, 4), torch.tensor([0, 1]), label_smoothing=smoothing)


@pytest.mark.parametrize("name", ["sdt", "tet"])
def test_label_smoothing_is_not_for_regression(name):
    with pytest.raises(ValueError, match="in regression"):
        TEMPORAL_LOSSES[name](torch.zeros(2, 3, 1), torch.ones(2), label_smoothing=0.1)


def test_unknown_loss_names_the_choices():
    with pytest.raises(ValueError, match=r"(?s)tcm.*sdt.*tet.*tmc"):
        get_temporal_loss("tcm")


@pytest.mark.parametrize(
    ("name", "option"), [("sdt", "mse_weight"), ("tet", "theta_weight"), ("tmc", "theta_weigth")]
)
def test_unknown_option_is_named_with_the_choices(name, option):
    with pytest.raises(ValueError, match=rf"(?s){option}.*label_smoothing"):
        get_temporal_loss(name, **{option: 1.0})


@pytest.mark.parametrize(
    "option",
    [
        {"theta_reduction": "mean"},
        {"theta_weight": "few"},
        {"theta_weight": -0.5},
        {"theta_weight": math.inf},
        {"theta_lambda": "cosine"},
        {"theta_max": 0.0},
    ],
)
def test_bad_tmc_option_is_named(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        tmc_loss(torch.zeros(2, 3, 4), torch.tensor([0, 1]), **option)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("classes", "steps"), [(2, 2), (2, 4), (3, 4), (3, 1)])
def test_literal_tmc_on_few_classes_and_steps_warns(classes, steps):
    z, labels = torch.zeros(2, steps, classes), torch.tensor([0, 1])
    with pytest.warns(UserWarning, match=r"auto"):
        tmc_loss(z, labels)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("classes", "steps", "weight"), [(2, 2, "auto"), (2, 2, 0.138), (4, 2, 1.0), (2, 5, 1.0)]
)
def test_other_settings_of_tmc_do_not_warn(classes, steps, weight):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tmc_loss(torch.zeros(2, steps, classes), torch.tensor([0, 1]), theta_weight=weight)
    assert not caught
