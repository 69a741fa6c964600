"""A linear forecast of series, fitted in closed form: what a model of series starts from.

A ridge regression of the next H values on the last differences, shrunk towards the seasonal naive forecast, and the
quantiles of its errors on blocks of time that it has not seen. Direct linear forecasts are hard to beat on small data
(DLinear, 2205.13504).

Shapes: R rows (a series and a moment each), L lags, H horizon, Q quantiles, K blocks of time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .batches import WindowShape
from .datasets import seasonal_error
from .read import SeriesTable

LAGS = 32, 64  # tried besides two seasons
PENALTIES = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e6)
MAX_ROWS = 20_000
MIN_ROWS = 20  # fewer say nothing about a penalty
BLOCKS = 5  # of time, each forecast by a fit to the others
PRIOR_STEPS = 8  # how many values the unit of the whole series counts for in the running scale of a window


@dataclass(frozen=True)
class LinearForecast:
    """The next values are last + weight @ (past - last), their quantiles are that + scale * quantiles."""

    weight: np.ndarray  # (H, L)
    quantiles: np.ndarray | None  # (H, Q), in units of the running scale; None where there are too few rows


@dataclass(frozen=True)
class Rows:
    """Pasts relative to their last value and what followed, in units of the running scale."""

    past: np.ndarray  # (R, L)
    ahead: np.ndarray  # (R, H)
    block: np.ndarray  # (R,), the block of time of each row
    is_apart: np.ndarray  # (R, K), whether what followed lies outside of what followed the rows of a block

    def use_lags(self, count: int) -> "Rows":
        return replace(self, past=self.past[:, -count:])


def seasonal_naive_weight(season: int, lags: int, horizon: int) -> np.ndarray:
    """Return the weights of the seasonal naive forecast: the value a season before, (H, L)."""
    weight, steps = np.zeros((horizon, lags)), np.arange(horizon)
    weight[steps, lags - season + steps % season] = 1.0
    return weight


def fit_linear(
    table: SeriesTable, ends: Sequence[int], shape: WindowShape, lags: int, levels: Sequence[float]
) -> LinearForecast:
    """Fit to the values of each series before an end. The number of lags, at most `lags`, the penalty and the quantiles
    are those of the errors on blocks of time, each forecast by a fit to the other blocks."""
    naive, rows = seasonal_naive_weight(shape.season, lags, shape.horizon), collect_rows(table, ends, shape, lags)
    if len(rows.past) < MIN_ROWS:
        return LinearForecast(naive, None)
    counts = sorted({min(lags, max(n, 2 * shape.season)) for n in (0, *LAGS)})
    options = [(rows.use_lags(count), naive[:, -count:], penalty) for count in counts for penalty in PENALTIES]
    residuals = [cross_validate(*option) for option in options]
    best = int(np.argmin([np.abs(errors).mean() for errors in residuals]))
    used, prior, penalty = options[best]
    weight = fit_ridge(used.past, used.ahead, prior, penalty)
    weight = np.pad(weight, ((0, 0), (lags - weight.shape[1], 0)))
    return LinearForecast(weight, pool_quantiles(residuals[best], levels))


def collect_rows(table: SeriesTable, ends: Sequence[int], shape: WindowShape, lags: int) -> Rows:
    """Collect the moments of each series whose next values lie before its end; at most MAX_ROWS."""
    horizon, limit, parts = shape.horizon, max(MIN_ROWS, MAX_ROWS // len(ends)), []
    for series, end in zip(table.series, ends, strict=True):
        first, last = max(shape.season + 1, shape.patch), end - horizon
        if last < first:
            continue
        values, unit = series.values, seasonal_error(series.values[:end], shape.season)
        moments = np.unique(np.linspace(first, last, min(limit, last - first + 1)).round().astype(int))
        block = (moments - first) * BLOCKS // (last - first + 1)
        borders = first + (last - first + 1) * np.arange(BLOCKS + 1) / BLOCKS
        is_apart = (moments[:, None] <= borders[:-1] - horizon) | (moments[:, None] >= borders[1:] - 1 + horizon)
        level, scale = values[moments - 1, None], measure_running_scale(values, shape, unit)[moments, None]
        past = values[(moments[:, None] - lags + np.arange(lags)).clip(min=0)]
        ahead = values[moments[:, None] + np.arange(horizon)]
        parts.append(((past - level) / scale, (ahead - level) / scale, block, is_apart))
    if not parts:
        return Rows(np.zeros((0, lags)), np.zeros((0, horizon)), np.zeros(0), np.zeros((0, BLOCKS)))
    return Rows(*(np.concatenate(arrays) for arrays in zip(*parts)))


def measure_running_scale(values: np.ndarray, shape: WindowShape, unit: float) -> np.ndarray:
    """Return the mean absolute seasonal difference in the last patches before each value, (T + 1,)."""
    sums = np.zeros(len(values) + 1)
    sums[shape.season + 1 :] = np.abs(values[shape.season :] - values[: -shape.season]).cumsum()
    ends = np.arange(len(sums))
    starts = np.minimum(ends, (ends - shape.patch * shape.scale_nodes).clip(min=shape.season))
    return (sums - sums[starts] + PRIOR_STEPS * unit) / (ends - starts + PRIOR_STEPS)


def cross_validate(rows: Rows, naive: np.ndarray, penalty: float) -> np.ndarray:
    """Return the errors (R, H) on each block of fits to the others."""
    errors = np.empty_like(rows.ahead)
    for k in range(BLOCKS):
        inside, outside = rows.block == k, (rows.block != k) & rows.is_apart[:, k].astype(bool)
        weight = fit_ridge(rows.past[outside], rows.ahead[outside], naive, penalty)
        errors[inside] = rows.ahead[inside] - rows.past[inside] @ weight.T
    return errors


def fit_ridge(past: np.ndarray, ahead: np.ndarray, prior: np.ndarray, penalty: float) -> np.ndarray:
    """Return the weights (H, L) of a ridge regression on first differences, which is shrunk towards a prior."""
    lags = past.shape[1]
    x = np.diff(past)  # (R, L - 1)
    y = ahead - past @ prior.T
    solution = np.linalg.solve(x.T @ x + penalty * np.eye(lags - 1), x.T @ y)  # (L - 1, H)
    return prior + (np.diff(np.eye(lags), axis=0).T @ solution).T


def pool_quantiles(errors: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """Return the quantiles of errors (R, H) at each step, pooled with the steps near it: (H, Q)."""
    return np.stack([np.quantile(errors[:, near], levels) for near in near_steps(errors.shape[1])])


def near_steps(horizon: int) -> list[np.ndarray]:
    """Return for each step the steps whose distance ahead is from 2/3 to 3/2 of its own: errors grow with the
    distance, not with the step."""
    ahead = np.arange(1, horizon + 1)
    return [np.flatnonzero((3 * ahead >= 2 * n) & (2 * ahead <= 3 * n)) for n in ahead]
