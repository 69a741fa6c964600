"""Decoding: generate tokens from a causal model, one after the other.

The prompt is read in one pass (prefill), then every new token alone (step), with keys and values in a cache. When a row
outgrows the model's context, `keep` of its tokens are read again from position 0, by default half of the context: the
newest, or notes and the newest (`notes.py`). A cache of local layers never fills.

Shapes: B rows, T tokens, C channels, V entries of the vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..model.cache import KVCache
from ..model.compact_cache import build_cache
from ..model.transformer import Transformer
from .captured import choose_step
from .prompt_reading import prefill, prefill_shared
from .sampling import Sampler, SamplingParams
from .token_filter import TokenFilter


class Decoder(Protocol):
    """A causal model: ids (B, T), after those in the cache, to nodes (B, T, C), to logits (B, T, V)."""

    @property
    def body(self) -> Transformer: ...

    @property
    def head(self) -> Callable[[Tensor], Tensor]: ...

    def hidden(self, ids: Tensor, cache: KVCache | None = None) -> Tensor: ...


@runtime_checkable
class HasOwnCache(Protocol):
    """A decoder whose state is not only keys and values."""

    def new_cache(self, batch: int, size: int | None = None) -> KVCache: ...


def new_cache(model: Decoder, batch: int, size: int | None = None) -> KVCache:
    """Create an empty cache of `batch` rows of at most `size` tokens (default: the model's context)."""
    return model.new_cache(batch, size) if isinstance(model, HasOwnCache) else build_cache(model.body, batch, size)


def step(model: Decoder, new: Tensor, cache: KVCache) -> Tensor:
    """Read one more token of each row, (B,), and return the logits of what follows: (B, V)."""
    return model.head(model.hidden(new[:, None], cache)[:, 0])


@torch.inference_mode()
def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    sampling: SamplingParams,
    seeds: Sequence[int],
    stop: Callable[[int, int], bool] = lambda row, token: False,
    keep: int | None = None,
    crop: Callable[[Sequence[int], int], list[int]] = lambda ids, size: list(ids[-size:]),
    watch: Callable[[Tensor, Tensor], None] = lambda logits, new: None,
    matchers: Sequence[TokenFilter] = (),
) -> Iterator[list[int | None]]:
    """Continue every prompt; yield the new token of each row, None for rows that have stopped.

    Args:
        prompts: ids of each row, at least one, with a seed for each.
        tokens, stop: the most new tokens of a row; `stop(row, token)` returns whether it ends with this token.
        crop: `crop(ids, size)` returns the ids that are read of a row that exceeds the context: at most `keep` again.
        watch: called with the logits of each step, (B, V), and the tokens that were chosen by them, (B,).
        matchers: of each row, which tokens may follow (`token_filter`); none: any may.
    """
    context = model.body.config.context
    keep = min(keep or max(1, context // 2), context)
    sampler = Sampler(sampling, prompts, seeds, matchers)
    windows = [crop(prompt, context) for prompt in prompts]  # what is in the context of each row
    cache = new_cache(model, len(prompts), min(context, max(map(len, windows)) + tokens))
    is_live = [True] * len(prompts)
    logits = prefill_shared(model, windows, cache)
    advance = choose_step(partial(step, model), cache, tokens)
    for remaining in range(tokens, 0, -1):
        new = sampler(logits)
        watch(logits, new)
        new_tokens = new.tolist()
        step_tokens = [token if live else None for token, live in zip(new_tokens, is_live)]
        is_live = [live and not stop(row, token) for row, (token, live) in enumerate(zip(new_tokens, is_live))]
        yield step_tokens
        if remaining == 1 or not any(is_live):
            return
        if cache.is_unbounded:  # nothing is ever read again
            logits = advance(new)
            continue
        for window, token in zip(windows, new_tokens):
            window.append(token)
        if max(map(len, windows)) <= context:
            logits = advance(new)
        else:
            windows = [crop(window, keep) if len(window) > context else window for window in windows]
            logits = prefill(model, windows, cache)
