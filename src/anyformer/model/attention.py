"""Communicate: every node reads a weighted mean of the nodes it has an edge to.

A node emits a query (what I look for), a key (what I have) and a value (what I tell). The query meets the keys of all
nodes that have an edge to it; the softmax of the dot products weighs their values (1706.03762).

Shapes: B batch, T nodes (Q when they ask, K when they are read), C channels, H heads, D channels of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .config import TransformerConfig
from .linear import Linear
from .norm import head_norm
from .paths import Path
from .position import Turn, rotate


@dataclass(frozen=True)
class Wires:
    """The edges of one forward, made ready: the path messages take and the turn of the positions."""

    path: Path
    turn: Turn | None = None


class KVCache:
    """Keys and values of the nodes already read, in memory taken once; one pair for each layer.

    Row b holds `lengths[b]` nodes, at positions 0, 1, ... Rows may differ (`trim`), which is how prompts of unequal
    length share a batch. What was computed from a memory (cross-attention) is kept too: a memory does not change.
    """

    def __init__(
        self,
        config: TransformerConfig,
        batch: int,
        size: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.size = size or config.context
        shape = (config.n_layer, batch, config.kv_heads, self.size, config.head_channels)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.memory: list[tuple[Tensor, Tensor] | None] = [None] * config.n_layer
        self.lengths: int | Tensor = 0

    @property
    def device(self) -> torch.device:
        return self.keys.device

    @property
    def filled(self) -> int:
        """Nodes in the longest row."""
        return self.lengths if isinstance(self.lengths, int) else int(self.lengths.max())

    def positions(self, new: int) -> Tensor:
        """Where the next `new` nodes of each row will stand: (new,) or (B, new)."""
        ahead = torch.arange(new, device=self.keys.device)
        return ahead + (self.lengths if isinstance(self.lengths, int) else self.lengths[:, None])

    def trim(self, lengths: Tensor) -> None:
        """Row b keeps its first lengths[b] nodes (what came after was padding). lengths: (B,)"""
        self.lengths = int(lengths[0]) if bool((lengths == lengths[0]).all()) else lengths.to(self.keys.device)

    def pick(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was, memory included: a beam drops some rows and doubles others. rows: (B,)"""
        rows, end = rows.to(self.keys.device), self.filled
        self.keys[:, :, :, :end] = self.keys[:, rows, :, :end]
        self.values[:, :, :, :end] = self.values[:, rows, :, :end]
        self.memory = [kept and (kept[0][rows], kept[1][rows]) for kept in self.memory]
        if not isinstance(self.lengths, int):
            self.lengths = self.lengths[rows]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new nodes' keys and values, give back those of all nodes. k, v: (B, H, Q, D) -> (B, H, K, D)"""
        new, end = k.shape[2], self.filled + k.shape[2]
        if end > self.size:
            raise ValueError(f"the cache holds {self.size} nodes and would need {end}: make it larger or crop")
        keys, values = self.keys[layer], self.values[layer]
        if isinstance(self.lengths, int):
            keys[:, :, self.lengths : end], values[:, :, self.lengths : end] = k, v
        else:
            row, at = torch.arange(len(k), device=k.device)[:, None], self.positions(new)
            keys[row, :, at], values[row, :, at] = k.transpose(1, 2).to(keys.dtype), v.transpose(1, 2).to(keys.dtype)
        return keys[:, :, :end].to(k.dtype), values[:, :, :end].to(v.dtype)

    def advance(self, new: int) -> None:
        self.lengths = self.lengths + new


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
            k, v = (k, v) if cache is None else cache.append(self.layer, k, v)  # (B, H, K, D)
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
                cache.memory[self.layer] = kept
        return kept

    def heads(self, x: Tensor) -> Tensor:
        """(B, T, H * D) -> (B, H, T, D)"""
        return x.unflatten(-1, (-1, self.channels)).transpose(1, 2)
