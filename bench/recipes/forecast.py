"""Forecasts of series: ours, the seasonal naive forecast and other libraries on the same held-out ends.

    python -m bench.recipes.forecast FOLDER                       FOLDER holds the packages of SETS, at any depth
    python -m bench.recipes.forecast FOLDER --sets nile sunspots --steps 100
    python -m bench.recipes.forecast FOLDER --peers               also AutoETS, AutoARIMA and LightGBM

The last fifth of each series (at least a horizon) is removed before training, and forecast from origins that roll over
it. Nothing is chosen on it in a run: ours keeps its best checkpoint and fits its bands on a validation end of its own,
and the season is measured before it. The preset itself was tuned on the sets of TUNED. The bands of the seasonal naive
forecast are the quantiles of its own errors in the past, for each step.
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
from anyformer.recipes.forecast import Refitted
from bench._common import make_parser
from bench.recipes.forecast_peers import forecast_arima, forecast_ets, forecast_lightgbm

# name -> file, horizon, columns to forecast
SETS: dict[str, tuple[str, int, str]] = {
    "co2": ("statsmodels/datasets/co2/co2.csv", 26, "co2"),
    "sunspots": ("statsmodels/datasets/sunspots/sunspots.csv", 11, "SUNACTIVITY"),
    "nile": ("statsmodels/datasets/nile/nile.csv", 5, "volume"),
    "elnino": ("statsmodels/datasets/elnino/elnino.csv", 12, "value"),
    "macrodata": (
        "statsmodels/datasets/macrodata/macrodata.csv",
        8,
        "realgdp,realcons,realinv,cpi,unemp,tbilrate,infl",
    ),
    "seattle-temps": ("vega_datasets/_data/seattle-temps.csv", 24, "temp"),
    "us-employment": (
        "vega_datasets/_data/us-employment.csv",
        12,
        "nonfarm,construction,manufacturing,retail_trade,government",
    ),
    "stocks": ("vega_datasets/_data/stocks.csv", 6, "price"),
}

PATIENCE = 6  # validations, every 25 steps
TUNED = ("sunspots", "macrodata", "seattle-temps", "stocks")  # the settings of the preset were chosen on these


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
    """Score forecasts (origins, horizon, Q) of one series; the weighted quantile loss only of all nine quantiles."""
    median, scores = quantiles.shape[-1] // 2, {"size": np.abs(truth)}
    if quantiles.shape[-1] == len(QUANTILES):
        errors, levels = truth[..., None] - quantiles, np.array(QUANTILES)
        scores["loss"] = 2 * np.maximum(levels * errors, (levels - 1) * errors).mean(-1)
    inside = (quantiles[..., 0] <= truth) & (truth <= quantiles[..., -1])
    return scores | {"mase": np.abs(truth - quantiles[..., median]) / unit, "coverage": inside}


def forecast_ours(model: Any, table: SeriesTable, series: Series, origins: list[int], horizon: int) -> np.ndarray:
    past = [replace(series, values=series.values[:o], past_covariates=series.past_covariates[:o]) for o in origins]
    return np.stack(forecast(Refitted(model), replace(table, series=tuple(past)), Request(horizon=horizon)))


def forecast_naive(values: np.ndarray, cut: int, origins: list[int], season: int, horizon: int) -> np.ndarray:
    spread = measure_naive(values[:cut], season, horizon)
    naive = np.stack([forecast_seasonal_naive(values[:o], season, horizon) for o in origins])
    return naive[..., None] + spread - spread[:, [MEDIAN]]


def forecast_all(
    model: Any, table: SeriesTable, cuts: list[int], horizon: int, peers: bool, seed: int
) -> tuple[list[list[int]], dict[str, list[np.ndarray]]]:
    """Return the origins of each series, and the quantiles of each side for each series."""
    values, season = [s.values for s in table.series], model.facts.season
    origins = [roll_origins(cut, len(v) - horizon) for v, cut in zip(values, cuts, strict=True)]
    places = list(zip(values, cuts, origins, strict=True))
    sides = {
        "ours": [forecast_ours(model, table, s, o, horizon) for s, o in zip(table.series, origins, strict=True)],
        "seasonal naive": [forecast_naive(*place, season, horizon) for place in places],
    }
    if peers:
        pasts = [v[:cut] for v, cut in zip(values, cuts, strict=True)]
        sides["AutoETS"] = [forecast_ets(*place, season, horizon) for place in places]
        sides["AutoARIMA"] = [forecast_arima(*place, season, horizon) for place in places]
        sides["LightGBM"] = forecast_lightgbm(pasts, origins, values, season, horizon, seed)
    return origins, sides


def summarize(scores: list[dict[str, np.ndarray]]) -> dict[str, float]:
    mase, coverage = (float(np.concatenate([s[key].ravel() for s in scores]).mean()) for key in ("mase", "coverage"))
    summary = {"mase": mase, "coverage_80": coverage}
    if all("loss" in s for s in scores):
        summary["weighted_quantile_loss"] = float(np.mean([s["loss"].sum() / s["size"].sum() for s in scores]))
    return summary


def measure_set(folder: Path, name: str, steps: int, seed: int, peers: bool = False, **fields: Any) -> dict[str, Any]:
    _, horizon, target = SETS[name]
    table = read_set(folder, name, target)
    with TemporaryDirectory() as temporary:
        data = Path(temporary) / "past.csv"
        cuts = write_past(table, data, horizon)
        run, train = Path(temporary) / "run", {"seed": seed, "device": "cpu", "steps": steps, "patience": PATIENCE}
        settings = {"data": str(data), "horizon": horizon, "train": train} | fields
        model = api.train("forecast", "small", out=run, **settings)
        origins, sides = forecast_all(model.module, table, cuts, horizon, peers, seed)
    result = {"set": name, "season": model.module.facts.season, "horizon": horizon, "steps": model.step}
    for side, forecasts in sides.items():
        scores = []
        for series, cut, rolled, quantiles in zip(table.series, cuts, origins, forecasts, strict=True):
            truth = np.stack([series.values[o : o + horizon] for o in rolled])
            unit = seasonal_error(series.values[:cut], model.module.facts.season)
            scores.append(score(quantiles, truth, unit))
        result[side] = summarize(scores)
    return result


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--peers", action="store_true")
    options = parser.parse_args()
    for name in options.sets:
        result = measure_set(options.folder, name, options.steps, options.seed, options.peers)
        if options.json:
            print(json.dumps(result), flush=True)
            continue
        print(
            f"{name}  season {result['season']}  horizon {result['horizon']}  best step {result['steps']}", flush=True
        )
        for side, s in result.items():
            if isinstance(s, dict):
                loss = s.get("weighted_quantile_loss")
                weighted = "" if loss is None else f"  weighted quantile loss {loss:.4f}"
                print(
                    f"  {side:<15} MASE {s['mase']:.3f}  80 % band covers {s['coverage_80']:.1%}{weighted}", flush=True
                )
