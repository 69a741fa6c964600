"""The Transformer: nodes communicate along edges (attention), then each computes by itself (MLP), block after block.

A node emits a query (what it looks for), a key (what it has) and a value (what it passes on). The query meets the keys
of all nodes that have an edge to it; the softmax of the dot products weighs their values (1706.03762).

Shapes: B batch, T nodes (Q as queries, K as keys), C channels, H heads, D channels of a head, M nodes of a memory.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .activations import ACTIVATIONS
from .cache import KVCache
from .config import GATED, RELATIVE, TransformerConfig, check_config
from .edges import Edges, MaskMod, as_edges, full, within
from .kernels.dropout import Dropout
from .kernels.linear import Linear
from .kernels.near_pinned import NearPinned
from .kernels.select import AttentionKernel, AttentionSpec, PositionBias, select_kernel
from .norm import build_block_norms, build_head_norm, build_norm
from .position_bias import build_position_bias
from .positions import CosSin, apply_rotary, rotary_cos_sin
from .rope_scaling import rotary_frequencies


class AttentionContext(NamedTuple):
    """Edges made ready for one forward. A stack prepares them once for all layers that share a rule."""

    kernel: AttentionKernel
    cos_sin: CosSin | None = None
    edges: Edges = full


AnyEdges = Edges | MaskMod | AttentionContext  # a rule, a mask_mod function, or what a stack has prepared of either


class Attention(nn.Module):
    """Communicate: each node reads a weighted mean of the nodes it has an edge to.

    Args:
        layer: where a cache keeps the keys and values.

    Shapes:
        x: (B, Q, C); memory: (B, K, C)
        returns: (B, Q, C), with `need_weights` also the attention weights (B, H, Q, K)
    """

    def __init__(self, config: TransformerConfig, layer: int = 0):
        super().__init__()
        check_config(config)
        C, D = config.dim, config.head_channels
        self.config, self.layer, self.head_channels = config, layer, D
        self.query = Linear(C, config.n_head * D, config.bias)
        self.key = Linear(C, config.kv_heads * D, config.bias)
        self.value = Linear(C, config.kv_heads * D, config.bias)
        self.output = Linear(config.n_head * D, C, config.bias)
        self.query_norm, self.key_norm = (build_head_norm(config, n) for n in (config.n_head, config.kv_heads))

    def forward(
        self,
        x: Tensor,
        edges: AnyEdges = full,
        memory: Tensor | None = None,
        cache: KVCache | None = None,
        need_weights: bool = False,
    ) -> Any:
        """Read the nodes of x themselves, or of `memory`. Without a stack, the caller advances the cache."""
        context = edges if isinstance(edges, AttentionContext) else prepare_edges(self, x, [edges], memory, cache)[0]
        if memory is None:
            q, k, v = self.qkv(x, context.cos_sin)  # (B, H, Q, D) each
            k, v = (k, v) if cache is None else cache.update(self.layer, k, v, context.edges)  # (B, H, K, D)
        else:
            q, (k, v) = self.query_norm(self.split_heads(self.query(x))), self.memory_kv(memory, cache)
        dropout_p = self.config.dropout if self.training else 0.0
        y = context.kernel(q, k, v, dropout_p, self.config.scale)  # (B, H, Q, D)
        y = self.output(y.transpose(1, 2).flatten(2))
        return (y, self.attention_weights(q, k, context.kernel)) if need_weights else y

    def qkv(self, x: Tensor, cos_sin: CosSin | None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = map(self.split_heads, self.project_qkv(x))
        q, k = self.query_norm(q), self.key_norm(k)
        return (q, k, v) if cos_sin is None else (apply_rotary(q, cos_sin), apply_rotary(k, cos_sin), v)

    def project_qkv(self, x: Tensor) -> Sequence[Tensor]:
        """(B, Q, C) -> three of (B, Q, H * D)"""
        return self.query(x), self.key(x), self.value(x)

    def memory_kv(self, memory: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        """Keys and values of the memory, computed once for each cache: (B, H, K, D) each."""
        kv = None if cache is None else cache.memory[self.layer]
        if kv is None:
            kv = self.key_norm(self.split_heads(self.key(memory))), self.split_heads(self.value(memory))
            if cache is not None:
                kv = cache.memory[self.layer] = kv[0].contiguous(), kv[1].contiguous()  # they are read at every step
        return kv

    def attention_weights(self, q: Tensor, k: Tensor, kernel: AttentionKernel) -> Tensor:
        """What arrives if node i passes on the i-th unit vector: exact for every kernel. (B, H, Q, K)"""
        units = torch.eye(k.shape[2], dtype=q.dtype, device=q.device).expand(*k.shape[:2], -1, -1)
        return kernel(q, k, units, 0.0, self.config.scale)

    @property
    def bias(self) -> PositionBias | None:
        """The position bias of a layer without a stack."""
        if self.config.position in RELATIVE:
            raise ValueError(f"{self.config.position} positions are weights that a stack shares: call a Transformer")
        return build_position_bias(self.config)

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, T, H * D) -> (B, H, T, D)"""
        return x.unflatten(-1, (-1, self.head_channels)).transpose(1, 2)


