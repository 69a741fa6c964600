"""Infer a schema from the rows of a table, for the user to check and correct."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, suggest
from ..audio.read import AUDIO_EXTENSIONS
from ..images.read import IMAGE_EXTENSIONS
from .encode import category_name, parse_array, parse_number
from .read import Table, is_missing
from .schema import FIELD_OPTIONS, Field, Schema, Target

MAX_CATEGORIES = 32  # a column of texts with at most this many values is a category
MAX_INTEGER_CLASSES = 10  # a target of at most this many integers is a class


@dataclass
class ColumnSummary:
    """What the values of a column have in common."""

    is_numeric: bool = True
    is_integer: bool = True
    is_list: bool = True  # every value is a list
    lengths: set[int] = field(default_factory=set)  # of the texts and lists
    item_shape: tuple[int, ...] = ()  # of a list, without its first axis
    extensions: set[str] = field(default_factory=set)  # of the file names; "" for other texts
    names: set[str] = field(default_factory=set)  # the values as categories, up to a limit

    def add(self, value: Any) -> None:
        if isinstance(value, list | np.ndarray) or (isinstance(value, str) and value.lstrip().startswith("[")):
            array = parse_array(value, Path())
            self.is_numeric, self.item_shape = False, array.shape[1:]
            self.lengths.add(len(array))
            return
        self.is_list = False
        if len(self.names) <= 4 * MAX_CATEGORIES:
            self.names.add(category_name(value))
        try:
            number = None if isinstance(value, bool) else parse_number(value)
        except InputError:
            number = None
        self.is_numeric &= number is not None
        self.is_integer &= number is not None and number % 1 == 0
        if isinstance(value, str):
            self.lengths.add(len(value))
            self.extensions.add(value[value.rfind(".") :].lower() if "." in value[-6:] else "")


def infer_schema(table: Table, targets: Sequence[str]) -> Schema:
    """Infer a schema of the rows, with these columns as targets. Raises InputError."""
    columns: dict[str, ColumnSummary] = {}
    for place, row in table.rows():
        for name, value in row.items():
            column = columns.setdefault(name, ColumnSummary())
            try:
                if not is_missing(value):
                    column.add(value)
            except InputError as error:
                raise InputError(f"{place}, {name}: {error}") from None
    if not targets:
        raise InputError(f"no target column: --target NAME, one of {', '.join(list(columns)[:12])}")
    for name in targets:
        if name not in columns:
            raise InputError(f"the data have no column '{name}' to predict: {suggest(name, columns)}")
    kinds = {name: infer_kind(column) for name, column in columns.items() if name not in targets}
    usable = {name: (kind, FIELD_OPTIONS[kind] | options) for name, (kind, options) in kinds.items() if kind}
    fields = [Field(name, kind, **options) for name, (kind, options) in usable.items()]
    if not fields:
        raise InputError(f"the data have no usable column besides {', '.join(targets)}: nothing to predict from")
    return Schema(tuple(fields), tuple(infer_target(name, columns[name]) for name in targets))


def infer_target(name: str, column: ColumnSummary) -> Target:
    is_class = column.is_integer and len(column.names) <= MAX_INTEGER_CLASSES
    return Target(name, "number" if column.is_numeric and not is_class else "class")


def infer_kind(column: ColumnSummary) -> tuple[str, dict[str, Any]]:
    """Return the most likely kind of a column and its options; "" where it is empty or constant."""
    longest = max(column.lengths, default=0)
    if column.is_list:
        if not longest:
            return "", {}
        if not column.item_shape and len(column.lengths) == 1:
            return "vector", {"size": longest}
        channels = column.item_shape[0] if column.item_shape else 1
        return "series", {"channels": channels, "rate": 1.0, "seconds": float(longest)}
    if len(column.names) < 2:
        return "", {}
    if column.is_numeric:
        return "scalar", {}
    if column.extensions <= set(IMAGE_EXTENSIONS):
        return "image", {}
    if column.extensions <= set(AUDIO_EXTENSIONS):
        return "audio", {"seconds": 1.0, "cut": True}
    if len(column.names) <= MAX_CATEGORIES:
        return "category", {}
    return "text", {"tokens": min(128, max(8, longest // 2)), "cut": True}
