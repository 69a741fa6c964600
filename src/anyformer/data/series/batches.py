"""Windows of series to batches. Pure functions.

A window holds up to N patches of p values; after each patch, the next H values are to be predicted. Values are given
relative to the first of the window, in units of the series' mean absolute seasonal difference.

Shapes: B windows, N patches, p values of a patch, H horizon.
"""

from dataclasses import dataclass

import numpy as np

from .datasets import SeriesDataset, forecast_seasonal_naive, seasonal_error
from .read import Series, SeriesTable
from .times import CALENDAR_FEATURES, calendar_features

Batch = dict[str, np.ndarray]
SCALE_STEPS = 16  # the running scale follows calm and lively times this fast
MAX_ORIGINS = 64  # of the rolling forecasts over the held-out end of one series


@dataclass(frozen=True)
class WindowShape:
    patch: int
    nodes: int
    horizon: int
    season: int

    @property
    def length(self) -> int:
        return self.patch * self.nodes

    @property
    def scale_nodes(self) -> int:
        """Return from how many patches the running scale is measured: a season, at least SCALE_STEPS values."""
        return min(self.nodes, -(-max(self.season, SCALE_STEPS) // self.patch))

    def count_nodes(self, steps: int) -> int:
        """Return how many whole patches so many values fill, at most `nodes`."""
        return min(self.nodes, steps // self.patch)


@dataclass(frozen=True)
class Window:
    """Where a window lies: `nodes` patches from `start` on; labels are values before `limit`, of the nodes from
    `first_node` on."""

    series: int
    start: int
    nodes: int
    first_node: int
    limit: int


@dataclass(frozen=True)
class FeatureScale:
    """Mean and standard deviation of past and future covariates, as they were in training."""

    past_covariates: list[list[float]]
    future_covariates: list[list[float]]


def measure_features(dataset: SeriesDataset, horizon: int) -> FeatureScale:
    """Measure the features before the held-out ends."""
    pairs = list(zip(dataset.table.series, dataset.cuts(horizon), strict=True))
    scales = []
    for name in ("past_covariates", "future_covariates"):
        x = np.concatenate(
            [
                {"past_covariates": s.past_covariates, "future_covariates": s.future_covariates}[name][:cut]
                for s, cut in pairs
            ]
        )
        deviations = x.std(0)
        scales.append([x.mean(0).tolist(), np.where(deviations > 0, deviations, 1.0).tolist()])
    return FeatureScale(*scales)


def list_windows(dataset: SeriesDataset, split: str, shape: WindowShape) -> list[Window]:
    """List the windows of a split.

    "train": every window before the held-out ends; all its nodes predict that have seen a season. "val": rolling
    origins over the held-out ends, of which nothing but the node at the origin predicts. "all": rolling origins over
    the second half of each series.
    """
    windows: list[Window] = []
    for i, (series, cut) in enumerate(zip(dataset.table.series, dataset.cuts(shape.horizon), strict=True)):
        if split == "train":
            spare = cut - shape.length - shape.horizon
            for start in range(max(spare + 1, min(shape.patch, cut - shape.patch))):
                nodes = shape.count_nodes(cut - start - 1)
                first = min(-(-shape.season // shape.patch) - 1, nodes - 1)
                windows.append(Window(i, start, nodes, first, cut))
        else:
            first_origin = cut if split == "val" else max(shape.patch, min(cut, len(series.values) // 2))
            longest = shape.count_nodes(max(cut - 1, shape.patch))  # a longer past was never trained on
            for origin in roll_origins(first_origin, len(series.values) - shape.horizon):
                nodes = min(longest, origin // shape.patch)
                windows.append(Window(i, origin - nodes * shape.patch, nodes, nodes - 1, origin + shape.horizon))
    return windows


def number_folds(windows: list[Window]) -> np.ndarray:
    """Return for each of the rolling origins whether it is in the first (1) or second half (2) of those of its
    series."""
    folds = np.zeros(len(windows), int)
    series = np.array([window.series for window in windows])
    for i in np.unique(series):
        rows = np.flatnonzero(series == i)
        folds[rows] = 1 + (np.arange(len(rows)) >= len(rows) / 2)
    return folds


def roll_origins(first: int, last: int) -> list[int]:
    """Return evenly spaced origins from the first to the last, both included, `MAX_ORIGINS` at most."""
    count = min(MAX_ORIGINS, last - first + 1)
    return np.linspace(first, last, count).round().astype(int).tolist()


def build_batch(
    table: SeriesTable, units: list[float], windows: list[Window], shape: WindowShape, scale: FeatureScale
) -> Batch:
    """Collect windows, padded on the right, where padding reaches no node that predicts.

    Returns:
        values (B, N p), labels (B, N, H), is_label (B, N, H), whether it is predicted, calendar (B, N, 6) of the first
        step after each node, level and unit (B,): x = level + unit * value, node (B,), the last that predicts; where
        the table has them, past_covariates (B, N p, features) and future_covariates (B, N p + H, features).
    """
    rows = [build_row(table, units[window.series], window, shape, scale) for window in windows]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def build_row(table: SeriesTable, unit: float, window: Window, shape: WindowShape, scale: FeatureScale) -> Batch:
    series, p, length, horizon = table.series[window.series], shape.patch, shape.length, shape.horizon
    seen, level = window.nodes * p, series.values[window.start]
    path = np.full(length + horizon, np.nan)
    readings = series.values[window.start : min(window.start + length + horizon, window.limit)]
    path[: len(readings)] = (readings - level) / unit
    ends = p * (1 + np.arange(shape.nodes))
    labels = path[ends[:, None] + np.arange(horizon)]
    node = np.arange(shape.nodes)[:, None]
    is_label = np.isfinite(labels) & (node >= window.first_node) & (node < window.nodes)
    times = table.times(series, window.start, length + 1)
    calendar = calendar_features(None if times is None else times[ends], shape.nodes)
    row = {
        "values": np.where(np.arange(length) < seen, np.nan_to_num(path[:length]), 0.0),
        "labels": np.where(is_label, labels, 0.0),
        "calendar": calendar.reshape(shape.nodes, CALENDAR_FEATURES),
        "level": np.array(level),
        "unit": np.array(unit),
    }
    if series.past_covariates.shape[1]:
        row["past_covariates"] = cut_features(series.past_covariates, window.start, seen, length, scale.past_covariates)
    if series.future_covariates.shape[1]:
        count = length + horizon
        row["future_covariates"] = cut_features(
            series.future_covariates, window.start, seen + horizon, count, scale.future_covariates
        )
    return {name: value.astype(np.float32) for name, value in row.items()} | {
        "is_label": is_label,
        "node": np.array(window.nodes - 1),
    }


def cut_features(values: np.ndarray, start: int, count: int, length: int, scale: list[list[float]]) -> np.ndarray:
    """Return `count` normalized rows from `start` on, and zeros up to `length`."""
    mean, deviation = np.array(scale)
    part = (values[start : start + count] - mean) / deviation
    return np.pad(part, ((0, length - len(part)), (0, 0)))


def measure_units(dataset: SeriesDataset, split: str, shape: WindowShape) -> list[float]:
    """Return the unit of each series, its seasonal error before the first origin of the split."""
    units = []
    for series, cut in zip(dataset.table.series, dataset.cuts(shape.horizon), strict=True):
        end = cut if split != "all" else max(shape.patch, min(cut, len(series.values) // 2))
        units.append(seasonal_error(series.values[:end], shape.season))
    return units


def build_last_window(series: Series, shape: WindowShape) -> tuple[Window, float]:
    """Return the window at the end of a series, and its unit."""
    nodes = shape.count_nodes(len(series.values))
    window = Window(0, len(series.values) - nodes * shape.patch, nodes, nodes - 1, len(series.values))
    return window, seasonal_error(series.values, shape.season)


def score_seasonal_naive(dataset: SeriesDataset, shape: WindowShape) -> dict[str, float]:
    """Return MASE and weighted quantile loss of seasonal naive forecasts from the origins of the validation split. It
    has no bands: every quantile is the forecast."""
    units, errors, deviations, total = measure_units(dataset, "val", shape), [], 0.0, 0.0
    for window in list_windows(dataset, "val", shape):
        values, origin = dataset.table.series[window.series].values, window.limit - shape.horizon
        truth = values[origin : window.limit]
        error = np.abs(truth - forecast_seasonal_naive(values[:origin], shape.season, shape.horizon))
        errors.append(error.mean() / units[window.series])
        deviations, total = deviations + float(error.sum()), total + float(np.abs(truth).sum())
    return {"mase": float(np.mean(errors)), "weighted_quantile_loss": deviations / (total or 1.0)}
