"""Rows to arrays, decoded once: kept in the cache under a hash of all that they depend on.

    cache/fields/HASH.json            what the rows call their categories and classes, and the words of their texts
    cache/fields/HASH/I.bin           field I of all rows, as Field.shape and Field.dtype say
    cache/fields/HASH/present.bin     (N, nodes) bool: which nodes there are
    cache/fields/HASH/meta.json       how many rows, targets, groups, and how much could not be used

They are read from disk as they are needed, so that a set larger than memory trains.

Shapes: N rows, B batch.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, nearest
from ...events import progress
from ..images.read import numbered
from ..io.download import appearing
from ..io.resolve import cache_dir
from ..tokenizers.build import make
from .encode import DamageError, answer, encode, named, nothing
from .read import Table, missing
from .schema import Field, Schema

FORMAT = 1  # a change of what is stored makes a new number
SIDES = {"train": False, "val": True, "valid": True, "validation": True, "dev": True, "test": True}
VOCABULARY = 1024  # tokens of a BPE that is trained on the texts of a column
MOST_TEXT = 50_000_000  # characters that it is trained on
MOST_VALUES = 1 << 16  # of a category


@dataclass(frozen=True, eq=False)
class Rows:
    """N rows, one array a field; what is to be told; and which rows belong together."""

    schema: Schema
    values: tuple[np.ndarray, ...]
    """Of each field (N, *shape)."""
    present: np.ndarray
    """(N, nodes) bool"""
    targets: np.ndarray
    """(N, targets): a class's number, or a number; NaN where the row does not say."""
    groups: np.ndarray
    """(N,) int64; -1 without groups."""
    held: np.ndarray
    """(N,) 1: for validation, 0: for training, -1: the data do not say."""
    sha256: str
    skipped: int = 0
    """Values that could not be used and were left out."""

    def __len__(self) -> int:
        return len(self.targets)

    def part(self, split: str, fold: str = "1/10") -> np.ndarray:
        """The rows of "train", "val" or "all", (n,). Where the data do not say, the first of ten parts ("1/10") is for
        validation: of whole groups, or of rows, of each class alike. Raises InputError where none are left."""
        which, folds = read_fold(fold)
        val = self.held == 1 if (self.held >= 0).any() else self.folded(folds) == which - 1
        parts = {"train": ~val, "val": val, "all": np.ones(len(self), bool)}
        if split not in parts:
            raise InputError(f"split '{split}': {nearest(split, parts)}")
        found = np.flatnonzero(parts[split])
        if not len(found):
            groups = len(np.unique(self.groups))
            of = f"{groups} groups" if groups > 1 else f"{len(self)} rows"
            raise InputError(f"of {of} none is left for {split} by fold {fold}: bring more, or change --fold")
        return found

    def folded(self, folds: int) -> np.ndarray:
        """Which fold each row is of, (N,): always the same."""
        if (self.groups >= 0).any():
            order = shuffle(int(self.groups.max()) + 1)
            return np.argsort(order)[self.groups] % folds
        order = shuffle(len(self))
        if self.schema.targets[0].kind == "class":
            order = order[np.argsort(self.targets[order, 0], kind="stable")]
        found = np.empty(len(self), np.int64)
        found[order] = np.arange(len(self)) % folds
        return found


def read_fold(fold: str) -> tuple[int, int]:
    """ "3/10" -> (3, 10). Raises InputError."""
    which, _, folds = fold.partition("/")
    if not (which.isdecimal() and folds.isdecimal()) or not 1 <= int(which) <= int(folds) or int(folds) < 2:
        raise InputError(f"fold is '{fold}'; it must be a part of at least two, such as 1/10")
    return int(which), int(folds)


def shuffle(n: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=0)).permutation(n)


def rows(table: Table, schema: Schema, lenient: bool = False) -> Rows:
    """The rows of a table as arrays. The vocabularies are those of the schema, or if it knows none, of the rows.
    lenient: what is damaged is left out and counted. Raises InputError, with the place."""
    content = hashlib.sha256(f"{FORMAT} {table.sha256()} {schema.plain()} {lenient}".encode()).hexdigest()
    known = schema if schema.learned else learned(table, schema, cache_dir() / "fields" / f"{content}.json")
    asked = f"{content} {known.plain(('values', 'words'))}"
    folder = cache_dir() / "fields" / hashlib.sha256(asked.encode()).hexdigest()
    if not (folder / "meta.json").is_file():
        with appearing(folder) as new:
            write(new, table, known, lenient)
    meta = json.loads((folder / "meta.json").read_text("utf-8"))
    n = len(meta["groups"])
    values = [
        np.memmap(folder / f"{i}.bin", field.dtype, "r", shape=(n, *field.shape))
        for i, field in enumerate(known.fields)
    ]
    present = np.memmap(folder / "present.bin", bool, "r", shape=(n, known.nodes))
    targets = np.array([[np.nan if x is None else x for x in row] for row in meta["targets"]], np.float64)
    about = [np.array(meta[name], np.int64) for name in ("groups", "held")]
    return Rows(known, tuple(values), present, targets, *about, content, meta["skipped"])


# --- what the rows are called: one pass ---


