"""Predict the targets of rows of a table: a class with its probabilities, or a number, for each target."""

import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.io.manifest import is_table
from ..data.tables.datasets import open_table
from ..data.tables.encode import encode_value
from ..data.tables.read import is_missing, to_json_value
from ..data.tables.schema import COVERAGES, Field, Schema, Target
from ..errors import InputError, suggest
from ..forms import RowField
from .classification import describe_classes

BATCH_SIZE = 64  # rows in one forward

Row = tuple[str, dict[str, Any], Path]  # its place, for messages, its values, and the folder that paths are relative to


@torch.inference_mode()
def predict_rows(model: Any, inputs: Any) -> list[dict[str, Any]]:
    """Predict the targets of rows: a row {field: value}, its JSON, or the path of a table of rows; or a list of such.
    Where images or sounds are the only field, also the path of one.

    Returns for each row {"label", "probability", "probabilities"} or {"value", "interval"}, with "truth" where the row
    has the target; with several targets, {target: such}. Raises InputError that names the row.
    """
    results, rows = [], iterate_rows(inputs, model.schema)
    fields, device = model.schema.fields, next(model.parameters()).device
    while batch := list(islice(rows, BATCH_SIZE)):
        columns = [encode_column(field, batch) for field in fields]
        values = [to_tensor(array).to(device) for array, _ in columns]
        present = torch.from_numpy(np.concatenate([nodes for _, nodes in columns], 1))
        outputs = [output.float().cpu() for output in model(values, present.to(device))]
        for i, (_, row, _) in enumerate(batch):
            answers = {}
            for target, output in zip(model.schema.targets, outputs, strict=True):
                answers[target.name] = describe_output(target, output[i], row)
            results.append(next(iter(answers.values())) if len(answers) == 1 else answers)
    return results


def encode_column(field: Field, batch: list[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Encode the values that some rows have of a field, (B, *field.shape), and which nodes exist, (B, nodes)."""
    values: list[Any] = [row.get(field.name) for _, row, _ in batch]
    if field.kind == "scalar" and field.decimal == ".":
        with suppress(TypeError, ValueError, OverflowError):  # by `encode_value`, if one is missing or no number
            array = np.array([float(value) for value in values])
            if (np.abs(array) < np.finfo(np.float32).max).all():
                return array.astype(np.float32)[:, None], np.ones((len(batch), 1), bool)
    encoded = [encode_value(field, value, where, folder) for value, (where, _, folder) in zip(values, batch)]
    return np.stack([array for array, _ in encoded]), np.stack([nodes for _, nodes in encoded])


def to_tensor(values: np.ndarray) -> Tensor:
    """Convert an array to the dtype that a model takes: int64 for ids, float32 for numbers, uint8 for pixels."""
    dtype = {"int32": np.int64, "float16": np.float32}.get(values.dtype.name, values.dtype)
    return torch.from_numpy(np.ascontiguousarray(values, dtype))


def describe_output(target: Target, output: Tensor, row: dict[str, Any]) -> dict[str, Any]:
    """Describe the output for a row, (classes,) or (1,)."""
    truth = {} if is_missing(row.get(target.name)) else {"truth": to_json_value(row[target.name])}
    if target.kind == "class":
        return describe_classes(output.softmax(-1), target.values) | truth
    value = output.item() * target.std[0] + target.mean[0]
    intervals = {name: [value - error, value + error] for name, error in zip(COVERAGES, target.errors)}
    return {"value": value} | ({"interval": intervals} if intervals else {}) | truth


def iterate_rows(inputs: Any, schema: Schema) -> Iterator[Row]:
    names = [column.name for column in (*schema.fields, *schema.targets)]
    names += filter(None, (*schema.left_out, schema.group, schema.order, schema.split))
    only_file = schema.fields[0].name if [f.kind for f in schema.fields] in (["image"], ["audio"]) else ""
    for i, item in enumerate(inputs if isinstance(inputs, list | tuple) else [inputs]):
        if only_file and isinstance(item, str) and not item.lstrip().startswith("{") and not is_table(Path(item)):
            yield f"input {i}", {only_file: item}, Path()
            continue
        if isinstance(item, str) and not item.lstrip().startswith("{"):
            table = open_table(item)
            yield from ((where, row, table.folder) for where, row in table.rows())
            continue
        try:
            row = json.loads(item) if isinstance(item, str) else item
        except (ValueError, RecursionError) as error:
            raise InputError(f"input {i} is not JSON ({error}): {item[:40]}") from None
        if not isinstance(row, dict):
            expected = "a row is expected, {field: value, ...}, or a table's path"
            raise InputError(f"input {i} is {type(row).__name__}; {expected}")
        if unknown := [name for name in row if name not in names]:
            raise InputError(f"input {i} has '{unknown[0]}', which is no field: {suggest(unknown[0], names)}")
        yield f"input {i}", row, Path()


# --- the form of a row ---

FORM_KINDS: dict[str, Any] = {"category": "choice", "scalar": "number", "vector": "numbers", "series": "numbers"}
FORM_KINDS |= {"audio": "sound"}


def describe_row(schema: Schema) -> tuple[RowField, ...]:
    """Describe the fields of a row for a form; where numbers usually lie is known of schemas with quantiles."""
    fields = []
    for field in schema.fields:
        usual = (field.quantiles[0], field.quantiles[-1]) if len(field.quantiles) > 1 else None
        kind, text = FORM_KINDS.get(field.kind, field.kind), describe_size(field)
        fields.append(RowField(field.name, kind, text, field.values, usual, example_value(field)))
    return tuple(fields)


def describe_size(field: Field) -> str:
    """Say how large a value may be."""
    if field.kind == "series":
        return f"up to {field.length} readings of {field.channels} numbers, {field.rate:g} a second"
    sizes = {"vector": f"{field.size} numbers", "text": f"up to {field.tokens} tokens"}
    return sizes.get(field.kind, f"up to {field.seconds:g} seconds" if field.kind == "audio" else "")


def example_value(field: Field) -> Any:
    """Return a value of a field: the first category, the middle of numbers; None for what there is no example of."""
    if field.kind == "category":
        return field.values[0] if field.values else None
    if field.kind == "scalar":
        middle = field.quantiles[len(field.quantiles) // 2] if field.quantiles else (field.mean or (0.0,))[0]
        return float(f"{middle:.4g}")
    values = {"date": "2024-06-01", "vector": list(field.mean), "series": [[round(x, 4) for x in field.mean]] * 10}
    return values.get(field.kind)


def example_row(schema: Schema) -> dict[str, Any]:
    return {field.name: value for field in schema.fields if (value := example_value(field)) is not None}
