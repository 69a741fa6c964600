"""The blocks that FlexAttention skips. (That its path is exact, the oracle says.)"""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from anyformer.model.edges import causal, window
from anyformer.model.kernels import flex
from rules import READY

B, H = 2, 4


@pytest.mark.parametrize("name", [*READY])
@pytest.mark.parametrize("pairs", [1, 1 << 26])
def test_the_blocks_of_a_rule_are_those_that_torch_finds(name: str, pairs: int, monkeypatch):
    """Looked at a few rows at a time, or all at once."""
    monkeypatch.setattr(flex, "ASKED", pairs)
    edges, nodes = READY[name](B, 300), 300
    ours = flex.block_mask(edges, B, H, nodes, nodes, torch.device("cpu"))
    b, h = B if edges.uses_batch else None, H if edges.uses_head else None
    theirs = create_block_mask(edges, b, h, nodes, nodes, device="cpu")
    assert ours.shape == theirs.shape and ours.sparsity() == theirs.sparsity()
    for what in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(ours, what), getattr(theirs, what)), what
    for many, which in (("kv_num_blocks", "kv_indices"), ("full_kv_num_blocks", "full_kv_indices")):
        real = torch.arange(3) < getattr(ours, many)[..., None]  # behind them stands anything
        assert torch.equal(getattr(ours, which)[real], getattr(theirs, which)[real]), which


def test_a_window_is_some_blocks_wide_however_long_the_text():
    """Within memory that torch's own way would not have: every pair of these is 4 GB of yes and no."""
    nodes = 1 << 16
    mask = flex.block_mask(causal & window(256), 1, 1, nodes, nodes, torch.device("cpu"))
    looked = mask.kv_num_blocks + mask.full_kv_num_blocks
    assert looked.shape == (1, 1, nodes // flex.BLOCK) and looked.max() == 3
