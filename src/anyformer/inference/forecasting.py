"""Quantiles of what follows series, any number of steps ahead.

Shapes: H steps that a model predicts at once, Q quantiles, S sampled paths.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from statistics import NormalDist
from typing import Any, Protocol

import numpy as np

from ..data.series.batches import Batch, Window, WindowShape, build_batch, build_last_window
from ..data.series.prepare import SeriesFacts, restore_values, transform_table
from ..data.series.read import Series, SeriesTable, parse_number
from ..data.series.times import Frequency, format_times
from ..errors import InputError
from ..parsing import check_range

QUANTILES = tuple(round(0.1 * k, 1) for k in range(1, 10))
NORMAL_QUANTILES = tuple(NormalDist().inv_cdf(level) for level in QUANTILES)
MEDIAN = QUANTILES.index(0.5)
BATCH_SIZE = 128
MAX_HORIZON = 10_000


class ForecastModel(Protocol):
    @property
    def shape(self) -> WindowShape: ...

    @property
    def facts(self) -> SeriesFacts: ...

    def predict_quantiles(self, batch: Batch) -> np.ndarray:
        """Return the sorted quantiles of the H values after each window, (B, H, Q), as the labels are."""


@dataclass(frozen=True)
class Request:
    """Series to continue."""

    input: Any = None
    """The path of a table as in training, or several; its rows [{column: value}, ...] or its columns {column: [value,
    ...]}; the numbers of a series, or of several; None: an example."""
    horizon: int | None = None
    """How many steps ahead; None: as many as in training."""
    samples: int = 100
    """Paths that are sampled for steps beyond the horizon of the training."""
    seed: int = 0
    """Of these paths."""

    def __post_init__(self) -> None:
        check_range(self, "horizon", at_least=1, at_most=MAX_HORIZON)
        check_range(self, "samples", at_least=9, at_most=10_000)
        check_range(self, "seed", at_least=0, below=1 << 40)


def gather_columns(request: dict[str, Any]) -> dict[str, Any]:
    """Return a request that holds the columns of a table beside its fields with these columns as its input."""
    names = {field.name for field in fields(Request)}
    columns = {name: value for name, value in request.items() if name not in names}
    if "input" in request or (len(columns) < 2 and not any(isinstance(x, Sequence) for x in columns.values())):
        return request
    return {name: value for name, value in request.items() if name in names} | {"input": columns}


def list_rows(values: Any) -> list[dict[str, Any]]:
    """Return the rows of a table that is given by its columns or its rows; none for anything else. Raises InputError
    for columns that are no lists of the same length."""
    if isinstance(values, dict):
        if not all(isinstance(column, list | tuple | np.ndarray) for column in values.values()):
            raise InputError("request: input: the columns of a table are lists of values: {column: [value, ...]}")
        lengths = {name: len(column) for name, column in values.items()}
        if len(set(lengths.values())) > 1:
            names = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise InputError(f"request: input: the columns differ in their number of values: {names}")
        return [dict(zip(values, cells, strict=True)) for cells in zip(*values.values(), strict=True)]
    is_table = isinstance(values, list) and values and all(isinstance(row, dict) for row in values)
    return values if is_table else []


def read_lists(values: Any) -> SeriesTable:
    """Return a table of the numbers of one series, or of several. Raises InputError for anything else."""
    values = values.tolist() if isinstance(values, np.ndarray) else values
    lists = values if isinstance(values, list) and values and isinstance(values[0], list) else [values]
    series = []
    for i, numbers in enumerate(lists, 1):
        where = "request: input" + (f"[{i - 1}]" if len(lists) > 1 else "")
        if not isinstance(numbers, list) or any(parse_number(x) is None or isinstance(x, str | bool) for x in numbers):
            expected = "numbers, rows {column: value} or columns {column: [value, ...]} of a table, or its path"
            raise InputError(f"{where} should be {expected}, found {str(numbers)[:60]!r}")
        empty = np.zeros((len(numbers), 0))
        series.append(Series(f"series {i}", np.array(numbers, float), empty, empty))
    return SeriesTable(tuple(series), Frequency())


def forecast(model: ForecastModel, table: SeriesTable, request: Request) -> list[np.ndarray]:
    """Return the quantiles of the values after each series, (horizon, Q) each.

    Up to the model's own horizon they are its answer. From there on, paths are sampled from the quantiles and the model
    continues each of them. Raises InputError for a series that is too short, or that lacks what must be known ahead.
    """
    horizon = request.horizon or model.shape.horizon
    for series in table.series:
        check_series(series, model.shape.patch, horizon)
    table = transform_table(table, [len(series.values) for series in table.series], model.facts)
    answers: list[np.ndarray] = []
    for start in range(0, len(table.series), BATCH_SIZE):
        part = replace(table, series=table.series[start : start + BATCH_SIZE])
        last = [build_last_window(series, model.shape) for series in part.series]
        quantiles = predict_ends(model, part, last)
        answers += list(quantiles)
    answers = [quantiles[:horizon] for quantiles in answers]
    if horizon > model.shape.horizon:
        singles = (replace(table, series=(series,)) for series in table.series)
        pairs = zip(singles, answers, strict=True)
        answers = [continue_paths(model, single, quantiles, horizon, request) for single, quantiles in pairs]
    return [restore_values(q, series.is_log) for q, series in zip(answers, table.series, strict=True)]


def check_series(series: Series, patch: int, horizon: int) -> None:
    n = len(series.values)
    if n < patch:
        raise InputError(f"the series '{series.name}' has {n} values; at least {patch}, a patch, are needed")
    if series.future_covariates.shape[1] and len(series.future_covariates) < n + horizon:
        ahead = len(series.future_covariates) - n
        raise InputError(
            f"the series '{series.name}': {horizon} steps ahead need as many rows with what is known ahead after the "
            f"last value, and there are {ahead}: add them, with an empty cell for the value"
        )


def predict_ends(model: ForecastModel, table: SeriesTable, last: Sequence[tuple[Window, float]]) -> np.ndarray:
    """Return the quantiles after the last window of each series in the units of the data, (B, H, Q)."""
    windows = [replace(window, series=i) for i, (window, _) in enumerate(last)]
    batch = build_batch(table, [unit for _, unit in last], windows, model.shape, model.facts.scale)
    level, unit = (np.array(x)[:, None, None] for x in zip(*(
        (table.series[i].values[window.start], unit) for i, (window, unit) in enumerate(last)
    )))  # fmt: skip
    return level + unit * model.predict_quantiles(batch).astype(np.float64)


def continue_paths(
    model: ForecastModel, table: SeriesTable, quantiles: np.ndarray, horizon: int, request: Request
) -> np.ndarray:
    """Return the quantiles of a single series beyond the model's horizon: (H, Q) -> (horizon, Q)."""
    rng, series = np.random.default_rng(request.seed), table.series[0]
    unit = build_last_window(series, model.shape)[1]
    ranks = [NormalDist().inv_cdf((i + 0.5) / request.samples) for i in range(request.samples)]
    paths = sample_paths(np.broadcast_to(quantiles, (request.samples, *quantiles.shape)), rng.permutation(ranks))
    while paths.shape[1] < horizon:
        blocks = []
        for start in range(0, request.samples, BATCH_SIZE):
            part = replace(table, series=tuple(extend(series, path) for path in paths[start : start + BATCH_SIZE]))
            blocks.append(
                predict_ends(model, part, [(build_last_window(s, model.shape)[0], unit) for s in part.series])
            )
        paths = np.concatenate([paths, sample_paths(np.concatenate(blocks), rng.permutation(ranks))], 1)
    sampled = np.quantile(paths[:, :horizon], QUANTILES, axis=0).T
    return np.concatenate([quantiles, sampled[len(quantiles) :]])


