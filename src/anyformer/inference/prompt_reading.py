"""Reading prompts of any length into a cache, together; what all begin with is read once.

Shapes: B rows, T tokens, C channels, V entries of the vocabulary.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..model.cache import KVCache, can_go_back
from ..model.compact_cache import CompactCache, build_cache

if TYPE_CHECKING:
    from .decode import Decoder

MIN_SHARED = 16  # tokens that rows begin with: to read fewer once costs more than it saves


def prefill(model: "Decoder", rows: Sequence[Sequence[int]], cache: KVCache) -> Tensor:
    """Read rows of any length into the cache, from position 0, and return the logits of what follows each: (B, V).
    Shorter rows are padded on the right: in a causal model no token reads what comes after it."""
    ids, lengths = pad_rows(rows)
    cache.reset(lengths)
    x = model.hidden(ids.to(cache.device), cache)
    cache.trim(lengths)
    return model.head(x[torch.arange(len(rows), device=x.device), (lengths - 1).to(x.device)])


def prefill_shared(model: "Decoder", rows: Sequence[Sequence[int]], cache: KVCache) -> Tensor:
    """As `prefill`, but what all rows begin with, as the samples of a prompt do, is read once."""
    is_plain = len(rows) > 1 and type(cache) is CompactCache and not model.body.cross
    n_shared = count_shared(rows) if is_plain else 0
    if n_shared < MIN_SHARED:
        return prefill(model, rows, cache)
    beginning = build_cache(model.body, 1, cache.size)
    prefill(model, [rows[0][:n_shared]], beginning)
    ids, lengths = pad_rows([row[n_shared:] for row in rows])
    is_ragged = bool((lengths != lengths[0]).any())
    if is_ragged and not can_go_back(beginning):
        return prefill(model, rows, cache)
    spread(beginning, cache)
    x = model.hidden(ids.to(cache.device), cache)
    if is_ragged:
        cache.trim(n_shared + lengths)
    return model.head(x[torch.arange(len(rows), device=x.device), (lengths - 1).to(x.device)])


def count_shared(rows: Sequence[Sequence[int]]) -> int:
    """Return how many ids all rows begin with, each with at least one more."""
    most = min(map(len, rows)) - 1
    return next((i for i in range(most) if any(row[i] != rows[0][i] for row in rows)), max(0, most))


def spread(source: KVCache, target: KVCache) -> None:
    """Let every row of an empty cache hold what the only row of another one of its size holds."""
    for i, kv in enumerate(source.layers):
        target.layers[i] = kv and (kv[0].repeat(target.batch, 1, 1, 1), kv[1].repeat(target.batch, 1, 1, 1))
    target.lengths, target.prefill_lengths = source.lengths, None


def pad_rows(rows: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Return rows of ids, padded with 0 on the right, (B, T), and their lengths, (B,)."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for padded, row in zip(ids, rows):
        padded[: len(row)] = torch.tensor(row)
    return ids.to(device), lengths.to(device)
