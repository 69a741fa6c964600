"""How often what follows what: n-grams with modified Kneser-Ney smoothing (Chen and Goodman 1999), interpolated.

The longest n-grams are counted as they occur; shorter ones by how many different tokens stand before them, since they
are asked only where the longer ones know nothing. From each count a discount is taken (one for 1, for 2, for 3 and
more), and what is taken goes to the next shorter n-gram.

A model that is trained beside its own counts must not be told what it is about to be asked: of a position in the text
that was counted, its own occurrence is left out.

Shapes: B rows, T tokens, V entries of the vocabulary; order k: n-grams of k tokens and the one that follows.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

MAX_CODE_BITS = 62  # of a code: the tokens of an n-gram as digits of one number
GROUND = 1 << 22  # probabilities of short n-grams that are mixed once for all contexts


@dataclass(frozen=True, eq=False)
class NGramOrder:
    """contexts (C,), sorted codes; behind context i came tokens[starts[i] : starts[i + 1]], as often as counts say."""

    contexts: np.ndarray
    starts: np.ndarray
    tokens: np.ndarray
    counts: np.ndarray
    discounts: np.ndarray
    """(4,): of a count of 0, 1, 2, 3 and more."""
    vocab_size: int

    @cached_property
    def taken(self) -> np.ndarray:
        """The discounts of all that follows a context together: (C,)"""
        return np.add.reduceat(self.discounts[np.minimum(self.counts, 3)], self.starts[:-1])

    @cached_property
    def totals(self) -> np.ndarray:
        """How often each context was seen: (C,)"""
        return np.add.reduceat(self.counts, self.starts[:-1])

    @cached_property
    def keys(self) -> np.ndarray:
        """Context and token of each count as one number, in rising order."""
        return np.repeat(np.arange(len(self.contexts)), np.diff(self.starts)) * self.vocab_size + self.tokens

    def is_valid(self) -> bool:
        """Whether every number can be what it stands for."""
        starts, falling = self.starts, lambda x: bool((np.diff(x) <= 0).any())
        whole = len(starts) == len(self.contexts) + 1 and starts[0] == 0 and starts[-1] == len(self.tokens)
        if not whole or falling(starts) or falling(self.contexts) or len(self.counts) != len(self.tokens):
            return False
        taken = self.discounts[np.minimum(self.counts, 3)]
        inside = (self.tokens >= 0).all() and (self.tokens < self.vocab_size).all() and not falling(self.keys)
        return bool(inside and (self.counts > 0).all() and (taken >= 0).all() and (taken < self.counts).all())

    def entry(self, at: np.ndarray, token: np.ndarray) -> np.ndarray:
        """Which count is that of this token behind this context, -1 where there is none. at, token (N,) -> (N,)"""
        wanted = at * self.vocab_size + token
        found = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where((at >= 0) & (token >= 0) & (self.keys[found] == wanted), found, -1)


@dataclass(frozen=True, eq=False)
class NGramCounts:
    """orders[k] knows what follows k tokens."""

    orders: tuple[NGramOrder, ...]
    vocab_size: int

    @property
    def max_order(self) -> int:
        return len(self.orders) - 1

    def is_valid(self) -> bool:
        """Whether these are counts at all: what comes from a file is asked before it is used."""
        return all(order.is_valid() for order in self.orders)

    def probabilities(self, ids: np.ndarray, nexts: np.ndarray | None = None) -> np.ndarray:
        """What follows each token, from as many before it as the row holds: ids (B, T) -> (B, T, V) float32. nexts
        (B, T): what does follow, where the rows are of the text that was counted: each is then left out of its own
        counts; below 0 where nothing is to be left out."""
        B, T = ids.shape
        found, ready = np.empty((B * T, self.vocab_size), np.float32), len(self.ground)
        codes, real = encode_contexts(ids, self.max_order, self.vocab_size)
        own = None if nexts is None else nexts.reshape(-1)
        known = [find_contexts(order, code, there) for order, code, there in zip(self.orders, codes, real, strict=True)]
        gone = self.leave_one_out(known, real, own)
        for table, code, there in zip(self.ground, codes, real):
            found[there] = table[code[there]]
        if own is not None and ready:  # few: a short n-gram that was seen once
            rows = np.flatnonzero(np.logical_or.reduce(gone[:ready]))
            found[rows] = self.interpolate_short(ready, [at[rows] for at in known], own[rows], [less[rows] for less in gone])
        for order, at, less in zip(self.orders[ready:], known[ready:], gone[ready:], strict=True):
            interpolate(found, order, at, own, less)
        return found.reshape(B, T, -1)

    def interpolate_short(self, orders: int, known: list[np.ndarray], own: np.ndarray | None, gone: list[np.ndarray]) -> np.ndarray:
        """The shortest so many orders alone: known and gone by order, (N,) each -> (N, V)"""
        found = np.full((len(known[0]), self.vocab_size), 1 / self.vocab_size, np.float32)
        for order, at, less in zip(self.orders[:orders], known, gone):
            interpolate(found, order, at, own, less)
        return found

    @cached_property
    def ground(self) -> list[np.ndarray]:
        """What the shortest orders say after every context there can be, (V ** k, V) for order k. They know something
        of almost all, which makes them the slowest to look up."""
        tables: list[np.ndarray] = []
        for k, order in enumerate(self.orders):
            if k and self.vocab_size ** (k + 1) > GROUND:
                break
            codes = np.arange(self.vocab_size**k)
            before = tables[-1][codes % len(tables[-1])] if k else np.full((1, self.vocab_size), 1 / self.vocab_size)
            tables.append(before.astype(np.float32))
            interpolate(tables[-1], order, find_contexts(order, codes, np.ones(len(codes), bool)), None, np.zeros(len(codes), bool))
        return tables

    def leave_one_out(self, known: list[np.ndarray], real: list[np.ndarray], own: np.ndarray | None) -> list[np.ndarray]:
        """Whether one less is counted of each position's own token, by order: (B * T,) bool each. Of shorter n-grams
        one less is counted where a longer one is gone altogether; and where the row holds no longer one, to be safe."""
        if own is None:
            return [np.zeros(len(known[0]), bool)] * len(known)
        gone, less, begun = [], np.zeros(len(own), bool), own < 0
        for order, at, there in zip(reversed(self.orders), reversed(known), reversed(real), strict=True):
            less, begun = less | (there & ~begun), begun | there
            where = order.entry(at, own)
            gone.append(less & (where >= 0))
            less = less & ((where < 0) | (order.counts[where] == 1))
        return gone[::-1]


def count_ngrams(ids: np.ndarray, max_order: int, vocab_size: int) -> NGramCounts:
    """The n-grams of a text, up to `longest` tokens and the one that follows. ids (N,). Raises ValueError where so many
    tokens do not fit into a number."""
    if (max_order + 1) * math.log2(max(2, vocab_size)) > MAX_CODE_BITS:
        raise ValueError(f"{max_order + 1} tokens of {vocab_size:,} make a number of more than {MAX_CODE_BITS} bits")
    if len(ids) <= max_order:
        raise ValueError(f"a text of {len(ids)} tokens has no n-grams of {max_order + 1}")
    code = np.zeros(len(ids) - max_order, np.int64)
    for back in range(max_order, -1, -1):
        code = code * vocab_size + ids[max_order - back : len(ids) - back]
    grams, counts = np.unique(code, return_counts=True)
    orders = [build_order(grams, counts, vocab_size)]
    for k in range(max_order - 1, -1, -1):
        grams, counts = np.unique(grams % vocab_size ** (k + 1), return_counts=True)
        orders.append(build_order(grams, counts, vocab_size))
    return NGramCounts(tuple(reversed(orders)), vocab_size)


def build_order(grams: np.ndarray, counts: np.ndarray, vocab_size: int) -> NGramOrder:
    contexts, starts = np.unique(grams // vocab_size, return_index=True)
    starts = np.append(starts, len(grams)).astype(np.int64)
    return NGramOrder(
        contexts, starts, (grams % vocab_size).astype(np.int64), counts.astype(np.int64), kneser_ney_discounts(counts), vocab_size
    )


def kneser_ney_discounts(counts: np.ndarray) -> np.ndarray:
    """How much is taken from a count of 0, 1, 2, 3 and more, from how many counts there are of 1, 2, 3 and 4."""
    n = [max(1, int((counts == c).sum())) for c in range(5)]
    y = n[1] / (n[1] + 2 * n[2])
    taken = [0.0] + [c - (c + 1) * y * n[c + 1] / n[c] for c in (1, 2, 3)]
    return np.clip(taken, 0, [0, 0.99, 1.99, 2.99])


def encode_contexts(ids: np.ndarray, max_order: int, vocab_size: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """By order: the code of the k tokens up to each, and whether the row has so many: (B * T,) each."""
    B, T = ids.shape
    codes, real = [np.zeros(B * T, np.int64)], [np.ones(B * T, bool)]
    code = np.zeros((B, T), np.int64)
    for k in range(1, max_order + 1):
        shifted = np.zeros((B, T), np.int64)
        shifted[:, k - 1 :] = ids[:, : max(0, T - k + 1)]
        code = code + shifted * vocab_size ** (k - 1)
        codes.append(code.reshape(-1))
        real.append(np.broadcast_to(np.arange(T) >= k - 1, (B, T)).reshape(-1))
    return codes, real


def find_contexts(order: NGramOrder, codes: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Which context each code is, -1 where it was never seen."""
    at = np.minimum(np.searchsorted(order.contexts, codes), len(order.contexts) - 1)
    return np.where(real & (order.contexts[at] == codes), at, -1)


