"""What a model must know of the training rows besides their vocabularies: means and deviations; and rows to show.

Shapes: N rows.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .cache import Rows, with_facts
from .encode import encode
from .read import Table, missing, plain
from .schema import SCALED, Field, Schema, Target

FIRST, SHOWN = 2048, 4  # examples are among the first rows, and so many
ROOM = 8 << 10  # characters of a value in one


def measured(found: Rows, part: np.ndarray, examples: tuple[dict[str, Any], ...] = ()) -> Schema:
    """The schema with the mean and deviation of every number, on these rows. Fields that have them keep them."""
    facts: dict[str, dict[str, Any]] = {}
    kept, start = found.schema, 0
    for field, values in zip(kept.fields, found.values, strict=True):
        there = found.present[:, start : start + field.nodes]
        start += field.nodes
        if field.kind in SCALED and not field.mean:
            facts[field.name] = moments(some(values, np.flatnonzero(there.any(1)), part))
    for i, target in enumerate(kept.targets):
        if target.kind == "number" and not target.mean:
            facts[target.name] = moments(iter([found.targets[part, i : i + 1]]))
    return replace(with_facts(kept, facts), examples=examples)


def some(values: np.ndarray, there: np.ndarray, part: np.ndarray, step: int = 1024) -> Iterator[np.ndarray]:
    chosen = np.intersect1d(part, there)
    for i in range(0, len(chosen), step):
        yield np.asarray(values[chosen[i : i + step]], np.float64)


def moments(parts: Iterator[np.ndarray]) -> dict[str, Any]:
    """Mean and deviation of the last axis, NaN left out; a number that never changes has a deviation of 1."""
    count, total, square = np.zeros(1), np.zeros(1), np.zeros(1)
    for x in parts:
        x = x.reshape(-1, x.shape[-1])
        count, total = count + np.isfinite(x).sum(0), total + np.nansum(x, 0)
        square = square + np.nansum(x * x, 0)
    mean = total / np.maximum(count, 1)
    spread = np.sqrt(np.maximum(square / np.maximum(count, 1) - mean**2, 0))
    spread[spread < 1e-6 * np.maximum(np.abs(mean), 1e-6)] = 1.0
    return {"mean": tuple(mean.tolist()), "std": tuple(spread.tolist())}


# --- rows to show ---


def examples(table: Table, found: Rows, part: np.ndarray) -> tuple[dict[str, Any], ...]:
    """A few rows of `part` as JSON has them, one of each class; fields that are too large to keep are left out."""
    near = part[part < FIRST][:FIRST]
    _, ones = np.unique(found.targets[near, 0], return_index=True)
    chosen = {int(near[i]) for i in ones[:SHOWN]}
    wanted = {one.name: one for one in (*found.schema.fields, *found.schema.targets)}
    made = []
    for number, (_, row) in enumerate(table.rows()):
        if number in chosen:
            kept = {name: shown(wanted[name], row[name], table.folder) for name in wanted if name in row}
            made.append({name: value for name, value in kept.items() if value is not None})
        if number >= max(chosen, default=0):
            break
    return tuple(json.loads(json.dumps(made)))


def shown(one: Field | Target, value: Any, folder: Path) -> Any:
    """A value as JSON has it; None for one that is missing, too large, or that only a file holds."""
    if one.kind == "image" and isinstance(one, Field) and isinstance(value, str):
        value = encode(one, value, "example", folder)[0][..., 0 if one.channels == 1 else slice(None)]
    if one.kind in ("audio", "series", "vector") and isinstance(value, str) and not value.lstrip().startswith("["):
        return None
    value = None if missing(value) else plain(value)
    return value if len(json.dumps(value)) <= ROOM else None
