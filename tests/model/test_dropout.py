"""Dropout by 16 random bits for each entry: as frequent, independent and repeatable as torch's."""

import pytest
import torch

from anyformer.model.edges import causal
from anyformer.model.kernels.dropout import Dropout, dropout
from anyformer.model.kernels.sdpa import is_matmul_faster
from anyformer.model.kernels.select import AttentionSpec, select_kernel


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.001, 0.1, 0.25, 0.9])
def test_the_frequency_is_p_and_the_mean_is_kept(p: float, dtype: torch.dtype):
    torch.manual_seed(0)
    y = dropout(torch.ones(500, 1003, dtype=dtype), p)
    frequency, n = (y == 0).float().mean().item(), y.numel()
    assert abs(frequency - p) < 5 * (p * (1 - p) / n) ** 0.5 + 2e-5
    assert y[y != 0].unique().tolist() == pytest.approx([1 / (1 - p)], rel=5e-3)
    assert y.dtype == dtype and y.shape == (500, 1003)


def test_neighbors_are_dropped_independently():
    """Four of them share a random number of 64 bits."""
    torch.manual_seed(0)
    is_dropped = (dropout(torch.ones(4_000_000), 0.3) == 0).float().view(-1, 4)
    pairs = (is_dropped.T @ is_dropped / len(is_dropped)).fill_diagonal_(0.09)
    assert (pairs - 0.09).abs().max() < 1e-3 and (is_dropped.mean(0) - 0.3).abs().max() < 2e-3
    assert ((is_dropped[1:] * is_dropped[:-1]).mean(0) - 0.09).abs().max() < 1e-3


def test_dropped_entries_have_no_gradient_and_the_seed_decides():
    x = torch.randn(7, 33, requires_grad=True)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        y = dropout(x, 0.5)
        outputs.append(y)
        assert torch.equal(torch.autograd.grad(y.sum(), x)[0], (y != 0) * 2.0) and torch.equal(y, 2 * x * (y != 0))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_none_and_all(p: float):
    x = torch.randn(5)
    assert torch.equal(dropout(x, p), x * (1 - p))


def test_the_module_acts_in_training_only():
    x, drop = torch.randn(50), Dropout(0.5)
    assert not torch.equal(drop(x), x) and torch.equal(drop.eval()(x), x) and torch.equal(Dropout(0.0)(x), x)
    assert repr(drop) == "Dropout(p=0.5)"


def test_attention_weights_are_dropped_in_float32():
    q, k, v = torch.randn(3, 2, 4, 40, 8).unbind()
    assert is_matmul_faster(q, k, 0.1) and not is_matmul_faster(q, k)
    kernel = select_kernel(causal, None, AttentionSpec(2, 4, 40, 40, 0, q.device, 0.1))
    torch.manual_seed(0)
    samples = torch.stack([kernel(q, k, v, 0.1) for _ in range(1000)])
    error = (samples.mean(0) - kernel(q, k, v)).abs() / samples.std(0).clamp(min=1e-6)
    assert error.max() < 5 / 1000**0.5
