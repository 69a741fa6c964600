"""N-gram counts with modified Kneser-Ney smoothing, interpolated (Chen and Goodman 1999).

The longest n-grams are counted as they occur, shorter ones by the number of different tokens before them. A discount is
subtracted from each count (one for a count of 1, one for 2, one for 3 and more), and its mass goes to the next shorter
n-gram.

Leave-one-out counts are for a model that is trained together with its counts: the occurrence of a position in the
counted text is left out of its own prediction, to avoid leakage.

Shapes: B rows, T tokens, N = B * T, V entries of the vocabulary, C contexts. An order k has contexts of k tokens.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

MAX_CODE_BITS = 62  # an n-gram is one integer, whose digits are its tokens
MAX_DENSE_ENTRIES = 1 << 22  # probabilities of short n-grams that are computed once for all contexts


@dataclass(frozen=True, eq=False)
class NGramOrder:
    """The counts of one order: after context i came tokens[starts[i]:starts[i + 1]], as often as `counts` says."""

    contexts: np.ndarray  # (C,) codes, ascending
    starts: np.ndarray  # (C + 1,)
    tokens: np.ndarray
    counts: np.ndarray
    discounts: np.ndarray  # (4,), for a count of 0, 1, 2, 3 and more
    vocab_size: int

    @cached_property
    def discount_sums(self) -> np.ndarray:
        """The sum of all discounts of a context: (C,)"""
        return np.add.reduceat(self.discounts[np.minimum(self.counts, 3)], self.starts[:-1])

    @cached_property
    def totals(self) -> np.ndarray:
        """The sum of all counts of a context: (C,)"""
        return np.add.reduceat(self.counts, self.starts[:-1])

    @cached_property
    def keys(self) -> np.ndarray:
        """Context and token of each count as one number, ascending."""
        return np.repeat(np.arange(len(self.contexts)), np.diff(self.starts)) * self.vocab_size + self.tokens

    def is_valid(self) -> bool:
        """Whether the arrays, which may come from a file, are consistent."""
        n, discounts = len(self.tokens), self.discounts[np.clip(self.counts, 0, 3)]
        sizes = len(self.starts) == len(self.contexts) + 1 and len(self.counts) == n
        if not sizes or self.starts[0] != 0 or self.starts[-1] != n or (np.diff(self.starts) <= 0).any():
            return False
        is_ascending = (np.diff(self.contexts) > 0).all() and (np.diff(self.keys) > 0).all()
        has_tokens = (self.tokens >= 0).all() and (self.tokens < self.vocab_size).all()
        has_discounts = (discounts >= 0).all() and (discounts < self.counts).all()
        return bool(is_ascending and has_tokens and has_discounts and (self.counts > 0).all())

    def find_entries(self, contexts: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Return the index of the count of each token after each context, or -1: (N,)"""
        keys = contexts * self.vocab_size + tokens
        entries = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where((contexts >= 0) & (tokens >= 0) & (self.keys[entries] == keys), entries, -1)

    def find_contexts(self, codes: np.ndarray, is_full: np.ndarray) -> np.ndarray:
        """Return the index of each context whose code is full (long enough), -1 if it never occurs: (N,)"""
        indices = np.minimum(np.searchsorted(self.contexts, codes), len(self.contexts) - 1)
        return np.where(is_full & (self.contexts[indices] == codes), indices, -1)

    def interpolate(
        self, probabilities: np.ndarray, contexts: np.ndarray, own: np.ndarray | None, is_left_out: np.ndarray
    ) -> None:
        """Interpolate this order with the probabilities (N, V) of the shorter ones, in place.

        Args:
            contexts: (N,), the index of each row's context, or -1.
            own: (N,), its next token, of which one occurrence is not counted where it `is_left_out` (N,).
        """
        rows = np.flatnonzero((contexts >= 0) & (self.totals[contexts] > is_left_out))
        contexts, is_left_out = contexts[rows], is_left_out[rows]
        totals, discount_sums = self.totals[contexts] - is_left_out, self.discount_sums[contexts].copy()
        sizes = self.starts[contexts + 1] - self.starts[contexts]
        offsets = np.cumsum(sizes) - sizes
        entries = np.repeat(self.starts[contexts] - offsets, sizes) + np.arange(sizes.sum())
        counts = self.counts[entries]
        if own is not None and is_left_out.any():
            own_entries = self.find_entries(contexts, own[rows])[is_left_out]
            counts[(offsets - self.starts[contexts])[is_left_out] + own_entries] -= 1
            old = np.minimum(self.counts[own_entries], 3)
            new = np.maximum(old - (self.counts[own_entries] <= 3), 0)
            discount_sums[is_left_out] += self.discounts[new] - self.discounts[old]
        probabilities[rows] *= (discount_sums / totals)[:, None]
        discounted = (counts - self.discounts[np.minimum(counts, 3)]) / np.repeat(totals, sizes)
        probabilities[np.repeat(rows, sizes), self.tokens[entries]] += discounted


