"""Paths: the ways a message can be computed, fastest that is exact for the rule at hand.

The same rule of edges (and the same bias of positions) serves each path, and each must equal the slow oracle of the
tests. `choose` looks at the rule once a forward; every layer that shares the rule shares the path.

Shapes: B batch, H heads, Q queries, K keys, T nodes, D channels of a head, n blocks, W nodes of a block.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..edges import Edges, causal, full
from .dropout import dropout
from .flex import Flex, block_mask

PositionBias = Callable[[Tensor, Tensor, Tensor, bool], Tensor]  # (h, q, k, ahead) -> number added to the edge's score


class AttentionKernel(Protocol):
    """q (B, H, Q, D), k and v (B, H or fewer, K, D) -> (B, H, Q, D), weights dropped out with probability `drop`.
    scale: of the scores; None is 1 / sqrt(D)."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, drop: float = 0.0, scale: float | None = None) -> Tensor: ...


@dataclass(frozen=True)
class AttentionSpec:
    """What a stack asks of its edges in one forward: queries stand at `start` + 0, 1 ... (start: a number, or one for
    each row, (B,)), keys at 0 ... keys - 1, or where `held` says."""

    batch: int
    heads: int
    queries: int
    keys: int
    start: int | Tensor
    device: torch.device
    drop: float = 0.0
    """Attention weights will be dropped out with this probability."""
    slot_positions: Tensor | None = None
    """Where each key stands, (K,) or (B, K); below 0: nothing stands there, and nobody may read it."""

    @property
    def fresh(self) -> bool:
        """Nodes read each other from position 0 on: nothing was read before."""
        return self.queries == self.keys and isinstance(self.start, int) and self.start == 0


def select_kernel(edges: Edges, bias: PositionBias | None, asked: AttentionSpec) -> AttentionKernel:
    """The fastest path that computes this rule exactly."""
    if bias is None and edges is full:
        return SDPA()
    if bias is None and edges is causal and isinstance(asked.start, int):
        if asked.start == 0 and asked.queries == asked.keys:
            return SDPA(triangle=True)
        if asked.queries == 1 and asked.keys == asked.start + 1:
            return SDPA()  # the newest node reads all there is; is_causal would show it the first key only
    if asked.fresh and asked.device.type == "cuda" and not asked.drop:  # FlexAttention has no dropout
        return build_flex(edges, bias, asked)
    if asked.fresh and not torch.compiler.is_exporting() and BlockLocal.pays(edges, asked.queries):
        return BlockLocal.of(edges, bias, asked)
    return DenseMask.of(edges, bias, asked)


@dataclass(frozen=True)
class SDPA:
    """No rule to look up: everyone, or the triangle that SDPA knows itself."""

    triangle: bool = False

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, drop: float = 0.0, scale: float | None = None) -> Tensor:
        if not is_matmul_faster(q, k, drop):
            return sdpa(q, k, v, None, drop, self.triangle, scale)
        rows = (1, 1, q.shape[2], k.shape[2])
        return matmul_attention(q, k, v, q.new_full(rows, -math.inf).triu(1) if self.triangle else None, drop, scale)


@dataclass(frozen=True)
class DenseMask:
    """Every pair in one table, made once a forward. The keys before `first` are out of every query's reach."""

    mask: Tensor
    lonely: Tensor | None
    first: int = 0

    @classmethod
    def of(cls, edges: Edges, bias: PositionBias | None, asked: AttentionSpec) -> "DenseMask":
        start, first = asked.start, 0
        at = start if isinstance(start, int) else start.view(-1, 1, 1, 1)
        q = torch.arange(asked.queries, device=asked.device).view(1, 1, -1, 1) + at
        if asked.slot_positions is not None:
            k = asked.slot_positions.view(-1, 1, 1, asked.keys)
            return cls(*scores(restrict(edges, k >= 0), bias, q, k, asked))
        if isinstance(start, int) and math.isfinite(edges.left_span):
            first = max(0, start - int(edges.left_span))
        k = torch.arange(first, asked.keys, device=asked.device).view(1, 1, 1, -1)
        return cls(*scores(edges, bias, q, k, asked), first)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, drop: float = 0.0, scale: float | None = None) -> Tensor:
        y = attend(q, k[:, :, self.first :], v[:, :, self.first :], self.mask, drop, scale)
        return y if self.lonely is None else y.masked_fill(self.lonely, 0)


