"""Token ids to batches. A batch depends on the seed and the step alone, so that a stream resumes exactly.

Shapes: B batch, T context.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np

from ...errors import InputError

IGNORE_INDEX = -100  # the label of a position where nothing is predicted; cross-entropy leaves it out


def train_windows(
    tokens: np.ndarray, context: int, batch: int, seed: int, step: int, split: str = "train"
) -> tuple[np.ndarray, np.ndarray]:
    """Return a training batch: ids and labels (the next tokens), each (B, T) int64.

    An epoch cuts the tokens into adjacent windows, starting at a random offset, and visits each window once in
    golden-section strides: any run of batches is spread evenly over the text, and no list of windows is held in memory.

    Args:
        split: the name of these tokens in error messages.

    Raises:
        InputError: fewer than context + 1 tokens.
    """
    return select_windows(tokens, context, step * batch + np.arange(batch), seed, split)


def select_windows(
    tokens: np.ndarray, context: int, indices: np.ndarray, seed: int, split: str = "train"
) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and labels of the windows with these indices (B,) in the order that `train_windows` visits them."""
    check_length(tokens, context, context + 1, split)
    n_windows = max(1, (len(tokens) - context) // context)
    epoch, offset = np.divmod(indices, n_windows)  # (B,) each
    # Coprime to the number of windows, so that each window is visited once.
    stride = next(a for a in count(round(0.618 * n_windows) or 1) if math.gcd(a, n_windows) == 1)
    # Raw words of a counter-based generator (Philox, Salmon et al. 2011), which jumps to any epoch at no cost: unlike
    # numpy's distributions, they are the same in every version of numpy.
    draws = {e: np.random.Philox(key=seed, counter=(0, 0, e, 0)).random_raw(2).tolist() for e in set(epoch.tolist())}
    first = np.array([draws[e][0] % n_windows for e in epoch.tolist()], np.int64)
    shift = np.array([draws[e][1] % min(context, len(tokens) - n_windows * context) for e in epoch.tolist()], np.int64)
    starts = (first + offset * stride) % n_windows * context + shift
    rows = np.asarray(tokens)[starts[:, None] + np.arange(context + 1)].astype(np.int64)  # (B, T + 1)
    return np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])


def eval_windows(
    tokens: np.ndarray, context: int, batch: int, split: str = "val"
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield ids and labels, each (<= B, T) int64, of adjacent windows: each token but the first is predicted once.

    The end of the last row is padded with id 0 and label IGNORE_INDEX.

    Raises:
        InputError: fewer than 2 tokens.
    """
    check_length(tokens, context, 2, split)
    flat = np.asarray(tokens)
    for start in range(0, len(flat) - 1, batch * context):
        part = flat[start : start + batch * context + 1].astype(np.int64)
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


def check_length(tokens: np.ndarray, context: int, needed: int, split: str) -> None:
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
