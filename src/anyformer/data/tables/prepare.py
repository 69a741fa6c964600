"""A table and its schema, loaded by what the user names, and the schema's measurements of the training rows."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ..io.cache import cache_by_files, data_files
from .batches import node_slices
from .cache import TableDataset, encode_table
from .datasets import open_table
from .encode import encode_value
from .infer_schema import infer_schema
from .read import Table, is_missing, to_json_value
from .schema import NORMALIZED_KINDS, Field, Schema, Target, is_content, load_schema

MAX_EXAMPLES, MAX_EXAMPLE_ROW = 4, 2048  # examples are among the first rows
N_INTERVALS = 16  # between the quantiles of a number
MAX_VALUE_CHARS = 8 << 10  # of an example, as JSON


def infer_missing_schema(data: str, schema: str, target: str) -> Schema | None:
    """Infer the schema of a table where none is given and the set has none; else return None."""
    if schema not in ("own", "inferred"):
        return None
    table, targets = open_table(data), [name.strip() for name in target.split(",") if name.strip()]
    if schema == "own" and table.schema:
        if targets:
            raise InputError(f"'{data}' has a schema of its own, which names its targets: --schema inferred for others")
        return None
    return infer_schema(table, targets)


def resolve_schema(data: str, schema: str, target: str) -> Schema:
    """Return the schema of a table: its own, one that is inferred for the columns in `target` (with commas between), or
    that of a schema.toml or schema.json, by its path or its content."""
    inferred = infer_missing_schema(data, schema, target)
    return inferred or load_schema(open_table(data).schema if schema == "own" else schema)


def source_files(data: str, schema: str, *_: Any) -> list[Path]:
    return data_files(data) + ([] if is_content(schema) else data_files(schema))


@cache_by_files(source_files)
def load_table(data: str, schema: str, target: str, lenient: bool) -> TableDataset:
    """Load the rows as arrays. Raises InputError, with the place."""
    return encode_table(open_table(data), resolve_schema(data, schema, target), lenient)


@cache_by_files(source_files)
def fit_schema(data: str, schema: str, target: str, lenient: bool, fold: str) -> Schema:
    """Return the schema with everything measured on the training rows that a model needs; a schema.json that is
    complete is returned as it is."""
    if schema not in ("own", "inferred") and (complete := load_schema(schema)).is_measured:
        return complete
    dataset = load_table(data, schema, target, lenient)
    train, val = (dataset.split(name, fold) for name in ("train", "val"))
    return measure_schema(dataset, train, select_examples(open_table(data), dataset, val))


def measure_schema(dataset: TableDataset, rows: np.ndarray, examples: tuple[dict[str, Any], ...] = ()) -> Schema:
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
            measurements[target.name] = mean_and_std(dataset.targets[:, i : i + 1], rows, block=1 << 30)
    return replace(schema.with_measurements(measurements), examples=examples)


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


def select_examples(table: Table, dataset: TableDataset, rows: np.ndarray) -> tuple[dict[str, Any], ...]:
    """Pick a few of these rows as JSON values, one of each class; values that are too large are left out."""
    candidates = rows[rows < MAX_EXAMPLE_ROW]
    _, firsts = np.unique(dataset.targets[candidates, 0], return_index=True)
    chosen = {int(i) for i in candidates[firsts[:MAX_EXAMPLES]]}
    examples = []
    for number, (_, row) in enumerate(islice(table.rows(), max(chosen, default=-1) + 1)):
        if number in chosen:
            columns = [column for column in dataset.schema.columns if column.name in row]
            values = {column.name: to_example(column, row[column.name], table.folder) for column in columns}
            examples.append({name: value for name, value in values.items() if value is not None})
    return tuple(json.loads(json.dumps(examples)))


def to_example(column: Field | Target, value: Any, folder: Path) -> Any:
    """Convert a value to JSON; None for one that is missing, too large, or in a file other than an image."""
    if column.kind == "image" and isinstance(column, Field) and isinstance(value, str):
        value = encode_value(column, value, "example", folder)[0][..., 0 if column.channels == 1 else slice(None)]
    if column.kind in ("audio", "series", "vector") and isinstance(value, str) and not value.lstrip().startswith("["):
        return None
    value = None if is_missing(value) else to_json_value(value)
    return value if len(json.dumps(value)) <= MAX_VALUE_CHARS else None