@dataclass(frozen=True)
class BlockLocal:
    """Rules of finite span: the nodes in blocks, each block reads itself and what the span reaches of its sides, so
    that time and memory grow with T * (W + span). Plain tensor operations, hence with a backward."""

    mask: Tensor  # (n or B * n, 1 or H, W, back + W + ahead)
    lonely: Tensor | None  # (n or B * n, 1 or H, W, 1)
    width: int
    left_span: int
    right_span: int

    @staticmethod
    def pays(edges: Edges, nodes: int) -> bool:
        span = edges.left_span + edges.right_span
        return nodes >= 4 * max(span, 32)

    @classmethod
    def of(cls, edges: Edges, bias: PositionBias | None, asked: AttentionSpec) -> "BlockLocal":
        back, ahead = (min(int(side), asked.queries) for side in (edges.left_span, edges.right_span))
        width = max(back, ahead, 32)
        n = -(-asked.queries // width)
        start = torch.arange(n, device=asked.device).view(1, 1, n, 1, 1) * width
        q = start + torch.arange(width, device=asked.device).view(1, 1, 1, -1, 1)
        k = start + torch.arange(-back, width + ahead, device=asked.device).view(1, 1, 1, 1, -1)
        real = (k >= 0) & (k < asked.keys) & (q < asked.queries)
        mask, lonely = scores(restrict(edges, real, asked.queries - 1), bias, q, k, asked)
        return cls(_fold(mask), None if lonely is None else _fold(lonely), width, back, ahead)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, drop: float = 0.0, scale: float | None = None) -> Tensor:
        B, H, T, D = q.shape
        q, k, v = self._cut(q, 0, 0), self._cut(k, self.left_span, self.right_span), self._cut(v, self.left_span, self.right_span)
        mask = self.mask if len(self.mask) == len(q) else self.mask.repeat(B, 1, 1, 1)
        y = attend(q, k, v, mask, drop, scale)  # (B * n, H, W, D)
        if self.lonely is not None:
            y = y.view(-1, len(self.lonely), *y.shape[1:]).masked_fill(self.lonely, 0)
        return y.view(B, -1, H, self.width, D).transpose(1, 2).reshape(B, H, -1, D)[:, :, :T]

    def _cut(self, x: Tensor, left_span: int, right_span: int) -> Tensor:
        """(B, H, T, D) -> (B * n, H, back + W + ahead, D): each block with its sides."""
        B, H, T, D = x.shape
        W = self.width
        n = -(-T // W)
        x = F.pad(x, (0, 0, left_span, n * W - T + right_span)).transpose(1, 2)  # (B, back + n W + ahead, H, D)
        body = x[:, left_span : left_span + n * W].view(B, n, W, H, D)
        left = x[:, : n * W].view(B, n, W, H, D)[:, :, :left_span]
        right = x[:, left_span + right_span : left_span + right_span + n * W].view(B, n, W, H, D)[:, :, W - right_span :]
        return torch.cat([left, body, right], dim=2).transpose(2, 3).flatten(0, 1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, drop: float, scale: float | None) -> Tensor:
    """mask: bool, or what is added to the scores; it broadcasts to (B, H, Q, K)."""
    if is_matmul_faster(q, k, drop):
        added = (
            mask if mask.is_floating_point() else torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -math.inf)
        )
        return matmul_attention(q, k, v, added, drop, scale)
    return sdpa(q, k, v, mask.to(q.dtype) if mask.is_floating_point() else mask, drop, False, scale)


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, drop: float, triangle: bool, scale: float | None
) -> Tensor:
    """torch's own attention. On a CPU it shares out grouped heads itself; elsewhere that would cost it its fast way."""
    if q.device.type != "cpu" or torch.compiler.is_exporting():
        k, v = _shared(q, k, v)
    grouped = k.shape[1] != q.shape[1]
    return F.scaled_dot_product_attention(q, k, v, mask, drop, triangle, scale=scale, enable_gqa=grouped)


def is_matmul_faster(q: Tensor, k: Tensor, drop: float = 0.0) -> bool:
    """In bfloat16 on a CPU torch's attention kernel does without the processor's bfloat16 instructions, which batched
    products use: 2 to 6 times quicker in training, for as long as all scores may be kept. In either format it is behind
    them for a single query, the step of writing, but for a short text alone, and wherever it has to drop out
    (bench/model/attention.py)."""
    (B, H, Q, _), K = q.shape, k.shape[2]
    if q.device.type != "cpu" or torch.compiler.is_exporting():
        return False
    if Q == 1 and not drop:
        return q.dtype == torch.bfloat16 or k.numel() >= READ
    return max(Q, K) <= 1024 and B * H * Q * K <= KEPT and (drop > 0 or q.dtype == torch.bfloat16)


