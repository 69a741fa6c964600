"""Pairs of token lists to batches of like length. Pure functions: which pairs step s gets depends on (seed, s) alone.

A batch is filled by what it costs, rows times the longest side: many short pairs or few long ones. Pairs of like length
stand together, so that little is padding.

Shapes: N pairs, B batch, S source, T target.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from ...errors import InputError, suggest
from ..tokenizers import build as tok
from .batches import IGNORE_INDEX
from .pairs import Pairs


@dataclass(frozen=True, eq=False)
class RaggedArray:
    """N lists of ids in one array: list i is ids[starts[i]:starts[i + 1]]."""

    ids: np.ndarray
    starts: np.ndarray  # (N + 1,)

    @classmethod
    def from_rows(cls, rows: Sequence[np.ndarray], most: int) -> "RaggedArray":
        """Each row's first `most` ids."""
        cut = [row[:most] for row in rows]
        starts = np.concatenate([[0], np.cumsum([len(row) for row in cut])]).astype(np.int64)
        return cls(np.concatenate(cut) if cut else np.zeros(0, np.uint16), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    def rows(self, at: np.ndarray, before: Sequence[int], after: Sequence[int], padding: int) -> np.ndarray:
        """Some of the lists side by side, ids before and after each, padded on the right: (B, longest) int64"""
        extra = len(before) + len(after)
        made = np.full((len(at), int(self.lengths[at].max()) + extra), padding, np.int64)
        for row, i in zip(made, at):
            ids = self.ids[self.starts[i] : self.starts[i + 1]]
            row[: len(ids) + extra] = [*before, *ids, *after]
        return made


@dataclass(frozen=True, eq=False)
class EncodedPairs:
    """Pairs as ids, without the tokens that begin and end them."""

    source: RaggedArray
    target: RaggedArray
    cut: int = 0
    """Sides that were longer than the context and were cut."""

    def __len__(self) -> int:
        return len(self.source)

    @property
    def widths(self) -> np.ndarray:
        """What each pair costs: its longer side, with the token that ends it. (N,)"""
        return np.maximum(self.source.lengths, self.target.lengths) + 1


@lru_cache(maxsize=8)
def build_side_tokenizer(pairs: Pairs, spec: str, vocab_size: int, sides: tuple[int, ...] = (0, 1)) -> tok.Tokenizer:
    """One vocabulary for these sides: the characters of all pairs, or a BPE of those for training, or whatever else
    `tokenizer.make` knows. Raises InputError."""

    def texts() -> Iterator[str]:
        for name, part in pairs.parts.items():
            if spec == "char" or name == "train":
                yield from (pair[side] for pair in part for side in sides)

    return tok.build_tokenizer(spec, texts, vocab_size)


@lru_cache(maxsize=8)
def encode_pairs(
    pairs: Pairs, split: str, known: tuple[tok.Tokenizer, tok.Tokenizer], rooms: tuple[int, int], cut: bool
) -> EncodedPairs:
    """The pairs of "train", "val" or "all" as ids, at most `rooms` of each side, each by its own tokenizer. Raises
    InputError for a text that is longer, unless it may be `cut`, or that the vocabulary lacks."""
    if split not in (*pairs.parts, "all"):
        raise InputError(f"split '{split}': {suggest(split, [*pairs.parts, 'all'])}")
    chosen = [pair for name, part in pairs.parts.items() if split in (name, "all") for pair in part]
    sides, long = [], 0
    for side, (name, room) in enumerate(zip(("source", "target"), rooms)):
        rows = encode_side([pair[side] for pair in chosen], known[side], f"the {name} of pair", split)
        over = [i for i, row in enumerate(rows) if len(row) > room]
        if over and not cut:
            raise InputError(describe_long_text(chosen[over[0]][side], len(rows[over[0]]), room, name, len(over)))
        long += len(over)
        sides.append(RaggedArray.from_rows(rows, room))
    return EncodedPairs(*sides, long)


def encode_side(texts: list[str], known: tok.Tokenizer, what: str, split: str) -> list[np.ndarray]:
    try:
        return known.encode_batch(texts)
    except InputError:
        for number, text in enumerate(texts, start=1):  # again one by one, to say where
            try:
                known.encode(text)
            except InputError as e:
                raise InputError(f"{what} {number:,} of {split}: {e}") from None
        raise


def describe_long_text(text: str, tokens: int, room: int, side: str, count: int) -> str:
    many = f"{count:,} texts" if count > 1 else "1 text"
    stack = "encoder" if side == "source" else "decoder"
    return (
        f"{many} of the {side} side are longer than the context, the first with {tokens:,} tokens where {room:,} fit "
        f"({text[:40]!r}...): raise --{stack}.context, or let them be cut (cut_long)"
    )


def batch_bounds(widths: np.ndarray, room: int) -> np.ndarray:
    """Where to cut pairs in order of width into batches of rows * widest <= room, at least one row each: (n + 1,)"""
    ends, first = [0], 0
    for i, width in enumerate(widths.tolist()):
        if i > first and (i + 1 - first) * width > room:  # in rising order the newest is the widest
            ends.append(i)
            first = i
    return np.array([*ends, len(widths)])


@lru_cache(maxsize=4)
def epoch_batches(coded: EncodedPairs, room: int, seed: int, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs in the order of an epoch, where the batches are cut, and the order of the batches. Pairs of one width
    are shuffled, then the batches are; where they are cut is the same in every epoch."""
    words = np.random.Philox(key=seed, counter=(0, 0, number, 0)).random_raw(2 * len(coded))
    order = np.lexsort((words[: len(coded)], coded.widths))
    bounds = batch_bounds(coded.widths[order], room)
    return order, bounds, np.argsort(words[len(coded) :][: len(bounds) - 1], kind="stable")


def sample_indices(coded: EncodedPairs, room: int, seed: int, step: int) -> np.ndarray:
    """Which pairs the batch of this step holds: each pair once an epoch. (B,)"""
    batches = len(epoch_batches(coded, room, seed, 0)[1]) - 1
    order, bounds, turn = epoch_batches(coded, room, seed, step // batches)
    which = turn[step % batches]
    return order[bounds[which] : bounds[which + 1]]


def eval_indices(coded: EncodedPairs, room: int) -> Iterator[np.ndarray]:
    """Every pair once, short ones first."""
    order = np.argsort(coded.widths, kind="stable")
    bounds = batch_bounds(coded.widths[order], room)
    for first, last in pairwise(bounds):
        yield order[first:last]


def collate(coded: EncodedPairs, at: np.ndarray, start: int, end: int, source_end: int) -> dict[str, np.ndarray]:
    """source (B, S) with its end, its lengths (B,), target (B, T) from `start` on, and next (B, T): what follows."""
    return {
        "source": coded.source.rows(at, (), (source_end,), 0),
        "lengths": coded.source.lengths[at] + 1,
        "target": coded.target.rows(at, (start,), (), 0),
        "labels": coded.target.rows(at, (), (end,), IGNORE_INDEX),
    }
