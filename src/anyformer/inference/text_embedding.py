"""Text embedding: a vector for each text, to compare and to search.

Shapes: N texts, C channels.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.heads import mean_pool
from .decode import pad_rows


class TextEncoder(Protocol):
    """An encoder of texts, with its tokenizer."""

    masked_tokenizer: Any
    context: int

    def hidden(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor: ...
    def parameters(self) -> Any: ...


@torch.inference_mode()
def embed_texts(model: TextEncoder, texts: Sequence[str], batch: int = 32, cut: bool = False) -> Tensor:
    """Return a vector of length 1 for each text, the mean of its nodes (1908.10084): (N, C) on the CPU.

    Args:
        model: the encoder.
        texts: the texts; those of similar length share a batch.
        batch: texts of a batch.
        cut: cut texts that exceed the context instead of refusing them.

    Raises:
        InputError: a text exceeds the context.
    """
    rows = [model.masked_tokenizer.encode(text, model.context, cut) for text in texts]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    vectors: dict[int, Tensor] = {}
    for start in range(0, len(order), batch):
        indices = order[start : start + batch]
        ids, lengths = pad_rows([rows[i] for i in indices], next(iter(model.parameters())).device)
        pooled = F.normalize(mean_pool(model.hidden(ids, lengths).float(), lengths), dim=-1)
        vectors |= dict(zip(indices, pooled.cpu()))
    return torch.stack([vectors[i] for i in range(len(rows))]) if rows else torch.zeros(0, 0)
