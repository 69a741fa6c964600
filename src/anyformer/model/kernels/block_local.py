"""Attention under rules of finite span, in blocks: time and memory grow with T * (W + span) instead of T * T.

Each block of W nodes reads itself and as many nodes on its sides as the span reaches. Plain tensor operations, which
have a backward and dropout.

Shapes: B batch, H heads, T nodes, D channels of a head, n blocks, W nodes of a block, L and R nodes on its sides,
P pinned nodes.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..edges import Edges
from .dense import finish_mask
from .sdpa import attend

if TYPE_CHECKING:
    from .select import AttentionSpec, PositionBias


class BlockLocal:
    """The rule as one mask for each block: (n or B * n, 1 or H, W, P + L + W + R)."""

    def __init__(self, edges: Edges, bias: "PositionBias | None", spec: "AttentionSpec"):
        self.left, self.right = (min(int(span), spec.queries) for span in (edges.left_span, edges.right_span))
        self.width, self.softcap = max(self.left, self.right, 32), spec.softcap
        self.pinned, n = min(edges.pinned, spec.keys), -(-spec.queries // self.width)
        start = torch.arange(n, device=spec.device).view(1, 1, n, 1, 1) * self.width
        q = start + torch.arange(self.width, device=spec.device).view(1, 1, 1, -1, 1)
        k = start + torch.arange(-self.left, self.width + self.right, device=spec.device).view(1, 1, 1, 1, -1)
        is_key = (k >= 0) & (k < spec.keys)
        if self.pinned:  # the first nodes, before the sides of each block; where its sides hold them, only there
            first = torch.arange(self.pinned, device=spec.device).view(1, 1, 1, 1, -1).expand(1, 1, n, 1, -1)
            is_key = torch.cat([first < start - self.left, is_key], dim=-1)
            k = torch.cat([first, k], dim=-1)
        last = spec.queries - 1
        mask = edges.evaluate(q.clamp(0, last), k.clamp(0, last), spec.batch, spec.heads)
        mask = mask & is_key & (q < spec.queries)
        mask, fully_masked = finish_mask(mask, edges, bias, q, k, spec.heads)
        self.mask = _fold_blocks(mask)
        self.fully_masked = None if fully_masked is None else _fold_blocks(fully_masked)

    @staticmethod
    def is_worth(edges: Edges, nodes: int) -> bool:
        """Whether the span is short enough to gain from blocks."""
        return nodes >= 4 * max(edges.left_span + edges.right_span + edges.pinned, 32)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, scale: float | None = None) -> Tensor:
        (B, H, T, _), D = q.shape, v.shape[-1]
        q = self._cut(q, 0, 0)
        k, v = self._cut_with_sides(k), self._cut_with_sides(v)
        mask = self.mask if len(self.mask) == len(q) else self.mask.repeat(B, 1, 1, 1)
        y = attend(q, k, v, mask, dropout_p, scale, self.softcap)  # (B * n, H, W, D)
        if self.fully_masked is not None:
            y = y.view(-1, len(self.fully_masked), *y.shape[1:]).masked_fill(self.fully_masked, 0)
        return y.view(B, -1, H, self.width, D).transpose(1, 2).reshape(B, H, -1, D)[:, :, :T]

    def _cut_with_sides(self, x: Tensor) -> Tensor:
        """(B, H, T, D) -> (B * n, H, P + L + W + R, D)"""
        blocks, first = self._cut(x, self.left, self.right), x[:, :, : self.pinned]
        return torch.cat([first.repeat_interleave(len(blocks) // len(x), dim=0), blocks], 2) if self.pinned else blocks

    def _cut(self, x: Tensor, left: int, right: int) -> Tensor:
        """Cut the nodes into blocks with their sides: (B, H, T, D) -> (B * n, H, left + W + right, D)."""
        B, H, T, D = x.shape
        W = self.width
        n = -(-T // W)
        x = F.pad(x, (0, 0, left, n * W - T + right)).transpose(1, 2)  # (B, left + n W + right, H, D)
        blocks = x[:, left : left + n * W].view(B, n, W, H, D)
        left_sides = x[:, : n * W].view(B, n, W, H, D)[:, :, :left]
        right_sides = x[:, left + right : left + right + n * W].view(B, n, W, H, D)[:, :, W - right :]
        return torch.cat([left_sides, blocks, right_sides], dim=2).transpose(2, 3).flatten(0, 1)


def _fold_blocks(x: Tensor) -> Tensor:
    """(B or 1, H or 1, n, W, K) -> (B * n or n, H or 1, W, K)"""
    return x.transpose(1, 2).flatten(0, 1)
