"""The linear forecast in closed form, and the widths of bands."""

import numpy as np
import pytest

from anyformer.data.series.batches import WindowShape
from anyformer.data.series.linear import (
    collect_rows,
    fit_linear,
    fit_ridge,
    measure_running_scale,
    near_steps,
    seasonal_naive_weight,
)
from anyformer.data.series.read import Series, SeriesTable
from anyformer.data.series.times import Frequency
from anyformer.inference.band_calibration import fit_band_factors, fit_folds, select_factors

SHAPE = WindowShape(patch=4, nodes=20, horizon=5, season=7)
LEVELS = (0.1, 0.5, 0.9)


def make_table(*values: np.ndarray) -> SeriesTable:
    nothing = np.zeros((0, 0))
    return SeriesTable(tuple(Series(f"s{i}", x, nothing, nothing) for i, x in enumerate(values)), Frequency())


def forecast_linear(weight: np.ndarray, past: np.ndarray) -> np.ndarray:
    return past[-1] + weight @ (past - past[-1])


def test_an_autoregression_is_found_and_noise_stays_seasonal_naive():
    rng, steps = np.random.default_rng(0), np.arange(300)
    trend = 3.0 * steps + 20 * np.sin(2 * np.pi * steps / 7)
    fit = fit_linear(make_table(trend), [290], SHAPE, 32, LEVELS)
    assert forecast_linear(fit.weight, trend[258:290]) == pytest.approx(trend[290:295], abs=1.0)
    few = fit_linear(make_table(trend), [25], SHAPE, 32, LEVELS)
    assert few.quantiles is None and (few.weight == seasonal_naive_weight(7, 32, 5)).all()
    walk = rng.normal(size=400).cumsum()
    shape = WindowShape(4, 20, 5, 1)
    fit = fit_linear(make_table(walk), [400], shape, 32, LEVELS)
    naive = seasonal_naive_weight(1, 32, 5)
    assert np.abs(fit.weight - naive).max() < 0.2, "of a random walk the last value is the forecast"


def test_values_after_the_end_are_not_read():
    rng = np.random.default_rng(1)
    values = rng.normal(size=200).cumsum()
    other = np.concatenate([values[:150], rng.normal(size=50)])
    first, second = (fit_linear(make_table(x), [150], SHAPE, 32, LEVELS) for x in (values, other))
    assert (first.weight == second.weight).all() and (first.quantiles == second.quantiles).all()


def test_ridge_equals_least_squares_and_its_prior():
    rng = np.random.default_rng(2)
    past, truth = rng.normal(size=(200, 6)), rng.normal(size=(2, 6))
    past -= past[:, -1:]
    prior = np.zeros((2, 6))
    weight = fit_ridge(past, past @ truth.T, prior, 1e-9)
    assert past @ weight.T == pytest.approx(past @ truth.T, abs=1e-6)
    assert fit_ridge(past, past @ truth.T, truth, 1e12) == pytest.approx(truth, abs=1e-6)


def test_blocks_are_forecast_by_what_does_not_overlap_them():
    rows = collect_rows(make_table(np.random.default_rng(3).normal(size=120)), [120], SHAPE, 10)
    moments = np.arange(8, 116)
    assert len(rows.past) == len(moments)
    for k in range(5):
        inside, apart = moments[rows.block == k], moments[rows.is_apart[:, k].astype(bool)]
        gaps = np.abs(apart[:, None] - inside)
        assert gaps.min() >= SHAPE.horizon and len(apart) > 60


def test_the_running_scale_is_the_mean_of_recent_seasonal_differences():
    values = np.random.default_rng(4).normal(size=90).cumsum()
    scale = measure_running_scale(values, SHAPE, 2.0)
    differences = np.abs(values[7:] - values[:-7])
    recent = differences[60 - 7 - 16 : 60 - 7]
    assert scale[60] == pytest.approx((recent.sum() + 8 * 2.0) / (16 + 8))
    assert scale[:8] == pytest.approx(2.0) and len(scale) == 91


def test_factors_restore_coverage_and_trust_long_spans_more():
    rng = np.random.default_rng(5)
    labels = rng.normal(size=(400, 6)) * np.sqrt(np.arange(1, 7))
    quantiles = np.broadcast_to(np.array([-1.2816, 0, 1.2816]) * np.sqrt(np.arange(1, 7))[:, None], (400, 6, 3))
    assert fit_band_factors(quantiles, labels, 1e6) == pytest.approx(np.ones(6), abs=0.12)
    wide = np.array(fit_band_factors(quantiles / 2, labels, 1e6))
    assert wide == pytest.approx(2 * np.ones(6), abs=0.25)
    few = np.array(fit_band_factors(quantiles / 2, labels, 1.0))
    assert (few > 1).all() and (few < wide).all(), "a short span widens less"
    narrow = np.array(fit_band_factors(quantiles * 2, labels, 4.0))
    assert (narrow > 0.8).all(), "a calm end is a weak reason to narrow"
    assert fit_band_factors(quantiles[:0], labels[:0], 1.0) == [1.0] * 6


def test_each_fold_gets_the_factors_of_the_other_one():
    labels = np.concatenate([np.full((10, 2), 1.0), np.full((10, 2), 3.0)])
    quantiles = np.broadcast_to(np.array([-1.0, 0, 1]), (20, 2, 3))
    folds = np.repeat([1, 2], 10)
    calibration = fit_folds(quantiles, labels, folds, 1e6)
    factors = select_factors(calibration, np.array([0, 1, 2]), 2)
    assert factors[1] == pytest.approx(3, abs=0.01) and factors[2] == pytest.approx(1, abs=0.01)
    assert (select_factors([], np.array([0, 2]), 2) == 1).all()


def test_near_steps_contain_the_step():
    assert all(step in near for step, near in enumerate(near_steps(30)))
    assert near_steps(30)[0].tolist() == [0] and near_steps(30)[9].tolist() == list(range(6, 15))
