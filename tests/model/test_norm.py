"""Norms of one node, for which a CPU has a way of its own, and of many."""

import pytest
import torch

from anyformer.model.norm import MAX_MIRRORED, JointRMSNorm, RMSNorm, RMSNorm1p


@pytest.mark.parametrize("kind", [RMSNorm, RMSNorm1p])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_a_node_is_normed_as_among_others(kind: type[RMSNorm], scale: float, rows: int):
    torch.manual_seed(0)
    norm, x = kind(48, 1e-6), scale * (torch.randn(rows, 48) + 0.5)
    torch.nn.init.normal_(norm.weight)
    weight = norm.weight.double() + (kind is RMSNorm1p)
    exact = x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight
    assert (x.numel() <= MAX_MIRRORED) == (rows < 100)
    for y in (norm(x), torch.no_grad()(norm)(x), torch.inference_mode()(norm)(x)):
        torch.testing.assert_close(y.double(), exact, rtol=2e-6, atol=1e-7)
    assert norm(x).requires_grad and not torch.no_grad()(norm)(x).requires_grad


@torch.no_grad()
def test_a_node_of_zeros_stays_one():
    assert torch.equal(RMSNorm(8, 1e-6)(torch.zeros(1, 8)), torch.zeros(1, 8))
    assert torch.isfinite(RMSNorm(8)(torch.zeros(1, 8))).all(), "without an epsilon, that of the number format"


@torch.no_grad()
def test_all_heads_of_a_node_together():
    norm, x = JointRMSNorm(12, 1e-6), torch.randn(2, 3, 5, 4)
    expected = RMSNorm(12, 1e-6)(x.transpose(1, 2).reshape(2, 5, 12)).view(2, 5, 3, 4).transpose(1, 2)
    assert torch.equal(norm(x), expected)
