"""The Transformer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import KVCache
from .config import TransformerConfig
from .edges import Edges, full, within
from .kernels.dropout import Dropout
from .kernels.linear import Linear
from .kernels.select import AttentionKernel, AttentionSpec, select_kernel
from .norm import build_head_norm, build_norm
from .positions import CosSin, apply_rotary, build_position_bias, rotary_cos_sin

@dataclass(frozen=True)
class AttentionContext:
    """The edges of one forward, made ready: the path messages take, the turn of the positions, and how far back a node
    may read."""

    path: AttentionKernel
    turn: CosSin | None = None
    left_span: float = math.inf


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
        self.query_norm, self.key_norm = build_head_norm(config), build_head_norm(config)

    def forward(self, x: Tensor, wires: AttentionContext, memory: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        if memory is None:
            q, k, v = self.emits(x, wires)  # (B, H, Q, D) each
            k, v = (k, v) if cache is None else cache.append(self.layer, k, v, wires.left_span)  # (B, H, K, D)
        else:
            q, (k, v) = self.query_norm(self.heads(self.query(x))), self.told_by(memory, cache)
        y = wires.path(q, k, v, self.dropout if self.training else 0.0, self.scale)  # (B, H, Q, D)
        return self.output(y.transpose(1, 2).flatten(2))

    def emits(self, x: Tensor, wires: AttentionContext) -> tuple[Tensor, Tensor, Tensor]:
        """What each node looks for, has and tells: (B, H, Q, D) each."""
        q, k, v = map(self.heads, self.maps(x))
        q, k = self.query_norm(q), self.key_norm(k)
        return (q, k, v) if wires.turn is None else (apply_rotary(q, wires.turn), apply_rotary(k, wires.turn), v)

    def maps(self, x: Tensor) -> Sequence[Tensor]:
        """(B, Q, C) -> three of (B, Q, H * D)"""
        return self.query(x), self.key(x), self.value(x)

    @torch.no_grad()
    def looks(self, x: Tensor, wires: AttentionContext, memory: Tensor) -> Tensor:
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


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x) * x,  # the square, with one pass less
    "swiglu": F.silu,
    "geglu": partial(F.gelu, approximate="tanh"),
}


class MLP(nn.Module):
    """Compute: each node by itself. (B, T, C) -> (B, T, C)"""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.up = Linear(config.dim, config.hidden, config.bias)
        gated = config.activation in ("swiglu", "geglu")
        self.gate = Linear(config.dim, config.hidden, config.bias) if gated else None
        self.down = Linear(config.hidden, config.dim, config.bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.activation(self.up(x)))
        return self.down(self.activation(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Pre-norm: each sublayer reads the normed stream and adds to the bare one. `cross`: also reads a memory."""

    def __init__(self, config: TransformerConfig, layer: int, cross: bool = False):
        super().__init__()
        self.attn_norm, self.attn = build_norm(config), Attention(config, layer)
        if cross:
            self.cross_norm, self.cross = build_norm(config), Attention(config, layer)
        self.mlp_norm, self.mlp = build_norm(config), MLP(config)
        self.drop = Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        wires: AttentionContext,
        memory: Tensor | None = None,
        seen: AttentionContext | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        x = x + self.drop(self.attn(self.attn_norm(x), wires, cache=cache))  # nodes talk
        if memory is not None:
            x = x + self.drop(self.cross(self.cross_norm(x), seen, memory, cache))  # nodes listen
        return x + self.drop(self.mlp(self.mlp_norm(x)))  # each node thinks


