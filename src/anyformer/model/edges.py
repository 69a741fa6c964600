"""Edges: which node may read which. One idea, used everywhere.

A rule is a function (b, h, q, k) -> bool over absolute positions, FlexAttention's `mask_mod`: in batch row b and head
h, may the node at position q read the node at position k? Rules combine with &, | and ~. All rules here can be pickled.

Shapes: B batch, H heads, Q queries, K keys, T nodes. The arguments are integer tensors that broadcast together.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Edges:
    """A rule, and what is known of it without evaluating every pair.

    Args:
        mask_mod: the rule, (b, h, q, k) -> bool.
        name: shown by `repr`.
        left_span, right_span: how far before and after a query its keys may lie. Where both are finite, the cost of
            attention grows with T * (left_span + right_span) instead of T * T.
        uses_batch, uses_head: whether the rule depends on b and on h.
    """

    def __init__(
        self,
        mask_mod: MaskMod,
        name: str = "custom",
        left_span: float = math.inf,
        right_span: float = math.inf,
        uses_batch: bool = True,
        uses_head: bool = True,
    ):
        self.mask_mod, self.name = mask_mod, name
        self.left_span, self.right_span = left_span, right_span
        self.uses_batch, self.uses_head = uses_batch, uses_head

    def __call__(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.mask_mod(b, h, q, k)

    def __repr__(self) -> str:
        return self.name

    def __and__(self, other: "Edges | MaskMod") -> "Edges":
        other = as_edges(other)
        if self.is_full or self is other:
            return other
        if other.is_full:
            return self
        left_span, right_span = min(self.left_span, other.left_span), min(self.right_span, other.right_span)
        return self._combine(_and, other, "&", left_span, right_span)

    def __or__(self, other: "Edges | MaskMod") -> "Edges":
        other = as_edges(other)
        left_span, right_span = max(self.left_span, other.left_span), max(self.right_span, other.right_span)
        return self._combine(_or, other, "|", left_span, right_span)

    def __invert__(self) -> "Edges":
        name = f"~{_parenthesize(self.name)}"
        return Edges(partial(_not, self), name, uses_batch=self.uses_batch, uses_head=self.uses_head)

    def _combine(
        self, combine: Callable[..., Tensor], other: "Edges", sign: str, left_span: float, right_span: float
    ) -> "Edges":
        name = f"{_parenthesize(self.name)} {sign} {_parenthesize(other.name)}"
        uses_batch, uses_head = self.uses_batch or other.uses_batch, self.uses_head or other.uses_head
        return Edges(partial(combine, self, other), name, left_span, right_span, uses_batch, uses_head)

    @property
    def is_full(self) -> bool:
        """Whether this is `full`, or a copy of it."""
        return self.mask_mod is _full

    @property
    def is_causal(self) -> bool:
        """Whether this is `causal`, or a copy of it."""
        return self.mask_mod is _causal

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
        return mask.expand(torch.broadcast_shapes(mask.shape, b.shape, h.shape, q.shape, k.shape))

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


def _and(first: Edges, second: Edges, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return first(b, h, q, k) & second(b, h, q, k)


def _or(first: Edges, second: Edges, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return first(b, h, q, k) | second(b, h, q, k)


def _not(edges: Edges, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return ~edges(b, h, q, k)


# --- the rules; their functions are module-level, with parameters bound by `partial`, so that they can be pickled ---


def _full(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (q >= 0) & (k >= 0)


def _causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return q >= k


full = Edges(_full, "full", uses_batch=False, uses_head=False)
"""Every node reads every node: BERT, ViT, any set."""

causal = Edges(_causal, "causal", right_span=0, uses_batch=False, uses_head=False)
"""Each node reads itself and the past: GPT, any decoder."""


def window(size: int) -> Edges:
    """Each node reads itself and size - 1 nodes on either side. With `causal`: local attention (2004.05150)."""
    _check_positive(window=size)
    return Edges(partial(_window, size), f"window({size})", size - 1, size - 1, False, False)


def _window(size: int, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (q - k).abs() < size


def every(stride: int) -> Edges:
    """Each node reads the nodes a multiple of `stride` away: strided attention of Sparse Transformers (1904.10509)."""
    _check_positive(stride=stride)
    return Edges(partial(_every, stride), f"every({stride})", uses_batch=False, uses_head=False)


def _every(stride: int, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (q - k) % stride == 0


def neighbors(height: int, width: int, radius: int, offset: int = 0) -> Edges:
    """Nodes from position `offset` on are the cells of a grid, row by row; each reads the square of `radius` cells
    around it. Nodes outside the grid (a class token) have no edges by this rule."""
    _check_positive(height=height, width=width, radius=radius)
    span, shift = radius * width + radius, f", {offset}" if offset else ""
    rule = partial(_neighbors, height, width, radius, offset)
    return Edges(rule, f"neighbors({height}, {width}, {radius}{shift})", span, span, False, False)


def _neighbors(height: int, width: int, radius: int, offset: int, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    q, k = q - offset, k - offset
    is_near_row = (q // width - k // width).abs() <= radius
    is_near_column = (q % width - k % width).abs() <= radius
    is_inside = (q >= 0) & (k >= 0) & (q < height * width) & (k < height * width)
    return is_near_row & is_near_column & is_inside


def within(lengths: Tensor) -> Edges:
    """Keys past the end of their row are padding, which no node reads. lengths: (B,)"""
    return Edges(partial(_within, lengths), "within", uses_head=False)


def _within(lengths: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return k < lengths[b]


def prefix(lengths: Tensor) -> Edges:
    """Every node reads the first nodes of its row; `causal | prefix(n)` is a prefix language model. lengths: (B,)"""
    return Edges(partial(_prefix, lengths), "prefix", uses_head=False)


def _prefix(lengths: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (k < lengths[b]) & (q >= 0)


def same(segment: Tensor) -> Edges:
    """A node reads its own segment only: packed documents, rows or columns of a grid. segment: (T,) or (B, T) ids"""
    return Edges(partial(_same, segment), "same", uses_batch=segment.ndim > 1, uses_head=False)


def _same(segment: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return _look_up(segment, b, q) == _look_up(segment, b, k)


def between(kinds: Tensor, reads: Tensor | None = None) -> Edges:
    """Nodes of some kinds read nodes of others.

    Args:
        kinds: (T,) or (B, T) ids.
        reads: (kinds, kinds) bool, [kind of the query, kind of the key]. None: unlike kinds read each other.
    """
    return Edges(partial(_between, kinds, reads), "between", uses_batch=kinds.ndim > 1, uses_head=False)


def _between(kinds: Tensor, reads: Tensor | None, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    query_kind, key_kind = _look_up(kinds, b, q), _look_up(kinds, b, k)
    return query_kind != key_kind if reads is None else reads[query_kind, key_kind]


def from_mask(mask: Tensor) -> Edges:
    """A mask as a rule: (T, T) or (B, H, T, T) bool, [query, key], True where the query reads the key."""
    if mask.dtype != torch.bool or mask.ndim not in (2, 4):
        raise ValueError(f"a mask is bool, (T, T) or (B, H, T, T), not {mask.dtype} {tuple(mask.shape)}")
    return Edges(partial(_from_mask, mask), "from_mask", uses_batch=mask.ndim == 4, uses_head=mask.ndim == 4)


def _from_mask(mask: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return mask[q, k] if mask.ndim == 2 else mask[b, h, q, k]


def _look_up(ids: Tensor, b: Tensor, position: Tensor) -> Tensor:
    return ids[position] if ids.ndim == 1 else ids[b, position]


def _check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if type(size) is not int or size < 1:
            raise ValueError(f"{name} is {size}; it must be an integer of at least 1")


# --- questions to a stack of rules, one for each layer ---


def reach(layers: Sequence[Edges | MaskMod], nodes: int) -> Tensor:
    """Whether anything of node k has arrived at node q after all layers: (T, T) bool, [q, k].

    The residual stream keeps what a node already had. Rules that depend on batch or head: row 0, head 0.
    """
    return hops(layers, nodes) >= 0


def hops(layers: Sequence[Edges | MaskMod], nodes: int) -> Tensor:
    """The fewest messages from node k to node q, in the order of the layers: (T, T) int, [q, k]; 0 for a node itself,
    -1 where nothing arrives."""
    unreached = len(layers) + 1
    best = torch.full((nodes, nodes), unreached)
    best.fill_diagonal_(0)
    for edges in layers:
        mask = as_edges(edges).build_mask(1, nodes, nodes)[0, 0]
        nearest = [best[row].amin(0) if row.any() else torch.full((nodes,), unreached) for row in mask]
        best = torch.minimum(best, torch.stack(nearest) + 1)
    return torch.where(best < unreached, best, -1)


def leak(layers: Sequence[Edges | MaskMod], nodes: int) -> Tensor:
    """The pairs (q, k) with k after q between which a message can pass: (n, 2); empty for a stack that may be decoded
    from left to right."""
    return reach(layers, nodes).triu(1).nonzero()
