"""Decoding: what a causal model says next, again and again.

The prompt is read at once (prefill), then each new token alone (step), against the cache of what was read. When a
row outgrows the model's context, its oldest tokens are cropped and the newest `keep` are read again from position 0:
memory never grows, and what was cropped is forgotten. keep = context crops one token at a time, at the price of
reading the whole context for each new token; the default keeps half, so that one read serves context / 2 tokens. Where
all layers are local, the cache keeps their windows only and is never full: nothing is cropped or read again.

Shapes: B rows, T nodes, C channels, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..model.block import Transformer
from ..model.cache import KVCache
from .sampling import Rules, choose


class Decoder(Protocol):
    """What can be decoded: ids (B, T), perhaps after those in a cache, to nodes (B, T, C), to logits (B, T, V). One
    that remembers otherwise than by keys and values makes its own cache (`new_cache`)."""

    @property
    def body(self) -> Transformer: ...

    @property
    def head(self) -> Callable[[Tensor], Tensor]: ...

    def hidden(self, ids: Tensor, cache: KVCache | None = None) -> Tensor: ...


def new_cache(model: Decoder, batch: int, size: int | None = None) -> KVCache:
    if (own := getattr(model, "new_cache", None)) is not None:
        return own(batch, size)
    return KVCache(model.body.config, batch, size, next(model.body.parameters()).device)


def prefill(model: Decoder, rows: Sequence[Sequence[int]], cache: KVCache) -> Tensor:
    """Read the rows, of any lengths, into the cache from position 0 on; logits of what follows each: (B, V).
    Shorter rows are padded on the right: a causal node never reads what comes after it."""
    lengths = torch.tensor([len(row) for row in rows])
    cache.lengths, cache.real = 0, lengths
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    x = model.hidden(ids.to(cache.device), cache)
    cache.trim(lengths)
    last = (lengths - 1).to(x.device)
    return model.head(x[torch.arange(len(rows), device=x.device), last])


def step(model: Decoder, new: Tensor, cache: KVCache) -> Tensor:
    """Read one more token of each row: (B,) -> logits (B, V)."""
    return model.head(model.hidden(new[:, None], cache)[:, 0])


@torch.inference_mode()
def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    rules: Rules,
    seeds: Sequence[int],
    stop: Callable[[int, int], bool] = lambda row, token: False,
    keep: int | None = None,
) -> Iterator[list[int | None]]:
    """Continue every prompt; yields the new token of each row, None for rows that have stopped.

    prompts: ids, at least one each. tokens: the most new tokens a row gets. seeds: one for each row. `stop(row, token)`
    says whether the row ends with this token. keep: how many tokens stay when a row is full (default: half of it).
    """
    context = model.body.config.context
    keep = min(keep or max(1, context // 2), context)
    rngs = [torch.Generator().manual_seed(seed) for seed in seeds]
    windows = [list(prompt[-context:]) for prompt in prompts]
    cache = new_cache(model, len(prompts), min(context, max(map(len, windows)) + tokens))
    live = [True] * len(prompts)
    logits = prefill(model, windows, cache)
    seen = torch.zeros_like(logits, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        seen[row, list(prompt)] = True
    for left in range(tokens, 0, -1):
        new = choose(logits, seen, rules, rngs)
        seen[torch.arange(len(new)), new] = True
        said = new.tolist()
        heard = [token if alive else None for token, alive in zip(said, live)]
        live = [alive and not stop(row, token) for row, (token, alive) in enumerate(zip(said, live))]
        yield heard
        if left == 1 or not any(live):
            return
        for window, token in zip(windows, said):
            window.append(token)
        if cache.endless or max(map(len, windows)) <= context:
            logits = step(model, new, cache)
        else:
            windows = [window[-keep:] if len(window) > context else window for window in windows]
            logits = prefill(model, windows, cache)
