"""Rows to arrays, encoded once into the disk cache under a hash of everything they depend on.

    cache/fields/HASH/vocabularies.json   the vocabularies of the rows: categories, classes and tokenizers
    cache/fields/HASH/I.bin               field I of all rows, of Field.shape and Field.dtype
    cache/fields/HASH/present.bin         (N, nodes) bool: which nodes exist
    cache/fields/HASH/meta.json           targets, groups, moments and split of all rows, and what was left out

The arrays are memory-mapped, so that a set larger than memory can be trained on.

Shapes: N rows.
"""

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass, field
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
from .dates import parse_date
from .encode import DamagedValueError, category_name, encode_missing, encode_target, encode_value, says_missing
from .number_formats import read_number
from .read import Table, is_missing
from .schema import Field, Schema
from .splits import assign_folds, parse_fold, split_by_order

CONTENT_VERSION = 1  # to be raised when other values are read from the same rows
FORMAT_VERSION = 3  # to be raised when they are stored differently
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
    moments: np.ndarray  # (N,) float64: what the rows are ordered by; NaN without an order
    val_flags: np.ndarray  # (N,) 1: for validation, 0: for training, -1: the data do not say
    numbers: np.ndarray  # (N,) int64: of the row in the table, from 0
    sha256: str  # of the content
    skipped: int = 0  # damaged values that were left out
    n_without_target: int = 0  # rows that were left out
    first_without_target: int = -1  # the number of the first
    repeats: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # rows that are equal to an earlier one
    skips_repeats: bool = False  # these are in no split

    def __len__(self) -> int:
        return len(self.targets)

    def split(self, name: str, fold: str = "1/10") -> np.ndarray:
        """Return the rows of "train", "val" or "all". Raises InputError where no row is left.

        Where the data define no split, the k-th of n folds ("k/n") is for validation: of the rows in their order, the
        latest first, with earlier ones for training; or of whole groups, or of rows with every class in equal
        proportion.
        """
        k, n = parse_fold(fold)
        if (self.val_flags >= 0).any():
            splits = split_by_mask(self.val_flags == 1)
        elif np.isfinite(self.moments).any():
            splits = split_by_order(k, n, self.moments, self.groups)
        else:
            labels = self.targets[:, 0] if self.schema.targets[0].kind == "class" else None
            splits = split_by_mask(assign_folds(n, labels, self.groups) == k - 1)
        rows = select_split(name, splits)
        rows = np.setdiff1d(rows, self.repeats) if self.skips_repeats else rows
        if not len(rows):
            groups = len(np.unique(self.groups))
            total = f"{groups} groups" if groups > 1 else f"{len(self)} rows"
            raise InputError(f"of {total} none is left for {name} by fold {fold}: add rows, or change --fold")
        return rows


def encode_table(table: Table, schema: Schema, lenient: bool = False) -> TableDataset:
    """Encode the rows of a table, or load them from the cache. Raises InputError, with the place.

    A schema without vocabularies gets those of the rows. With `lenient`, damaged values are left out and counted.
    """
    content = hashlib.sha256(f"{CONTENT_VERSION} {table.sha256()} {schema.to_dict()} {lenient}".encode()).hexdigest()
    if not schema.has_vocabularies:
        folder, columns = cache_dir() / "fields" / content, schema
        vocabularies = build_cached(folder, "vocabularies.json", lambda _: collect_vocabularies(table, columns))
        schema = schema.with_measurements(vocabularies)
    key = f"{FORMAT_VERSION} {content} {schema.to_dict(('values', 'rare', 'words'))}"
    folder = cache_dir() / "fields" / hashlib.sha256(key.encode()).hexdigest()
    meta = build_cached(folder, "meta.json", lambda new: write_rows(new, table, schema, lenient))
    n = len(meta["groups"])
    values = tuple(
        np.memmap(folder / f"{i}.bin", field.dtype, "r", shape=(n, *field.shape))
        for i, field in enumerate(schema.fields)
    )
    present = np.memmap(folder / "present.bin", bool, "r", shape=(n, schema.nodes))
    arrays: dict[str, Any] = {name: np.array(meta[name], np.float64) for name in ("targets", "moments")}
    arrays |= {name: np.array(meta[name], np.int64) for name in ("groups", "val_flags", "numbers", "repeats")}
    counts = {name: meta[name] for name in ("skipped", "n_without_target", "first_without_target")}
    return TableDataset(schema, values, present, sha256=content, **arrays, **counts)


def collect_vocabularies(table: Table, schema: Schema) -> dict[str, dict[str, Any]]:
    """Return the sorted values of each category and class, and the tokenizer of each text. Raises InputError."""
    columns, values, texts = scan_columns(table, schema)
    names = (*(column.name for column in schema.columns), schema.group, schema.order, schema.split)
    for name in filter(None, names):
        if name not in columns:
            raise InputError(f"the schema names '{name}', and the data have no such column: {suggest(name, columns)}")
    vocabularies = {}
    for column in schema.columns:
        if isinstance(column, Field) and column.kind == "text":
            tokenizer = build_tokenizer(column.tokenizer, partial(iter, texts[column.name]), VOCAB_SIZE)
            vocabularies[column.name] = {"words": tokenizer.to_json()}
        elif column.name in values:
            classes = number_classes(values[column.name])[1]
            if column.kind == "class" and len(classes) < 2:
                only = ", ".join(classes) or "nothing"
                raise InputError(f"the target '{column.name}' has one class ({only}): two or more are needed")
            if not classes:
                raise InputError(f"the field '{column.name}' is empty in every row: take it out of the schema")
            vocabularies[column.name] = {"values": classes}
    return vocabularies