def interpolate(found: np.ndarray, order: NGramOrder, at: np.ndarray, own: np.ndarray | None, less: np.ndarray) -> None:
    """Put what this order knows in front of what the shorter ones have said, in place. found (N, V), at (N,): the
    context of each row, or -1; own, less (N,): of which token one is left out, and where."""
    rows = np.flatnonzero((at >= 0) & (order.totals[at] > less))
    at, less = at[rows], less[rows]
    total, taken = order.totals[at] - less, order.taken[at].copy()
    sizes = order.starts[at + 1] - order.starts[at]
    offsets = np.cumsum(sizes) - sizes
    flat = np.repeat(order.starts[at] - offsets, sizes) + np.arange(sizes.sum())
    counts = order.counts[flat]
    if own is not None and less.any():
        where = order.entry(at, own[rows])[less]
        counts[(offsets - order.starts[at])[less] + where] -= 1
        few = np.minimum(order.counts[where], 3)
        taken[less] += order.discounts[np.maximum(few - (order.counts[where] <= 3), 0)] - order.discounts[few]
    found[rows] *= (taken / total)[:, None]
    kept = (counts - order.discounts[np.minimum(counts, 3)]) / np.repeat(total, sizes)
    found[np.repeat(rows, sizes), order.tokens[flat]] += kept
