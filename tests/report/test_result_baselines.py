"""Baselines of a result: metrics that the recipe reports, and values that can be checked by hand."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from anyformer import recipe as recipes
from anyformer.recipes._shared.trivial_baselines import (
    fit_linear,
    score_majority,
    score_naive_bayes,
    score_nearest_mean,
)
from anyformer.training import loop
from data_kit import SMALL_DATA

NAMES = [name for name in recipes.list_recipes() if isinstance(recipes.load_recipe(name), recipes.SupportsBaselines)]


@pytest.mark.parametrize("name", NAMES)
def test_baselines_are_metrics_of_the_recipe(name: str):
    recipe: Any = recipes.load_recipe(name)
    config = recipe.PRESETS["tiny"]
    config = dataclasses.replace(config, data=str(SMALL_DATA.get(name, config.data)))
    batch, _ = next(recipe.batches(config, "val"))
    metrics = loop.evaluate(recipe, recipe.build(config), iter([batch]))
    baselines = recipe.baselines(config)
    assert baselines and set(baselines) <= set(metrics)
    assert all(math.isfinite(x) for values in baselines.values() for x in values.values())
    if "loss" in baselines:
        uniform, frequencies = baselines["loss"].values()
        vocab_size = recipe.load_text_tokenizer(config).vocab_size
        assert frequencies < uniform == pytest.approx(math.log(vocab_size))


def test_simple_models_learn_from_the_training_split_alone():
    train, val = np.arange(40), np.arange(40, 60)
    classes = np.arange(60) % 3 % 2  # 0, 1, 0
    assert score_majority(classes[train], classes[val]) == {"the most frequent class": np.mean(classes[val] == 0)}
    rows = [[5, 5, 1 + c] for c in classes.tolist()]
    assert score_naive_bayes(rows, classes, train, val) == 1.0
    assert score_naive_bayes([[5]] * 60, classes, train, val) == np.mean(classes[val] == 0)
    pixels = np.zeros((60, 4, 4, 1), np.uint8)
    pixels[classes == 1, :2] = 200
    assert score_nearest_mean(pixels, classes, train, val) == 1.0
    x = np.random.default_rng(0).normal(size=(60, 2))
    y = 3 * x[:, :1] - 2 * x[:, 1:] + 7
    assert np.abs(fit_linear(x[train], y[train], x[val]) - y[val]).max() < 0.1
