"""A mixture of a Transformer and n-gram counts: the head's logits plus weighted log-probabilities of the counts.

Shapes: B batch, T nodes, C channels, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .compact_cache import CacheFormat, CompactCache
from .config import TransformerConfig
from .kernels.linear import Linear


class NGramMixture(nn.Module):
    """Logits of a head plus log-probabilities from elsewhere times a weight, which each node computes and starts at 1.
    (B, T, C + V) -> (B, T, V)"""

    def __init__(self, head: Any, dim: int):
        super().__init__()
        self.head, self.dim, self.vocab_size = head, dim, head.vocab_size
        self.weigh = Linear(dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        nodes, log_probs = x[..., : self.dim], x[..., self.dim :]
        return self.head(nodes).float() + (1 + self.weigh(nodes)).float() * log_probs


class TokenCache(CompactCache):
    """A key-value cache that also keeps the token ids: (B, size)."""

    def __init__(
        self,
        config: TransformerConfig,
        batch: int,
        size: int | None = None,
        device: torch.device | str = "cpu",
        cache_format: CacheFormat = "float32",
    ):
        super().__init__(config, batch, size, device, cache_format)
        self.ids = torch.zeros(batch, self.size, dtype=torch.long, device=self.device)
        self.order = torch.arange(batch, device=self.device)
        """Where each row of the batch is in the concatenation of what `append_ids` yields."""

    @property
    def is_unbounded(self) -> bool:
        return False  # the ids of all nodes are kept

    def append_ids(self, ids: Tensor, before: int) -> Iterator[Tensor]:
        """Store the next ids of each row, (B, T), before the stack reads them. Yields them, after up to `before` ids
        that the row already holds; rows of equal length together, in an order that `order` undoes."""
        positions = self.positions(ids.shape[1]).expand_as(ids)
        self.ids.scatter_(1, positions, ids)
        lengths = positions[:, 0]
        groups = [torch.nonzero(lengths == length)[:, 0] for length in lengths.unique()]
        self.order = torch.cat(groups).argsort()
        for rows in groups:
            start = int(lengths[rows[0]])
            yield self.ids[rows, max(0, start - before) : start + ids.shape[1]]

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        self.ids = self.ids[rows.to(self.ids.device)]
