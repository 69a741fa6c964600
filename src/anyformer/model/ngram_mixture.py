"""A memory beside the Transformer: what was read is written down, and what it says is weighed by each node.

Shapes: B batch, T nodes, C channels, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .cache import KVCache
from .kernels.linear import Linear


class NGramMixture(nn.Module):
    """Logits of a head, and log-probabilities from elsewhere, which each node trusts more or less: fully at birth.
    (B, T, C + V) -> (B, T, V)"""

    def __init__(self, head: nn.Module, dim: int):
        super().__init__()
        self.head, self.dim = head, dim
        self.weigh = Linear(dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        nodes, said = x[..., : self.dim], x[..., self.dim :]
        return self.head(nodes).float() + (1 + self.weigh(nodes)).float() * said


class TokenCache(KVCache):
    """A cache that also keeps the ids themselves: (B, size)"""

    def __init__(self, *args: Any, **more: Any):
        super().__init__(*args, **more)
        self.ids = torch.zeros(self.batch, self.size, dtype=torch.long, device=self.device)
        self.order = torch.arange(len(self.ids), device=self.device)

    @property
    def unbounded(self) -> bool:
        return False  # the ids of all nodes are kept

    def append_ids(self, ids: Tensor, before: int) -> Iterator[Tensor]:
        """Write down the next ids of each row (B, T), before they are read; yields them with as many as `before` that
        each row holds already, rows of like length together. `order` says where each row of the batch then stands."""
        at = self.positions(ids.shape[1]).expand_as(ids)
        self.ids.scatter_(1, at, ids)
        lengths = at[:, 0]
        groups = [torch.nonzero(lengths == length)[:, 0] for length in lengths.unique()]
        self.order = torch.cat(groups).argsort()
        for rows in groups:
            first = int(lengths[rows[0]])
            yield self.ids[rows, max(0, first - before) : first + ids.shape[1]]

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        self.ids = self.ids[rows.to(self.ids.device)]
