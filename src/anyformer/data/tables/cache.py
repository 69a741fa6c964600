"""Rows to arrays, encoded once into the disk cache under a hash of everything they depend on.

    cache/fields/HASH/vocabularies.json   the vocabularies of the rows: categories, classes and tokenizers
    cache/fields/HASH/I.bin               field I of all rows, of Field.shape and Field.dtype
    cache/fields/HASH/present.bin         (N, nodes) bool: which nodes exist
    cache/fields/HASH/meta.json           targets, groups and split of all rows, and how many values were skipped

The arrays are memory-mapped, so that a set larger than memory can be trained on.

Shapes: N rows.
"""

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, suggest
from ...events import report_progress
from ..images.read import number_classes
from ..io.cache import build_cached, cache_dir
from ..sampling import parse_split, select_split, split_by_mask
from ..tokenizers.build import build_tokenizer
from .encode import DamagedValueError, category_name, encode_missing, encode_target, encode_value
from .read import Table, is_missing
from .schema import Field, Schema

FORMAT_VERSION = 1  # to be raised when the stored content changes
VOCAB_SIZE = 1024  # of a BPE that is trained on the texts of a column
MAX_TOKENIZER_CHARS = 50_000_000
MAX_CATEGORY_VALUES = 1 << 16


@dataclass(frozen=True, eq=False)
class TableDataset:
    """N encoded rows."""

    schema: Schema
    values: tuple[np.ndarray, ...]  # of each field (N, *shape)
    present: np.ndarray  # (N, nodes) bool
    targets: np.ndarray  # (N, targets), a class index or a number; NaN where the row has none
    groups: np.ndarray  # (N,) int64; -1 without groups
    val_flags: np.ndarray  # (N,) 1: for validation, 0: for training, -1: the data do not say
    sha256: str  # of the content
    skipped: int = 0  # damaged values that were left out

    def __len__(self) -> int:
        return len(self.targets)

    def split(self, name: str, fold: str = "1/10") -> np.ndarray:
        """Return the rows of "train", "val" or "all". Raises InputError where no row is left.

        Where the data define no split, the k-th of n folds ("k/n") is for validation: of whole groups, or of rows with
        every class in equal proportion.
        """
        k, _, n = fold.partition("/")
        if not (k.isdecimal() and n.isdecimal()) or not 1 <= int(k) <= int(n) or int(n) < 2:
            raise InputError(f"fold is '{fold}'; it must be one of at least two parts, such as 1/10")
        has_split = (self.val_flags >= 0).any()
        is_val = self.val_flags == 1 if has_split else self.assign_folds(int(n)) == int(k) - 1
        rows = select_split(name, split_by_mask(is_val))
        if not len(rows):
            groups = len(np.unique(self.groups))
            total = f"{groups} groups" if groups > 1 else f"{len(self)} rows"
            raise InputError(f"of {total} none is left for {name} by fold {fold}: add rows, or change --fold")
        return rows

    def assign_folds(self, folds: int) -> np.ndarray:
        """Return the fold of each row, (N,), always the same."""
        has_groups = (self.groups >= 0).any()
        n = int(self.groups.max()) + 1 if has_groups else len(self)
        order = np.random.Generator(np.random.Philox(key=0)).permutation(n)
        if not has_groups and self.schema.targets[0].kind == "class":
            order = order[np.argsort(self.targets[order, 0], kind="stable")]
        assigned = np.argsort(order) % folds
        return assigned[self.groups] if has_groups else assigned


def encode_table(table: Table, schema: Schema, lenient: bool = False) -> TableDataset:
    """Encode the rows of a table, or load them from the cache. Raises InputError, with the place.

    A schema without vocabularies gets those of the rows. With `lenient`, damaged values are left out and counted.
    """
    content = hashlib.sha256(f"{FORMAT_VERSION} {table.sha256()} {schema.to_dict()} {lenient}".encode()).hexdigest()
    if not schema.has_vocabularies:
        folder, columns = cache_dir() / "fields" / content, schema
        vocabularies = build_cached(folder, "vocabularies.json", lambda _: collect_vocabularies(table, columns))
        schema = schema.with_measurements(vocabularies)
    key = f"{content} {schema.to_dict(('values', 'words'))}"
    folder = cache_dir() / "fields" / hashlib.sha256(key.encode()).hexdigest()
    meta = build_cached(folder, "meta.json", lambda new: write_rows(new, table, schema, lenient))
    n = len(meta["groups"])
    values = tuple(
        np.memmap(folder / f"{i}.bin", field.dtype, "r", shape=(n, *field.shape))
        for i, field in enumerate(schema.fields)
    )
    present = np.memmap(folder / "present.bin", bool, "r", shape=(n, schema.nodes))
    groups, val_flags = (np.array(meta[name], np.int64) for name in ("groups", "held"))
    targets = np.array(meta["targets"], np.float64)
    return TableDataset(schema, values, present, targets, groups, val_flags, content, meta["skipped"])


