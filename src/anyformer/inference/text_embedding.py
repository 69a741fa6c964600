"""Texts to vectors: what an encoder makes of a text as a whole, to compare and to search.

Shapes: N texts, C channels.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.heads import mean


class Reader(Protocol):
    """An encoder that reads text: ids of a text, and nodes of ids."""

    wrapped: Any
    context: int

    def hidden(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor: ...
    def parameters(self) -> Any: ...


@torch.inference_mode()
def embed(model: Reader, texts: Sequence[str], batch: int = 32, cut: bool = False) -> Tensor:
    """A vector of length 1 for each text, the mean of its nodes (1908.10084): (N, C) on the CPU. Texts of like
    length share a batch. Raises InputError for a text longer than the context, unless it may be cut."""
    rows = [model.wrapped.encode(text, model.context, cut) for text in texts]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    made: dict[int, Tensor] = {}
    for start in range(0, len(order), batch):
        some = order[start : start + batch]
        ids, lengths = pad([rows[i] for i in some], next(iter(model.parameters())).device)
        pooled = F.normalize(mean(model.hidden(ids, lengths).float(), lengths), dim=-1)
        made |= dict(zip(some, pooled.cpu()))
    return torch.stack([made[i] for i in range(len(rows))]) if rows else torch.zeros(0, 0)


def pad(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of unequal length as ids (B, T), filled up with 0, and lengths (B,)."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids.to(device), lengths.to(device)
