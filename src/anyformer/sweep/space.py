"""Which configs a sweep tries: the default one, and others around it."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from ..model.config import TransformerConfig
from ..parsing import flatten_values, to_json
from ..recipe import Recipe, SupportsSearch
from ..recipe_loading import parse_config
from ..resolve_job import merge_overrides
from ..search_space import SearchChoice, SearchRange, SearchSpace

LR_FACTOR = 4.0  # the learning rate is tried from a fourth to four times that of the default
WEIGHT_DECAYS = SearchRange(0.001, 0.3)
DROPOUTS = SearchChoice((0.0, 0.1, 0.2, 0.3))


def build_space(recipe: Recipe, config: Any, fixed: Collection[str], vary_size: bool, vary_batch: bool) -> SearchSpace:
    """Return what is tried around a config: the recipe's own fields and those that every recipe has, without those in
    `fixed`, and without values that the config refuses.

    Args:
        fixed: Dotted names of fields that the user has set.
        vary_size: Whether the width and the depth of the model are tried too.
        vary_batch: Whether the batch is.
    """
    space = default_space(config, vary_size, vary_batch)
    if isinstance(recipe, SupportsSearch):
        space |= recipe.search_space(config)
    kept: dict[str, SearchRange | SearchChoice] = {}
    for name, values in space.items():
        if not set(fixed).isdisjoint(name.split(",")):
            continue
        if isinstance(values, SearchChoice):
            values = SearchChoice(tuple(v for v in dict.fromkeys(values.values) if is_valid(recipe, config, {name: v})))
        if isinstance(values, SearchRange) or len(values.values) > 1:
            kept[name] = values
    if not kept:
        raise InputError("nothing is left to try: every field of the search space was set by a flag")
    return kept


def default_space(config: Any, vary_size: bool, vary_batch: bool) -> dict[str, SearchRange | SearchChoice]:
    """Return what is tried in every recipe: fields of the training, and of its Transformers."""
    lr, batch = config.train.lr, config.train.batch
    space: dict[str, SearchRange | SearchChoice] = {
        "train.lr": SearchRange(lr / LR_FACTOR, lr * LR_FACTOR),
        "train.weight_decay": WEIGHT_DECAYS,
    }
    if vary_batch:
        space["train.batch"] = SearchChoice((max(1, batch // 2), batch, 2 * batch))
    stacks = list(find_stacks(config))
    if stacks:
        space[",".join(f"{name}.dropout" for name, _ in stacks)] = DROPOUTS
    for field in ("dim", "n_layer") if vary_size else ():
        sizes = {getattr(stack, field) for _, stack in stacks}
        if len(sizes) == 1:  # stacks of unlike size keep it
            size = sizes.pop()
            space[",".join(f"{name}.{field}" for name, _ in stacks)] = SearchChoice((max(1, size // 2), size, 2 * size))
    return space


def find_stacks(config: Any) -> Iterator[tuple[str, TransformerConfig]]:
    """Yield the names and values of the fields of a config that are Transformers."""
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, TransformerConfig):
            yield field.name, value
        elif is_dataclass(value):
            yield from ((f"{field.name}.{name}", stack) for name, stack in find_stacks(value))


def is_valid(recipe: Recipe, config: Any, values: Mapping[str, Any]) -> bool:
    try:
        apply_values(recipe, config, values)
    except InputError:
        return False
    return True


def apply_values(recipe: Recipe, config: Any, values: Mapping[str, Any]) -> Any:
    """Return the config with other values of some fields, by their dotted names. Raises InputError."""
    overrides: dict[str, Any] = {}
    for names, value in values.items():
        for name in names.split(","):
            *groups, last = name.split(".")
            inner = overrides
            for group in groups:
                inner = inner.setdefault(group, {})
            inner[last] = value
    return parse_config(recipe, merge_overrides(to_json(config), overrides), "")


def read_values(config: Any, space: SearchSpace) -> dict[str, Any]:
    """Return the values that a config has in a space."""
    values = dict(flatten_values(to_json(config)))
    return {name: values[name.split(",")[0]] for name in space}


def draw_values(space: SearchSpace, count: int, seed: int) -> list[dict[str, Any]]:
    """Draw the values of so many trials, each range divided into as many parts of which every part is drawn once (Latin
    hypercube)."""
    rng = np.random.default_rng(seed)
    shares = {name: (rng.permutation(count) + rng.random(count)) / max(1, count) for name in space}
    return [{name: values.pick(float(shares[name][i])) for name, values in space.items()} for i in range(count)]
