"""Bands of forecasts that cover what they claim: conformal widening from errors on origins that training did not see.

The score of a value is its distance from the median, in units of the distance of the 80 % band's edge on that side; the
factor of a step is the 80 % quantile of the scores there and at the steps near it (split conformal prediction,
1905.03222). The edges follow the running scale of each window, so the factors hold for calm and for lively times.

Shapes: R origins, H horizon, Q quantiles.
"""

from collections.abc import Sequence

import numpy as np

from ..data.series.linear import near_steps

COVERAGE = 0.8
WIDEN_PRIOR, NARROW_PRIOR = 1.0, 16.0  # how many times the horizon the bands as they are count for: a calm end is a
# weak reason to narrow them
MAX_FACTOR = 10.0


def fit_band_factors(quantiles: np.ndarray, labels: np.ndarray, blocks: float) -> list[float]:
    """Return by how much to widen the bands at each step, (R, H, Q), (R, H) -> H factors. `blocks`: how many times the
    horizon the origins span; of a few, origins that overlap say little, and the bands stay nearer to what they are."""
    origins, horizon, n_quantiles = quantiles.shape
    if not origins:
        return [1.0] * horizon
    median = quantiles[..., n_quantiles // 2]
    low, high = (np.maximum(edge, 1e-9) for edge in (median - quantiles[..., 0], quantiles[..., -1] - median))
    scores = np.where(labels < median, (median - labels) / low, (labels - median) / high)
    level = min(1.0, COVERAGE * (1 + 1 / origins))  # the finite-sample correction
    factors = np.array([np.quantile(scores[:, near], level) for near in near_steps(horizon)])
    confidence = blocks / (blocks + np.where(factors < 1, NARROW_PRIOR, WIDEN_PRIOR))
    return (factors.clip(1 / MAX_FACTOR, MAX_FACTOR) ** confidence).round(4).tolist()


def fit_folds(quantiles: np.ndarray, labels: np.ndarray, folds: np.ndarray, blocks: float) -> list[list[float]]:
    """Return three lists of factors: from all origins, and for the origins of fold 1 and of fold 2 from those of the
    other one, so that the coverage of the origins themselves can be measured honestly."""
    other = [folds >= 0, folds == 2, folds == 1]
    return [fit_band_factors(quantiles[chosen], labels[chosen], blocks * chosen.mean()) for chosen in other]


def select_factors(calibration: Sequence[Sequence[float]], folds: np.ndarray, horizon: int) -> np.ndarray:
    """Return the factors for windows of these folds, (R,) -> (R, H); ones without a calibration."""
    return np.array(calibration)[folds] if calibration else np.ones((len(folds), horizon))
