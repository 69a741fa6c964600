"""Families of public checkpoints: one file each, found by the `model_type` of config.json.

A family maps tensor names and config fields between the public format and a recipe, in both directions.
"""

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from ..errors import InputError, suggest
from ..parsing import to_json
from ..recipe import Recipe, recipe_name
from .config_fields import ConfigFields
from .tensor_map import ConfigDict, TensorMap, WeightSource

FAMILIES = ("gpt2", "llama", "qwen3", "bert", "t5", "vit", "whisper", "decision_transformer")


class Family:
    """Base class of a family; the module FAMILY.py has an instance named `family`.

    Attributes:
        model_type: name in config.json.
        recipes: recipes that have models of this family; a checkpoint is imported as the first.
        architecture: class name of the model in transformers.
    """

    model_type: str
    recipes: tuple[str, ...]
    architecture: str

    def normalize_name(self, name: str) -> str | None:
        """Return one name for all spellings of a tensor in public files; None for a tensor to ignore."""
        return name

    def wrap_weights(self, weights: WeightSource) -> WeightSource:
        """Adapt the file's tensors where the table cannot: two public tensors that are one local tensor."""
        return weights

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        """Return the recipe's config for a public config. Raises InputError for an unsupported value."""
        raise NotImplementedError

    def check_config(self, values: ConfigDict) -> None:
        """Raise InputError naming a setting of the recipe's config that the family cannot express."""
        raise NotImplementedError

    def write_config(self, values: ConfigDict, tensors: Mapping[str, Tensor]) -> ConfigDict:
        """Return the public config, but for `model_type`, for a recipe's config that `check_config` accepts."""
        raise NotImplementedError

    def build_tensor_map(self, config: ConfigDict) -> TensorMap:
        """Return the name table for a public config."""
        raise NotImplementedError

    def make_unused_tensors(self, config: ConfigDict) -> dict[str, Tensor]:
        """Return public tensors that transformers requires and that change no output."""
        return {}

    def write_extra_config(self, values: ConfigDict, files: Mapping[str, str]) -> ConfigDict:
        """Return fields of config.json that depend on the model's files (label names, normalization)."""
        return {}

    def write_extra_files(self, values: ConfigDict, files: Mapping[str, str]) -> dict[str, str]:
        """Return further files of the public folder, name -> text."""
        return {}


def load_family(model_type: Any, where: str) -> Family:
    if model_type not in FAMILIES:
        raise InputError(f"{where}: model_type {model_type!r} is not supported; {suggest(str(model_type), FAMILIES)}")
    return importlib.import_module(f"{__package__}.{model_type}").family


def check_config(family: Family, values: ConfigDict) -> None:
    family.check_config(values)


def select_family(
    recipe: Recipe,
    values: ConfigDict,
    check: Callable[[Family, ConfigDict], None] = check_config,
    candidates: Iterable[str] = FAMILIES,
    kind: str = "Hugging Face family",
) -> Family:
    """Find the first family that can express a model of this recipe and config.

    Args:
        check: raises InputError where a family cannot express a config.
        candidates: names of families.
        kind: what the candidates are called in errors.

    Raises:
        InputError: says why each family of the recipe cannot, and which presets could be exported.
    """
    own_name = recipe_name(recipe)
    families = [family for name in candidates if own_name in (family := load_family(name, "")).recipes]
    if not families:
        raise InputError(f"no {kind} has models of the recipe '{own_name}'")
    reasons = {}
    for family in families:
        reason = explain(check, family, values)
        if reason is None:
            return family
        reasons[family.model_type] = reason
    presets = {name: to_json(preset) for name, preset in recipe.PRESETS.items()}
    valid = [name for name, preset in presets.items() if None in (explain(check, f, preset) for f in families)]
    hint = f"; train with --preset {' or '.join(valid)}" if valid else ""
    listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise InputError(f"no {kind} can express this model ({listed}){hint}")


def explain(check: Callable[[Family, ConfigDict], None], family: Family, values: ConfigDict) -> str | None:
    """Return why a family cannot express a config; None if it can."""
    try:
        check(family, values)
    except InputError as error:
        return str(error)
    return None
