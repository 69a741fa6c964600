"""Intervals around predicted numbers, from errors on rows that were not trained on: split conformal prediction
(1604.04173).

There is no temperature for classes (1706.04599): with the few validation rows of small tables it raised the
cross-entropy of held-out rows (docs/benchmarks.md).
"""

import math

from torch import Tensor

COVERAGES = {"80%": 0.8, "90%": 0.9}  # of the intervals


def measure_radii(errors: Tensor) -> dict[str, float]:
    """Return, for each coverage, how far from the prediction the truth lies at most in that share of the cases, from
    absolute errors (N,) of other rows; the largest error where they are too few to tell."""
    errors, n = errors.sort().values, len(errors)
    ranks = {name: min(n, math.ceil((n + 1) * share)) for name, share in COVERAGES.items()}
    return {name: float(errors[rank - 1]) for name, rank in ranks.items()}
