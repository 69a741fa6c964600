"""Forecasts of series: ours and the seasonal naive forecast on the same held-out ends.

    python -m bench.recipes.forecast FOLDER                       FOLDER holds the csv files of SETS, at any depth
    python -m bench.recipes.forecast FOLDER --sets nile sunspots --minutes 0.5

The last fifth of each series (at least a horizon) is removed before training, and forecast from origins that roll over
it. Nothing is chosen on it: ours keeps its best checkpoint by a validation end of its own, and the season is measured
before it. The bands of the seasonal naive forecast are the quantiles of its own errors in the past, for each step.
The files are those of statsmodels (statsmodels/datasets) and vega_datasets (vega_datasets/_data).
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from anyformer import api
from anyformer.data.series.batches import roll_origins
from anyformer.data.series.datasets import forecast_seasonal_naive, load_series, seasonal_error
from anyformer.data.series.read import Columns, Series, SeriesTable
from anyformer.data.series.times import format_time
from anyformer.inference.forecasting import MEDIAN, QUANTILES, Request, forecast
from bench._common import make_parser

# name -> file, horizon, columns to forecast
SETS: dict[str, tuple[str, int, str]] = {
    "co2": ("co2.csv", 26, "co2"),
    "sunspots": ("sunspots.csv", 11, "SUNACTIVITY"),
    "nile": ("nile.csv", 5, "volume"),
    "elnino": ("elnino.csv", 12, "value"),
    "macrodata": ("macrodata.csv", 8, "realgdp,realcons,realinv,cpi,unemp,tbilrate,infl"),
    "seattle-temps": ("seattle-temps.csv", 24, "temp"),
    "us-employment": ("us-employment.csv", 12, "nonfarm,construction,manufacturing,retail_trade,government"),
    "stocks": ("stocks.csv", 6, "price"),
}


def read_set(folder: Path, name: str, target: str) -> SeriesTable:
    file = next(iter(sorted(folder.rglob(SETS[name][0]))))
    with TemporaryDirectory() as temporary:
        if name == "elnino":  # a row for each year, a column for each month
            file = write_rows(Path(temporary) / "elnino.csv", ("date", "value"), melt_months(file))
        return load_series(str(file), Columns(tuple(target.split(","))), "fill").table


def melt_months(file: Path) -> Iterator[tuple[str, str]]:
    with open(file, encoding="utf-8") as lines:
        for year, *months in list(csv.reader(lines))[1:]:
            for month, value in enumerate(months, 1):
                yield f"{year}-{month:02d}", value


def write_rows(path: Path, header: tuple[str, ...], rows: Iterator[tuple[Any, ...]]) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_past(table: SeriesTable, path: Path, horizon: int) -> list[int]:
    """Write the part before the held-out ends as a long table; return its lengths."""
    cuts = [len(s.values) - max(horizon, len(s.values) // 5) for s in table.series]
    rows = []
    for series, cut in zip(table.series, cuts, strict=True):
        times = table.times(series, 0, cut)
        stamps = range(cut) if times is None else (format_time(int(t)) for t in times)
        rows += [(series.name, stamp, value) for stamp, value in zip(stamps, series.values[:cut])]
    write_rows(path, ("id", "time", "value"), iter(rows))
    return cuts


def measure_naive(past: np.ndarray, season: int, horizon: int) -> np.ndarray:
    """Return the quantiles of seasonal naive errors in the past for each step, (horizon, Q)."""
    rows = []
    for step in range(1, horizon + 1):
        lag = season * -(-step // season)
        errors = past[lag:] - past[:-lag] if lag < len(past) else np.zeros(1)
        rows.append(np.quantile(errors, QUANTILES))
    return np.array(rows)


def score(quantiles: np.ndarray, truth: np.ndarray, unit: float) -> dict[str, np.ndarray]:
    """Score forecasts (origins, horizon, Q) of one series."""
    errors = truth[..., None] - quantiles
    losses = 2 * np.maximum(np.array(QUANTILES) * errors, (np.array(QUANTILES) - 1) * errors).mean(-1)
    inside = (quantiles[..., 0] <= truth) & (truth <= quantiles[..., -1])
    errors_of_median = np.abs(truth - quantiles[..., MEDIAN])
    return {"mase": errors_of_median / unit, "loss": losses, "size": np.abs(truth), "coverage": inside}


def measure_series(model: Any, table: SeriesTable, series: Series, cut: int, horizon: int) -> dict[str, Any]:
    values, season, scores = series.values, model.facts.season, {}
    origins = roll_origins(cut, len(values) - horizon)
    truth = np.stack([values[o : o + horizon] for o in origins])
    unit, spread = seasonal_error(values[:cut], season), measure_naive(values[:cut], season, horizon)
    naive = np.stack([forecast_seasonal_naive(values[:o], season, horizon) for o in origins])
    scores["seasonal naive"] = score(naive[..., None] + spread - spread[:, [MEDIAN]], truth, unit)
    past = [replace(series, values=values[:o], past_covariates=series.past_covariates[:o]) for o in origins]
    ours = forecast(model, replace(table, series=tuple(past)), Request(horizon=horizon))
    scores["ours"] = score(np.stack(ours), truth, unit)
    return scores


def summarize(scores: list[dict[str, np.ndarray]]) -> dict[str, float]:
    wql = float(np.mean([s["loss"].sum() / s["size"].sum() for s in scores]))
    mase, coverage = (float(np.concatenate([s[key].ravel() for s in scores]).mean()) for key in ("mase", "coverage"))
    return {"mase": mase, "weighted_quantile_loss": wql, "coverage_80": coverage}


def measure_set(folder: Path, name: str, minutes: float, seed: int, **fields: Any) -> dict[str, Any]:
    _, horizon, target = SETS[name]
    table = read_set(folder, name, target)
    with TemporaryDirectory() as temporary:
        data = Path(temporary) / "past.csv"
        cuts = write_past(table, data, horizon)
        run, train = Path(temporary) / "run", {"seed": seed, "device": "cpu"}
        settings = {"data": str(data), "horizon": horizon, "train": train} | fields
        model = api.train("forecast", "small", out=run, minutes=minutes, **settings)
        scores = [
            measure_series(model.module, table, s, cut, horizon) for s, cut in zip(table.series, cuts, strict=True)
        ]
    sides = {side: summarize([s[side] for s in scores]) for side in ("ours", "seasonal naive")}
    return {"set": name, "season": model.module.facts.season, "horizon": horizon, "steps": model.step} | sides


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for name in options.sets:
        result = measure_set(options.folder, name, options.minutes, options.seed)
        if options.json:
            print(json.dumps(result), flush=True)
            continue
        print(
            f"{name}  season {result['season']}  horizon {result['horizon']}  best step {result['steps']}", flush=True
        )
        for side in ("ours", "seasonal naive"):
            s = result[side]
            figures = f"MASE {s['mase']:.3f}  weighted quantile loss {s['weighted_quantile_loss']:.4f}"
            print(f"  {side:<15} {figures}  80 % band covers {s['coverage_80']:.1%}", flush=True)
