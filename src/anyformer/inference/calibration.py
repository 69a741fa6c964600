"""Intervals around predicted numbers, from errors on rows that were not trained on: split conformal prediction
(1604.04173).

There is no temperature for classes (1706.04599): with the few validation rows of small tables it raised the
cross-entropy of held-out rows (docs/benchmarks.md).
"""

import math

from torch import Tensor

from ..data.tables.schema import COVERAGES


def measure_radii(errors: Tensor) -> list[float]:
    """Return, for each of COVERAGES, how far from the prediction the truth lies at most in that share of the cases,
    from absolute errors (N,) of other rows; the largest error where they are too few to tell."""
    errors, n = errors.sort().values, len(errors)
    return [float(errors[min(n, math.ceil((n + 1) * share)) - 1]) for share in COVERAGES.values()]
