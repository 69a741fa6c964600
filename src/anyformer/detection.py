"""From what a file or a folder holds to the recipe that trains on it."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import recipe as recipes
from . import recipe_loading
from .data.detect import detect
from .data.io.remote import fetch_data
from .data.registry import GENERATED, SETS
from .data.tables.readings import KINDS, Reading
from .data.text.shards import holds_shards
from .errors import InputError, suggest


@dataclass(frozen=True)
class Detection:
    """The recipe for some data, and why."""

    path: str
    recipe: str
    preset: str | None
    target: str | None
    """The column to predict, where the data are a table."""
    kind: str
    """What the data are taken for."""
    why: str
    """What was seen in them."""
    fields: dict[str, Any]
    """The config fields for these data, the target among them."""
    is_sure: bool
    alternatives: tuple[str, ...]
    """Recipes for the next best readings."""

    def describe(self) -> str:
        """Say in one line what the data are taken for."""
        other = f"; otherwise --recipe {self.alternatives[0]}" if self.alternatives else ""
        return f"{self.path}: {self.kind} ({self.why}), so the recipe is {self.recipe}{other}"

    def to_json(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe,
            "preset": self.preset,
            "target": self.target,
            "kind": self.kind,
            "why": self.why,
            "alternatives": list(self.alternatives),
        }


MIN_SCORE = 0.6  # of a reading that is taken without asking
MIN_LEAD = 0.15  # over the reading of another recipe


def detect_recipe(path: str | Path, recipe: str | None = None, target: str = "") -> Detection:
    """Choose the recipe for a file or a folder. Raises InputError where nothing fits.

    Args:
        path: the data: a path, a URL, a named set, or owner/name of a data set on the Hugging Face hub.
        recipe: a recipe that has been chosen: its settings for these data are looked for.
        target: the columns to predict, with commas between, where they are known: other readings are left out.
    """
    source, path = str(path), fetch_data(str(path))
    if not (os.path.exists(path) or holds_shards(path)):
        if path in (*SETS, *GENERATED):
            return detect_set(path, recipe)
        raise InputError(
            f"there is no file or folder {path}, and no named data set: {suggest(path, [*SETS, *GENERATED])}"
        )
    readings = detect(path)
    readings = [reading for reading in readings if can_predict(reading, target)] or readings
    names = recipe_loading.list_recipes() if recipe is None else [recipe]
    matches = [(reading, *match) for reading in readings for match in match_recipes(reading, names)]
    if not matches:
        raise InputError(f"{path}: {KINDS[readings[0].kind]} ({readings[0].why}): no recipe trains on them yet")
    reading, name, fields = matches[0]
    others = [(other, other_name) for other, other_name, _ in matches if other_name != name]
    target = target or fields.get("target") or reading.options.get("target") or ""
    is_best = reading.score >= readings[0].score  # else the best one is of a kind that no recipe trains on
    leads = all(reading.score - other.score > MIN_LEAD - 1e-6 for other, _ in others)
    return Detection(
        path=source,
        recipe=name,
        preset=fields.pop("preset", None),
        target=target or None,
        kind=KINDS[reading.kind],
        why=name_target(reading.why, target) if reading.kind == "table" else reading.why,
        fields=fields | {"data": reading.options.get("data", str(path))},
        is_sure=is_best and leads and reading.score >= MIN_SCORE,
        alternatives=tuple(dict.fromkeys(other_name for _, other_name in others)),
    )


def names_data(source: str) -> bool:
    """Whether a text names data that are here, and not a recipe."""
    path = Path(source).expanduser()
    is_code = path.suffix == ".py" or (path / "__init__.py").is_file()
    is_here = source in (*SETS, *GENERATED) or (bool(source) and path.exists() and not is_code)
    return is_here and source not in recipe_loading.list_recipes()


def can_predict(reading: Reading, target: str) -> bool:
    """Whether these columns, with commas between, can be predicted in a reading that names those that can."""
    targets = reading.options.get("targets")
    return targets is None or all(name.strip() in targets for name in target.split(",") if name.strip())


def detect_set(name: str, recipe: str | None = None) -> Detection:
    """Choose the recipe for a named data set, with the preset that is for it. Raises InputError if the recipe that has
    been chosen does not train on it."""
    dataset = SETS.get(name) or GENERATED[name]
    kind = SET_KINDS.get(dataset.kind, dataset.kind)
    names = recipe_loading.list_recipes() if recipe is None else [recipe]
    matches = match_recipes(Reading(kind, 1.0, dataset.about), names) if kind in KINDS else find_owner(name, names)
    if not matches:
        raise InputError(
            f"the data set '{name}' is {KINDS.get(kind, kind)}: no recipe of {', '.join(names)} trains on it"
        )
    chosen, fields = matches[0]
    presets = recipe_loading.load_recipe(chosen).PRESETS
    own = [preset for preset in list(presets)[1:] if presets[preset].data == name]
    default = recipe_loading.default_preset(recipe_loading.load_recipe(chosen))
    return Detection(
        path=name,
        recipe=chosen,
        preset=None if default in own else own[0] if own else fields.get("preset"),
        target=None,
        kind=KINDS.get(kind, kind),
        why=dataset.about,
        fields=({"columns": dataset.column} if dataset.column else {}) | {"data": name},
        is_sure=True,
        alternatives=tuple(other for other, _ in matches[1:]),
    )


def find_owner(data: str, names: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Return the recipe that has a preset for a data set of a kind that only it reads."""
    recipes = {name: recipe_loading.load_recipe(name) for name in names}
    return [(n, {}) for n, r in recipes.items() if data in {preset.data for preset in r.PRESETS.values()}]


SET_KINDS = {
    "protein": "sequences",
    "images": "labeled images",
    "audio": "transcribed sounds",
    "tables": "table",
}  # of the catalogue, where they are called otherwise than what is recognized


def match_recipes(reading: Reading, names: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Return the recipes that train on data of this kind, with the fields for them."""
    matches = []
    for name in names:
        module = recipe_loading.load_recipe(name)
        if isinstance(module, recipes.SupportsKinds) and reading.kind in module.KINDS:
            fields = {}
            for field, template in module.KINDS[reading.kind].items():
                with suppress(KeyError):  # this was not recognized
                    fields[field] = template.format_map(reading.options)
            matches.append((name, fields))
    return matches


def name_target(why: str, target: str) -> str:
    """Add the target to the reason of a table, before what is said of the other files beside it."""
    columns, separator, others = why.partition("; ")
    return columns + (f", {target} to predict" if target else "") + separator + others
