"""CompactCache: keys and values in fewer bits, so that more nodes fit into memory.

They are rounded once, as they are stored, and read back in the format of the computation: a node reads rounded keys and
values in any case, its own too, however many nodes are read at once.

Shapes: B batch, H heads, T nodes, D channels of a head, E numbers that a head of a node is stored in.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .cache import KVCache
from .config import TransformerConfig
from .edges import Edges, causal
from .transformer import Transformer

CacheFormat = Literal["float32", "bfloat16", "int8"]
LARGEST = 127  # of an integer
SCALE_BYTES = 2  # bfloat16


class CompactCache(KVCache):
    """A `KVCache` in another number format; "float32" stands for that of the computation."""

    def __init__(
        self,
        config: TransformerConfig,
        batch: int,
        size: int | None = None,
        device: torch.device | str = "cpu",
        cache_format: CacheFormat = "float32",
    ):
        super().__init__(config, batch, size, device)
        self.format = cache_format

    def update(self, layer: int, k: Tensor, v: Tensor, edges: Edges = causal) -> tuple[Tensor, Tensor]:
        keys, values = self.store(layer, encode(k, self.format), encode(v, self.format), edges)
        return decode(keys, self.format, k.dtype), decode(values, self.format, v.dtype)

    def store(self, layer: int, k: Tensor, v: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
        """As `update`, of what is stored: (B, H, T, E) each."""
        return super().update(layer, k, v, edges)


def build_cache(
    body: Transformer, batch: int, size: int | None = None, kind: type[CompactCache] = CompactCache
) -> CompactCache:
    """Return an empty cache of this kind for a stack, in the format that was set for it."""
    return kind(body.config, batch, size, next(body.parameters()).device, find_cache_format(body))


def set_cache_format(model: nn.Module, cache_format: CacheFormat) -> None:
    """Set the number format of keys and values for all stacks of a model. Raises ValueError for an unknown one, and for
    a model that has no stack."""
    if cache_format not in get_args(CacheFormat):
        raise ValueError(f"cache_dtype is float32, bfloat16 or int8, not {cache_format!r}")
    stacks: list[Any] = [module for module in model.modules() if isinstance(module, Transformer)]
    if not stacks and cache_format != "float32":
        raise ValueError("this model has no Transformer, and so no keys and values")
    for stack in stacks:
        stack.cache_format = cache_format


def find_cache_format(body: Transformer) -> CacheFormat:
    return getattr(body, "cache_format", "float32")


def count_node_bytes(config: TransformerConfig, cache_format: CacheFormat) -> int:
    """Return the bytes of a node in all layers."""
    D = config.head_channels
    head_bytes = {"float32": 4 * D, "bfloat16": 2 * D, "int8": D + SCALE_BYTES}[cache_format]
    return 2 * config.n_layer * config.kv_heads * head_bytes


def encode(x: Tensor, cache_format: CacheFormat) -> Tensor:
    """(B, H, T, D) -> (B, H, T, E). int8: integers with a scale for each head of each node, whose two bytes follow."""
    if cache_format == "float32":
        return x
    if cache_format == "bfloat16":
        return x.bfloat16()
    scale = (x.abs().amax(-1, keepdim=True) / LARGEST).clamp(min=1e-30).bfloat16()  # (B, H, T, 1)
    integers = (x / scale).round_().clamp_(-LARGEST, LARGEST).to(torch.int8)
    return torch.cat([integers, scale.view(torch.int8)], -1)


def decode(stored: Tensor, cache_format: CacheFormat, dtype: torch.dtype) -> Tensor:
    """(B, H, T, E) -> (B, H, T, D)"""
    if cache_format != "int8":
        return stored.to(dtype) if cache_format == "bfloat16" else stored
    return stored[..., :-SCALE_BYTES] * stored[..., -SCALE_BYTES:].contiguous().view(torch.bfloat16).to(dtype)
