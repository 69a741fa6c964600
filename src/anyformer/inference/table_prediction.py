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
