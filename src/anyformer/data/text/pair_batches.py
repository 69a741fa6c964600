"""Pairs of token sequences to batches of similar length; a batch depends on the seed and the step alone.

The size of a batch is bounded by its cost, rows times the longest side: many short pairs or few long ones. Pairs of
similar length share a batch, so that there is little padding.

Shapes: N pairs, B batch, S source, T target.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import count, pairwise
from typing import Any

import numpy as np

from ...errors import InputError
from ..sampling import select_split
from ..tokenizers.base import Tokenizer, encode_each
from ..tokenizers.build import build_tokenizer
from ..unusable import LengthPolicy, check_unusable, is_refused
from .batches import IGNORE_INDEX, pad_ids
from .pairs import Pairs


@dataclass(frozen=True, eq=False)
class EncodedPairs:
    """N pairs as ids, without start and end tokens. `cut` sides and `skipped` pairs were longer than the context."""

    source: list[np.ndarray]
    target: list[np.ndarray]
    cut: int = 0
    skipped: int = 0

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
def check_word_counts(pairs: Pairs, max_tokens: tuple[int, int], too_long: LengthPolicy) -> None:
    """Refuse pairs that no tokenizer can make short enough, before one is trained: no token holds two words."""
    if too_long in ("few", "error"):
        every = pairs.split("all")
        sizes = np.array([(source.count(" ") + 1, target.count(" ") + 1) for source, target in every], np.int64)
        n = int((sizes > max_tokens).any(1).sum())
        if is_refused(n, len(every), too_long):
            _check_lengths(pairs, sizes, max_tokens, too_long, "words")


def _check_lengths(
    pairs: Pairs, sizes: np.ndarray, max_tokens: tuple[int, int], too_long: LengthPolicy, unit: str
) -> None:
    """Check the sizes (N, 2) of all pairs; a message names both sides at once."""
    every, is_long = pairs.split("all"), sizes > max_tokens
    rows = np.flatnonzero(is_long.any(1))
    if not len(rows):
        return
    sides, flags = [], []
    for side, name, stack in ((0, "source", "encoder"), (1, "target", "decoder")):
        if n := int(is_long[:, side].sum()):
            longest = int(sizes[:, side].max())
            sides.append(f"{n:,} {name}s of more than {max_tokens[side]:,} tokens, up to {longest:,} {unit}")
            flags.append(f"--{stack}.context {longest + 1}")
    problem = f"pairs are longer than the context: {', '.join(sides)} (the first: {pairs.locate(every[rows[0]])})"
    hint = f"--too-long cut or skip, or {' '.join(flags)}"
    check_unusable(len(rows), len(every), too_long, "--too-long", problem, hint)


@lru_cache(maxsize=8)
def encode_pairs(
    pairs: Pairs,
    split: str,
    tokenizers: tuple[Tokenizer, Tokenizer],
    max_tokens: tuple[int, int],
    too_long: LengthPolicy = "few",
) -> EncodedPairs:
    """Return the pairs of a split as ids, each side by its tokenizer.

    The lengths of all splits are checked at once, so that nothing fails at the first validation. Raises InputError
    where too many pairs have more than the `max_tokens` of a side, and for a text that the vocabulary cannot encode.
    """
    splits = _encode_splits(pairs, tokenizers, max_tokens, too_long)
    every = [ids for encoded in splits.values() for ids in zip(encoded.source, encoded.target)]
    n_cut, n_skipped = (sum(getattr(encoded, name) for encoded in splits.values()) for name in ("cut", "skipped"))
    together = EncodedPairs([source for source, _ in every], [target for _, target in every], n_cut, n_skipped)
    return select_split(split, {**splits, "all": together})


@lru_cache(maxsize=4)
def _encode_splits(
    pairs: Pairs, tokenizers: tuple[Tokenizer, Tokenizer], max_tokens: tuple[int, int], too_long: LengthPolicy
) -> dict[str, EncodedPairs]:
    rows: dict[str, list[list[np.ndarray]]] = {}
    for name, selected in pairs.splits.items():
        rows[name] = []
        for side, tokenizer in enumerate(tokenizers):
            places = (f"the {('source', 'target')[side]} of pair {i:,} of {name}" for i in count(1))
            rows[name].append(encode_each(tokenizer, [pair[side] for pair in selected], places))
    sizes = {name: np.array([[len(ids) for ids in side] for side in sides], np.int64).T for name, sides in rows.items()}
    _check_lengths(pairs, np.concatenate(list(sizes.values())), max_tokens, too_long, "tokens")
    splits = {}
    for name, sides in rows.items():
        is_long = sizes[name] > max_tokens
        kept = np.arange(len(is_long)) if too_long == "cut" else np.flatnonzero(~is_long.any(1))
        if not len(kept):
            raise InputError(
                f"no pair of {len(is_long):,} is short enough for {name}: a larger context, or --too-long cut"
            )
        cut = [[side[i][:limit] for i in kept] for side, limit in zip(sides, max_tokens)]
        n_cut = int(is_long.sum()) if too_long == "cut" else 0
        splits[name] = EncodedPairs(cut[0], cut[1], n_cut, len(is_long) - len(kept))
    return splits


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
    encoded: EncodedPairs, indices: np.ndarray, start_id: int, end_id: int, mark_source: Callable[[Any], list[int]]
) -> dict[str, np.ndarray]:
    """Build a batch: source (B, S) with its end token and lengths (B,), target (B, T) with its start, labels (B, T).
    `mark_source`: adds the ids that begin and end a source."""
    source, lengths = pad_ids([mark_source(encoded.source[i]) for i in indices])
    target, _ = pad_ids([[start_id, *encoded.target[i]] for i in indices])
    labels, _ = pad_ids([[*encoded.target[i], end_id] for i in indices], IGNORE_INDEX)
    return {"source": source, "lengths": lengths, "target": target, "labels": labels}