def collect_vocabularies(table: Table, schema: Schema) -> dict[str, dict[str, Any]]:
    """Return the sorted values of each category and class, and the tokenizer of each text. Raises InputError."""
    columns, values, texts = scan_columns(table, schema)
    for name in (*(column.name for column in schema.columns), *filter(None, (schema.group, schema.split))):
        if name not in columns:
            raise InputError(f"the schema names '{name}', and the data have no such column: {suggest(name, columns)}")
    vocabularies = {}
    for column in schema.columns:
        if isinstance(column, Field) and column.kind == "text":
            tokenizer = build_tokenizer(column.tokenizer, partial(iter, texts[column.name]), VOCAB_SIZE)
            vocabularies[column.name] = {"words": tokenizer.to_json()}
        elif column.name in values:
            names = number_classes(values[column.name])[1]
            if column.kind == "class" and len(names) < 2:
                only = ", ".join(names) or "nothing"
                raise InputError(f"the target '{column.name}' has one class ({only}): two or more are needed")
            if not names:
                raise InputError(f"the field '{column.name}' is empty in every row: take it out of the schema")
            vocabularies[column.name] = {"values": names}
    return vocabularies


def scan_columns(table: Table, schema: Schema) -> tuple[set[str], dict[str, set[str]], dict[str, list[str]]]:
    """Return all columns, the values of each category and class, and the texts to train each tokenizer on."""
    columns: set[str] = set()
    values: dict[str, set[str]] = {c.name: set() for c in schema.columns if c.kind in ("category", "class")}
    texts: dict[str, list[str]] = {field.name: [] for field in schema.fields if field.kind == "text"}
    remaining = dict.fromkeys(texts, MAX_TOKENIZER_CHARS)
    for place, row in table.rows():
        columns |= row.keys()
        for name in (name for name in values if not is_missing(row.get(name))):
            values[name].add(category_name(row[name]))
            if len(values[name]) > MAX_CATEGORY_VALUES:
                raise InputError(f"{place}: '{name}' has more than {MAX_CATEGORY_VALUES:,} values: a text or a number?")
        for name in (name for name in texts if remaining[name] > 0 and isinstance(row.get(name), str)):
            texts[name].append(row[name])
            remaining[name] -= len(row[name])
    return columns, values, texts


def write_rows(folder: Path, table: Table, schema: Schema, lenient: bool) -> dict[str, Any]:
    """Encode every row into the files of a folder. Returns what meta.json holds."""
    meta: dict[str, list] = {"targets": [], "groups": [], "held": []}
    skipped, group_ids = 0, {}
    total = sum(1 for _ in table.rows())
    with ExitStack() as stack:
        names = [*range(len(schema.fields)), "present"]
        *files, present_file = [stack.enter_context(open(folder / f"{name}.bin", "wb")) for name in names]
        for number, (place, row) in enumerate(table.rows(), 1):
            for field, file in zip(schema.fields, files, strict=True):
                try:
                    values, present = encode_value(field, row.get(field.name), place, table.folder, lenient)
                except DamagedValueError as error:
                    if not lenient:
                        raise InputError(f"{error}; to leave it out: --lenient") from None
                    values, present = encode_missing(field)
                    skipped += 1
                file.write(np.ascontiguousarray(values, field.dtype).data)
                present_file.write(present.tobytes())
            targets = [encode_target(target, row.get(target.name), place) for target in schema.targets]
            if np.isnan(targets).all():
                raise InputError(f"{place}: {schema.targets[0].name} is empty: fill it in, or take the row out")
            meta["targets"].append(targets)
            meta["groups"].append(group_index(schema.group, row, place, group_ids))
            split = category_name(row.get(schema.split) or "")
            meta["held"].append(int(parse_split(split, f"{place}: {schema.split}")) if schema.split in row else -1)
            if number % 64 == 0 or number == total:
                report_progress("decoding rows", number, total)
    return meta | {"skipped": skipped}


def group_index(column: str, row: dict[str, Any], place: str, group_ids: dict[str, int]) -> int:
    if not column or column not in row:  # data to evaluate on need not have the column
        return -1
    if is_missing(row[column]):
        raise InputError(f"{place}: the group '{column}' is empty: fill it in, or take it out of the schema")
    return group_ids.setdefault(category_name(row[column]), len(group_ids))
