"""Dropout by a few bits of random numbers: as often, as fair and as repeatable as torch's."""

import pytest
import torch

from anyformer.model.config import TransformerConfig
from anyformer.model.edges import causal
from anyformer.model.kernels.dropout import Dropout, dropout
from anyformer.model.kernels.select import AttentionSpec, select_kernel, is_matmul_faster


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.001, 0.1, 0.25, 0.9])
def test_so_often_and_nothing_is_lost_in_the_mean(p: float, dtype: torch.dtype):
    torch.manual_seed(0)
    y = dropout(torch.ones(1000, 1003, dtype=dtype), p)
    gone, n = (y == 0).float().mean().item(), y.numel()
    assert abs(gone - p) < 5 * (p * (1 - p) / n) ** 0.5 + 2e-5
    assert y[y != 0].unique().tolist() == pytest.approx([1 / (1 - p)], rel=5e-3)
    assert y.dtype == dtype and y.shape == (1000, 1003)


def test_neighbours_fall_out_independently():
    """Four of them share a number of 64 bits."""
    torch.manual_seed(0)
    gone = (dropout(torch.ones(4_000_000), 0.3) == 0).float().view(-1, 4)
    pairs = (gone.T @ gone / len(gone)).fill_diagonal_(0.09)
    assert (pairs - 0.09).abs().max() < 1e-3 and (gone.mean(0) - 0.3).abs().max() < 2e-3
    assert ((gone[1:] * gone[:-1]).mean(0) - 0.09).abs().max() < 1e-3


def test_what_falls_out_gets_no_gradient_and_the_seed_says_what():
    x = torch.randn(7, 33, requires_grad=True)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        y = dropout(x, 0.5)
        found.append((y, *torch.autograd.grad(y.sum(), x)))
    (y, dx), again, other = found
    assert torch.equal(dx, (y != 0) * 2.0) and torch.equal(y, 2 * x * (y != 0))
    assert torch.equal(y, again[0]) and not torch.equal(y, other[0])


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_none_and_all(p: float):
    x = torch.randn(5)
    assert torch.equal(dropout(x, p), x * (1 - p))


def test_it_is_quiet_when_nobody_trains():
    x, drop = torch.randn(50), Dropout(0.5)
    assert not torch.equal(drop(x), x) and torch.equal(drop.eval()(x), x) and torch.equal(Dropout(0.0)(x), x)
    assert repr(drop) == "Dropout(p=0.5)" and TransformerConfig().dropout == 0


def test_float32_that_drops_out_goes_by_products():
    q, k, v = torch.randn(3, 2, 4, 40, 8).unbind()
    assert is_matmul_faster(q, k, 0.1) and not is_matmul_faster(q, k)
    path = select_kernel(causal, None, AttentionSpec(2, 4, 40, 40, 0, q.device, 0.1))
    torch.manual_seed(0)
    many = torch.stack([path(q, k, v, 0.1) for _ in range(2000)])
    error = (many.mean(0) - path(q, k, v)).abs() / many.std(0).clamp(min=1e-6)
    assert error.max() < 5 / 2000**0.5
