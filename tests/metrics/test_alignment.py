"""Linear CKA against its definition with kernels, and what leaves it as it is."""

import math

import pytest
import torch

from spikenlp.metrics import LinearCKA


def by_kernels(x, y):
    """tr(KHLH) / sqrt(tr(KHKH) tr(LHLH)) with K = X X^T, L = Y Y^T and the centring H."""
    h = torch.eye(len(x), dtype=torch.float64) - 1 / len(x)
    k, m = h @ x @ x.T @ h, h @ y @ y.T @ h
    return float((k * m).sum() / ((k * k).sum() * (m * m).sum()).sqrt())


def gathered(x, y, sizes):
    cka = LinearCKA()
    for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
        cka.update(a, b)
    return cka.compute()


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, dtype=torch.float64, generator=generator) + 3
    y = x[:, :3] @ torch.randn(3, 8, dtype=torch.float64, generator=generator)
    return x, y + torch.randn(40, 8, dtype=torch.float64, generator=generator)


def test_batches_of_other_widths_give_what_the_kernels_do(pair):
    assert gathered(*pair, [7, 30, 3]) == pytest.approx(by_kernels(*pair), rel=1e-10)
    assert 0.2 < by_kernels(*pair) < 0.9


def test_rotated_scaled_and_moved_it_is_the_same(pair):
    x, y = pair
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    moved = -0.3 * x @ rotation + 7
    assert gathered(x, moved, 40) == pytest.approx(1)
    assert gathered(moved, y, 40) == pytest.approx(gathered(x, y, 40))


def test_unrelated_ones_are_near_zero():
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randn(20000, 4, generator=generator) for _ in range(2))
    assert gathered(first, second, 20000) < 0.001


def test_what_does_not_vary_is_like_nothing(pair):
    x, _ = pair
    for constant in (0.0, 0.1, 1e6):
        assert math.isnan(gathered(x, torch.full((len(x), 3), constant), 7))
    assert gathered(x, x * 1e-3 + 100, 7) == pytest.approx(1, abs=1e-3)


def test_what_cannot_be_compared_is_refused(pair):
    x, y = pair
    with pytest.raises(ValueError, match="no row was added"):
        LinearCKA().compute()
    with pytest.raises(ValueError, match=r"got \[40, 5\] and \[39, 8\]"):
        LinearCKA().update(x, y[1:])
    with pytest.raises(ValueError, match=r"got \[5\] and \[8\]"):
        LinearCKA().update(x[0], y[0])
    cka = LinearCKA()
    cka.update(x, y)
    with pytest.raises(ValueError, match="widths 5 and 8, now they have 8 and 5"):
        cka.update(y, x)


def test_no_graph_is_kept(pair):
    x, y = (side.clone().requires_grad_() for side in pair)
    cka = LinearCKA()
    cka.update(x, y)
    assert not cka._products.requires_grad
