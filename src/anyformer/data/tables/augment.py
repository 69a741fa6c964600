"""Random changes of training rows: fields left out, noise, time stretched, vectors rotated. Pure functions.

Shapes: B batch, T readings of a series.
"""

import numpy as np

from .batches import Batch, node_slices, value_key
from .schema import Schema


def drop_fields(schema: Schema, batch: Batch, probability: float, rng: np.random.Generator) -> Batch:
    """Drop each field of each row with this probability (ModDrop, 1501.00102), but never all fields of a row."""
    dropped = rng.random((len(batch["present"]), len(schema.fields))) < probability
    present = batch["present"].copy()
    for i, nodes in enumerate(node_slices(schema)):
        present[dropped[:, i], nodes] = False
    return batch | {"present": np.where(present.any(1, keepdims=True), present, batch["present"])}


def add_noise(schema: Schema, batch: Batch, scale: float, rng: np.random.Generator) -> Batch:
    """Add normal noise to every number and reading; `scale` is in units of the field's standard deviation."""
    noisy = dict(batch)
    for field in schema.fields if scale else ():
        if field.kind in ("scalar", "vector", "series"):
            x = batch[value_key(field)]
            noise = (scale * np.array(field.std) * rng.standard_normal(x.shape)).astype(np.float32)
            noisy[value_key(field)] = x + noise
    return noisy


def stretch_time(schema: Schema, batch: Batch, max_change: float, rng: np.random.Generator) -> Batch:
    """Play the series of each row faster or slower, all by one factor of up to 1 + max_change. A slower series is cut
    to its length; a faster one ends in missing readings."""
    rows = len(batch["present"])
    speed = (1 + max_change) ** rng.uniform(-1, 1, rows)
    delay = rng.random(rows) * np.maximum(0, 1 - speed)
    stretched = dict(batch) | {"present": batch["present"].copy()}
    for field, nodes in zip(schema.fields, node_slices(schema), strict=True):
        if max_change and field.kind == "series" and field.length > 1:
            x, present = batch[value_key(field)], batch["present"][:, nodes]
            times = delay[:, None] * field.length + speed[:, None] * np.arange(x.shape[1])  # (B, T)
            left = np.minimum(times.astype(np.int64), field.length - 2)
            weight, row = (times - left)[..., None].astype(np.float32), np.arange(rows)[:, None]
            moved = x[row, left] * (1 - weight) + x[row, left + 1] * weight
            moved[times > field.length - 1] = np.nan
            stretched[value_key(field)] = moved
            has_readings = np.isfinite(moved).reshape(rows, field.nodes, -1).any(2)
            stretched["present"][:, nodes] = has_readings & present.any(1, keepdims=True)
    return stretched


def rotate_vectors(schema: Schema, batch: Batch, max_degrees: float, rng: np.random.Generator) -> Batch:
    """Rotate the series of three channels of each row, all about one random axis by one angle."""
    if not max_degrees:
        return batch
    rows = len(batch["present"])
    axis = rng.standard_normal((rows, 3))
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    angle = np.deg2rad(rng.uniform(0, max_degrees, rows))[:, None, None]
    cross = np.cross(np.eye(3), axis[:, None])  # (B, 3, 3): x @ cross is the product of axis and x
    rotation = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)  # Rodrigues
    rotated = dict(batch)
    for field in schema.fields:
        if field.kind == "series" and field.channels == 3:
            rotated[value_key(field)] = batch[value_key(field)] @ rotation.astype(np.float32)
    return rotated
