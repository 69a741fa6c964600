"""What a table seems to hold: a schema to look at, to correct, and to approve."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, nearest
from ..images.decode import ENDINGS as IMAGES
from .encode import named, numbers
from .read import Table, missing
from .schema import KINDS, Field, Schema, Target

SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
FEW = 32  # a column of texts with at most so many values is a category
CLASSES = 10  # a target of at most so many whole numbers is a class


@dataclass
class Column:
    """What was seen of a column."""

    count: int = 0
    numeric: bool = True
    whole: bool = True
    length: int = 0
    """The longest text, or list."""
    shortest: int = 1 << 30
    """The shortest list."""
    shape: tuple[int, ...] | None = None
    """Of a list: what follows its first axis."""
    listed: bool = True
    endings: set[str] = field(default_factory=set)
    values: set[str] = field(default_factory=set)

    def see(self, value: Any) -> None:
        self.count += 1
        text = isinstance(value, str)
        if (text and value.lstrip().startswith("[")) or isinstance(value, list | np.ndarray):
            self.see_list(value)
            return
        self.listed = False
        if len(self.values) <= 4 * FEW:
            self.values.add(named(value))
        number = as_number(value)
        self.numeric &= number is not None
        self.whole &= number is not None and float(number).is_integer()
        if text:
            self.length = max(self.length, len(value))
            self.endings.add(value[value.rfind(".") :].lower() if "." in value[-6:] else "")

    def see_list(self, value: Any) -> None:
        found = numbers(value, Path())
        self.numeric = False
        self.length, self.shortest = max(self.length, len(found)), min(self.shortest, len(found))
        self.shape = found.shape[1:]


def as_number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def infer(table: Table, targets: Sequence[str]) -> Schema:
    """A schema of these rows with these columns as targets. Raises InputError."""
    columns: dict[str, Column] = {}
    for where, row in table.rows():
        for name, value in row.items():
            column = columns.setdefault(name, Column())
            if not missing(value):
                try:
                    column.see(value)
                except InputError as error:
                    raise InputError(f"{where}, {name}: {error}") from None
    if not targets:
        raise InputError(f"which column is to be told? --target NAME: {', '.join(list(columns)[:12])}")
    for name in targets:
        if name not in columns:
            raise InputError(f"the data have no column '{name}' to tell: {nearest(name, columns)}")
    fields = [guess(name, column) for name, column in columns.items() if name not in targets]
    found = tuple(one for one in fields if one is not None)
    if not found:
        raise InputError(f"the data have no column beside {', '.join(targets)}: there is nothing to tell it from")
    return Schema(found, tuple(Target(name, told(columns[name])) for name in targets))


def told(column: Column) -> str:
    number = column.numeric and not (column.whole and len(column.values) <= CLASSES)
    return "number" if number else "class"


def guess(name: str, column: Column) -> Field | None:
    """The field that a column is most likely; None for one that says nothing, or names each row."""
    if not column.count or (len(column.values) < 2 and not column.listed):
        return None
    if column.listed:
        if column.shape or column.shortest < column.length:
            channels = column.shape[0] if column.shape else 1
            return usual(name, "series", channels=channels, rate=1.0, seconds=float(column.length))
        return usual(name, "vector", size=column.length)
    if column.numeric:
        return usual(name, "scalar")
    if column.endings <= set(IMAGES):
        return usual(name, "image")
    if column.endings <= set(SOUNDS):
        return usual(name, "audio", seconds=1.0, cut=True)
    if len(column.values) <= FEW:
        return usual(name, "category")
    tokens = min(128, max(8, column.length // 2))
    return usual(name, "text", tokens=tokens, cut=True)


def usual(name: str, kind: str, **more: Any) -> Field:
    """A field with what goes without saying of its kind, and `more`."""
    return Field(name, kind, **{**KINDS[kind], **more})
