"""Two parts of the data that are not trained on: one chooses among configs, the other compares the chosen one."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from torch import nn

from ..recipe import Recipe, SupportsTestSplit
from ..training.evaluation import evaluate

MIN_BATCHES = 8  # of a validation split that is divided; its batches are made smaller until there are so many
HELD_OUT_FACTOR = 4  # the part that compares is larger by so much, where the split is large enough


@dataclass(frozen=True)
class EvalPart:
    """Some batches of a split."""

    config: Any
    split: str
    start: int
    stop: int
    step: int
    about: str
    """For a person."""

    def evaluate(self, recipe: Recipe, model: nn.Module) -> dict[str, float]:
        """Return the metrics of a model."""
        return evaluate(recipe, model, self.read(recipe), self.config.train.dtype)

    def read(self, recipe: Recipe) -> Iterator[dict[str, Any]]:
        batches = recipe.batches(self.config, self.split, None)
        return (batch for batch, _ in islice(batches, self.start, self.stop, self.step))


def divide(recipe: Recipe, config: Any) -> tuple[EvalPart, EvalPart]:
    """Return the part that chooses and the part that compares: the validation and the test split where the recipe has
    one, otherwise every second batch of the validation split each."""
    count = config.train.eval_batches
    if isinstance(recipe, SupportsTestSplit):
        choosing = EvalPart(config, "val", 0, count, 1, "the validation split")
        return choosing, EvalPart(config, recipe.TEST_SPLIT, 0, HELD_OUT_FACTOR * count, 1, "the test split")
    config, n_batches = shrink_batches(recipe, config)
    if n_batches < 2:
        part = EvalPart(config, "val", 0, count, 1, "the validation split, which also chose: it has a single batch")
        return part, part
    choosing = EvalPart(config, "val", 0, 2 * count, 2, "every second batch of the validation split")
    about = "the other batches of the validation split, which did not choose the config"
    return choosing, EvalPart(config, "val", 1, 2 * HELD_OUT_FACTOR * count, 2, about)


def shrink_batches(recipe: Recipe, config: Any) -> tuple[Any, int]:
    """Return the config with batches so small that the validation split has several, and how many it has, counted up
    to a few."""
    while True:
        n_batches = sum(1 for _ in islice(recipe.batches(config, "val", None), MIN_BATCHES))
        batch = config.train.batch
        if n_batches >= MIN_BATCHES or batch == 1:
            return config, n_batches
        config = replace(config, train=replace(config.train, batch=max(1, batch // 2)))
