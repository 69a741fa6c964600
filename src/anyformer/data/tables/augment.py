"""Rows to batches, and what training does to them. Pure functions; randomness is an argument.

Shapes: B batch, N nodes of all fields, without a class node.
"""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from .cache import Rows
from .schema import Field, Schema

Batch = dict[str, np.ndarray]  # "value of FIELD" (B, *shape), "present" (B, N) bool, "targets" (B, targets)


def key(field: Field) -> str:
    """What the values of a field are called in a batch."""
    return f"value of {field.name}"


def nodes_in(schema: Schema) -> list[slice]:
    """Where the nodes of each field stand in `present`."""
    ends = np.cumsum([0, *(field.nodes for field in schema.fields)]).tolist()
    return [slice(start, end) for start, end in pairwise(ends)]


def batch(found: Rows, at: np.ndarray, other: Mapping[str, np.ndarray] | None = None) -> Batch:
    """These rows; the values of some fields, by name, from `other` rows. at (B,)"""
    made, there = {}, []
    for field, values, nodes in zip(found.schema.fields, found.values, nodes_in(found.schema), strict=True):
        of = (other or {}).get(field.name, at)
        made[key(field)] = values[of]
        there.append(found.present[of, nodes])
    return made | {"present": np.concatenate(there, 1), "targets": found.targets[at].astype(np.float32)}


def without(schema: Schema, made: Batch, share: float, rng: np.random.Generator) -> Batch:
    """Each field of each row left out with this probability (1501.00102); a row that would lose all keeps all."""
    drop = rng.random((len(made["present"]), len(schema.fields))) < share
    kept = made["present"].copy()
    for i, nodes in enumerate(nodes_in(schema)):
        kept[drop[:, i], nodes] = False
    return made | {"present": np.where(kept.any(1, keepdims=True), kept, made["present"])}


def shaken(schema: Schema, made: Batch, noise: float, rng: np.random.Generator) -> Batch:
    """Every number and reading with noise of so many of its field's deviations."""
    found = dict(made)
    for field in schema.fields if noise else ():
        if field.kind in ("scalar", "vector", "series"):
            x = made[key(field)]
            found[key(field)] = x + (noise * np.array(field.std) * rng.standard_normal(x.shape)).astype(np.float32)
    return found


def stretched(schema: Schema, made: Batch, share: float, rng: np.random.Generator) -> Batch:
    """The series of each row faster or slower, all by one factor of up to 1 + share: slower, a part of them takes all
    the time there is; faster, the whole takes a part, and the rest is missing."""
    rows = len(made["present"])
    speed = (1 + share) ** rng.uniform(-1, 1, rows)
    late = rng.random(rows) * np.maximum(0, 1 - speed)
    found = dict(made) | {"present": made["present"].copy()}
    for field, nodes in zip(schema.fields, nodes_in(schema), strict=True):
        if share and field.kind == "series" and field.length > 1:
            x, there = made[key(field)], made["present"][:, nodes]
            at = late[:, None] * field.length + speed[:, None] * np.arange(x.shape[1])  # (B, T) readings
            left = np.minimum(at.astype(np.int64), field.length - 2)
            part, row = (at - left)[..., None].astype(np.float32), np.arange(rows)[:, None]
            moved = x[row, left] * (1 - part) + x[row, left + 1] * part
            moved[at > field.length - 1] = np.nan
            found[key(field)] = moved
            seen = np.isfinite(moved).reshape(rows, field.nodes, -1).any(2)
            found["present"][:, nodes] = seen & there.any(1, keepdims=True)
    return found


def turned(schema: Schema, made: Batch, degrees: float, rng: np.random.Generator) -> Batch:
    """The series of three channels of each row turned in space, all about one axis by up to so many degrees."""
    if not degrees:
        return made
    rows = len(made["present"])
    axis = rng.standard_normal((rows, 3))
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    angle = np.deg2rad(rng.uniform(0, degrees, rows))[:, None, None]
    cross = np.cross(np.eye(3), axis[:, None])  # (B, 3, 3): x @ cross is the product of axis and x
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)  # Rodrigues
    found = dict(made)
    for field in schema.fields:
        if field.kind == "series" and field.channels == 3:
            found[key(field)] = made[key(field)] @ turn.astype(np.float32)
    return found
