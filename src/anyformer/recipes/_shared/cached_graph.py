"""A language model as a graph that takes the keys and values of the tokens before, and returns them with the new ones.

Shapes: B rows, T new tokens, P tokens before, G heads of keys and values, K keys, D channels of a head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...model.edges import Edges
from ...recipe import Graph, GraphInput


class GrowingCache:
    """Keys and values that are handed in and out, as a graph needs them. All rows hold P tokens.

    Args:
        layers: keys and values of each layer, (B, G, P, D) each.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]]):
        keys = layers[0][0]
        self.layers, self.max_length = list(layers), keys.shape[2]
        self.lengths = torch.full((keys.shape[0],), keys.shape[2], device=keys.device)

    def positions(self, new: int) -> Tensor:
        """The positions of the next `new` tokens of each row: (B, new)"""
        return torch.arange(new, device=self.lengths.device) + self.lengths[:, None]

    def slot_positions(self, edges: Edges, new: int) -> None:
        """Keys are in order, and none is dropped."""

    def update(self, layer: int, k: Tensor, v: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
        """Append the keys and values of new tokens, and return those of all."""
        keys, values = self.layers[layer]
        self.layers[layer] = torch.cat([keys, k], 2), torch.cat([values, v], 2)
        return self.layers[layer]

    def advance(self, new: int) -> None:
        """Keys and values have grown already."""


def export_cached_graph(model: Any) -> Graph:
    """Return the graph: ids (B, T), past (B, G, P, D) -> logits (B, T, V), present (B, G, P + T, D)."""
    config, vocab_size = model.body.config, model.nodes.token.num_embeddings
    names = [f"{i}.{kind}" for i in range(config.n_layer) for kind in ("key", "value")]

    def call(ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        cache = GrowingCache(list(zip(past[::2], past[1::2])))
        logits = model(ids, cache)
        return logits, *(tensor for pair in cache.layers for tensor in pair)

    inputs = {"ids": GraphInput("batch length", vocab_size)}
    inputs |= {f"past.{name}": GraphInput(f"batch {config.kv_heads} past {config.head_channels}") for name in names}
    outputs = ("logits", *(f"present.{name}" for name in names))
    return Graph(call, inputs, outputs, {"length": config.context, "past": config.context})
