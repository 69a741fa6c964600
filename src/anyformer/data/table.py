"""A table, its schema and its rows, by what a person names: prepared once, and anew where a file has changed."""

import os
from functools import lru_cache
from pathlib import Path

from . import known, measure, schema
from .fields import Rows, rows
from .infer import infer
from .schema import Schema


def inferred(data: str, given: str, target: str) -> Schema | None:
    """The schema that seems right for the table, where none is given and the set brings none along."""
    if given:
        return None
    found, targets = known.table(data), [one.strip() for one in target.split(",") if one.strip()]
    return None if found.schema and not targets else infer(found, targets)


def schema_of(data: str, given: str, target: str) -> Schema:
    """given: a schema.toml or schema.json, its path or what it holds. Raises InputError."""
    return inferred(data, given, target) or schema.read(given or known.table(data).schema)


def rows_of(data: str, given: str, target: str, lenient: bool) -> Rows:
    """The rows as arrays. Raises InputError, with the place."""
    paths = [path for path in (data, given) if "\n" not in path and os.path.isfile(path)]
    stamp = tuple((str(Path(p).resolve()), (s := os.stat(p)).st_mtime_ns, s.st_size) for p in paths)
    return _rows(data, given, target, lenient, stamp)


@lru_cache(maxsize=4)
def _rows(data: str, given: str, target: str, lenient: bool, stamp: tuple) -> Rows:
    return rows(known.table(data), schema_of(data, given, target), lenient)


def fitted(data: str, given: str, target: str, lenient: bool, fold: int, folds: int) -> Schema:
    """The schema with all that a model must know of the rows for training; a schema.json has it already."""
    if given and (found := schema.read(given)).measured:
        return found
    return _fitted(data, rows_of(data, given, target, lenient), fold, folds)


@lru_cache(maxsize=4)
def _fitted(data: str, found: Rows, fold: int, folds: int) -> Schema:
    train, val = (found.part(split, fold, folds) for split in ("train", "val"))
    return measure.measured(found, train, measure.examples(known.table(data), found, val))