def learned(table: Table, schema: Schema, path: Path) -> Schema:
    """The schema with the vocabularies of these rows, kept in a file."""
    names = [one.name for one in (*schema.fields, *schema.targets)]
    if not path.is_file():
        found = {name: list(values) for name, values in seen(table, schema).items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.{os.getpid()}")
        new.write_text(json.dumps(found, ensure_ascii=False), "utf-8")
        os.replace(new, path)  # there whole or not at all
    found = json.loads(path.read_text("utf-8"))
    facts = {name: {("words" if name in texts(schema) else "values"): found[name]} for name in names if name in found}
    return with_facts(
        schema, {name: {k: v[0] if k == "words" else tuple(v) for k, v in fact.items()} for name, fact in facts.items()}
    )


def texts(schema: Schema) -> list[str]:
    return [field.name for field in schema.fields if field.kind == "text"]


def with_facts(schema: Schema, facts: Mapping[str, dict[str, Any]]) -> Schema:
    """The schema with something measured of each of these fields and targets."""
    fields = tuple(replace(one, **facts.get(one.name, {})) for one in schema.fields)
    targets = tuple(replace(one, **facts.get(one.name, {})) for one in schema.targets)
    return replace(schema, fields=fields, targets=targets)


def seen(table: Table, schema: Schema) -> dict[str, list[str]]:
    """The values of each category and class, in order, and the tokenizer of each text. Raises InputError for a column
    that the table lacks, and a class that is always the same."""
    every = (*schema.fields, *schema.targets)
    columns, values, said = read_through(table, schema)
    for name in (*(one.name for one in every), *filter(None, (schema.group, schema.split))):
        if name not in columns:
            raise InputError(f"the schema names '{name}', and the data have no such column: {nearest(name, columns)}")
    made = {name: list(numbered(list(found))[1]) for name, found in values.items()}
    for one in every:
        if one.kind == "class" and len(made[one.name]) < 2:
            only = ", ".join(made[one.name]) or "nothing"
            raise InputError(f"the target '{one.name}' has one class ({only}): there is nothing to tell apart")
        if one.kind == "category" and not made[one.name]:
            raise InputError(f"the field '{one.name}' is empty in every row: take it out of the schema")
    for field in schema.fields:
        if field.kind == "text":
            some = said[field.name]
            made[field.name] = [make(field.tokenizer, lambda some=some: iter(some), VOCABULARY).json()]
    return made


def read_through(table: Table, schema: Schema) -> tuple[set[str], dict[str, set[str]], dict[str, list[str]]]:
    """All columns, the values of each category and class, and of each text as much as a tokenizer needs."""
    kinds = {one.name: one.kind for one in (*schema.fields, *schema.targets)}
    columns: set[str] = set()
    values: dict[str, set[str]] = {name: set() for name, kind in kinds.items() if kind in ("category", "class")}
    said: dict[str, list[str]] = {name: [] for name, kind in kinds.items() if kind == "text"}
    room = dict.fromkeys(said, MOST_TEXT)
    for where, row in table.rows():
        columns |= row.keys()
        for name in (name for name in values if not missing(row.get(name))):
            values[name].add(named(row[name]))
            if len(values[name]) > MOST_VALUES:
                raise InputError(
                    f"{where}: '{name}' has more than {MOST_VALUES:,} values: a text or a number, perhaps?"
                )
        for name in (name for name in said if room[name] > 0 and isinstance(row.get(name), str)):
            said[name].append(row[name])
            room[name] -= len(row[name])
    return columns, values, said


# --- rows to files ---


def write(folder: Path, table: Table, schema: Schema, lenient: bool) -> None:
    """Every row into the files of a folder, one after the other."""
    told: dict[str, list] = {"targets": [], "groups": [], "held": []}
    skipped, groups = 0, {}
    total = sum(1 for _ in table.rows())
    with ExitStack() as stack:
        files = [stack.enter_context(open(folder / f"{i}.bin", "wb")) for i in range(len(schema.fields))]
        present = stack.enter_context(open(folder / "present.bin", "wb"))
        for number, (where, row) in enumerate(table.rows(), 1):
            for field, file in zip(schema.fields, files, strict=True):
                (made, there), bad = tried(field, row.get(field.name), where, table.folder, lenient)
                skipped += bad
                file.write(np.ascontiguousarray(made, field.dtype).data)
                present.write(there.tobytes())
            wanted = [answer(target, row.get(target.name), where) for target in schema.targets]
            if np.isnan(wanted).all():
                raise InputError(f"{where}: {schema.targets[0].name} is empty: fill it in, or take the row out")
            told["targets"].append([None if np.isnan(x) else x for x in wanted])
            told["groups"].append(grouped(schema, row, where, groups))
            told["held"].append(side(row, schema.split, where) if schema.split in row else -1)
            if number % 64 == 0 or number == total:
                progress("decoding rows", number, total)
    (folder / "meta.json").write_text(json.dumps(told | {"skipped": skipped}), "utf-8")


def tried(field: Field, value: Any, where: str, folder: Path, lenient: bool) -> tuple[Any, int]:
    """The encoded value, and 1 where it was damaged and is left out."""
    try:
        return encode(field, value, where, folder, lenient), 0
    except DamageError as error:
        if not lenient:
            raise InputError(
                str(error) if "--lenient" in str(error) else f"{error}; to leave it out: --lenient"
            ) from None
        return nothing(field), 1


def grouped(schema: Schema, row: Mapping[str, Any], where: str, groups: dict[str, int]) -> int:
    if not schema.group or schema.group not in row:  # other data than the training's need not have it
        return -1
    if missing(row.get(schema.group)):
        raise InputError(f"{where}: the group '{schema.group}' is empty: fill it in, or take it out of the schema")
    return groups.setdefault(named(row[schema.group]), len(groups))


def side(row: Mapping[str, Any], column: str, where: str) -> int:
    name = named(row.get(column) or "").lower()
    if name not in SIDES:
        raise InputError(f"{where}: {column} is {name!r}: {nearest(name, SIDES)}")
    return int(SIDES[name])
