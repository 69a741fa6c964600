"""Rows in, answers out: a class with its probabilities, or a number, for each target."""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..data.tables.datasets import table
from ..data.tables.encode import encode
from ..data.tables.read import missing, plain
from ..data.tables.schema import Schema, Target
from ..errors import InputError, nearest

BATCH = 64  # rows looked at together


class Model(Protocol):
    schema: Schema

    def __call__(self, values: Sequence[Tensor], present: Tensor) -> list[Tensor]: ...
    def parameters(self) -> Iterator[Tensor]: ...


def told(model: Model, given: Any) -> list[dict[str, Any]]:
    """The answers to rows: {field: value}, a list of such, their JSON, or the path of a table of them. Raises
    InputError, with the row."""
    found, stream = [], asked(given, model.schema)
    where = next(model.parameters()).device
    while some := list(islice(stream, BATCH)):
        encoded = [
            [encode(one, row.get(one.name), at, folder) for one in model.schema.fields] for at, row, folder in some
        ]
        values = [tensor(np.stack([row[i][0] for row in encoded])).to(where) for i in range(len(model.schema.fields))]
        present = torch.from_numpy(np.stack([np.concatenate([there for _, there in row]) for row in encoded])).to(where)
        with torch.no_grad():
            answers = [answer.float().cpu() for answer in model(values, present)]
        for i, (_, row, _) in enumerate(some):
            said = {one.name: one_answer(one, a[i], row) for one, a in zip(model.schema.targets, answers, strict=True)}
            found.append(next(iter(said.values())) if len(said) == 1 else said)
    return found


def tensor(values: np.ndarray) -> Tensor:
    """As a model takes them: whole numbers of 64 bits, others of 32, pixels as they are."""
    kept = {"int32": np.int64, "float16": np.float32}.get(values.dtype.name, values.dtype)
    return torch.from_numpy(np.ascontiguousarray(values, kept))


def one_answer(target: Target, answer: Tensor, row: dict[str, Any]) -> dict[str, Any]:
    truth = {} if missing(row.get(target.name)) else {"truth": plain(row[target.name])}
    if target.kind == "number":
        return {"value": answer.item() * target.std[0] + target.mean[0]} | truth
    shares = answer.softmax(-1)
    best = [(target.values[i], shares[i].item()) for i in shares.argsort(descending=True, stable=True).tolist()]
    return {"label": best[0][0], "probability": best[0][1], "probabilities": dict(best)} | truth


def asked(given: Any, schema: Schema) -> Iterator[tuple[str, dict[str, Any], Path]]:
    """(where, row, the folder that its paths are meant from) of each row."""
    known = [one.name for one in (*schema.fields, *schema.targets)] + [n for n in (schema.group, schema.split) if n]
    for number, one in enumerate(given if isinstance(given, list | tuple) else [given]):
        if isinstance(one, str) and not one.lstrip().startswith("{"):
            found = table(one)
            yield from ((where, row, found.folder) for where, row in found.rows())
            continue
        row = parsed(one, f"input {number}")
        if strange := [name for name in row if name not in known]:
            raise InputError(f"input {number} has '{strange[0]}', which is no field: {nearest(strange[0], known)}")
        yield f"input {number}", row, Path()


def parsed(one: Any, where: str) -> dict[str, Any]:
    try:
        row = json.loads(one) if isinstance(one, str) else one
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error}): {one[:40]}") from None
    if not isinstance(row, dict):
        raise InputError(
            f"{where} is {type(row).__name__}; a row is expected, {{field: value, ...}}, or a table's path"
        )
    return row


# --- how good the answers are ---


def score(target: Target, said: Tensor, right: Tensor) -> dict[str, float]:
    """Of a class (N,) how often it is right, and the mean F1 of the classes; of a number (N,) the root of the mean
    squared error, in its own unit, and the share of its variance that is told."""
    if target.kind == "number":
        said, right = said.double(), right.double()
        error, spread = ((said - right) ** 2).mean(), right.var(correction=0)
        return {"rmse": error.sqrt().item(), "r2": (1 - error / spread.clamp(min=1e-12)).item()}
    n = len(target.values)
    table = torch.bincount(right.long() * n + said, minlength=n * n).view(n, n)  # [class, answer]
    size = table.sum(0) + table.sum(1)
    f1 = (2 * table.diag() / size.clamp(min=1))[size > 0]
    return {"accuracy": table.diag().sum().item() / max(1, len(right)), "macro_f1": f1.mean().item()}
