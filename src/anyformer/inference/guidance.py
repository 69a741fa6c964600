"""Classifier-free guidance: two rows a step, one that has read the condition and one that has not.

The logits move away from those without the condition: l = u + scale * (c - u) (2207.12598). Trained for it is a model
that in some rows of its training saw a blank in place of the condition.

Shapes: B rows, T tokens, C channels, V entries of the vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..model.cache import KVCache
from ..model.compact_cache import CompactCache, build_cache
from ..model.transformer import Transformer
from .decode import Decoder


class PairedCache(CompactCache):
    """The keys and values of rows with the condition, and of the same rows without it; lengths are those of a half."""

    def reset(self, prefill_lengths: Tensor | None = None) -> None:
        super().reset(None if prefill_lengths is None else prefill_lengths.repeat(2))

    def trim(self, lengths: Tensor) -> None:
        super().trim(lengths.repeat(2))


class GuidedDecoder:
    """A decoder whose logits are guided. Its nodes hold those of both rows side by side: (B, T, 2 C).

    Args:
        decoder: Its state is keys and values alone.
        drop: Takes ids (B, T) and the position of the first in the longest row, and returns them without the condition.
        scale: 1 is the decoder as it is, 0 ignores the condition, more than 1 exaggerates it.
    """

    def __init__(self, decoder: Decoder, drop: Callable[[Tensor, int], Tensor], scale: float):
        self.decoder, self.drop, self.scale = decoder, drop, scale

    @property
    def body(self) -> Transformer:
        return self.decoder.body

    def new_cache(self, batch: int, size: int | None = None) -> KVCache:
        return build_cache(self.body, 2 * batch, size, PairedCache)

    def hidden(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        start = 0 if cache is None else cache.max_length
        x = self.decoder.hidden(torch.cat([ids, self.drop(ids, start)]), cache)
        return torch.cat(x.chunk(2), dim=-1)

    def head(self, x: Tensor) -> Tensor:
        conditional, unconditional = (self.decoder.head(half).float() for half in x.chunk(2, dim=-1))
        return unconditional + self.scale * (conditional - unconditional)