@dataclass(frozen=True, eq=False)
class NGramCounts:
    """The counts of all orders: orders[k] has contexts of k tokens."""

    orders: tuple[NGramOrder, ...]
    vocab_size: int

    @property
    def max_order(self) -> int:
        return len(self.orders) - 1

    def is_valid(self) -> bool:
        return all(order.is_valid() for order in self.orders)

    def probabilities(
        self, ids: np.ndarray, labels: np.ndarray | None = None, positions: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the probabilities of the next token after each of the ids (B, T): (B, T, V) float32.

        Args:
            labels: (B, T), the actual next tokens, if the rows are part of the counted text: each is left out of its
                own counts; a label below 0 is not.
            positions: (B, T), of each token in its document, which bounds its context; by default, in its row.
        """
        B, T = ids.shape
        n_dense = len(self.dense_tables)
        codes, is_full = _encode_contexts(ids, self.max_order, self.vocab_size, positions)
        own = None if labels is None else labels.reshape(-1)
        contexts = [o.find_contexts(code, full) for o, code, full in zip(self.orders, codes, is_full, strict=True)]
        left_out = self._left_out(contexts, is_full, own)
        probabilities = np.empty((B * T, self.vocab_size), np.float32)
        for table, code, full in zip(self.dense_tables, codes, is_full):
            probabilities[full] = table[code[full]]
        if own is not None:  # few rows: short n-grams that occur once
            rows = np.flatnonzero(np.logical_or.reduce(left_out[:n_dense]))
            short = np.full((len(rows), self.vocab_size), 1 / self.vocab_size, np.float32)
            for order, indices, out in zip(self.orders[:n_dense], contexts, left_out):
                order.interpolate(short, indices[rows], own[rows], out[rows])
            probabilities[rows] = short
        for order, indices, out in zip(self.orders[n_dense:], contexts[n_dense:], left_out[n_dense:], strict=True):
            order.interpolate(probabilities, indices, own, out)
        return probabilities.reshape(B, T, -1)

    @cached_property
    def dense_tables(self) -> list[np.ndarray]:
        """The probabilities after every possible context of the shortest orders, most of which occur: (V ** k, V)"""
        tables: list[np.ndarray] = []
        for k, order in enumerate(self.orders):
            if k and self.vocab_size ** (k + 1) > MAX_DENSE_ENTRIES:
                break
            codes = np.arange(self.vocab_size**k)
            shorter = tables[-1][codes % len(tables[-1])] if k else np.full((1, self.vocab_size), 1 / self.vocab_size)
            tables.append(shorter.astype(np.float32))
            contexts = order.find_contexts(codes, np.ones(len(codes), bool))
            order.interpolate(tables[-1], contexts, None, np.zeros(len(codes), bool))
        return tables

    def _left_out(self, contexts: list, is_full: list, own: np.ndarray | None) -> list[np.ndarray]:
        """Return for each order whether one occurrence of each position's own token is left out: (N,) bool each.

        A shorter n-gram loses one only if the longer one disappears (its count was 1), or if the row has no longer
        context, to be safe.
        """
        if own is None:
            return [np.zeros(len(contexts[0]), bool)] * len(contexts)
        left_out, loses_one, has_longer = [], np.zeros(len(own), bool), own < 0
        for order, indices, full in zip(reversed(self.orders), reversed(contexts), reversed(is_full), strict=True):
            loses_one, has_longer = loses_one | (full & ~has_longer), has_longer | full
            entries = order.find_entries(indices, own)
            left_out.append(loses_one & (entries >= 0))
            loses_one = loses_one & ((entries < 0) | (order.counts[entries] == 1))
        return left_out[::-1]


def count_ngrams(ids: np.ndarray, max_order: int, vocab_size: int) -> NGramCounts:
    """Count the n-grams of a text (N,), with contexts of up to `max_order` tokens. Raises ValueError."""
    if (max_order + 1) * math.log2(max(2, vocab_size)) > MAX_CODE_BITS:
        raise ValueError(f"{max_order + 1} tokens of {vocab_size:,} make a number of more than {MAX_CODE_BITS} bits")
    if len(ids) <= max_order:
        raise ValueError(f"a text of {len(ids)} tokens has no n-grams of {max_order + 1}")
    code = np.zeros(len(ids) - max_order, np.int64)
    for back in range(max_order, -1, -1):
        code = code * vocab_size + ids[max_order - back : len(ids) - back]
    orders, grams = [], code
    for k in range(max_order, -1, -1):
        grams, counts = np.unique(grams % vocab_size ** (k + 1), return_counts=True)
        contexts, starts = np.unique(grams // vocab_size, return_index=True)
        starts, tokens = np.append(starts, len(grams)).astype(np.int64), (grams % vocab_size).astype(np.int64)
        discounts = kneser_ney_discounts(counts)
        orders.append(NGramOrder(contexts, starts, tokens, counts.astype(np.int64), discounts, vocab_size))
    return NGramCounts(tuple(reversed(orders)), vocab_size)


def kneser_ney_discounts(counts: np.ndarray) -> np.ndarray:
    """Return the discounts of a count of 0, 1, 2, 3 and more, from how many counts of 1, 2, 3 and 4 there are."""
    n = [max(1, int((counts == c).sum())) for c in range(5)]
    y = n[1] / (n[1] + 2 * n[2])
    discounts = [0.0] + [c - (c + 1) * y * n[c + 1] / n[c] for c in (1, 2, 3)]
    return np.clip(discounts, 0, [0, 0.99, 1.99, 2.99])


def _encode_contexts(
    ids: np.ndarray, max_order: int, vocab_size: int, positions: np.ndarray | None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return for each order k the code of the k tokens up to each token, and whether there are so many: (N,) each."""
    B, T = ids.shape
    positions = np.arange(T) if positions is None else positions
    codes = [np.zeros((B, T), np.int64)]
    for k in range(max_order):
        codes.append(codes[-1].copy())
        codes[-1][:, k:] += ids[:, : max(0, T - k)] * vocab_size**k
    is_full = [np.broadcast_to(positions >= k - 1, (B, T)).reshape(-1) for k in range(max_order + 1)]
    return [code.reshape(-1) for code in codes], is_full
