"""Which rows of a table are for training and for validation: as its own column says, the latest, whole groups, or rows
of every class in equal proportion.

Shapes: N rows.
"""

import numpy as np

from ...errors import InputError


def parse_fold(fold: str) -> tuple[int, int]:
    """Return k and n of "k/n". Raises InputError."""
    k, _, n = fold.partition("/")
    if not (k.isdecimal() and n.isdecimal() and len(fold) < 30) or not 1 <= int(k) <= int(n) or int(n) < 2:
        raise InputError(f"fold is '{fold}'; it must be one of at least two parts, such as 1/10")
    return int(k), int(n)


def assign_folds(folds: int, labels: np.ndarray | None, groups: np.ndarray) -> np.ndarray:
    """Return the fold of each row, (N,), always the same: of whole groups where there are any (N,), -1 without, else of
    rows, with every label in equal proportion, (N,), where there are labels."""
    has_groups = (groups >= 0).any()
    n = int(groups.max()) + 1 if has_groups else len(groups)
    order = np.random.Generator(np.random.Philox(key=0)).permutation(n)
    if not has_groups and labels is not None:
        order = order[np.argsort(labels[order], kind="stable")]
    assigned = np.argsort(order) % folds
    return assigned[groups] if has_groups else assigned


def split_by_order(k: int, n: int, moments: np.ndarray, groups: np.ndarray) -> dict[str, np.ndarray]:
    """Split rows by their moments (N,), in n parts of time: the k-th from the end is for validation, all that is
    before it for training. Rows of one moment, or group, stay together; a group is where its last row is."""
    if (groups >= 0).any():
        latest = np.full(int(groups.max()) + 1, -np.inf)
        np.maximum.at(latest, groups, moments)
        moments = latest[groups]
    order = np.sort(moments)
    first, last = (order[min(len(order) - 1, len(order) * (n - i) // n)] for i in (k, k - 1))
    is_before_end = moments < last if k > 1 else np.ones(len(moments), bool)
    train = np.flatnonzero(moments < first)
    return {"train": train, "val": np.flatnonzero((moments >= first) & is_before_end), "all": np.arange(len(moments))}