class MLP(nn.Module):
    """Compute: each node by itself. (B, T, C) -> (B, T, C)"""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.up = Linear(config.dim, config.hidden, config.bias)
        self.gate = Linear(config.dim, config.hidden, config.bias) if config.activation in GATED else None
        self.down = Linear(config.hidden, config.dim, config.bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.activation(self.up(x)))
        return self.down(self.activation(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Communicate, then compute: (B, T, C) -> (B, T, C).

    Pre-norm: each sublayer reads the normed stream and adds to the bare one; what it adds may be normed too, or alone.
    Post-norm, as in 2017 and in BERT: the stream itself is normed after each sum.

    Args:
        layer: where a cache keeps the keys and values.
        cross: also read a memory (B, M, C), along `memory_edges`.
    """

    def __init__(self, config: TransformerConfig, layer: int = 0, cross: bool = False):
        super().__init__()
        check_config(config)
        self.config, self.reads_memory = config, cross
        (self.attn_norm, self.attn_output_norm), self.attn = build_block_norms(config), Attention(config, layer)
        if cross:
            (self.cross_norm, self.cross_output_norm), self.cross = build_block_norms(config), Attention(config, layer)
        (self.mlp_norm, self.mlp_output_norm), self.mlp = build_block_norms(config), MLP(config)
        self.drop = Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        edges: AnyEdges = full,
        memory: Tensor | None = None,
        memory_edges: AnyEdges = full,
        cache: KVCache | None = None,
    ) -> Tensor:
        if not isinstance(edges, AttentionContext):
            check_nodes("x", x, self.config)
        if self.reads_memory != (memory is not None):
            raise ValueError("a block built with cross=True reads a memory, one built without does not")
        if self.config.norm_place == "post":
            return self.forward_post_norm(x, edges, memory, memory_edges, cache)
        x = x + self.drop(self.attn_output_norm(self.attn(self.attn_norm(x), edges, cache=cache)))  # nodes talk
        if self.reads_memory:
            message = self.cross(self.cross_norm(x), memory_edges, memory, cache)  # nodes listen
            x = x + self.drop(self.cross_output_norm(message))
        return x + self.drop(self.mlp_output_norm(self.mlp(self.mlp_norm(x))))  # each node thinks

    def forward_post_norm(
        self, x: Tensor, edges: AnyEdges, memory: Tensor | None, memory_edges: AnyEdges, cache: KVCache | None
    ) -> Tensor:
        x = self.attn_norm(x + self.drop(self.attn(x, edges, cache=cache)))
        if self.reads_memory:
            x = self.cross_norm(x + self.drop(self.cross(x, memory_edges, memory, cache)))
        return self.mlp_norm(x + self.drop(self.mlp(x)))


class Transformer(nn.Module):
    """Blocks in a row: (B, T, C) -> (B, T, C). It knows nothing of words, pixels or sound.

    Args:
        cross: every block also reads a memory (B, M, C), along `memory_edges`.
    """

    def __init__(self, config: TransformerConfig, cross: bool = False):
        super().__init__()
        self.config, self.cross = config, cross
        self.bias = build_position_bias(config)
        self.blocks = nn.ModuleList(Block(config, layer, cross) for layer in range(config.n_layer))
        self.norm = nn.Identity() if config.norm_place == "post" else build_norm(config)

    def forward(
        self,
        x: Tensor,
        edges: Edges | MaskMod | Sequence[Edges | MaskMod] = full,
        memory: Tensor | None = None,
        memory_edges: Edges | MaskMod = full,
        cache: KVCache | None = None,
    ) -> Tensor:
        """edges: one rule for all layers, or one for each. With a cache, x are the next nodes of each row; rules see
        absolute positions. Raises ValueError for shapes that do not fit, TypeError for what is no rule."""
        is_list = isinstance(edges, (list, tuple))  # torch 2.9 compiles no test for a union of types
        rules = list(edges) if is_list else [edges] * self.config.n_layer
        if len(rules) != self.config.n_layer:
            raise ValueError(f"{len(rules)} rules of edges for {self.config.n_layer} layers: give one, or one for each")
        contexts = prepare_edges(self, x, rules, None, cache)
        memory_context: AnyEdges = full
        if memory is not None:
            memory_context = prepare_edges(self, x, [memory_edges], memory, cache)[0]
        for block, context in zip(self.blocks, contexts, strict=True):
            x = block(x, context, memory, memory_context, cache)
        if cache is not None:
            cache.advance(x.shape[1])
        return self.norm(x)


def prepare_edges(
    module: Attention | Transformer, x: Tensor, rules: Sequence[Any], memory: Tensor | None, cache: KVCache | None
) -> list[AttentionContext]:
    """The context of each layer; layers with the same rule and rotary base share one."""
    check_nodes("x", x, module.config)
    if memory is not None:
        check_nodes("memory", memory, module.config)
    config, (batch, queries, _), is_self = module.config, x.shape, memory is None
    start, end = (0, queries) if cache is None else (cache.lengths, cache.max_length + queries)
    bias, layer = module.bias if is_self else None, module.layer if isinstance(module, Attention) else 0
    bases = [config.get_rotary_base(layer + i) if is_self else 0.0 for i in range(len(rules))]
    positions = torch.arange(queries, device=x.device) if cache is None else cache.positions(queries)
    rotary = {base: rotary_frequencies(config, end, x.device, base) for base in dict.fromkeys(bases) if base}
    cos_sin = {base: rotary_cos_sin(positions, frequency, scale) for base, (frequency, scale) in rotary.items()}

    def prepare(edges: Edges, base: float) -> AttentionContext:
        keys, slots = queries if memory is None else memory.shape[1], None
        if is_self and cache is not None:
            slots = cache.slot_positions(edges, queries)
            keys = cache.max_length + queries if slots is None else slots.shape[-1]
        dropout_p = config.dropout if module.training else 0.0
        spec = AttentionSpec(batch, config.n_head, queries, keys, start, x.device, dropout_p, slots, config.softcap)
        kernel = select_kernel(mask_unfilled(edges, start, queries) if is_self else edges, bias, spec)
        if base in rotary and edges.pinned and end > config.context:
            back = rotary_cos_sin(positions.clamp(max=config.context - 1) - positions, rotary[base][0])
            kernel = NearPinned(kernel, edges.pinned, back, spec)
        return AttentionContext(kernel, cos_sin.get(base), edges)

    contexts: list[AttentionContext] = []
    for i, (rule, base) in enumerate(zip(rules, bases)):
        # no dictionary of rules: torch 2.9 compiles none
        earlier = next((j for j in range(i) if rules[j] is rule and bases[j] == base), None)
        contexts.append(prepare(as_edges(rule), base) if earlier is None else contexts[earlier])
    return contexts


def mask_unfilled(edges: Edges, start: int | Tensor, new: int) -> Edges:
    """Where rows of a cache differ in length, a rule that looks ahead must not read the empty slots of shorter rows."""
    return edges if isinstance(start, int) or edges.right_span == 0 else edges & within(start + new)


def check_nodes(name: str, x: Tensor, config: TransformerConfig) -> None:
    if x.ndim != 3 or x.shape[-1] != config.dim:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be (B, T, C) with C = dim = {config.dim}")
