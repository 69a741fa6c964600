"""FlexAttention: one kernel compiled for the rule of edges, blocks without edges skipped.

Shapes: B batch, H heads, Q queries, K keys, D channels of a head, n blocks of queries, m blocks of keys.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..edges import Edges

BLOCK = 128  # queries and keys of a block
ASKED = 1 << 26  # pairs whose edges are looked at together


@dataclass(frozen=True)
class Flex:
    """The rule as blocks of queries and keys: those with some edges, and those with all."""

    block_mask: object
    score_mod: Callable | None
    compiled: bool = True

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, drop: float = 0.0, scale: float | None = None) -> Tensor:
        attend = _flex(self.compiled)
        grouped = k.shape[1] != q.shape[1]
        return attend(q, k, v, score_mod=self.score_mod, block_mask=self.block_mask, scale=scale, enable_gqa=grouped)


def block_mask(edges: Edges, batch: int, heads: int, queries: int, keys: int, device: torch.device) -> object:
    """The BlockMask of a rule. torch's own function looks at every pair at once, which at 64k nodes no memory holds:
    here some rows of blocks at a time."""
    from torch.nn.attention.flex_attention import BlockMask

    n, m = -(-queries // BLOCK), -(-keys // BLOCK)
    shape = (batch if edges.uses_batch else 1, heads if edges.uses_head else 1, n, m)
    some, every = (torch.zeros(shape, dtype=torch.bool, device=device) for _ in range(2))
    rows = max(1, ASKED // (shape[0] * shape[1] * m * BLOCK**2))
    for first in range(0, n, rows):
        last = min(n, first + rows)
        left = int(max(0, first - edges.left_span // BLOCK - 1))  # what lies further than the rule's span has no edges
        right = int(min(m, last + edges.right_span // BLOCK + 1))
        q = torch.arange(first * BLOCK, last * BLOCK, device=device).view(1, 1, -1, 1)
        k = torch.arange(left * BLOCK, right * BLOCK, device=device).view(1, 1, 1, -1)
        there = edges.evaluate(q.clamp(max=queries - 1), k.clamp(max=keys - 1), batch, heads) & (q < queries) & (k < keys)
        blocks = there.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).transpose(3, 4).flatten(4)
        some[:, :, first:last, left:right] = blocks.any(-1)
        every[:, :, first:last, left:right] = blocks.all(-1)
    return BlockMask.from_kv_blocks(
        *_listed(some & ~every), *_listed(every), BLOCK_SIZE=BLOCK, mask_mod=edges, seq_lengths=(queries, keys)
    )


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has to look at, and which: (..., n) and (..., n, m) int32"""
    order = chosen.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32), order.to(torch.int32)


@cache
def _flex(compiled: bool) -> Callable:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiled else flex_attention
