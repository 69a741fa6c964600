"""Edges: which node may read which. One idea, used everywhere.

A rule is a function (b, h, q, k) -> bool over absolute positions, FlexAttention's `mask_mod`: in batch row b and
head h, may the node at position q read the node at position k? Rules combine with &, | and ~.

Shapes: B batch, H heads, Q queries, K keys, T nodes. The arguments are integer tensors that broadcast together.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Edges:
    """A rule, and what can be known of it without asking every pair.

    `back` and `ahead` bound how far behind and before a query its keys may lie: where both are finite, the cost of
    attention can grow with T * (back + ahead) instead of T * T. `batched` and `headed` say whether the rule looks at
    b and h; a rule that says nothing is taken to look at both.
    """

    rule: Rule
    text: str = "custom"
    left_span: float = math.inf
    right_span: float = math.inf
    uses_batch: bool = True
    uses_head: bool = True

    def __call__(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.rule(b, h, q, k)

    def __repr__(self) -> str:
        return self.text

    def __and__(self, other: "Edges") -> "Edges":
        if self is full or self is other:
            return other
        if other is full:
            return self
        return Edges(
            lambda b, h, q, k: self(b, h, q, k) & other(b, h, q, k),
            f"{self._inner} & {other._inner}",
            min(self.left_span, other.left_span),
            min(self.right_span, other.right_span),
            self.uses_batch or other.uses_batch,
            self.uses_head or other.uses_head,
        )

    def __or__(self, other: "Edges") -> "Edges":
        return Edges(
            lambda b, h, q, k: self(b, h, q, k) | other(b, h, q, k),
            f"{self._inner} | {other._inner}",
            max(self.left_span, other.left_span),
            max(self.right_span, other.right_span),
            self.uses_batch or other.uses_batch,
            self.uses_head or other.uses_head,
        )

    def __invert__(self) -> "Edges":
        return Edges(lambda b, h, q, k: ~self(b, h, q, k), f"~{self._inner}", uses_batch=self.uses_batch, uses_head=self.uses_head)

    @property
    def _inner(self) -> str:
        return f"({self.text})" if " " in self.text else self.text

    def evaluate(self, q: Tensor, k: Tensor, batch: int = 1, heads: int = 1) -> Tensor:
        """The rule asked of many pairs at once.

        q and k: positions, (B or 1, 1, ..., Q, 1) and (B or 1, 1, ..., 1, K).
        Returns (B or 1, H or 1, ..., Q, K) bool: B and H are there only where the rule looks at them.
        """
        ones = [1] * max(q.ndim, k.ndim)
        b = torch.arange(batch if self.uses_batch else 1, device=q.device).view(-1, 1, *ones[2:])
        h = torch.arange(heads if self.uses_head else 1, device=q.device).view(1, -1, *ones[2:])
        answer = self(b, h, q, k)
        return answer.expand(torch.broadcast_shapes(answer.shape, b.shape, h.shape, q.shape, k.shape))

    def build_mask(self, batch: int, queries: int, keys: int, heads: int = 1, device: torch.device | str = "cpu") -> Tensor:
        """(B or 1, H or 1, Q, K) bool, queries and keys both from position 0 on."""
        q = torch.arange(queries, device=device).view(1, 1, -1, 1)
        k = torch.arange(keys, device=device).view(1, 1, 1, -1)
        return self.evaluate(q, k, batch, heads)


def _everywhere(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (q >= 0) & (k >= 0)


full = Edges(_everywhere, "full", uses_batch=False, uses_head=False)
"""Everyone reads everyone: BERT, ViT, any set."""

causal = Edges(lambda b, h, q, k: q >= k, "causal", right_span=0, uses_batch=False, uses_head=False)
"""Each node reads itself and the past: GPT, any decoder."""


def window(size: int) -> Edges:
    """Each node reads itself and the size - 1 nodes on either side. With `causal`, local attention (2004.05150)."""
    _positive("window", size)
    return Edges(lambda b, h, q, k: (q - k).abs() < size, f"window({size})", size - 1, size - 1, False, False)


def every(stride: int) -> Edges:
    """Each node reads those a multiple of `stride` away: the far half of a sparse Transformer (1904.10509)."""
    _positive("stride", stride)
    return Edges(lambda b, h, q, k: (q - k) % stride == 0, f"every({stride})", uses_batch=False, uses_head=False)


def neighbors(height: int, width: int, radius: int, first: int = 0) -> Edges:
    """Nodes from position `first` on are the cells of a grid, row by row; each reads the square of `radius` cells
    around it. Nodes before and after the grid (a class node) have no edges by this rule."""
    _positive("height", height), _positive("width", width), _positive("radius", radius)

    def near(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        q, k = q - first, k - first
        rows = (q // width - k // width).abs() <= radius
        columns = (q % width - k % width).abs() <= radius
        inside = (q >= 0) & (k >= 0) & (q < height * width) & (k < height * width)
        return rows & columns & inside

    span = radius * width + radius
    shift = f", {first}" if first else ""
    return Edges(near, f"neighbours({height}, {width}, {radius}{shift})", span, span, False, False)


def within(lengths: Tensor) -> Edges:
    """Keys past the end of their row are padding: nobody reads them. lengths: (B,)"""
    return Edges(lambda b, h, q, k: k < lengths[b], "within", uses_head=False)


def prefix(lengths: Tensor) -> Edges:
    """Everyone reads the first nodes of their row; `causal | prefix(n)` is a prefix language model. lengths: (B,)"""
    return Edges(lambda b, h, q, k: (k < lengths[b]) & (q >= 0), "prefix", uses_head=False)


def same(segment: Tensor) -> Edges:
    """A node reads its own segment only: packed documents, rows or columns of a grid. segment: (T,) or (B, T) ids"""
    return _by_kind(segment, "same", lambda asks, tells: asks == tells)


def between(kinds: Tensor, reads: Tensor | None = None) -> Edges:
    """Nodes of some kinds read nodes of others. kinds: (T,) or (B, T) ids; reads: (kinds, kinds) bool, [asks, tells].
    Without `reads`: unlike kinds read each other."""
    if reads is None:
        return _by_kind(kinds, "between", lambda asks, tells: asks != tells)
    return _by_kind(kinds, "between", lambda asks, tells: reads[asks, tells])


def _by_kind(kind: Tensor, text: str, may: Callable[[Tensor, Tensor], Tensor]) -> Edges:
    if kind.ndim == 1:
        return Edges(lambda b, h, q, k: may(kind[q], kind[k]), text, uses_batch=False, uses_head=False)
    return Edges(lambda b, h, q, k: may(kind[b, q], kind[b, k]), text, uses_head=False)


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1")


# --- questions to a stack of rules, one for each layer ---


def reach(layers: Sequence[Edges], nodes: int) -> Tensor:
    """After all layers, has anything of node k arrived at node q? (T, T) bool, [q, k]. The residual stream keeps what
    a node already had. For rules that look at the batch or the head: row 0, head 0."""
    return hops(layers, nodes) >= 0


def hops(layers: Sequence[Edges], nodes: int) -> Tensor:
    """How many messages it takes at least from node k to node q, in the order of the layers. (T, T) int, [q, k]; 0 for
    a node itself, -1 where nothing arrives."""
    far = len(layers) + 1
    best = torch.full((nodes, nodes), far)
    best.fill_diagonal_(0)
    for edges in layers:
        edge = edges.build_mask(1, nodes, nodes)[0, 0]
        through = torch.stack([best[row].amin(0) if row.any() else torch.full((nodes,), far) for row in edge])
        best = torch.minimum(best, through + 1)
    return torch.where(best < far, best, -1)


def leak(layers: Sequence[Edges], nodes: int) -> Tensor:
    """The pairs (q, k) with k after q that a message can cross all the same: (n, 2), empty for anything that may be
    decoded from left to right."""
    return reach(layers, nodes).triu(1).nonzero()
