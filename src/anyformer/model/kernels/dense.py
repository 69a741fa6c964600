"""Attention under any rule: every pair of query and key in one mask, built once a forward.

Shapes: B batch, H heads, Q queries, K keys, D channels of a head.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..edges import Edges
from .sdpa import attend

if TYPE_CHECKING:
    from .select import AttentionSpec, PositionBias


class DenseMask:
    """The rule as a mask (B or 1, H or 1, Q, K). Keys before index `first` are out of every query's reach."""

    def __init__(self, edges: Edges, bias: "PositionBias | None", spec: "AttentionSpec"):
        start = spec.start if isinstance(spec.start, int) else spec.start.view(-1, 1, 1, 1)
        q = torch.arange(spec.queries, device=spec.device).view(1, 1, -1, 1) + start
        self.first, self.softcap = 0, spec.softcap
        if spec.slot_positions is not None:
            k = spec.slot_positions.view(-1, 1, 1, spec.keys)
            mask = edges.evaluate(q.clamp(min=0), k.clamp(min=0), spec.batch, spec.heads) & (k >= 0)
        else:
            if isinstance(spec.start, int) and math.isfinite(edges.left_span) and not edges.pinned:
                self.first = max(0, spec.start - int(edges.left_span))
            k = torch.arange(self.first, spec.keys, device=spec.device).view(1, 1, 1, -1)
            mask = edges.evaluate(q, k, spec.batch, spec.heads)
        self.mask, self.fully_masked = finish_mask(mask, edges, bias, q, k, spec.heads)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, scale: float | None = None) -> Tensor:
        if self.mask.dtype == torch.bool and q.device.type != "cpu":  # torch's kernel would do so in every layer
            self.mask = torch.zeros_like(self.mask, dtype=q.dtype).masked_fill(~self.mask, -math.inf)
        y = attend(q, k[:, :, self.first :], v[:, :, self.first :], self.mask, dropout_p, scale, self.softcap)
        return y if self.fully_masked is None else y.masked_fill(self.fully_masked, 0)


def finish_mask(
    mask: Tensor, edges: Edges, bias: "PositionBias | None", q: Tensor, k: Tensor, heads: int
) -> tuple[Tensor, Tensor | None]:
    """A mask that is safe for softmax, and the queries that have no edges.

    A softmax over no keys is not a number, so such queries read every key, and their output is set to 0 afterwards.

    Returns:
        mask: with a bias, numbers added to the scores (-inf for no edge); bool otherwise.
        fully_masked: (..., Q, 1) bool, None if it is known that there are no such queries.
    """
    fully_masked = ~mask.any(-1, keepdim=True)
    # A compiled graph serves every input, and a GPU would have to wait: neither looks at the values.
    has_none = mask.device.type == "cpu" and not torch.compiler.is_compiling() and not fully_masked.any()
    mask = mask if has_none else mask | fully_masked
    if bias is not None:
        h = torch.arange(heads, device=q.device).view(1, -1, *[1] * (q.ndim - 2))
        mask = bias(h, q, k, edges.right_span > 0).masked_fill(~mask, -math.inf)
    return mask, None if has_none else fully_masked
