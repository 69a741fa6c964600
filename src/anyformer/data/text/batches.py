"""Token ids to batches. A batch depends on the seed and the step alone, so that a stream resumes exactly.

Shapes: B batch, T context.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count

import numpy as np

from ...errors import InputError
from .shards import ShardedTokens, Tokens

LANES = 8  # places in shards that an update reads from, at least
IGNORE_INDEX = -100  # the label of a position where nothing is predicted; cross-entropy leaves it out


def train_windows(
    tokens: Tokens, context: int, batch: int, seed: int, step: int, split: str = "train", accumulate: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return a training batch: ids and labels (the next tokens), each (B, T) int64.

    An epoch cuts the tokens into adjacent windows, starting at a random offset, and visits each window once in
    golden-section strides: any run of batches is spread evenly over the text, and no list of windows is held in memory.
    Of tokens in shards, see `_read_shard_windows`.

    Args:
        split: the name of these tokens in error messages.
        accumulate: batches of an update, over which the shards are shared out.

    Raises:
        InputError: fewer than context + 1 tokens.
    """
    group = 0
    if isinstance(tokens, ShardedTokens):
        step, group = divmod(step, accumulate)
    return select_windows(tokens, context, step * batch + np.arange(batch), seed, split, group, accumulate)


def select_windows(
    tokens: Tokens, context: int, indices: np.ndarray, seed: int, split: str = "train", group: int = 0, groups: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and labels of the windows with these indices (B,) in the order that `train_windows` visits them.

    Of tokens in shards each of the `groups` of lanes (see `_read_shard_windows`) has an order of its own.
    """
    check_length(tokens, context, context + 1, split)
    if isinstance(tokens, ShardedTokens):
        rows = _read_shard_windows(tokens, context, indices, seed, group, groups)
    else:
        epoch, offset = np.divmod(indices, _count_windows(len(tokens), context))  # (B,) each
        starts = np.empty_like(indices)
        for e in set(epoch.tolist()):
            is_now = epoch == e
            starts[is_now] = _place_windows(len(tokens), context, offset[is_now], seed, e)
        rows = np.asarray(tokens)[starts[:, None] + np.arange(context + 1)].astype(np.int64)  # (B, T + 1)
    return np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])


def _count_windows(n_tokens: int, context: int) -> int:
    return max(1, (n_tokens - context) // context)


def _place_windows(
    n_tokens: int, context: int, offset: np.ndarray, seed: int, epoch: int, stream: int = 0
) -> np.ndarray:
    """Return where the windows of these numbers (N,) in the order of an epoch start: (N,). `stream`: of several parts
    of the text, which have orders of their own."""
    n_windows = _count_windows(n_tokens, context)
    first, shift = _draw_order(seed, epoch, stream)
    place = (first % n_windows + offset * _choose_stride(n_windows)) % n_windows
    return place * context + shift % min(context, n_tokens - n_windows * context)


@lru_cache(maxsize=256)
def _draw_order(seed: int, epoch: int, stream: int) -> tuple[int, int]:
    """Return two random numbers. They are raw words of a counter-based generator (Philox, Salmon et al. 2011), which
    jumps to any epoch at no cost: unlike numpy's distributions, they are the same in every version of numpy."""
    first, shift = np.random.Philox(key=seed, counter=(0, stream, epoch, 0)).random_raw(2).tolist()
    return first, shift


@lru_cache(maxsize=256)
def _choose_stride(n_windows: int) -> int:
    """Return a number coprime to the number of windows, so that each window is visited once."""
    return next(a for a in count(round(0.618 * n_windows) or 1) if math.gcd(a, n_windows) == 1)


def _read_shard_windows(
    tokens: ShardedTokens, context: int, indices: np.ndarray, seed: int, group: int, groups: int
) -> np.ndarray:
    """Return the windows of a group of lanes with these indices (B,) out of shards: (B, T + 1) int64.

    An epoch lays the windows of all shards, these in random order, in one row and reads it from several places (lanes)
    at once, each of which goes through its part shard by shard; within a shard, windows are visited as in a whole text.
    There are at least LANES lanes, each batch of an update reads a group of its own, so that a process that takes every
    Nth batch reads one Nth of the shards. No window reaches from one shard into the next.
    """
    n_lanes = -(-LANES // groups)  # of a group
    n_all, lanes, number = n_lanes * groups, group * n_lanes + np.arange(n_lanes), indices // n_lanes
    tokens.reader.keep_open(2 * n_all)
    epoch, part, offset = _find_in_shards(tokens, context, seed, lanes[indices % n_lanes], number, n_all)
    rows = np.empty((len(indices), context + 1), np.int64)
    for e, i in sorted(set(zip(epoch.tolist(), part.tolist()))):
        is_here, (shard, low, high) = (epoch == e) & (part == i), tokens.parts[:, i].tolist()
        starts = low + _place_windows(high - low, context, offset[is_here], seed, e, stream=shard + 1)
        rows[is_here] = tokens.reader.read(shard)[starts[:, None] + np.arange(context + 1)]
    half_shard = int(tokens.parts[2].max()) // context // 2
    ahead = np.full(n_lanes, number.max(initial=0) + half_shard)
    _, next_part, _ = _find_in_shards(tokens, context, seed, lanes, ahead, n_all)
    tokens.reader.prefetch(tokens.parts[0, next_part].tolist())
    return rows


def _find_in_shards(
    tokens: ShardedTokens, context: int, seed: int, lane: np.ndarray, number: np.ndarray, n_lanes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the windows of these numbers (B,) in their lanes (B,): return their epochs, which parts of `tokens` hold
    them, and their numbers in these, (B,) each. Raises InputError."""
    total = int(_order_shards(tokens, context, seed, 0)[1][-1])
    if not total:
        problem = f"no shard holds a window of context {context}"
        raise InputError(f"{problem}: write larger ones (--shard-tokens), or use a smaller context (--model.context)")
    length = max(1, total // n_lanes)
    epoch, place = np.divmod(number, length)
    place = (lane * length + place) % total
    part, offset = np.empty_like(place), np.empty_like(place)
    for e in set(epoch.tolist()):
        order, ends, counts = _order_shards(tokens, context, seed, e)
        slot = np.searchsorted(ends, place, "right")
        is_now = epoch == e
        part[is_now], offset[is_now] = order[slot][is_now], (place - ends[slot] + counts[slot])[is_now]
    return epoch, part, offset


@lru_cache(maxsize=8)
def _order_shards(
    tokens: ShardedTokens, context: int, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the order of the parts of shards in an epoch, how many windows there are up to the end of each, and how
    many it has: (K,) each."""
    _, low, high = tokens.parts
    counts = np.where(high - low > context, np.maximum(1, (high - low - context) // context), 0)
    order = epoch_order(len(counts), seed, epoch)
    return order, np.cumsum(counts[order]), counts[order]


def eval_windows(
    tokens: Tokens, context: int, batch: int, split: str = "val"
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield ids and labels, each (<= B, T) int64, of adjacent windows: each token but the first is predicted once.

    The end of the last row is padded with id 0 and label IGNORE_INDEX.

    Raises:
        InputError: fewer than 2 tokens.
    """
    check_length(tokens, context, 2, split)
    for start in range(0, len(tokens) - 1, batch * context):
        part = np.asarray(tokens[start : start + batch * context + 1]).astype(np.int64)
        padding = (0, -(len(part) - 1) % context)
        ids = np.pad(part[:-1], padding).reshape(-1, context)
        labels = np.pad(part[1:], padding, constant_values=IGNORE_INDEX).reshape(-1, context)
        yield ids, labels


def segment(ids: np.ndarray, separator: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Find the documents in rows of tokens, so that attention can be kept within each: `same(document)`.

    A separator is the first token of the document that follows it, as an end-of-text token is the start of an empty
    prompt. Every label is then predicted from its own document: the last token of a document predicts the separator,
    and the separator, alone, predicts the first token of the next document.

    Args:
        ids: (B, T).
        separator: the id between documents; None: each row is one document.

    Returns:
        document: (B, T) int64, the number of the document within its row, from 0.
        positions: (B, T) int64, the position within the part of the document that the row holds, from 0.
    """
    is_start = np.zeros(ids.shape, bool) if separator is None else ids == separator
    is_start[:, :1] = False  # the first token of a row starts document 0, whatever it is
    index = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    start = np.maximum.accumulate(np.where(is_start, index, 0), axis=1)
    return np.cumsum(is_start, axis=1, dtype=np.int64), index - start


def pad_ids(rows: Sequence[Sequence[int]], padding: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pad rows of unequal length on the right: ids (B, T) and lengths (B,)."""
    lengths = np.array([len(row) for row in rows], np.int64)
    ids = np.full((len(rows), lengths.max(initial=0)), padding, np.int64)
    for target, row in zip(ids, rows):
        target[: len(row)] = row
    return ids, lengths


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """Return a permutation of n items that depends on (seed, epoch) alone."""
    return np.argsort(np.random.Philox(key=seed, counter=(0, 0, epoch, 2)).random_raw(n), kind="stable")


def bucket_by_length(
    indices: np.ndarray, lengths: np.ndarray, size: int, seed: int, epoch: int, pool_epoch: int | None = None
) -> list[np.ndarray]:
    """Return the batches of an epoch: texts in random order, sorted by length within 16 batches, batches shuffled.

    pool_epoch: the epoch of the random order; the same for all epochs gives the same batches, in another order.
    """
    order, pool = epoch_order(len(indices), seed, 2 * (epoch if pool_epoch is None else pool_epoch)), 16 * size
    pools = [order[i : i + pool] for i in range(0, len(order), pool)]
    order = np.concatenate([rows[np.argsort(lengths[rows], kind="stable")] for rows in pools])
    groups = [indices[order[i : i + size]] for i in range(0, len(order), size)]
    return [groups[i] for i in epoch_order(len(groups), seed, 2 * epoch + 1)]


def check_length(tokens: Tokens, context: int, needed: int, split: str) -> None:
    """Raise InputError if a split has fewer tokens than are needed."""
    if context < 1:
        raise InputError(f"a context of {context} holds nothing: it must be 1 or more")
    if len(tokens) >= needed:
        return
    smaller = 1 << max(len(tokens) - 1, 1).bit_length() - 1  # the largest power of two that fits
    shorter = f", a smaller context (--model.context {smaller})" if len(tokens) > 1 else ""
    fraction = f"a {'larger' if split == 'val' else 'smaller'} --val-fraction"
    size = f"{len(tokens)} tokens but a window of context {context} needs {needed}"
    raise InputError(f"the {split} split has {size}: use more text{shorter} or {fraction}")
