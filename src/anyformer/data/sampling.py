"""Which rows belong to a split, and which of them a training step draws, for every kind of data."""

from collections.abc import Callable, Mapping, Sized
from functools import lru_cache
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np

from ..errors import InputError, suggest

T = TypeVar("T")

# Values of the data's own column `split` -> whether the row is for validation.
IS_VALIDATION = {"train": False, "val": True, "valid": True, "validation": True, "dev": True, "test": True}


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
    """Return the split of this name. Raises InputError."""
    if name not in splits:
        raise InputError(f"split '{name}': {suggest(name, splits)}")
    return splits[name]


def count_rows(split: str, select: Callable[[str], Sized]) -> list[int]:
    """Return how many rows are for training and for validation; nothing unless a `split` is to be trained on."""
    return [len(select(name)) for name in ("train", "val")] if split == "train" else []


def stratify(classes: np.ndarray, n_val: int) -> np.ndarray:
    """Select rows for validation so that all classes give about the same share of theirs, each its first rows: (N,)
    bool. Of a class with a single row it is for training."""
    order = np.argsort(classes, kind="stable")
    _, starts, sizes = np.unique(classes[order], return_index=True, return_counts=True)
    shares = np.empty(len(classes))
    shares[order] = (np.arange(len(order)) - np.repeat(starts, sizes) + 0.5) / np.repeat(sizes, sizes)
    is_val = np.zeros(len(classes), bool)
    is_val[np.argsort(shares, kind="stable")[:n_val]] = True
    return is_val


def parse_split(name: str, place: str) -> bool:
    """Return whether a value of a column `split` is for validation. Raises InputError with its place."""
    if name.lower() not in IS_VALIDATION:
        raise InputError(f"{place} is {name!r}: {suggest(name.lower(), IS_VALIDATION)}")
    return IS_VALIDATION[name.lower()]


def sample_indices(indices: np.ndarray, batch: int, seed: int, step: int) -> np.ndarray:
    """Return the rows of a training step, (batch,), out of `indices`; each epoch visits every row once.

    The result depends on the arguments alone.
    """
    epochs, offsets = np.divmod(step * batch + np.arange(batch), len(indices))
    pairs = zip(epochs.tolist(), offsets.tolist(), strict=True)
    return np.array([indices[epoch_permutation(len(indices), seed, epoch)[offset]] for epoch, offset in pairs])


@lru_cache(maxsize=8)
def epoch_permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order in which an epoch visits n rows."""
    return np.random.Generator(np.random.Philox(key=seed, counter=(0, 0, 0, epoch))).permutation(n)


def sample_evenly(values: np.ndarray, count: int) -> np.ndarray:
    """Return up to `count` of the values (N, ...), at equal distances, in their order."""
    return values[np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int)]
