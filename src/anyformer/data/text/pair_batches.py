"""Pairs of token sequences to batches of similar length. Pure functions: a batch depends on the seed and the step.

The size of a batch is bounded by its cost, rows times the longest side: many short pairs or few long ones. Pairs of
similar length share a batch, so that there is little padding.

Shapes: N pairs, B batch, S source, T target.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from ...errors import InputError
from ..tokenizers.build import Tokenizer, build_tokenizer, encode_each
from .batches import IGNORE_INDEX
from .pairs import Pairs


@dataclass(frozen=True, eq=False)
class RaggedArray:
    """N rows of ids in one array: row i is ids[starts[i]:starts[i + 1]]."""

    ids: np.ndarray
    starts: np.ndarray  # (N + 1,)

    @classmethod
    def from_rows(cls, rows: Sequence[np.ndarray], max_length: int) -> "RaggedArray":
        """Join the rows, each cut to its first `max_length` ids."""
        cut = [row[:max_length] for row in rows]
        starts = np.concatenate([[0], np.cumsum([len(row) for row in cut])]).astype(np.int64)
        return cls(np.concatenate(cut) if cut else np.zeros(0, np.uint16), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    def pad(self, indices: np.ndarray, prefix: Sequence[int], suffix: Sequence[int], padding: int) -> np.ndarray:
        """Return some rows, each with ids before and after it, padded on the right: (B, longest) int64."""
        extra = len(prefix) + len(suffix)
        padded = np.full((len(indices), int(self.lengths[indices].max()) + extra), padding, np.int64)
        for row, i in zip(padded, indices):
            ids = self.ids[self.starts[i] : self.starts[i + 1]]
            row[: len(ids) + extra] = [*prefix, *ids, *suffix]
        return padded


@dataclass(frozen=True, eq=False)
class EncodedPairs:
    """Pairs as ids, without start and end tokens."""

    source: RaggedArray
    target: RaggedArray
    cut: int = 0
    """Sides that were longer than the context and were cut."""

    def __len__(self) -> int:
        return len(self.source)

    @property
    def widths(self) -> np.ndarray:
        """The cost of each pair: its longer side, with the end token. (N,)"""
        return np.maximum(self.source.lengths, self.target.lengths) + 1


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
        rows = encode_each(tokenizers[side], texts, lambda i, name=name: f"the {name} of pair {i + 1:,} of {split}")
        too_long = [i for i, row in enumerate(rows) if len(row) > limit]
        if too_long and not cut:
            text, tokens = texts[too_long[0]], len(rows[too_long[0]])
            raise InputError(_describe_long_text(text, tokens, limit, name, len(too_long)))
        n_cut += len(too_long)
        sides.append(RaggedArray.from_rows(rows, limit))
    return EncodedPairs(*sides, n_cut)


def _describe_long_text(text: str, tokens: int, limit: int, side: str, count: int) -> str:
    texts = f"{count:,} texts" if count > 1 else "1 text"
    stack = "encoder" if side == "source" else "decoder"
    return (
        f"{texts} of the {side} side are longer than the context, the first with {tokens:,} tokens where {limit:,} fit "
        f"({text[:40]!r}...): raise --{stack}.context, or let them be cut (cut_long)"
    )


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
    return {
        "source": encoded.source.pad(indices, (), (source_end_id,), 0),
        "lengths": encoded.source.lengths[indices] + 1,
        "target": encoded.target.pad(indices, (start_id,), (), 0),
        "labels": encoded.target.pad(indices, (), (end_id,), IGNORE_INDEX),
    }
