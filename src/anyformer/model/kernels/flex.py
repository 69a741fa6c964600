"""FlexAttention: one kernel compiled for the rule of edges; blocks without edges are skipped.

Shapes: B batch, H heads, Q queries, K keys, D channels of a head, n blocks of queries, m blocks of keys.
"""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..edges import Edges
from .dense import DenseMask

if TYPE_CHECKING:
    from .select import AttentionSpec, PositionBias

BLOCK = 128  # queries and keys of a block
MIN_CHANNELS = 16  # of a head: torch's kernel for GPUs takes no fewer
MAX_PAIRS_AT_ONCE = 1 << 26  # whose edges are evaluated together


class Flex:
    """The rule as blocks of queries and keys: those with some edges, and those with all."""

    def __init__(self, edges: Edges, bias: "PositionBias | None", spec: "AttentionSpec", compiled: bool = True):
        self.edges, self.bias, self.spec, self.compiled = edges, bias, spec, compiled
        self.block_mask = build_block_mask(edges, spec.batch, spec.heads, spec.queries, spec.keys, spec.device)
        bidirectional = edges.right_span > 0
        self.score_mod = None if bias is None else lambda score, b, h, q, k: score + bias(h, q, k, bidirectional)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, scale: float | None = None) -> Tensor:
        q, k = q.type_as(v), k.type_as(v)  # on a GPU, autocast norms queries and keys in float32
        has_unit_values = q.shape[-1] != v.shape[-1]  # attention weights are asked for: it takes few widths of values
        if has_unit_values or q.shape[-1] < MIN_CHANNELS:
            return DenseMask(self.edges, self.bias, self.spec)(q, k, v, dropout_p, scale)
        attend = _flex_attention(self.compiled)
        enable_gqa = k.shape[1] != q.shape[1]
        return attend(q, k, v, score_mod=self.score_mod, block_mask=self.block_mask, scale=scale, enable_gqa=enable_gqa)


def build_block_mask(edges: Edges, batch: int, heads: int, queries: int, keys: int, device: torch.device) -> object:
    """The BlockMask of a rule. torch's own function evaluates all pairs at once, which does not fit into memory at 64k
    nodes; here some rows of blocks are evaluated at a time."""
    from torch.nn.attention.flex_attention import BlockMask

    n, m = -(-queries // BLOCK), -(-keys // BLOCK)
    shape = (batch if edges.uses_batch else 1, heads if edges.uses_head else 1, n, m)
    has_some, has_all = (torch.zeros(shape, dtype=torch.bool, device=device) for _ in range(2))
    rows = max(1, MAX_PAIRS_AT_ONCE // (shape[0] * shape[1] * m * BLOCK**2))
    for start in range(0, n, rows):
        end = min(n, start + rows)
        # beyond the rule's span there are no edges
        left = 0 if edges.pinned else int(max(0, start - edges.left_span // BLOCK - 1))
        right = int(min(m, end + edges.right_span // BLOCK + 1))
        q = torch.arange(start * BLOCK, end * BLOCK, device=device).view(1, 1, -1, 1)
        k = torch.arange(left * BLOCK, right * BLOCK, device=device).view(1, 1, 1, -1)
        mask = edges.evaluate(q.clamp(max=queries - 1), k.clamp(max=keys - 1), batch, heads)
        mask = mask & (q < queries) & (k < keys)
        blocks = mask.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).transpose(3, 4).flatten(4)
        has_some[:, :, start:end, left:right] = blocks.any(-1)
        has_all[:, :, start:end, left:right] = blocks.all(-1)
    partial_blocks, full_blocks = _list_blocks(has_some & ~has_all), _list_blocks(has_all)
    return BlockMask.from_kv_blocks(
        *partial_blocks, *full_blocks, BLOCK_SIZE=BLOCK, mask_mod=edges, seq_lengths=(queries, keys)
    )


def _list_blocks(mask: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries reads, and which: (..., n) and (..., n, m) int32."""
    order = mask.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return mask.sum(-1, dtype=torch.int32), order.to(torch.int32)


@cache
def _flex_attention(compiled: bool) -> Callable:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiled else flex_attention
