"""Edges: which node may read which. One idea, used everywhere.

A rule is a function (b, h, q, k) -> bool over absolute positions, FlexAttention's `mask_mod`: in batch row b and head
h, may the node at position q read the node at position k? Rules combine with &, | and ~, and can be pickled.

Shapes: B batch, H heads, Q queries, K keys, T nodes. The arguments are integer tensors that broadcast together.
"""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, ParamSpec

import torch
from torch import Tensor

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
P = ParamSpec("P")


@dataclass(eq=False)
class Edges:
    """A rule, and what is known of it without evaluating every pair."""

    mask_mod: MaskMod
    name: str = "custom"
    left_span: float = math.inf
    """How far before a query its keys may lie. If both spans are finite, attention costs T * span instead of T * T."""
    right_span: float = math.inf
    """How far after it."""
    uses_batch: bool = True
    uses_head: bool = True
    """Whether the rule depends on b, and on h."""
    origin: Any = None
    """How it is pickled: as the call that made it, or as the name of a global."""
    pinned: int = 0
    """Keys among the first `pinned` nodes may lie further before a query than `left_span`."""

    def __reduce__(self) -> Any:
        spans = (self.left_span, self.right_span, self.uses_batch, self.uses_head, None, self.pinned)
        return self.origin or (Edges, (self.mask_mod, self.name, *spans))

    def __call__(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.mask_mod(b, h, q, k)

    def __repr__(self) -> str:
        return self.name

    def __and__(self, other: "Edges | MaskMod") -> "Edges":
        other = as_edges(other)
        if self is full or self is other:
            return other
        left = min((self.left_span, self.pinned), (other.left_span, other.pinned))
        return self if other is full else self._combine(other, operator.and_, "&", min, *left)

    def __or__(self, other: "Edges | MaskMod") -> "Edges":
        other = as_edges(other)
        left = max(self.left_span, other.left_span), max(self.pinned, other.pinned)
        return self._combine(other, operator.or_, "|", max, *left)

    def __invert__(self) -> "Edges":
        name, origin = f"~{_parenthesize(self.name)}", (operator.invert, (self,))
        uses = (self.uses_batch, self.uses_head)
        return Edges(lambda b, h, q, k: ~self(b, h, q, k), name, math.inf, math.inf, *uses, origin)

    def _combine(
        self, other: "Edges", combine: Callable, sign: str, span: Callable, left_span: float, pinned: int
    ) -> "Edges":
        return Edges(
            lambda b, h, q, k: combine(self(b, h, q, k), other(b, h, q, k)),
            f"{_parenthesize(self.name)} {sign} {_parenthesize(other.name)}",
            left_span,
            span(self.right_span, other.right_span),
            self.uses_batch or other.uses_batch,
            self.uses_head or other.uses_head,
            (combine, (self, other)),
            0 if left_span == math.inf else pinned,
        )

    def evaluate(self, q: Tensor, k: Tensor, batch: int = 1, heads: int = 1) -> Tensor:
        """Evaluate the rule for many pairs at once.

        Shapes:
            q: positions (B or 1, 1, ..., Q, 1); k: positions (B or 1, 1, ..., 1, K)
            returns: bool (B or 1, H or 1, ..., Q, K), with B and H only where the rule depends on them
        """
        ones = [1] * max(q.ndim, k.ndim)
        b = torch.arange(batch if self.uses_batch else 1, device=q.device).view(-1, 1, *ones[2:])
        h = torch.arange(heads if self.uses_head else 1, device=q.device).view(1, -1, *ones[2:])
        mask = self(b, h, q, k)
        if mask.dtype != torch.bool:
            raise TypeError(f"the rule {self} returns {mask.dtype}; it must return bool")
        return torch.broadcast_tensors(mask, b, h, q, k)[0]  # torch.broadcast_shapes imports sympy, a second

    def build_mask(
        self, batch: int, queries: int, keys: int, heads: int = 1, device: torch.device | str = "cpu"
    ) -> Tensor:
        """The mask of queries and keys that both start at position 0: (B or 1, H or 1, Q, K) bool."""
        q = torch.arange(queries, device=device).view(1, 1, -1, 1)
        k = torch.arange(keys, device=device).view(1, 1, 1, -1)
        return self.evaluate(q, k, batch, heads)


def as_edges(edges: Edges | MaskMod) -> Edges:
    """The rule itself, or a bare mask_mod function as a rule of unknown span. Raises TypeError for anything else."""
    if isinstance(edges, Edges):
        return edges
    if isinstance(edges, Tensor):
        shape = tuple(edges.shape)
        raise TypeError(f"edges is a tensor of shape {shape}; edges are rules: from_mask(tensor) makes one")
    if not callable(edges):
        raise TypeError(f"edges is {edges!r}; it must be a rule such as causal, or a function (b, h, q, k) -> bool")
    return Edges(edges, getattr(edges, "__name__", "custom"))


def _parenthesize(name: str) -> str:
    return f"({name})" if " " in name else name


def _record_origin(rule: Callable[P, Edges]) -> Callable[P, Edges]:
    """Pickle the edges that a function returns as a call of that function."""

    @wraps(rule)
    def make(*args: P.args, **kwargs: P.kwargs) -> Edges:
        edges = rule(*args, **kwargs)
        edges.origin = (partial(make, *args, **kwargs), ())
        return edges

    return make


# --- the rules ---

full = Edges(lambda b, h, q, k: (q >= 0) & (k >= 0), "full", math.inf, math.inf, False, False, origin="full")
"""Every node reads every node: BERT, ViT, any set."""
causal = Edges(lambda b, h, q, k: q >= k, "causal", math.inf, 0, False, False, origin="causal")
"""Each node reads itself and the past: GPT, any decoder."""


@_record_origin
def window(size: int) -> Edges:
    """Each node reads itself and size - 1 nodes on either side. With `causal`: local attention (2004.05150)."""
    _check_positive("window", size)
    return Edges(lambda b, h, q, k: (q - k).abs() < size, f"window({size})", size - 1, size - 1, False, False)


@_record_origin
def first(count: int) -> Edges:
    """Each node reads the first `count` nodes; with a window: attention sinks of a stream (2309.17453)."""
    _check_positive("first", count)
    return Edges(lambda b, h, q, k: (k < count) & (q >= 0), f"first({count})", 0, count - 1, False, False, None, count)


@_record_origin
def every(stride: int) -> Edges:
    """Each node reads the nodes a multiple of `stride` away: strided attention of Sparse Transformers (1904.10509)."""
    _check_positive("stride", stride)
    return Edges(lambda b, h, q, k: (q - k) % stride == 0, f"every({stride})", uses_batch=False, uses_head=False)


@_record_origin
def neighbors(height: int, width: int, radius: int, offset: int = 0) -> Edges:
    """Nodes from position `offset` on are the cells of a grid, row by row; each reads the square of `radius` cells
    around it. Nodes outside the grid (a class token) have no edges by this rule."""
    _check_positive("height", height), _check_positive("width", width), _check_positive("radius", radius)

    def is_near(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        q, k = q - offset, k - offset
        is_near_row = (q // width - k // width).abs() <= radius
        is_near_column = (q % width - k % width).abs() <= radius
        return is_near_row & is_near_column & (q >= 0) & (k >= 0) & (q < height * width) & (k < height * width)

    span, shift = radius * width + radius, f", {offset}" if offset else ""
    return Edges(is_near, f"neighbors({height}, {width}, {radius}{shift})", span, span, False, False)


@_record_origin
def within(lengths: Tensor) -> Edges:
    """Keys past the end of their row are padding, which no node reads. lengths: (B,)"""
    return Edges(lambda b, h, q, k: k < lengths[b], "within", uses_head=False)


@_record_origin
def prefix(lengths: Tensor) -> Edges:
    """Every node reads the first nodes of its row; `causal | prefix(n)` is a prefix language model. lengths: (B,)"""
    return Edges(lambda b, h, q, k: (k < lengths[b]) & (q >= 0), "prefix", uses_head=False)


@_record_origin
def same(segment: Tensor) -> Edges:
    """A node reads its own segment only: packed documents, rows or columns of a grid. segment: (T,) or (B, T) ids"""
    return _compare_kinds(segment, "same", torch.eq)


@_record_origin
def between(kinds: Tensor, reads: Tensor | None = None) -> Edges:
    """Nodes of some kinds read nodes of others. kinds: (T,) or (B, T) ids; reads: (kinds, kinds) bool, [kind of the
    query, kind of the key]. Without `reads`: unlike kinds read each other."""
    return _compare_kinds(kinds, "between", torch.ne if reads is None else lambda query, key: reads[query, key])


def _compare_kinds(kinds: Tensor, name: str, may_read: Callable[[Tensor, Tensor], Tensor]) -> Edges:
    if kinds.ndim == 1:
        return Edges(lambda b, h, q, k: may_read(kinds[q], kinds[k]), name, uses_batch=False, uses_head=False)
    return Edges(lambda b, h, q, k: may_read(kinds[b, q], kinds[b, k]), name, uses_head=False)


@_record_origin
def from_mask(mask: Tensor) -> Edges:
    """A mask as a rule: (T, T) or (B, H, T, T) bool, [query, key], True where the query reads the key."""
    if mask.dtype != torch.bool or mask.ndim not in (2, 4):
        raise ValueError(f"a mask is bool, (T, T) or (B, H, T, T), not {mask.dtype} {tuple(mask.shape)}")
    if mask.ndim == 2:
        return Edges(lambda b, h, q, k: mask[q, k], "from_mask", uses_batch=False, uses_head=False)
    return Edges(lambda b, h, q, k: mask[b, h, q, k], "from_mask")


def _check_positive(name: str, size: int) -> None:
    if type(size) is not int or size < 1:
        raise ValueError(f"{name} is {size}; it must be an integer of at least 1")


# --- questions to a stack of rules, one for each layer ---


def reach(layers: Sequence[Edges | MaskMod], nodes: int) -> Tensor:
    """Whether anything of node k has arrived at node q after all layers: (T, T) bool, [q, k]. The residual stream keeps
    what a node already had. Rules that depend on batch or head: row 0, head 0."""
    return hops(layers, nodes) >= 0


def hops(layers: Sequence[Edges | MaskMod], nodes: int) -> Tensor:
    """The fewest messages from node k to node q: (T, T) int, [q, k]; 0 for a node itself, -1 where none arrives."""
    unreached = len(layers) + 1
    best = torch.full((nodes, nodes), unreached)
    best.fill_diagonal_(0)
    for edges in layers:
        mask = as_edges(edges).build_mask(1, nodes, nodes)[0, 0]
        nearest = [best[row].amin(0) if row.any() else torch.full((nodes,), unreached) for row in mask]
        best = torch.minimum(best, torch.stack(nearest) + 1)
    return torch.where(best < unreached, best, -1)


def leak(layers: Sequence[Edges | MaskMod], nodes: int) -> Tensor:
    """The pairs (q, k) with k after q between which a message can pass, (n, 2): none if decoded from left to right."""
    return reach(layers, nodes).triu(1).nonzero()
