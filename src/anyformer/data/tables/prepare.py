"""A table, its schema and its rows, by what a person names: prepared once, and anew where a file has changed."""

import os
from functools import lru_cache
from pathlib import Path

from ...errors import InputError
from . import datasets as known
from . import schema
from . import statistics as measure
from .cache import Rows, rows
from .infer_schema import infer
from .schema import Schema

OWN, INFERRED = "own", "inferred"


def inferred(data: str, given: str, target: str) -> Schema | None:
    """The schema that seems right for the table, where none is given and the set brings none along."""
    if given not in (OWN, INFERRED):
        return None
    found, targets = known.table(data), [one.strip() for one in target.split(",") if one.strip()]
    if given == OWN and found.schema:
        if targets:
            raise InputError(f"'{data}' has a schema of its own, which names its targets: --schema inferred for others")
        return None
    return infer(found, targets)


def schema_of(data: str, given: str, target: str) -> Schema:
    """given: own, inferred, or a schema.toml or schema.json (its path, or what it holds). Raises InputError."""
    found = inferred(data, given, target)
    return found or schema.read(known.table(data).schema if given == OWN else given)


def rows_of(data: str, given: str, target: str, lenient: bool) -> Rows:
    """The rows as arrays. Raises InputError, with the place."""
    paths = [path for path in (data, given) if "\n" not in path and os.path.isfile(path)]
    stamp = tuple((str(Path(p).resolve()), (s := os.stat(p)).st_mtime_ns, s.st_size) for p in paths)
    return _rows(data, given, target, lenient, stamp)


@lru_cache(maxsize=4)
def _rows(data: str, given: str, target: str, lenient: bool, stamp: tuple) -> Rows:
    return rows(known.table(data), schema_of(data, given, target), lenient)


def fitted(data: str, given: str, target: str, lenient: bool, fold: str) -> Schema:
    """The schema with all that a model must know of the rows for training; a schema.json has it already."""
    if given not in (OWN, INFERRED) and (found := schema.read(given)).measured:
        return found
    return _fitted(data, rows_of(data, given, target, lenient), fold)


@lru_cache(maxsize=4)
def _fitted(data: str, found: Rows, fold: str) -> Schema:
    train, val = (found.part(split, fold) for split in ("train", "val"))
    return measure.measured(found, train, measure.examples(known.table(data), found, val))
