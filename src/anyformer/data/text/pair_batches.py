"""Pairs of token sequences to batches of similar length; a batch depends on the seed and the step alone.

The size of a batch is bounded by its cost, rows times the longest side: many short pairs or few long ones. Pairs of
similar length share a batch, so that there is little padding.

Shapes: N pairs, B batch, S source, T target.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import count, pairwise

import numpy as np

from ...errors import InputError
from ..tokenizers.base import Tokenizer, encode_each
from ..tokenizers.build import build_tokenizer
from .batches import IGNORE_INDEX, pad_ids
from .pairs import Pairs


@dataclass(frozen=True, eq=False)
class EncodedPairs:
    """N pairs as ids, without start and end tokens. `cut` of the sides were longer than the context."""

    source: list[np.ndarray]
    target: list[np.ndarray]
    cut: int = 0

    def __len__(self) -> int:
        return len(self.source)

    @cached_property
    def widths(self) -> np.ndarray:
        """The cost of each pair: its longer side, with the end token. (N,)"""
        return np.array([max(len(a), len(b)) + 1 for a, b in zip(self.source, self.target)], np.int64)


@lru_cache(maxsize=8)
def build_side_tokenizer(pairs: Pairs, spec: str, vocab_size: int, sides: tuple[int, ...] = (0, 1)) -> Tokenizer:
    """Build one vocabulary for these sides: the characters of all pairs, or a BPE of the training pairs."""

    def texts() -> Iterator[str]:
        for pair in pairs.split("all" if spec == "char" else "train"):
            yield from (pair[side] for side in sides)

    return build_tokenizer(spec, texts, vocab_size)


@lru_cache(maxsize=8)
def encode_pairs(
    pairs: Pairs, split: str, tokenizers: tuple[Tokenizer, Tokenizer], max_tokens: tuple[int, int], cut: bool
) -> EncodedPairs:
    """Encode the pairs of a split, each side with its tokenizer.

    Raises InputError for a text that has more than the `max_tokens` of its side, unless it may be `cut`, and for one
    that the vocabulary cannot encode.
    """
    selected, sides, n_cut = pairs.split(split), [], 0
    for side, (name, limit) in enumerate(zip(("source", "target"), max_tokens)):
        texts = [pair[side] for pair in selected]
        places = (f"the {name} of pair {i:,} of {split}" for i in count(1))
        rows = encode_each(tokenizers[side], texts, places)
        too_long = [i for i, row in enumerate(rows) if len(row) > limit]
        if too_long and not cut:
            n, first = len(too_long), too_long[0]
            number = f"{n:,} texts of the {name} side are" if n > 1 else f"1 text of the {name} side is"
            example = f"{len(rows[first]):,} tokens where {limit:,} fit ({texts[first][:40]!r}...)"
            hint = f"raise --{'encoder' if name == 'source' else 'decoder'}.context, or let them be cut (cut_long)"
            raise InputError(f"{number} longer than the context, the first with {example}: {hint}")
        n_cut += len(too_long)
        sides.append([row[:limit] for row in rows])
    return EncodedPairs(*sides, n_cut)


def batch_bounds(widths: np.ndarray, max_cost: int) -> np.ndarray:
    """Cut pairs in order of width into batches of rows * widest <= max_cost, at least one row each: (n + 1,)"""
    bounds, first = [0], 0
    for i, width in enumerate(widths.tolist()):
        if i > first and (i + 1 - first) * width > max_cost:  # in ascending order the last is the widest
            bounds.append(i)
            first = i
    return np.array([*bounds, len(widths)])


@lru_cache(maxsize=4)
def epoch_batches(
    encoded: EncodedPairs, max_cost: int, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the order of the pairs in an epoch, the bounds of its batches, and the order of the batches."""
    words = np.random.Philox(key=seed, counter=(0, 0, epoch, 0)).random_raw(2 * len(encoded))
    order = np.lexsort((words[: len(encoded)], encoded.widths))
    bounds = batch_bounds(encoded.widths[order], max_cost)
    return order, bounds, np.argsort(words[len(encoded) :][: len(bounds) - 1], kind="stable")


def sample_indices(encoded: EncodedPairs, max_cost: int, seed: int, step: int) -> np.ndarray:
    """Return the pairs of a training step; an epoch visits each pair once. (B,)"""
    n_batches = len(epoch_batches(encoded, max_cost, seed, 0)[1]) - 1
    order, bounds, batch_order = epoch_batches(encoded, max_cost, seed, step // n_batches)
    batch = batch_order[step % n_batches]
    return order[bounds[batch] : bounds[batch + 1]]


def eval_indices(encoded: EncodedPairs, max_cost: int) -> Iterator[np.ndarray]:
    """Yield the pairs of batches that hold every pair once, short ones first."""
    order = np.argsort(encoded.widths, kind="stable")
    for first, last in pairwise(batch_bounds(encoded.widths[order], max_cost)):
        yield order[first:last]


def collate(
    encoded: EncodedPairs, indices: np.ndarray, start_id: int, end_id: int, source_end_id: int
) -> dict[str, np.ndarray]:
    """Build a batch: source (B, S) with its end token and lengths (B,), target (B, T) with its start, labels (B, T)."""
    source, lengths = pad_ids([[*encoded.source[i], source_end_id] for i in indices])
    target, _ = pad_ids([[start_id, *encoded.target[i]] for i in indices])
    labels, _ = pad_ids([[*encoded.target[i], end_id] for i in indices], IGNORE_INDEX)
    return {"source": source, "lengths": lengths, "target": target, "labels": labels}
