"""N-gram counts: equal to a direct implementation of Kneser-Ney smoothing, and leave-one-out counts."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from anyformer.data.text.ngrams import NGramCounts, count_ngrams, kneser_ney_discounts


def direct(grams: Counter, discounts: list[np.ndarray], context: tuple[int, ...], token: int, size: int) -> float:
    """The probability by its definition. grams: of the highest order, as they occur."""
    tables = [grams]
    for _ in range(len(next(iter(grams))) - 1):
        tables.append(Counter(gram[1:] for gram in tables[-1] if tables[-1][gram] > 0))
    p = 1 / size
    for k, table in enumerate(reversed(tables)):
        if k > len(context):
            break
        last = context[len(context) - k :]
        counts = {gram[-1]: n for gram, n in table.items() if gram[:-1] == last and n > 0}
        if counts:
            mass = sum(discounts[k][min(n, 3)] for n in counts.values())
            own = counts.get(token, 0)
            p = (own - discounts[k][min(own, 3)] + mass * p) / sum(counts.values())
    return p


def build(seed: int, size: int, order: int, n: int = 300) -> tuple[np.ndarray, NGramCounts, Counter, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    ids = rng.choice(size, n, p=rng.dirichlet(np.ones(size)))
    counts = count_ngrams(ids, order, size)
    grams = Counter(tuple(ids[i : i + order + 1].tolist()) for i in range(n - order))
    return ids, counts, grams, [o.discounts for o in counts.orders]


@pytest.mark.parametrize(("seed", "size", "order"), [(0, 3, 0), (1, 3, 1), (2, 4, 3), (3, 7, 2), (4, 2, 5)])
def test_probabilities_are_kneser_ney(seed: int, size: int, order: int):
    _, counts, grams, discounts = build(seed, size, order)
    ids = np.random.default_rng(9).integers(0, size, (4, 9))
    probabilities = counts.probabilities(ids)
    assert probabilities.shape == (4, 9, size)
    np.testing.assert_array_equal(counts.probabilities(ids[:, :2]), probabilities[:, :2])
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    for row in range(4):
        for t in range(9):
            context = tuple(ids[row, max(0, t + 1 - order) : t + 1].tolist()) if order else ()
            expected = [direct(grams, discounts, context, token, size) for token in range(size)]
            np.testing.assert_allclose(probabilities[row, t], expected, rtol=1e-5)


@pytest.mark.parametrize(("seed", "size", "order"), [(1, 3, 1), (2, 4, 3), (5, 12, 3)])
def test_a_position_is_left_out_of_its_own_counts(seed: int, size: int, order: int):
    ids, counts, grams, discounts = build(seed, size, order)
    starts = [0, 5, 123, 250]
    rows, labels = (np.stack([ids[s + shift : s + shift + 20] for s in starts]) for shift in (0, 1))
    left_out = counts.probabilities(rows, labels)
    np.testing.assert_allclose(left_out.sum(-1), 1, rtol=1e-5)
    for row in range(len(starts)):
        for t in range(order - 1, 20):
            gram = (*rows[row, t + 1 - order : t + 1].tolist(), int(labels[row, t]))
            without = grams - Counter({gram: 1})
            expected = [direct(without, discounts, gram[:-1], token, size) for token in range(size)]
            np.testing.assert_allclose(left_out[row, t], expected, rtol=1e-5)
    counted = counts.probabilities(rows)
    leaky, fair = (np.take_along_axis(p, labels[..., None], -1).mean() for p in (counted, left_out))
    assert fair < leaky, "the own occurrence is an advantage"
    np.testing.assert_array_equal(counts.probabilities(rows, np.full_like(labels, -1)), counted)


def test_at_the_start_of_a_row_shorter_n_grams_are_left_out():
    """An n-gram with one predecessor only: the second token of a row must not know its own n-gram."""
    ids = np.array([0, 1, 2, 3, 3, 3, 3, 0, 3])
    counts = count_ngrams(ids, 2, 4)
    counted = counts.probabilities(np.array([[1]]))[0, 0, 2]
    left_out = counts.probabilities(np.array([[1]]), np.array([[2]]))[0, 0, 2]
    assert left_out < 0.5 * counted


def test_positions_bound_the_context_by_the_document():
    """Two documents in a row are predicted as two rows."""
    ids, counts, _, _ = build(2, 4, 3)
    row, labels = ids[None, 100:112], ids[None, 101:113]
    positions = np.array([[*range(5), *range(7)]])
    packed = counts.probabilities(row, labels, positions)
    separate = [counts.probabilities(row[:, part], labels[:, part]) for part in (slice(5), slice(5, None))]
    np.testing.assert_array_equal(packed, np.concatenate(separate, axis=1))


def test_discounts_are_chen_and_goodmans():
    counts = np.array([1] * 50 + [2] * 20 + [3] * 10 + [4] * 6 + [9] * 3)
    y = 50 / (50 + 2 * 20)
    np.testing.assert_allclose(
        kneser_ney_discounts(counts), [0, 1 - 2 * y * 20 / 50, 2 - 3 * y * 10 / 20, 3 - 4 * y * 6 / 10], rtol=1e-12
    )
    assert (kneser_ney_discounts(np.array([1, 1, 1])) < [1e-9, 1, 2, 3]).all(), "never the entire count"


def test_damaged_counts_are_not_valid():
    _, counts, _, _ = build(2, 4, 3)
    assert counts.is_valid()
    for name, value in {"starts": 0, "contexts": 10**6, "tokens": 4, "counts": 0, "discounts": 9}.items():
        array = getattr(counts.orders[2], name).copy()
        array[1] = value
        damaged = replace(counts.orders[2], **{name: array})
        assert not replace(counts, orders=(*counts.orders[:2], damaged)).is_valid(), name


def test_refused_orders():
    with pytest.raises(ValueError, match="bits"):
        count_ngrams(np.zeros(100, np.int64), math.floor(62 / math.log2(65)), 65)
    with pytest.raises(ValueError, match="no n-grams"):
        count_ngrams(np.zeros(3, np.int64), 3, 5)
