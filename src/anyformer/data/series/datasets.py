"""Series by name or path, and the steps of a season."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, suggest
from ...parsing import check_path
from ..io.archives import unpack_archive
from ..io.cache import cache_by_files, data_files
from ..tables.read import TABLE_EXTENSIONS, Table, read_table
from .read import Columns, Gaps, SeriesTable, read_series

VAL_PART = 5  # the last fifth of a series is held out
MIN_CORRELATION = 0.3


def open_series_table(data: str) -> Table:
    """Open a table of series, or a named set; an existing file takes precedence over a name. Raises InputError."""
    check_path(data, "data")
    path = unpack_archive(Path(data).expanduser())
    if data and path.is_file():
        return read_table(path)
    if data and (path.exists() or path.suffix):
        raise InputError(f"data '{data}': no such table: expected {', '.join(TABLE_EXTENSIONS)}")
    if data not in NAMED_SETS:
        raise InputError(f"data '{data}': no such table or set of series: {suggest(data, NAMED_SETS)}")
    return NAMED_SETS[data]()


def open_shops() -> Table:
    """Generate the daily sales of four shops."""
    content = hashlib.sha256(b"shops 1").hexdigest()  # the number is raised when the rows change
    return Table(lambda: generate_shops(4, 400), Path(), content, self_contained=True)


def generate_shops(shops: int, days: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Generate sales with a trend, a week, and a promotion that is known ahead; visitors are known when they came."""
    for shop in range(shops):
        rng = np.random.default_rng((11, shop))
        day, week = np.arange(days), rng.uniform(0.5, 1.5, 7)
        promotion = rng.random(days) < 0.1
        visitors = 100 * (1 + shop) * week[day % 7] * (1 + day / 800) * rng.lognormal(0, 0.1, days)
        sales = visitors * (1 + 0.5 * promotion) * rng.lognormal(0, 0.05, days)
        dates = np.datetime64("2023-01-01") + day
        for i in day.tolist():
            row = {"date": str(dates[i]), "shop": "abcdefgh"[shop], "sales": round(sales[i], 2)}
            yield f"shops, row {i}", row | {"visitors": round(visitors[i]), "promotion": int(promotion[i])}


def open_traffic() -> Table:
    """Generate the hourly traffic of a road."""
    content = hashlib.sha256(b"traffic 1").hexdigest()
    return Table(lambda: generate_traffic(60), Path(), content, self_contained=True)


def generate_traffic(days: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Generate cars an hour: two peaks on workdays, one at weekends, and days that are busier than others."""
    rng, hour = np.random.default_rng(12), np.arange(24 * days)
    time, is_weekend = hour % 24, hour // 24 % 7 >= 5
    workday = np.exp(-((time - 8) ** 2) / 4) + np.exp(-((time - 17) ** 2) / 8)
    shape = np.where(is_weekend, 0.7 * np.exp(-((time - 14) ** 2) / 20), workday)
    busy = np.repeat(rng.lognormal(0, 0.15, days), 24)
    cars = rng.poisson(40 + 400 * shape * busy)
    start = np.datetime64("2024-01-01T00")
    for i in hour.tolist():
        yield f"traffic, row {i}", {"time": str(start + i), "cars": int(cars[i])}


NAMED_SETS: dict[str, Callable[[], Table]] = {"shops": open_shops, "traffic": open_traffic}


@dataclass(frozen=True)
class SeriesDataset:
    """The series of a table, and how each is divided into a past to learn from and a held-out end."""

    name: str
    table: SeriesTable
    sha256: str

    def cuts(self, horizon: int) -> list[int]:
        """Return for each series the number of values before its held-out end: its last fifth, at least a horizon."""
        lengths = [len(series.values) for series in self.table.series]
        return [n - max(horizon, n // VAL_PART) for n in lengths]


@cache_by_files(lambda data, *_: data_files(data))
def load_series(data: str, columns: Columns, gaps: Gaps) -> SeriesDataset:
    """Load the series of a table; files that have changed are read again. Raises InputError."""
    table = open_series_table(data)
    content = f"{table.content} {columns} {gaps}".encode()
    return SeriesDataset(data, read_series(table, f"data '{data}'", columns, gaps), hashlib.sha256(content).hexdigest())


# --- seasons ---


def infer_season(dataset: SeriesDataset, horizon: int, longest: int) -> int:
    """Infer the steps of a season from the part before the held-out end: 1, or what the frequency suggests, or where it
    suggests nothing the lag of a high autocorrelation; of these the one whose seasonal naive forecast has the lowest
    error. At most `longest`, and a third of the longest series."""
    pasts = [series.values[:cut] for series, cut in zip(dataset.table.series, dataset.cuts(horizon))]
    longest = min(longest, max(map(len, pasts)) // 3)
    seasons = dataset.table.frequency.seasons() or [find_period(max(pasts, key=len), longest)]
    candidates = [n for n in dict.fromkeys([1, *seasons]) if n <= max(1, longest)]
    return min(candidates, key=lambda season: sum(measure_season(past, season, horizon) for past in pasts))


def find_period(values: np.ndarray, longest: int) -> int:
    """Return the lag of the first peak of the autocorrelation, without a linear trend, that is nearly as high as the
    highest; 1 if none is high."""
    if longest < 2 or np.ptp(values) == 0:
        return 1
    steps = np.arange(len(values))
    x = values - np.polyval(np.polyfit(steps, values, 1), steps)
    power = np.abs(np.fft.rfft(x, 2 * len(x))) ** 2
    correlation = np.fft.irfft(power)[: longest + 2]
    correlation = correlation / (correlation[0] or 1)
    inner = correlation[1:-1]
    peaks = np.flatnonzero((inner > correlation[:-2]) & (inner >= correlation[2:]) & (inner > MIN_CORRELATION)) + 1
    return int(peaks[correlation[peaks] > 0.9 * correlation[peaks].max()][0]) if len(peaks) else 1


def forecast_seasonal_naive(values: np.ndarray, season: int, horizon: int) -> np.ndarray:
    """Repeat the last season: values (T,) -> (horizon,). Of a shorter series, repeat the last value."""
    last = values[-season:] if len(values) >= season else values[-1:]
    return np.resize(last, horizon)


def measure_season(values: np.ndarray, season: int, horizon: int) -> float:
    """Return the mean absolute error of seasonal naive forecasts up to the horizon, in units of the naive one step
    ahead."""
    lags = [season * -(-step // season) for step in range(1, horizon + 1)]
    errors = [np.abs(values[lag:] - values[:-lag]).mean() for lag in lags if lag < len(values)]
    return float(np.mean(errors)) / seasonal_error(values, 1) if errors else 0.0


def seasonal_error(values: np.ndarray, season: int) -> float:
    """Return the mean absolute difference to the value a season before, by which MASE divides; where that is 0 or the
    series too short, a tenth of the mean absolute deviation, or 1."""
    season = season if season < len(values) else 1
    error = float(np.abs(values[season:] - values[:-season]).mean()) if len(values) > 1 else 0.0
    return error or float(np.abs(values - values.mean()).mean()) / 10 or 1.0
