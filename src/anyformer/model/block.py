"""Block: communicate (attention), then compute (MLP). Blocks in a row make a Transformer.

Shapes: B batch, T nodes, C channels, M nodes of a memory.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention, Wires
from .cache import KVCache
from .config import TransformerConfig
from .edges import Edges, full, within
from .kernels.dropout import Dropout
from .kernels.linear import Linear
from .kernels.paths import Asked, choose
from .norm import norm
from .positions import biased, turn

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
        self.attn_norm, self.attn = norm(config), Attention(config, layer)
        if cross:
            self.cross_norm, self.cross = norm(config), Attention(config, layer)
        self.mlp_norm, self.mlp = norm(config), MLP(config)
        self.drop = Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        wires: Wires,
        memory: Tensor | None = None,
        seen: Wires | None = None,
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
        wires: Wires,
        memory: Tensor | None = None,
        seen: Wires | None = None,
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
        self.bias = biased(config)
        block = Block if config.norm_place == "pre" else PostNormBlock
        self.blocks = nn.ModuleList(block(config, layer, cross) for layer in range(config.n_layer))
        self.norm = norm(config) if config.norm_place == "pre" else nn.Identity()

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
        wires = self.wire(x, edges, cache)
        seen = None if memory is None else self.wire_memory(x, memory, memory_edges, cache)
        for block, wire in zip(self.blocks, wires, strict=True):
            x = block(x, wire, memory, seen, cache)
        if cache is not None:
            cache.advance(x.shape[1])
        return self.norm(x)

    @property
    def dropout(self) -> float:
        return self.config.dropout if self.training else 0.0

    def wire(self, x: Tensor, edges: Edges | Sequence[Edges], cache: KVCache | None = None) -> list[Wires]:
        """The wires of each layer; layers that share a rule share them."""
        B, Q, _ = x.shape
        start = 0 if cache is None else cache.lengths
        at = torch.arange(Q, device=x.device) if cache is None else cache.positions(Q)
        rotary = self.config.position == "rotary"
        angles = turn(at, self.config.head_channels, self.config.rotary_base) if rotary else None
        rules = [edges] * self.config.n_layer if isinstance(edges, Edges) else list(edges)
        if len(rules) != self.config.n_layer:
            raise ValueError(f"{len(rules)} rules of edges for {self.config.n_layer} layers: give one, or one for each")

        def ready(rule: Edges) -> Wires:
            held = None if cache is None else cache.held(rule.back, Q)
            keys = held.shape[-1] if held is not None else Q if cache is None else cache.filled + Q
            asked = Asked(B, self.config.n_head, Q, keys, start, x.device, self.dropout, held)
            return Wires(choose(standing(rule, start, Q), self.bias, asked), angles, rule.back)

        made = {rule: ready(rule) for rule in set(rules)}
        return [made[rule] for rule in rules]

    def wire_memory(self, x: Tensor, memory: Tensor, edges: Edges, cache: KVCache | None) -> Wires:
        start = 0 if cache is None else cache.lengths
        asked = Asked(x.shape[0], self.config.n_head, x.shape[1], memory.shape[1], start, x.device, self.dropout)
        return Wires(choose(edges, None, asked))


def standing(rule: Edges, start: int | Tensor, new: int) -> Edges:
    """The rule where rows of a cache differ in length: the shorter ones have slots that nothing stands in yet, which a
    rule that looks ahead must not read."""
    return rule if isinstance(start, int) or rule.ahead == 0 else rule & within(start + new)
