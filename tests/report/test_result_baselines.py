"""Baselines of a result: metrics that the recipe reports, and values that can be checked by hand."""

import math
from typing import Any

import numpy as np
import pytest

from anyformer import recipe as recipes
from anyformer.recipes._shared.trivial_baselines import (
    fit_linear,
    score_bigrams,
    score_gradients,
    score_linear_texts,
    score_majority,
)
from anyformer.training import loop

NAMES = [name for name in recipes.list_recipes() if isinstance(recipes.load_recipe(name), recipes.SupportsBaselines)]


@pytest.mark.parametrize("name", NAMES)
def test_baselines_are_metrics_of_the_recipe(name: str):
    recipe: Any = recipes.load_recipe(name)
    config = recipe.PRESETS["tiny"]
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
