"""What each field of a row is worth to a model: how well it answers without the field, with it alone, and with its
values taken from other rows.

Without it, a field is no node, which a model that learned with fields left out at random has seen before. Shuffled, it
is there and says nothing true: permutation importance (1801.01489). All are measured on rows that were not trained on.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..events import report_progress
from ..recipe import SupportsAblation
from ..loading import Model, select_eval_data
from ..report.bars import Bar, bars
from ..training import loop
from ..training.run_directory import atomic_write

SCORES = ("accuracy", "r2")  # of a class, of a number: 1 is best of both


def measure(model: Model, data: str | None = None, shuffles: int = 3, seed: int = 0) -> dict[str, Any]:
    """{"score", "all", "none", "rows", "fields": {name: {"without", "only", "shuffled", "worth"}}}, "score" being what
    is measured: the accuracy of a class, R2 of a number, the mean of several. "worth" is what is lost where the values
    are shuffled, the mean of so many `shuffles`. Raises InputError for a recipe without fields."""
    recipe: Any = model.recipe
    if not isinstance(recipe, SupportsAblation):
        raise InputError(f"'{model.name}' is no recipe with fields: what they are worth is asked of multimodal runs")
    if shuffles < 1:
        raise InputError(f"shuffles is {shuffles}; it must be at least 1")
    config, split = select_eval_data(model, data)
    names: list[str] = recipe.field_names(config)
    asked = [(names, "", 0), ([], "", 0)]
    for name in names:
        asked += [([other for other in names if other != name], "", 0), ([name], "", 0)]
        asked += [(names, name, seed + i) for i in range(shuffles)]
    told = []
    for done, (kept, shuffled, drawn) in enumerate(asked):
        report_progress("passes over the rows", done, len(asked))
        batches = recipe.ablate_fields(config, split, kept, shuffled, drawn)
        told.append(loop.evaluate(recipe, model.module, batches, config.train.dtype))
    every, none, *rest = [score(one) for one in told]
    fields = {}
    for i, name in enumerate(names):
        without, only, *mixed = rest[i * (2 + shuffles) : (i + 1) * (2 + shuffles)]
        mean = sum(mixed) / shuffles
        fields[name] = {"without": without, "only": only, "shuffled": mean, "worth": every - mean}
    return {"score": measured(told[0]), "all": every, "none": none, "rows": told[0].get("rows"), "fields": fields}


def parts(found: dict[str, float]) -> dict[str, float]:
    """The scores of what was evaluated, one for each target."""
    return {name: x for name, x in found.items() if name in SCORES or name.endswith(tuple(f"_{s}" for s in SCORES))}


def score(found: dict[str, float]) -> float:
    told = parts(found)
    return sum(told.values()) / len(told)


def measured(found: dict[str, float]) -> str:
    return ", ".join(name.replace("_", " ") for name in parts(found))


def picture(found: dict[str, Any]) -> str:
    """The table as an SVG, what is worth most first."""
    order = sorted(found["fields"], key=lambda name: -found["fields"][name]["worth"])
    rows: Sequence[Bar] = [
        Bar(name, [found["fields"][name][kind] for kind in ("without", "only", "shuffled")]) for name in order
    ]
    marks = {"all fields": found["all"], "none": found["none"]}
    title = f"What each field is worth: {found['score']}"
    return bars(rows, ("without it", "it alone", "shuffled"), title=title, marks=marks)


def write_worth(folder: Path, found: dict[str, Any]) -> list[Path]:
    """worth.json and worth.svg. Returns their paths."""
    paths = [folder / "worth.json", folder / "worth.svg"]
    for path, text in zip(paths, (json.dumps(found, indent=2, ensure_ascii=False) + "\n", picture(found)), strict=True):
        atomic_write(path, text)
    return paths
