"""A table and its schema, loaded by what the user names, and the schema's measurements of the training rows."""

import json
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ..io.cache import cache_by_files, data_files
from ..unusable import DuplicatePolicy, EmptyPolicy, check_unusable, report_duplicates
from .batches import node_slices
from .cache import TableDataset, encode_table
from .datasets import open_table
from .infer_schema import infer_schema
from .read import Table, is_missing, to_json_value
from .schema import NORMALIZED_KINDS, Field, Schema, Target, is_content, load_schema

MAX_EXAMPLES, MAX_EXAMPLE_ROW = 4, 2048  # examples are among the first rows
N_INTERVALS = 16  # between the quantiles of a number
MAX_VALUE_CHARS = 8 << 10  # of an example, as JSON


@dataclass(frozen=True)
class TableSource:
    """A table as the user names it, and how its rows are read and split."""

    data: str
    schema: str = "own"  # of a named set; inferred; or a schema.toml or schema.json, by its path or its content
    target: str = ""  # for an inferred schema: columns, with commas between
    group: str = ""  # a column: rows of one value stay in one split
    order: str = ""  # a column: the latest rows are for validation
    lenient: bool = False
    empty: EmptyPolicy = "skip"  # what becomes of rows without a target
    duplicates: DuplicatePolicy = "keep"


def infer_missing_schema(source: TableSource) -> Schema | None:
    """Infer the schema of a table where none is given and the set has none; else return None."""
    if source.schema not in ("own", "inferred"):
        return None
    if source.schema == "own" and open_table(source.data).schema:
        if source.target.strip():
            names = f"'{source.data}' has a schema of its own, which names its targets"
            raise InputError(f"{names}: --schema inferred for others")
        return None
    return infer_table_schema(source.data, source.target, source.group, source.order)


@cache_by_files(lambda data, *_: data_files(data))
def infer_table_schema(data: str, target: str, group: str, order: str) -> Schema:
    targets = dict.fromkeys(name.strip() for name in target.split(",") if name.strip())
    return infer_schema(open_table(data), list(targets), group, order)


def resolve_schema(source: TableSource) -> Schema:
    """Return the schema of a table: its own, one that is inferred, or a given one."""
    if (inferred := infer_missing_schema(source)) is not None:
        return inferred
    schema = load_schema(open_table(source.data).schema if source.schema == "own" else source.schema)
    return replace(schema, group=source.group or schema.group, order=source.order or schema.order)


def source_files(source: TableSource, *_: Any) -> list[Path]:
    return data_files(source.data) + ([] if is_content(source.schema) else data_files(source.schema))


@cache_by_files(source_files)
def load_table(source: TableSource) -> TableDataset:
    """Load the rows as arrays, and say what was left out. Raises InputError, with the place."""
    table = open_table(source.data)
    dataset = encode_table(table, resolve_schema(source), source.lenient)
    if n := dataset.n_without_target:
        place, _ = next(islice(table.rows(), dataset.first_without_target, None))
        problem, hint = f"rows have no target (the first: {place})", "fill it in, or leave them out: --empty skip"
        check_unusable(n, len(dataset) + n, source.empty, "--empty", problem, hint)
    if (n := len(dataset.repeats)) and data_files(source.data):
        report_duplicates(n, len(dataset), source.duplicates, f"data '{source.data}'", "rows")
    return replace(dataset, skips_repeats=source.duplicates == "skip")


@cache_by_files(source_files)
def fit_table(source: TableSource, fold: str) -> TableDataset:
    """Load the rows, with a schema that has everything measured on the training rows that a model needs. A schema.json
    that is complete is kept as it is."""
    declared, dataset = resolve_schema(source), load_table(source)
    if declared.is_measured:
        return dataset
    train = dataset.split("train", fold)
    dataset = restrict_categories(dataset, declared, train)
    return replace(dataset, schema=measure_schema(dataset, train))


def fit_schema(source: TableSource, fold: str) -> Schema:
    """Return the schema of `fit_table`; the rows are not needed where it is complete already."""
    if source.schema not in ("own", "inferred") and (complete := load_schema(source.schema)).is_measured:
        return complete
    return fit_table(source, fold).schema


def restrict_categories(dataset: TableDataset, declared: Schema, rows: np.ndarray) -> TableDataset:
    """Restrict the categories of each field to those of at least `min_count` of these rows. The others become one, or
    missing where these rows have none of them. Categories that the schema declares are kept."""
    measurements: dict[str, dict[str, Any]] = {}
    columns, present = list(dataset.values), dataset.present
    for i, (field, nodes) in enumerate(zip(declared.fields, node_slices(dataset.schema), strict=True)):
        if field.kind != "category" or field.values:
            continue
        names, indices = np.array(dataset.schema.fields[i].values), columns[i][:, 0]
        counts = np.bincount(indices[rows[present[rows, nodes.start]]], minlength=len(names))
        is_kept = counts >= field.min_count
        if not is_kept.any():
            raise InputError(f"the field '{field.name}' has no value in {field.min_count} training rows: leave it out")
        rare = int(counts[~is_kept].sum())
        lookup = np.where(is_kept, np.cumsum(is_kept) - 1, is_kept.sum() if rare else 0)
        columns[i] = lookup[indices][:, None]
        if not rare and not is_kept.all():
            present = np.array(present)
            present[:, nodes.start] &= is_kept[indices]
        measurements[field.name] = {"values": names[is_kept].tolist(), "rare": rare}
    schema = dataset.schema.with_measurements(measurements)
    return replace(dataset, schema=schema, values=tuple(columns), present=present)


