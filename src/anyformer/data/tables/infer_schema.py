"""Infer a schema from the rows of a table, for the user to check and correct."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...errors import InputError, suggest
from ..audio.read import AUDIO_EXTENSIONS
from ..images.read import IMAGE_EXTENSIONS
from .encode import category_name, parse_array
from .read import Table, is_missing
from .schema import FIELD_OPTIONS, Field, Schema, Target

MAX_CATEGORIES = 32  # a column of texts with at most this many values is a category
MAX_INTEGER_CLASSES = 10  # a target of at most this many integers is a class


@dataclass
class ColumnSummary:
    """What the values of a column have in common."""

    count: int = 0
    is_numeric: bool = True
    is_integer: bool = True
    is_list: bool = True  # every value is a list
    max_length: int = 0  # of the texts or lists
    min_length: int = 1 << 30  # of the lists
    item_shape: tuple[int, ...] | None = None  # of a list, without its first axis
    extensions: set[str] = field(default_factory=set)  # of the file names; "" for other texts
    names: set[str] = field(default_factory=set)  # the values as categories, up to a limit

    def add(self, value: Any) -> None:
        self.count += 1
        is_text = isinstance(value, str)
        if (is_text and value.lstrip().startswith("[")) or isinstance(value, list | np.ndarray):
            array = parse_array(value, Path())
            self.is_numeric = False
            self.max_length, self.min_length = max(self.max_length, len(array)), min(self.min_length, len(array))
            self.item_shape = array.shape[1:]
            return
        self.is_list = False
        if len(self.names) <= 4 * MAX_CATEGORIES:
            self.names.add(category_name(value))
        number = to_number(value)
        self.is_numeric &= number is not None
        self.is_integer &= number is not None and float(number).is_integer()
        if is_text:
            self.max_length = max(self.max_length, len(value))
            self.extensions.add(value[value.rfind(".") :].lower() if "." in value[-6:] else "")


def to_number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def infer_schema(table: Table, targets: Sequence[str]) -> Schema:
    """Infer a schema of the rows, with these columns as targets. Raises InputError."""
    columns: dict[str, ColumnSummary] = {}
    for place, row in table.rows():
        for name, value in row.items():
            column = columns.setdefault(name, ColumnSummary())
            if not is_missing(value):
                try:
                    column.add(value)
                except InputError as error:
                    raise InputError(f"{place}, {name}: {error}") from None
    if not targets:
        raise InputError(f"no target column: --target NAME, one of {', '.join(list(columns)[:12])}")
    for name in targets:
        if name not in columns:
            raise InputError(f"the data have no column '{name}' to predict: {suggest(name, columns)}")
    fields = [infer_field(name, column) for name, column in columns.items() if name not in targets]
    fields = tuple(field for field in fields if field is not None)
    if not fields:
        raise InputError(f"the data have no usable column besides {', '.join(targets)}: nothing to predict from")
    return Schema(fields, tuple(Target(name, infer_target_kind(columns[name])) for name in targets))


def infer_target_kind(column: ColumnSummary) -> Literal["class", "number"]:
    is_class = column.is_integer and len(column.names) <= MAX_INTEGER_CLASSES
    return "number" if column.is_numeric and not is_class else "class"


def infer_field(name: str, column: ColumnSummary) -> Field | None:
    """Return the most likely field of a column; None for one that is empty or constant."""
    if not column.count or (len(column.names) < 2 and not column.is_list) or (column.is_list and not column.max_length):
        return None
    if column.is_list:
        if column.item_shape or column.min_length < column.max_length:
            channels = column.item_shape[0] if column.item_shape else 1
            return default_field(name, "series", channels=channels, rate=1.0, seconds=float(column.max_length))
        return default_field(name, "vector", size=column.max_length)
    if column.is_numeric:
        return default_field(name, "scalar")
    if column.extensions <= set(IMAGE_EXTENSIONS):
        return default_field(name, "image")
    if column.extensions <= set(AUDIO_EXTENSIONS):
        return default_field(name, "audio", seconds=1.0, cut=True)
    if len(column.names) <= MAX_CATEGORIES:
        return default_field(name, "category")
    return default_field(name, "text", tokens=min(128, max(8, column.max_length // 2)), cut=True)


def default_field(name: str, kind: str, **options: Any) -> Field:
    return Field(name, kind, **{**FIELD_OPTIONS[kind], **options})
