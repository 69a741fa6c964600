"""Baselines of a result: metrics that the recipe reports, and values that can be checked by hand."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from anyformer import recipe as recipes
from anyformer import recipe_loading
from anyformer.recipes._shared.trivial_baselines import (
    average_parts,
    find_nearest,
    fit_linear,
    score_actions,
    score_bigrams,
    score_gradients,
    score_linear_texts,
    score_majority,
)
from anyformer.training import loop
from data_kit import SMALL_DATA


@pytest.mark.parametrize("name", recipe_loading.list_recipes())
def test_baselines_of_every_recipe_are_metrics_of_it(name: str):
    recipe: Any = recipe_loading.load_recipe(name)
    assert isinstance(recipe, recipes.SupportsBaselines)
    config = recipe.PRESETS["tiny"]
    config = dataclasses.replace(config, data=str(SMALL_DATA.get(name, config.data)))
    batch, _ = next(recipe.batches(config, "val"))
    metrics = loop.evaluate(recipe, recipe.build(config), iter([batch]))
    baselines = recipe.baselines(config)
    assert baselines and set(baselines) <= set(metrics)
    assert all(math.isfinite(x) for values in baselines.values() for x in values.values())
    if "loss" in baselines:
        uniform, frequencies, *_ = baselines["loss"].values()
        vocab_size = round(math.exp(uniform))
        assert frequencies < uniform == pytest.approx(math.log(vocab_size)) and vocab_size > 4


def test_simple_models_learn_from_the_training_split_alone():
    train, val = np.arange(40), np.arange(40, 60)
    classes = np.arange(60) % 3 % 2  # 0, 1, 0
    assert score_majority(classes[train], classes[val]) == {"the most frequent class": np.mean(classes[val] == 0)}
    texts = [f"a film as {'good' if c else 'bad'} as it is long" for c in classes]
    assert score_linear_texts(texts, classes, train, val) == 1.0
    assert score_linear_texts(["same"] * 60, classes, train, val) == np.mean(classes[val] == 0)
    pixels = np.zeros((60, 16, 16, 1), np.uint8)
    pixels[classes == 1, :, ::4], pixels[classes == 0, ::4] = 200, 200  # stripes of equal brightness
    assert score_gradients(pixels, classes, train, val) == 1.0
    x = np.random.default_rng(0).normal(size=(60, 2))
    y = 3 * x[:, :1] - 2 * x[:, 1:] + 7
    assert np.abs(fit_linear(x[train], y[train], x[val]) - y[val]).max() < 0.1


def test_pairs_of_tokens_predict_an_order():
    losses = score_bigrams([np.arange(6)] * 200, [np.arange(6)], 8)
    assert losses["guessing evenly"] == pytest.approx(math.log(8))
    assert losses["token frequencies"] == pytest.approx(math.log(5), abs=0.02)
    assert losses["pairs of tokens"] == pytest.approx(-math.log((200 + 20 / 5) / (200 + 20)), abs=0.01)


def test_the_nearest_rows_ignore_the_units_of_features():
    x = np.array([[0.0, 5000.0], [1.0, 0.0], [2.0, 9000.0]])
    assert find_nearest(x, np.array([[1.9, 8000.0], [0.1, 5100.0], [1.0, -10.0]])).tolist() == [2, 0, 1]


def test_parts_of_a_sound():
    sound = np.arange(10.0)[None].repeat(2, 0)
    assert average_parts(sound).tolist() == [0.5, 0.5, 3.0, 3.0, 5.5, 5.5, 8.0, 8.0]
    assert average_parts(sound[:, :2]).tolist() == [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]


def test_actions_are_predicted_from_the_state():
    """The action is the half of a circle that the state is in, or the third power of a number."""
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, 400)
    x, sides = np.stack([np.cos(angles), np.sin(angles)], 1), (angles % np.pi < np.pi / 2).astype(int)
    scores = score_actions(x[:300], sides[:300], x[300:], sides[300:])["accuracy"]
    assert scores["the most frequent action"] < 0.7 and scores["a linear model"] < 0.7
    assert scores["the nearest state"] > 0.95
    x = np.linspace(-1, 1, 400)[np.random.default_rng(1).permutation(400), None]
    losses = score_actions(x[:300], x[:300] ** 3, x[300:], x[300:] ** 3)["loss"]
    usual, linear, nearest = losses.values()
    assert usual > 2 * linear > 100 * nearest


def test_a_linear_model_of_many_features_is_that_of_few_rows():
    """The matrix that is solved has the size of the rows: pixels as states do not fill the memory."""
    rng = np.random.default_rng(0)
    x, y, x_val = rng.normal(size=(6, 50_000)), rng.normal(size=(6, 2)), rng.normal(size=(3, 50_000))
    expected = y.mean(0) + fit_dense(x[:, :40], y, x_val[:, :40])
    np.testing.assert_allclose(fit_linear(x[:, :40], y, x_val[:, :40]), expected, rtol=1e-6, atol=1e-9)
    assert fit_linear(x, y, x_val).shape == (3, 2)


def fit_dense(x: np.ndarray, y: np.ndarray, x_val: np.ndarray) -> np.ndarray:
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, x_val = (x - mean) / std, (x_val - mean) / std
    penalty = np.sqrt(1e-3 * len(x) + 1e-6) * np.eye(x.shape[1])
    targets = np.concatenate([y - y.mean(0), np.zeros((x.shape[1], y.shape[1]))])
    return x_val @ np.linalg.lstsq(np.concatenate([x, penalty]), targets, rcond=None)[0]