def measure_schema(dataset: TableDataset, rows: np.ndarray) -> Schema:
    """Return the schema with the mean and deviation of every number on these rows; known ones are kept."""
    schema, measurements = dataset.schema, {}
    for field, values, nodes in zip(schema.fields, dataset.values, node_slices(schema), strict=True):
        if field.kind in NORMALIZED_KINDS and not field.mean:
            has_value = np.flatnonzero(dataset.present[:, nodes].any(1))
            has_value = np.intersect1d(rows, has_value)
            measurements[field.name] = mean_and_std(values, has_value)
            if field.kind == "scalar":
                measurements[field.name]["quantiles"] = measure_quantiles(values[has_value])
    for i, target in enumerate(schema.targets):
        if target.kind == "number" and not target.mean:
            numbers = dataset.targets[rows, i]
            if len(different := np.unique(numbers[~np.isnan(numbers)])) < 2:
                only = ", ".join(f"{number:g}" for number in different) or "nothing"
                raise InputError(
                    f"the target '{target.name}' has one value ({only}) in all {len(rows):,} training rows"
                )
            measurements[target.name] = mean_and_std(dataset.targets[:, i : i + 1], rows, block=1 << 30)
    return schema.with_measurements(measurements)


def mean_and_std(values: np.ndarray, rows: np.ndarray, block: int = 1024) -> dict[str, list[float]]:
    """Measure mean and deviation over all but the last axis, without NaN; a constant has a deviation of 1."""
    count, total, square = np.zeros(1), np.zeros(1), np.zeros(1)
    for start in range(0, len(rows), block):
        x = np.asarray(values[rows[start : start + block]], np.float64).reshape(-1, values.shape[-1])
        count, total = count + np.isfinite(x).sum(0), total + np.nansum(x, 0)
        square = square + np.nansum(x * x, 0)
    mean = total / np.maximum(count, 1)
    std = np.sqrt(np.maximum(square / np.maximum(count, 1) - mean**2, 0))
    std[std < 1e-6 * np.maximum(np.abs(mean), 1e-6)] = 1.0
    return {"mean": mean.tolist(), "std": std.tolist()}


def measure_quantiles(values: np.ndarray) -> list[float]:
    """Return the different ones among the quantiles that divide values into `N_INTERVALS` parts of equal size; none
    where there are fewer than two."""
    values = np.asarray(values, np.float64)
    quantiles = np.quantile(values, np.linspace(0, 1, N_INTERVALS + 1)) if values.size else np.zeros(0)
    distinct = np.unique(quantiles.astype(np.float32))
    return distinct.tolist() if len(distinct) > 1 else []


def select_examples(table: Table, dataset: TableDataset, rows: np.ndarray) -> list[dict[str, Any]]:
    """Pick a few of these rows as JSON values, one of each class, or with numbers from the lowest to the highest;
    values that are too large are left out, and rows of which no field remains."""
    candidates = rows[dataset.numbers[rows] < MAX_EXAMPLE_ROW]
    if not len(candidates):  # the first rows are all for training
        candidates = np.flatnonzero(dataset.numbers < MAX_EXAMPLE_ROW)
    _, firsts = np.unique(dataset.targets[candidates, 0], return_index=True)
    spread = firsts[np.linspace(0, len(firsts) - 1, min(MAX_EXAMPLES, len(firsts))).astype(np.int64)]
    chosen = {int(dataset.numbers[i]) for i in candidates[spread]}
    examples = []
    for number, (_, row) in enumerate(islice(table.rows(), max(chosen, default=-1) + 1)):
        if number in chosen:
            columns = [column for column in dataset.schema.columns if column.name in row]
            values = {column.name: to_example(column, row[column.name], table.folder) for column in columns}
            examples.append({name: value for name, value in values.items() if value is not None})
    examples = [row for row in examples if any(field.name in row for field in dataset.schema.fields)]
    return json.loads(json.dumps(examples))


def to_example(column: Field | Target, value: Any, folder: Path) -> Any:
    """Convert a value to JSON; None for one that is missing or too large. A file is its path."""
    is_file = column.kind in ("image", "audio", "series", "vector") and isinstance(value, str)
    if is_file and not is_missing(value) and not value.lstrip().startswith("["):
        return str((folder / value).resolve())
    value = None if is_missing(value) else to_json_value(value)
    return value if len(json.dumps(value)) <= MAX_VALUE_CHARS else None