READ = 1 << 18  # numbers of keys, a megabyte: with fewer to read, what a product costs to begin counts
KEPT = 1 << 26  # scores of a layer: 128 MiB, kept for the backward
PIECE = 1 << 22  # scores computed at once: more fall out of the processor's cache


def matmul_attention(q: Tensor, k: Tensor, v: Tensor, added: Tensor | None, drop: float, scale: float | None) -> Tensor:
    """Attention spelled out: softmax(q k' * scale + added) v, some heads at a time."""
    B, H, Q, D = q.shape
    scale = D**-0.5 if scale is None else scale
    if Q == 1 and not drop:
        return attend_single_query(q, k, v, added, scale)
    k, v = _shared(q, k, v)
    heads = max(1, PIECE // (Q * k.shape[2]))
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    if added is not None:
        added = added.to(q.dtype).expand(B, H, Q, -1).flatten(0, 1)

    def some(q: Tensor, k: Tensor, v: Tensor, added: Tensor | None) -> Tensor:
        start = q.new_zeros(()) if added is None else added
        scores = torch.baddbmm(start, q, k.transpose(1, 2), beta=float(added is not None), alpha=scale)
        weights = scores.softmax(-1).to(v.dtype)
        return torch.bmm(dropout(weights, drop) if drop else weights, v)

    if heads >= B * H:
        return some(q, k, v, added).unflatten(0, (B, H))
    pieces = zip(
        q.split(heads), k.split(heads), v.split(heads), [None] * B * H if added is None else added.split(heads)
    )
    return torch.cat([some(*piece) for piece in pieces]).unflatten(0, (B, H))


def attend_single_query(q: Tensor, k: Tensor, v: Tensor, added: Tensor | None, scale: float) -> Tensor:
    """The same for one query. Reading is all it costs, and keys are read soonest one after the other, each whole: as
    rows that meet the query's column. Heads that share keys ask side by side. q (B, H, 1, D) -> (B, H, 1, D)"""
    (B, H, _, D), shared, K = q.shape, k.shape[1], k.shape[2]
    q = (q * scale).reshape(B * shared, H // shared, D)
    scores = torch.bmm(k.flatten(0, 1), q.transpose(1, 2)).transpose(1, 2).reshape(B, H, 1, K)
    weights = (scores if added is None else scores + added.to(q.dtype)).softmax(-1)
    return torch.bmm(weights.view(B * shared, H // shared, K), v.flatten(0, 1)).view(B, H, 1, D)


def build_flex(edges: Edges, bias: PositionBias | None, asked: AttentionSpec, compiled: bool = True) -> Flex:
    """The path through FlexAttention."""
    mask = block_mask(edges, asked.batch, asked.heads, asked.queries, asked.keys, asked.device)
    ahead = edges.right_span > 0
    score_mod = None if bias is None else lambda score, b, h, q, k: score + bias(h, q, k, ahead)
    return Flex(mask, score_mod, compiled)


def scores(edges: Edges, bias: PositionBias | None, q: Tensor, k: Tensor, asked: AttentionSpec) -> tuple[Tensor, Tensor | None]:
    """What is added to the scores of these pairs (or, without bias, a bool mask of them), and which queries have no
    edge at all: softmax over nothing is not a number, so they read everything and their answer is set to 0."""
    mask = edges.evaluate(q, k, asked.batch, asked.heads)
    lonely = ~mask.any(-1, keepdim=True)
    exporting = torch.compiler.is_exporting()  # to a graph for every input: it cannot ask what is in this one
    none = mask.device.type == "cpu" and not exporting and not lonely.any()
    mask = mask if none else mask | lonely
    if bias is not None:
        h = torch.arange(asked.heads, device=q.device).view(1, -1, *[1] * (q.ndim - 2))
        mask = bias(h, q, k, edges.right_span > 0).masked_fill(~mask, -math.inf)
    return mask, None if none else lonely


def restrict(edges: Edges, real: Tensor, last: int | None = None) -> Edges:
    """The rule where some places hold no node: it is asked of nodes from 0 to `last` only, and is no for others."""

    def rule(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return edges(b, h, q.clamp(0, last), k.clamp(0, last)) & real

    return Edges(rule, "", edges.left_span, edges.right_span, edges.uses_batch, edges.uses_head)


def _fold(x: Tensor) -> Tensor:
    """(B or 1, H or 1, n, W, K) -> (B * n or n, H or 1, W, K)"""
    return x.transpose(1, 2).flatten(0, 1)


def _shared(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Grouped heads (2305.13245): each key and value head serves the same number of query heads."""
    if k.shape[1] == q.shape[1]:
        return k, v
    times = q.shape[1] // k.shape[1]
    return k.repeat_interleave(times, dim=1), v.repeat_interleave(times, dim=1)
