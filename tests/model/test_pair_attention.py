"""Attention by position alone equals a sum over pairs, and no place reads itself."""

import pytest
import torch

from anyformer.model.pair_attention import GAIN, PairAttention


@torch.no_grad()
def test_it_is_a_sum_over_the_other_places():
    torch.manual_seed(0)
    layer, ids = PairAttention(5, 7, 3, 2).double(), torch.randint(7, (4, 5))
    layer.initialize()
    weights = (GAIN * layer.bias).masked_fill(torch.eye(5, dtype=torch.bool), -torch.inf).exp()
    weights /= weights.sum(-1, keepdim=True)
    for row, logits in zip(ids, layer(ids), strict=True):
        for i in range(5):
            read = torch.zeros(3, 2, dtype=torch.float64)  # of the heads
            for j in range(5):
                read += weights[:, i, j, None] * layer.value.weight[row[j]].view(3, 2)
            torch.testing.assert_close(logits[i], layer.output.weight @ read.flatten())
    changed = ids.clone()
    changed[:, 2] = (ids[:, 2] + 1) % 7
    reached = (layer(changed) - layer(ids)).abs().amax((0, 2)) > 1e-12
    assert reached.tolist() == [True, True, False, True, True]
    assert layer.attention_weights().sum(-1) == pytest.approx(torch.ones(3, 5))


def test_gradients_reach_all_weights():
    torch.manual_seed(0)
    layer = PairAttention(4, 3, 2, 2)
    layer.initialize()
    layer(torch.randint(3, (2, 4))).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in layer.parameters())


@torch.no_grad()
def test_couplings_are_what_a_token_adds_to_the_logits():
    """The layer is linear: a token at place j adds to the logits of place i what its coupling says."""
    torch.manual_seed(0)
    layer = PairAttention(4, 3, 2, 2).double()
    layer.initialize()
    norms, total = torch.zeros(4, 4, dtype=torch.float64), 0.0
    for i in range(4):
        for j in range(4):
            rows = torch.zeros(3, 4, dtype=torch.long)
            rows[:, j] = torch.arange(3)
            others = rows.clone()
            others[:, j] = 0
            coupling = layer(rows)[:, i] - layer(others)[:, i]  # but for what token 0 adds
            coupling = coupling - coupling.mean(0) - coupling.mean(1, keepdim=True) + coupling.mean()
            norms[i, j] = coupling.norm()
            read = layer.attention_weights()[:, i, j, None, None] * layer.head_maps()
            total += read.sum(0).square().sum().item()
    torch.testing.assert_close(layer.measure_couplings(), norms)
    assert layer.sum_couplings().item() == pytest.approx(total)
    assert (layer.measure_couplings(first=1) <= norms + 1e-12).all()
