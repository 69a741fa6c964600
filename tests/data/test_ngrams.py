"""Counts of n-grams: equal to a slow telling of Kneser-Ney, with and without each position's own occurrence."""

import math
from collections import Counter

import numpy as np
import pytest
from anyformer.data.text.ngrams import Counts, count, discounts


def slow(grams: Counter, taken: list[np.ndarray], context: tuple[int, ...], token: int, size: int) -> float:
    """The probability by its definition. grams: of the longest order, as they occur."""
    longest = len(next(iter(grams))) - 1
    tables = [grams]
    for _ in range(longest):
        tables.append(Counter(gram[1:] for gram in tables[-1] if tables[-1][gram] > 0))
    p = 1 / size
    for k, table in enumerate(reversed(tables)):
        if k > len(context):
            break
        seen = context[len(context) - k :]
        follows = {gram[-1]: n for gram, n in table.items() if gram[:-1] == seen and n > 0}
        if follows:
            rest = sum(taken[k][min(n, 3)] for n in follows.values())
            own = follows.get(token, 0)
            p = (own - taken[k][min(own, 3)] + rest * p) / sum(follows.values())
    return p


def made(seed: int, size: int, longest: int, n: int = 300) -> tuple[np.ndarray, Counts, Counter, list[np.ndarray]]:
    draw = np.random.default_rng(seed)
    ids = draw.choice(size, n, p=draw.dirichlet(np.ones(size)))
    counts = count(ids, longest, size)
    grams = Counter(tuple(ids[i : i + longest + 1].tolist()) for i in range(n - longest))
    return ids, counts, grams, [order.discounts for order in counts.orders]


@pytest.mark.parametrize(("seed", "size", "longest"), [(0, 3, 0), (1, 3, 1), (2, 4, 3), (3, 7, 2), (4, 2, 5)])
def test_it_is_kneser_ney(seed: int, size: int, longest: int):
    _, counts, grams, taken = made(seed, size, longest)
    asked = np.random.default_rng(9).integers(0, size, (4, 9))
    found = counts.probabilities(asked)
    assert found.shape == (4, 9, size)
    np.testing.assert_array_equal(counts.probabilities(asked[:, :2]), found[:, :2])
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    for row in range(4):
        for t in range(9):
            context = tuple(asked[row, max(0, t + 1 - longest) : t + 1].tolist()) if longest else ()
            wanted = [slow(grams, taken, context, token, size) for token in range(size)]
            np.testing.assert_allclose(found[row, t], wanted, rtol=1e-5)


@pytest.mark.parametrize(("seed", "size", "longest"), [(1, 3, 1), (2, 4, 3), (3, 7, 2), (5, 12, 3)])
def test_a_position_is_told_nothing_of_itself(seed: int, size: int, longest: int):
    ids, counts, grams, taken = made(seed, size, longest)
    starts = [0, 5, 123, 250]
    rows, nexts = (np.stack([ids[s + shift : s + shift + 20] for s in starts]) for shift in (0, 1))
    found = counts.probabilities(rows, nexts)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    for row in range(len(starts)):
        for t in range(longest - 1, 20):
            gram = (*rows[row, t + 1 - longest : t + 1].tolist(), int(nexts[row, t]))
            without = grams - Counter({gram: 1})
            wanted = [slow(without, taken, gram[:-1], token, size) for token in range(size)]
            np.testing.assert_allclose(found[row, t], wanted, rtol=1e-5)
    told = counts.probabilities(rows)
    known, honest = (np.take_along_axis(p, nexts[..., None], -1).mean() for p in (told, found))
    assert honest < known, "what is left out was an advantage"
    np.testing.assert_array_equal(counts.probabilities(rows, np.full_like(nexts, -1)), told)


def test_where_a_row_begins_shorter_n_grams_are_left_out():
    """Seen twice, with one token before it each time: to the second token of a row its own n-gram must be news."""
    ids = np.array([0, 1, 2, 3, 3, 3, 3, 0, 3])
    counts = count(ids, 2, 4)
    told = counts.probabilities(np.array([[1]]))[0, 0, 2]
    left = counts.probabilities(np.array([[1]]), np.array([[2]]))[0, 0, 2]
    assert left < 0.5 * told


def test_discounts_are_chen_and_goodmans():
    counts = np.array([1] * 50 + [2] * 20 + [3] * 10 + [4] * 6 + [9] * 3)
    y = 50 / (50 + 2 * 20)
    np.testing.assert_allclose(
        discounts(counts), [0, 1 - 2 * y * 20 / 50, 2 - 3 * y * 10 / 20, 3 - 4 * y * 6 / 10], rtol=1e-12
    )
    assert (discounts(np.array([1, 1, 1])) < [1e-9, 1, 2, 3]).all(), "never all of a count"


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="bits"):
        count(np.zeros(100, np.int64), math.floor(62 / math.log2(65)), 65)
    with pytest.raises(ValueError, match="no n-grams"):
        count(np.zeros(3, np.int64), 3, 5)