def scan_columns(table: Table, schema: Schema) -> tuple[set[str], dict[str, set[str]], dict[str, list[str]]]:
    """Return all columns, the values of each category and class, and the texts to train each tokenizer on."""
    columns: set[str] = set()
    values: dict[str, set[str]] = {c.name: set() for c in schema.columns if c.kind in ("category", "class")}
    texts: dict[str, list[str]] = {field.name: [] for field in schema.fields if field.kind == "text"}
    remaining = dict.fromkeys(texts, MAX_TOKENIZER_CHARS)
    by_name = {column.name: column for column in schema.columns}
    for place, row in table.rows():
        columns |= row.keys()
        for name in (name for name in values if not is_missing(row.get(name))):
            if says_missing(by_name[name], row[name]):
                continue
            values[name].add(category_name(row[name]))
            if len(values[name]) > MAX_CATEGORY_VALUES:
                raise InputError(f"{place}: '{name}' has more than {MAX_CATEGORY_VALUES:,} values: a text or a number?")
        for name in (name for name in texts if remaining[name] > 0 and isinstance(row.get(name), str)):
            texts[name].append(row[name])
            remaining[name] -= len(row[name])
    return columns, values, texts


def write_rows(folder: Path, table: Table, schema: Schema, lenient: bool) -> dict[str, Any]:
    """Encode every row that has a target into the files of a folder. Returns what meta.json holds."""
    meta: dict[str, Any] = {name: [] for name in ("targets", "groups", "moments", "val_flags", "numbers")}
    meta |= {"skipped": 0, "n_without_target": 0, "first_without_target": -1}
    group_ids, hashes = {}, []
    total = sum(1 for _ in table.rows())
    with ExitStack() as stack:
        names = [*range(len(schema.fields)), "present"]
        *files, present_file = [stack.enter_context(open(folder / f"{name}.bin", "wb")) for name in names]
        for number, (place, row) in enumerate(table.rows()):
            if number % 64 == 63 or number == total - 1:
                report_progress("decoding rows", number + 1, total)
            targets = [encode_target(target, row.get(target.name), place) for target in schema.targets]
            if np.isnan(targets).all():
                meta["first_without_target"] = meta["first_without_target"] if meta["n_without_target"] else number
                meta["n_without_target"] += 1
                continue
            encoded = [encode_leniently(field, row, place, table.folder, lenient) for field in schema.fields]
            for (values, _, _), file in zip(encoded, files, strict=True):
                file.write(values)
            present_file.write(present := b"".join(present for _, present, _ in encoded))
            meta["skipped"] += sum(is_damaged for _, _, is_damaged in encoded)
            for name, value in read_row_facts(schema, row, place, group_ids).items():
                meta[name].append(value)
            meta["targets"].append(targets)
            meta["numbers"].append(number)
            hashes.append(hash_row([values for values, _, _ in encoded], present, targets))
    if not hashes:
        names = ", ".join(target.name for target in schema.targets)
        raise InputError(f"the target {names} is missing in all {total:,} rows: nothing to learn; choose another")
    return meta | {"repeats": find_repeats(hashes)}


def encode_leniently(
    field: Field, row: dict[str, Any], place: str, folder: Path, lenient: bool
) -> tuple[bytes, bytes, bool]:
    """Return a value and which of its nodes exist as bytes, and whether it was damaged and is left out."""
    is_damaged = False
    try:
        values, present = encode_value(field, row.get(field.name), place, folder, lenient)
    except DamagedValueError as error:
        if not lenient:
            raise InputError(f"{error}; to leave it out: --lenient") from None
        values, present, is_damaged = *encode_missing(field), True
    return np.ascontiguousarray(values, field.dtype).tobytes(), present.tobytes(), is_damaged


def read_row_facts(schema: Schema, row: dict[str, Any], place: str, group_ids: dict[str, int]) -> dict[str, Any]:
    """Return the group, the moment and the split of a row."""
    split = category_name(row.get(schema.split) or "")
    is_val = int(parse_split(split, f"{place}: {schema.split}")) if schema.split in row else -1
    group, moment = group_index(schema.group, row, place, group_ids), read_moment(schema, row, place)
    return {"groups": group, "moments": moment, "val_flags": is_val}


def group_index(column: str, row: dict[str, Any], place: str, group_ids: dict[str, int]) -> int:
    if not column or column not in row:  # data to evaluate on need not have the column
        return -1
    if is_missing(row[column]):
        raise InputError(f"{place}: the group '{column}' is empty: fill it in, or take it out of the schema")
    return group_ids.setdefault(category_name(row[column]), len(group_ids))


def read_moment(schema: Schema, row: dict[str, Any], place: str) -> float:
    """Return what orders a row: the date or the number in its column; NaN where there is no such column."""
    if not schema.order or schema.order not in row:
        return float("nan")
    value = row[schema.order]
    pattern = next((field.format for field in schema.fields if field.name == schema.order), "")
    number = None if pattern else read_number(value)
    moment = parse_date(value, pattern) if number is None else number
    if is_missing(value) or moment is None or not np.isfinite(moment):
        expected = "a date or a number is needed in every row, since they are ordered by it"
        raise InputError(f"{place}: {schema.order} is {str(value or '')[:40]!r}: {expected}")
    return moment


def hash_row(values: list[bytes], present: bytes, targets: list[float]) -> int:
    digest = hashlib.blake2b(b"".join([*values, present]), digest_size=8)
    digest.update(np.array(targets).tobytes())
    return int.from_bytes(digest.digest(), "little")


def find_repeats(hashes: list[int]) -> list[int]:
    """Return the rows that are equal to an earlier one."""
    _, firsts = np.unique(np.array(hashes, np.uint64), return_index=True)
    return np.setdiff1d(np.arange(len(hashes)), firsts).tolist()
