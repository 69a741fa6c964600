"""Forecasts of other libraries from the same rolling origins: AutoETS and AutoARIMA of statsforecast, LightGBM on lags.

Each is fitted once on the past that training sees, as ours is, and then only told the values up to each origin. What
is imported here is no dependency of the package: pip install statsforecast lightgbm.

Shapes: O origins, H horizon; each side returns the 10 %, 50 % and 90 % quantiles, (O, H, 3).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

LEVELS = (0.1, 0.5, 0.9)
MAX_ETS_SEASON = 24  # as in R's forecast package; longer seasons are taken out by STL first
MAX_FIT = 1000  # values that ETS and ARIMA are fitted on, the last ones: seasonal ARIMA takes minutes on more
MAX_ROWS = 200_000  # of LightGBM's training table


def forecast_ets(values: np.ndarray, cut: int, origins: list[int], season: int, horizon: int) -> np.ndarray:
    from statsforecast.models import AutoETS

    return forecast_statistical(AutoETS, values, cut, origins, season, horizon)


def forecast_arima(values: np.ndarray, cut: int, origins: list[int], season: int, horizon: int) -> np.ndarray:
    from statsforecast.models import AutoARIMA

    return forecast_statistical(AutoARIMA, values, cut, origins, season, horizon)


def forecast_statistical(
    model_class: Callable[..., Any], values: np.ndarray, cut: int, origins: list[int], season: int, horizon: int
) -> np.ndarray:
    """Fit a model of statsforecast on values[:cut], and forecast from each origin with these parameters."""
    from statsforecast.models import MSTL

    start = max(0, cut - MAX_FIT)
    if season > MAX_ETS_SEASON:
        plain = {"model": "ZZN"} if model_class.__name__ == "AutoETS" else {"seasonal": False}
        model = MSTL(season_length=season, trend_forecaster=model_class(**plain))
    else:
        model = model_class(season_length=season)
    model.fit(values[start:cut])
    rows = []
    for origin in origins:
        result = model.forward(y=values[start:origin], h=horizon, level=[80])
        rows.append(np.stack([np.asarray(result[name]) for name in ("lo-80", "mean", "hi-80")], -1))
    return np.stack(rows)


def forecast_lightgbm(
    pasts: list[np.ndarray], origins: list[list[int]], values: list[np.ndarray], season: int, horizon: int, seed: int
) -> list[np.ndarray]:
    """Fit one model a quantile on all series of a set, with the step ahead as a feature; forecast each series."""
    import lightgbm

    lags = min(max(2 * season, 16), min(map(len, pasts)) // 3)
    shown = min(lags, 64)  # the last ones, besides the value a season before

    def build_rows(series: np.ndarray, origin: int) -> tuple[np.ndarray, float, float]:
        past = series[origin - lags : origin]
        last, scale = past[-1], np.abs(np.diff(past)).mean() or 1.0
        steps = np.arange(horizon)
        same = past[lags - season + steps % season] if season <= lags else np.full(horizon, last)
        features = (past[-shown:] - last) / scale
        means = [(past[-k:].mean() - last) / scale for k in (4, season, lags)]
        row = np.concatenate([np.tile(np.concatenate([features, means]), (horizon, 1)),
                              (same[:, None] - last) / scale, steps[:, None]], 1)  # fmt: skip
        return row, last, scale

    x, y = [], []
    for past in pasts:
        places = np.arange(lags, len(past) - horizon + 1)
        limit = max(1, MAX_ROWS // (horizon * len(pasts)))
        for origin in np.unique(np.linspace(places[0], places[-1], min(limit, len(places))).round().astype(int)):
            row, last, scale = build_rows(past, origin)
            x.append(row)
            y.append((past[origin : origin + horizon] - last) / scale)
    x_all, y_all = np.concatenate(x), np.concatenate(y)
    settings: dict[str, Any] = {"n_estimators": 200, "learning_rate": 0.05, "num_leaves": 15, "verbose": -1}
    settings |= {"n_jobs": 1, "random_state": seed, "min_child_samples": 20}
    models = [
        lightgbm.LGBMRegressor(objective="quantile", alpha=level, **settings).fit(x_all, y_all) for level in LEVELS
    ]
    answers = []
    for series, places in zip(values, origins, strict=True):
        rows = [build_rows(series, origin) for origin in places]
        table = np.concatenate([row for row, _, _ in rows])
        predicted = np.stack([model.predict(table) for model in models], -1).reshape(len(places), horizon, -1)
        last, scale = (np.array([row[i] for row in rows])[:, None, None] for i in (1, 2))
        answers.append(np.sort(last + scale * predicted, -1))
    return answers
