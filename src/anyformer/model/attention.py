"""Communicate: every node reads a weighted mean of the nodes it has an edge to.

A node emits a query (what I look for), a key (what I have) and a value (what I tell). The query meets the keys of all
nodes that have an edge to it; the softmax of the dot products weighs their values (1706.03762).

Shapes: B batch, T nodes (Q when they ask, K when they are read), C channels, H heads, D channels of a head.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .cache import KVCache
from .config import TransformerConfig
from .kernels.linear import Linear
from .kernels.paths import Path
from .norm import head_norm
from .positions import Turn, rotate


@dataclass(frozen=True)
class Wires:
    """The edges of one forward, made ready: the path messages take, the turn of the positions, and how far back a node
    may read."""

    path: Path
    turn: Turn | None = None
    back: float = math.inf


class Attention(nn.Module):
    """Communicate. x (B, Q, C), read from themselves or from `memory` (B, K, C) -> (B, Q, C)"""

    def __init__(self, config: TransformerConfig, layer: int):
        super().__init__()
        C, D = config.dim, config.head_channels
        self.layer, self.channels, self.dropout, self.scale = layer, D, config.dropout, config.scale
        self.query = Linear(C, config.n_head * D, config.bias)
        self.key = Linear(C, config.kv_heads * D, config.bias)
        self.value = Linear(C, config.kv_heads * D, config.bias)
        self.output = Linear(config.n_head * D, C, config.bias)
        self.query_norm, self.key_norm = head_norm(config), head_norm(config)

    def forward(self, x: Tensor, wires: Wires, memory: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        if memory is None:
            q, k, v = self.emits(x, wires)  # (B, H, Q, D) each
            k, v = (k, v) if cache is None else cache.append(self.layer, k, v, wires.back)  # (B, H, K, D)
        else:
            q, (k, v) = self.query_norm(self.heads(self.query(x))), self.told_by(memory, cache)
        y = wires.path(q, k, v, self.dropout if self.training else 0.0, self.scale)  # (B, H, Q, D)
        return self.output(y.transpose(1, 2).flatten(2))

    def emits(self, x: Tensor, wires: Wires) -> tuple[Tensor, Tensor, Tensor]:
        """What each node looks for, has and tells: (B, H, Q, D) each."""
        q, k, v = map(self.heads, self.maps(x))
        q, k = self.query_norm(q), self.key_norm(k)
        return (q, k, v) if wires.turn is None else (rotate(q, wires.turn), rotate(k, wires.turn), v)

    def maps(self, x: Tensor) -> Sequence[Tensor]:
        """(B, Q, C) -> three of (B, Q, H * D)"""
        return self.query(x), self.key(x), self.value(x)

    @torch.no_grad()
    def looks(self, x: Tensor, wires: Wires, memory: Tensor) -> Tensor:
        """How much each query reads of each node of a memory, (B, H, Q, K): what arrives where every node tells its own
        name, so whatever path the messages take, these are its weights."""
        q, k = self.query_norm(self.heads(self.query(x))), self.key_norm(self.heads(self.key(memory)))
        names = torch.eye(k.shape[2], dtype=q.dtype, device=q.device).expand(*k.shape[:2], -1, -1)
        return wires.path(q, k, names, 0.0, self.scale)

    def told_by(self, memory: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        """Keys and values of the memory, computed once a cache: (B, H, K, D) each."""
        kept = cache.memory[self.layer] if cache is not None else None
        if kept is None:
            kept = self.key_norm(self.heads(self.key(memory))), self.heads(self.value(memory))
            if cache is not None:
                kept = cache.memory[self.layer] = kept[0].contiguous(), kept[1].contiguous()  # read at every step
        return kept

    def heads(self, x: Tensor) -> Tensor:
        """(B, T, H * D) -> (B, H, T, D)"""
        return x.unflatten(-1, (-1, self.channels)).transpose(1, 2)
