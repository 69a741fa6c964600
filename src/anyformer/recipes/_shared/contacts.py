"""Which columns of an alignment touch in the structure: maps of scores, what came before, and their precision.

Shapes: N rows, L columns, q states of a column, M columns with a residue in the structure.
"""

from functools import lru_cache

import numpy as np

from ...data.sequences.alignment import STATES, Alignment
from ...data.sequences.structure import SEPARATION, Structure

Q = len(STATES)
PSEUDOCOUNT = 0.5  # the share of the counts that is even: 1110.5223
MAX_DCA_COLUMNS = 400  # the inverse of a matrix of (20 L)^2 numbers
DEPTHS = {"L": 1, "L/2": 2, "L/5": 5}


def correct_average_product(scores: np.ndarray) -> np.ndarray:
    """Take from each score what its two columns explain (APC: Dunn et al. 2008): (L, L)"""
    scores = (scores + scores.T) / 2
    np.fill_diagonal(scores, 0)
    sums, count = scores.sum(0), len(scores) - 1
    result = scores - np.outer(sums, sums) / max(scores.sum(), 1e-30) * (len(scores) / count)
    np.fill_diagonal(result, 0)
    return result


def count_pairs(alignment: Alignment) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted frequencies of states (L, q) and of pairs of states (L, q, L, q)."""
    n, length = alignment.ids.shape
    hot = np.eye(Q, dtype=np.float32)[alignment.ids].reshape(n, -1)
    weights = (alignment.weights / alignment.weights.sum()).astype(np.float32)
    return (weights @ hot).reshape(length, Q), ((hot * weights[:, None]).T @ hot).reshape(length, Q, length, Q)


def measure_mutual_information(alignment: Alignment) -> np.ndarray:
    """Return the mutual information of each pair of columns with APC: (L, L)"""
    single, pairs = count_pairs(alignment)
    even = single[:, :, None, None] * single
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(pairs > 1e-9, pairs * np.log(pairs / even), 0)
    return correct_average_product(terms.sum((1, 3)))


def measure_direct_couplings(alignment: Alignment) -> np.ndarray:
    """Return the couplings of mean-field direct coupling analysis (1110.5223), their norms with APC: (L, L)"""
    single, pairs = count_pairs(alignment)
    length = len(single)
    single = (1 - PSEUDOCOUNT) * single[:, 1:] + PSEUDOCOUNT / Q
    pairs = (1 - PSEUDOCOUNT) * pairs[:, 1:, :, 1:] + PSEUDOCOUNT / Q**2
    for i in range(length):
        pairs[i, :, i] = np.diag(single[i])
    covariance = pairs - single[:, :, None, None] * single
    size = length * (Q - 1)
    inverse = np.linalg.inv(covariance.reshape(size, size).astype(np.float64))
    couplings = np.zeros((length, length, Q, Q))
    couplings[:, :, 1:, 1:] = -inverse.reshape(length, Q - 1, length, Q - 1).transpose(0, 2, 1, 3)
    couplings -= (
        couplings.mean(2, keepdims=True) + couplings.mean(3, keepdims=True) - couplings.mean((2, 3), keepdims=True)
    )
    return correct_average_product(np.sqrt((couplings[:, :, 1:, 1:] ** 2).sum((2, 3))))


def rank_pairs(scores: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return the pairs of columns that lie at least SEPARATION apart by their numbers (M,), best first: (pairs, 2)"""
    i, j = np.triu_indices(len(scores), 1)
    is_far = np.abs(numbers[j] - numbers[i]) >= SEPARATION
    i, j = i[is_far], j[is_far]
    return np.stack([i, j], 1)[np.argsort(-scores[i, j], kind="stable")]


def check_pairs(scores: np.ndarray, structure: Structure) -> np.ndarray:
    """Return whether each pair of columns is a contact, best first; without the columns that the structure lacks."""
    pairs = rank_pairs(scores[np.ix_(structure.columns, structure.columns)], structure.numbers)
    return structure.contacts[pairs[:, 0], pairs[:, 1]]


def measure_precision(scores: np.ndarray, structure: Structure) -> dict[str, float]:
    """Return which share of the best L, L/2 and L/5 pairs are contacts, L the columns with a residue."""
    is_contact, length = check_pairs(scores, structure), len(structure.columns)
    return {name: float(is_contact[: max(1, length // part)].mean()) for name, part in DEPTHS.items()}


@lru_cache(maxsize=2)
def score_baselines(alignment: Alignment) -> dict[str, np.ndarray]:
    """Return the maps that need no Transformer, by their names."""
    maps = {"mutual information": measure_mutual_information(alignment)}
    if alignment.ids.shape[1] <= MAX_DCA_COLUMNS:
        maps["mean-field DCA"] = measure_direct_couplings(alignment)
    return maps