class PostNormBlock(Block):
    """Post-norm, as in 2017 and in BERT: the stream itself is normed after each sum."""

    def forward(
        self,
        x: Tensor,
        wires: AttentionContext,
        memory: Tensor | None = None,
        seen: AttentionContext | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        x = self.attn_norm(x + self.drop(self.attn(x, wires, cache=cache)))
        if memory is not None:
            x = self.cross_norm(x + self.drop(self.cross(x, seen, memory, cache)))
        return self.mlp_norm(x + self.drop(self.mlp(x)))


class Transformer(nn.Module):
    """Nodes in, nodes out: (B, T, C) -> (B, T, C). It knows nothing of words, pixels or sound.

    edges: one rule for all layers, or one for each. memory (B, M, C) with `memory_edges` is read by cross-attention.
    With a cache, x are the next nodes of each row, and the rule is still asked by absolute position.
    """

    def __init__(self, config: TransformerConfig, cross: bool = False):
        super().__init__()
        self.config, self.cross = config, cross
        self.bias = build_position_bias(config)
        block = Block if config.norm_place == "pre" else PostNormBlock
        self.blocks = nn.ModuleList(block(config, layer, cross) for layer in range(config.n_layer))
        self.norm = build_norm(config) if config.norm_place == "pre" else nn.Identity()

    def forward(
        self,
        x: Tensor,
        edges: Edges | Sequence[Edges] = full,
        memory: Tensor | None = None,
        memory_edges: Edges = full,
        cache: KVCache | None = None,
    ) -> Tensor:
        if self.cross != (memory is not None):
            raise ValueError("a stack built with cross=True reads a memory, one built without does not")
        wires = self.prepare(x, edges, cache)
        seen = None if memory is None else self.wire_memory(x, memory, memory_edges, cache)
        for block, wire in zip(self.blocks, wires, strict=True):
            x = block(x, wire, memory, seen, cache)
        if cache is not None:
            cache.advance(x.shape[1])
        return self.norm(x)

    @property
    def dropout(self) -> float:
        return self.config.dropout if self.training else 0.0

    def prepare(self, x: Tensor, edges: Edges | Sequence[Edges], cache: KVCache | None = None) -> list[AttentionContext]:
        """The wires of each layer; layers that share a rule share them."""
        B, Q, _ = x.shape
        start = 0 if cache is None else cache.lengths
        at = torch.arange(Q, device=x.device) if cache is None else cache.positions(Q)
        rotary = self.config.position == "rotary"
        angles = rotary_cos_sin(at, self.config.head_channels, self.config.rotary_base) if rotary else None
        rules = [edges] * self.config.n_layer if isinstance(edges, Edges) else list(edges)
        if len(rules) != self.config.n_layer:
            raise ValueError(f"{len(rules)} rules of edges for {self.config.n_layer} layers: give one, or one for each")

        def ready(rule: Edges) -> AttentionContext:
            held = None if cache is None else cache.slot_positions(rule.left_span, Q)
            keys = held.shape[-1] if held is not None else Q if cache is None else cache.max_length + Q
            asked = AttentionSpec(B, self.config.n_head, Q, keys, start, x.device, self.dropout, held)
            return AttentionContext(select_kernel(standing(rule, start, Q), self.bias, asked), angles, rule.left_span)

        made = {rule: ready(rule) for rule in set(rules)}
        return [made[rule] for rule in rules]

    def wire_memory(self, x: Tensor, memory: Tensor, edges: Edges, cache: KVCache | None) -> AttentionContext:
        start = 0 if cache is None else cache.lengths
        asked = AttentionSpec(x.shape[0], self.config.n_head, x.shape[1], memory.shape[1], start, x.device, self.dropout)
        return AttentionContext(select_kernel(edges, None, asked))


def standing(rule: Edges, start: int | Tensor, new: int) -> Edges:
    """The rule where rows of a cache differ in length: the shorter ones have slots that nothing stands in yet, which a
    rule that looks ahead must not read."""
    return rule if isinstance(start, int) or rule.right_span == 0 else rule & within(start + new)


@torch.no_grad()
def attention_weights(body: Transformer, forward: Callable[[], Any]) -> Tensor:
    """How much each node reads of each in every layer while `forward()` runs: (layers, B, H, T, T), [query, key]. For
    stacks that read themselves, without a cache."""
    found: list[Tensor] = []

    def note(attention: Attention, heard: tuple[Tensor, AttentionContext]) -> None:
        found.append(weights(attention, *heard[:2]))

    hooks = [block.get_submodule("attn").register_forward_pre_hook(note) for block in body.blocks]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(found)


def weights(attention: Attention, x: Tensor, wires: AttentionContext) -> Tensor:
    """Of one layer, (B, H, T, T): what arrives where every node tells its own name, whatever path the messages take."""
    q, k, _ = attention.emits(x, wires)
    names = torch.eye(k.shape[2], dtype=q.dtype, device=q.device).expand(*k.shape[:2], -1, -1)
    return wires.path(q, k, names, 0.0, attention.scale)
