"""Rows to batches. Pure functions.

Shapes: B batch, N nodes of all fields, without a class node.
"""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from ..text.batches import IGNORE_INDEX
from .cache import TableDataset
from .schema import Field, Schema, Target

Batch = dict[str, np.ndarray]


def value_key(field: Field) -> str:
    return f"value of {field.name}"


def label_key(target: Target) -> str:
    return f"labels/{target.name}"


def node_slices(schema: Schema) -> list[slice]:
    """Return the slice of `present` that holds the nodes of each field."""
    ends = np.cumsum([0, *(field.nodes for field in schema.fields)]).tolist()
    return [slice(start, end) for start, end in pairwise(ends)]


def build_batch(dataset: TableDataset, rows: np.ndarray, other_rows: Mapping[str, np.ndarray] | None = None) -> Batch:
    """Collect the rows of a batch, (B,); the values of some fields, by name, come from other rows.

    Returns "value of FIELD" (B, *shape) for each field, "present" (B, N) bool, and "labels/TARGET" (B,) of each target:
    class indices int64 (IGNORE_INDEX where unknown), or numbers float32 (NaN where unknown).
    """
    batch, present = {}, []
    for field, values, nodes in zip(dataset.schema.fields, dataset.values, node_slices(dataset.schema), strict=True):
        source = (other_rows or {}).get(field.name, rows)
        batch[value_key(field)] = values[source]
        present.append(dataset.present[source, nodes])
    for i, target in enumerate(dataset.schema.targets):
        labels = dataset.targets[rows, i]
        if target.kind == "class":
            batch[label_key(target)] = np.where(np.isnan(labels), IGNORE_INDEX, labels).astype(np.int64)
        else:
            batch[label_key(target)] = labels.astype(np.float32)
    return batch | {"present": np.concatenate(present, 1)}
