"""Tokens to batches. Pure functions: the place in a stream is a number, so a stream can go on exactly where it stopped.

Shapes: B batch, T context.
"""

import math
from collections.abc import Iterator
from itertools import count

import numpy as np

from ...errors import InputError

IGNORE_INDEX = -100  # the target where there is nothing to predict: what cross-entropy leaves out


def train_windows(
    tokens: np.ndarray, context: int, batch: int, seed: int, step: int, split: str = "train"
) -> tuple[np.ndarray, np.ndarray]:
    """A batch of training: inputs and next tokens, each (B, T) int64. Depends on (seed, step) and the tokens alone.

    An epoch cuts the tokens side by side into windows, from a random place on, and reads each once, in strides of the
    golden section: any run of batches is spread evenly over the whole text, and no list of windows is ever kept.

    `split` only names the tokens in the message. Raises InputError for fewer than context + 1 tokens.
    """
    _check(tokens, context, context + 1, split)
    n = max(1, (len(tokens) - context) // context)  # windows of an epoch
    epoch, at = np.divmod(step * batch + np.arange(batch), n)  # (B,) each
    stride = next(a for a in count(round(0.618 * n) or 1) if math.gcd(a, n) == 1)  # coprime: each window comes once
    drawn = {int(e): _words(seed, int(e)) for e in np.unique(epoch)}
    first = np.array([drawn[int(e)][0] % n for e in epoch], np.int64)
    shift = np.array([drawn[int(e)][1] % min(context, len(tokens) - n * context) for e in epoch], np.int64)
    starts = (first + at * stride) % n * context + shift
    rows = np.asarray(tokens)[starts[:, None] + np.arange(context + 1)].astype(np.int64)  # (B, T + 1)
    return np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])


def _words(seed: int, epoch: int) -> list[int]:
    """Two random words of an epoch. A counter-based generator (Philox, Salmon et al. 2011) jumps to it at no cost, and
    its raw words, unlike numpy's distributions, are the same in every version of numpy."""
    return [int(word) for word in np.random.Philox(key=seed, counter=(0, 0, epoch, 0)).random_raw(2)]


def eval_windows(tokens: np.ndarray, context: int, batch: int, split: str = "val") -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One pass over all tokens in windows side by side: each token but the first is predicted exactly once.

    Yields inputs and targets, each (<= B, T) int64; the end of the last row is padded (input 0, target -100).
    Raises InputError for fewer than 2 tokens.
    """
    _check(tokens, context, 2, split)
    flat = np.asarray(tokens)
    for start in range(0, len(flat) - 1, batch * context):
        part = flat[start : start + batch * context + 1].astype(np.int64)
        gap = -(len(part) - 1) % context
        x = np.append(part[:-1], np.zeros(gap, np.int64)).reshape(-1, context)
        y = np.append(part[1:], np.full(gap, IGNORE_INDEX)).reshape(-1, context)
        yield x, y


def _check(tokens: np.ndarray, context: int, needed: int, split: str) -> None:
    if context < 1:
        raise InputError(f"a context of {context} holds nothing: it must be 1 or more")
    if len(tokens) >= needed:
        return
    smaller = 1 << max(len(tokens) - 1, 1).bit_length() - 1  # the largest power of two that fits
    ways = ["use more text"]
    if len(tokens) > 1:
        ways.append(f"a smaller context (--model.context {smaller})")
    ways.append(f"a {'larger' if split == 'val' else 'smaller'} --val-fraction")
    raise InputError(
        f"the {split} split has {len(tokens)} tokens but a window of context {context} needs {needed}: "
        + " or ".join([", ".join(ways[:-1]), ways[-1]])
    )