def sample_paths(quantiles: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Return the values at these ranks, standard normal (S,), of distributions given by quantiles (S, H, Q): linear
    between the normal deviates of the quantiles, and beyond them. The values of a path have one rank: (S, H)."""
    x = np.array(NORMAL_QUANTILES)
    right = np.clip(np.searchsorted(x, ranks), 1, len(x) - 1)
    share = (ranks - x[right - 1]) / (x[right] - x[right - 1])
    rows = np.arange(len(ranks))
    low, high = quantiles[rows, :, right - 1], quantiles[rows, :, right]
    return low + share[:, None] * (high - low)


def extend(series: Series, path: np.ndarray) -> Series:
    """Append a path to a series; past covariates keep their last values."""
    past_covariates = np.concatenate([series.past_covariates, np.repeat(series.past_covariates[-1:], len(path), 0)])
    return replace(series, values=np.concatenate([series.values, path]), past_covariates=past_covariates)


def describe_forecasts(table: SeriesTable, forecasts: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Return plain values: {"series", "times" or "steps", "median", "quantiles": {"0.1": [...], ...}} of each."""
    results = []
    for series, quantiles in zip(table.series, forecasts, strict=True):
        count, first = len(quantiles), len(series.values)
        times = table.times(series, first, count)
        steps: dict[str, Any] = {"steps": list(range(first, first + count))}
        if times is not None:
            steps = {"times": format_times(times, table.zone)}
        columns = [[float(f"{x:.7g}") for x in column] for column in quantiles.T]
        named = {str(level): column for level, column in zip(QUANTILES, columns, strict=True)}
        results.append({"series": series.name} | steps | {"median": columns[MEDIAN], "quantiles": named})
    return results
