"""Attention within segments of equal size, such as the rows or the columns of a grid: each is a batch row of its own.

Time and memory grow with T * n instead of T * T.

Shapes: B batch, H heads, T nodes, D channels of a head, S segments, n nodes of a segment.
"""

import operator
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..edges import Edges, same
from .dense import finish_mask
from .sdpa import SDPA, attend, repeat_kv

MAX_MASKED = 512  # nodes of a compiled graph

if TYPE_CHECKING:
    from .select import AttentionSpec, PositionBias


class Segments:
    """The rule as one mask for all segments, where they are alike, or one for each: (1 or S or B * S, 1 or H, n, n)."""

    def __init__(self, edges: Edges, bias: "PositionBias | None", spec: "AttentionSpec", segment: Tensor):
        self.order = segment.argsort(stable=True)
        self.n_segments = int(segment.unique().numel())
        positions = self.order.view(self.n_segments, -1)
        q, k = positions.view(1, 1, self.n_segments, -1, 1), positions.view(1, 1, self.n_segments, 1, -1)
        mask = edges.evaluate(q, k, spec.batch, spec.heads)
        if bias is None and (mask == mask[:, :, :1]).all():
            q, k, mask = q[:, :, :1], k[:, :, :1], mask[:, :, :1]
        mask, fully_masked = finish_mask(mask, edges, bias, q, k, spec.heads)
        self.mask = None if bias is None and mask.all() else _fold(mask)
        self.fully_masked = None if fully_masked is None else _fold(fully_masked)

    @staticmethod
    def find(edges: Edges, spec: "AttentionSpec") -> Tensor | None:
        """The ids (T,) of the smallest segments that the rule keeps within and that are of equal size, or None.

        A compiled graph ends where ids are looked at: of few nodes, a mask for all pairs is the cheaper way.
        """
        if spec.queries <= MAX_MASKED and torch.compiler.is_compiling():
            return None
        ids = [ids for ids in list_segments(edges) if ids.shape == (spec.queries,)]
        sizes = [ids.unique(return_counts=True)[1] for ids in ids]
        equal = [i for i, counts in enumerate(sizes) if len(counts) > 1 and (counts == counts[0]).all()]
        return ids[max(equal, key=lambda i: len(sizes[i]))] if equal else None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, scale: float | None = None) -> Tensor:
        (B, H, T, _), S = q.shape, self.n_segments
        if S == T and self.mask is None and not dropout_p:  # each node reads itself alone
            return repeat_kv(q, k, v)[1]
        q, k, v = (x[:, :, self.order].unflatten(2, (S, -1)).transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        if self.mask is None:
            y = SDPA()(q, k, v, dropout_p, scale)  # (B * S, H, n, D)
        else:
            mask = self.mask if len(self.mask) in (1, B * S) else self.mask.repeat(B, 1, 1, 1)
            y = attend(q, k, v, mask, dropout_p, scale)
        if self.fully_masked is not None:
            y = y.view(-1, len(self.fully_masked), *y.shape[1:]).masked_fill(self.fully_masked, 0)
        y = y.reshape(B, S, H, T // S, -1).transpose(1, 2).flatten(2, 3)
        return torch.empty_like(y).index_copy(2, self.order, y)


def list_segments(edges: Edges) -> list[Tensor]:
    """The segments (T,) that no edge of the rule leaves: of `same`, and of what is combined with it by `&`."""
    make, parts = edges.origin if isinstance(edges.origin, tuple) else (None, ())
    if make is operator.and_:
        return [segment for part in parts for segment in list_segments(part)]
    is_same = isinstance(make, partial) and make.func is same
    segment = [*make.args, *make.keywords.values()][0] if is_same else None
    return [] if segment is None or segment.ndim != 1 else [segment]


def _fold(x: Tensor) -> Tensor:
    """(B or 1, H or 1, S or 1, n, n) -> (B * S or less, H or 1, n, n)"""
    return x.transpose(1, 2).flatten(0, 1)
