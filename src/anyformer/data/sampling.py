"""Which rows belong to a split, and which of them a training step draws. Every kind of data shares these."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np

from ..errors import InputError, suggest

T = TypeVar("T")

IS_VALIDATION = {"train": False, "val": True, "valid": True, "validation": True, "dev": True, "test": True}
"""The split that a column `split` of the data names -> whether its rows are for validation."""


@runtime_checkable
class Dataset(Protocol):
    """What the dataset of every kind has: a hash of its content and the indices of each split."""

    @property
    def sha256(self) -> str: ...

    def split(self, name: str) -> np.ndarray: ...


def split_by_mask(is_val: np.ndarray) -> dict[str, np.ndarray]:
    """Return the indices of "train", "val" and "all", given which rows are for validation, (N,) bool."""
    return {"train": np.flatnonzero(~is_val), "val": np.flatnonzero(is_val), "all": np.arange(len(is_val))}


def select_split(name: str, splits: Mapping[str, T]) -> T:
    """Return the split of this name. Raises InputError for an unknown one."""
    if name not in splits:
        raise InputError(f"split '{name}': {suggest(name, splits)}")
    return splits[name]


def parse_split(name: str, place: str) -> bool:
    """Return whether a value of the data's own `split` column is for validation.

    Raises:
        InputError: for an unknown name, with the place in the data.
    """
    if name.lower() not in IS_VALIDATION:
        raise InputError(f"{place} is {name!r}: {suggest(name.lower(), IS_VALIDATION)}")
    return IS_VALIDATION[name.lower()]


def sample_indices(indices: np.ndarray, batch: int, seed: int, step: int) -> np.ndarray:
    """Return the rows of a training step, (batch,), out of `indices`.

    Each epoch visits every row once, in an order of its own. The result depends on `seed`, `step` and `indices` alone.
    """
    epochs, offsets = np.divmod(step * batch + np.arange(batch), len(indices))
    pairs = zip(epochs.tolist(), offsets.tolist(), strict=True)
    return np.array([indices[epoch_permutation(len(indices), seed, epoch)[offset]] for epoch, offset in pairs])


@lru_cache(maxsize=8)
def epoch_permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order in which an epoch visits n rows."""
    return np.random.Generator(np.random.Philox(key=seed, counter=(0, 0, 0, epoch))).permutation(n)
