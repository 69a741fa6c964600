"""Columns that give a target away: an exact copy, a relabelling, a change of unit."""

from collections.abc import Sequence

import numpy as np

from .summary import TableSummary

MIN_ROWS = 10  # with both values, below which nothing is concluded
MIN_ROWS_PER_VALUE = 2  # else any column of different values would be a relabelling
TOLERANCE = 1e-6


def describe_leak(summary: TableSummary, name: str, target: str, is_number: bool) -> str:
    """Say how a column gives a target away: "an exact copy of the target y"; "" where it does not."""
    pairs = [(a, b) for a, b in zip(summary.values(name), summary.values(target)) if a and b]
    if len(pairs) < MIN_ROWS:
        return ""
    if all(a == b for a, b in pairs):
        return f"an exact copy of the target {target}"
    if not is_number:
        return f"the target {target} under other names" if is_relabelling(pairs) else ""
    x, y = summary.numbers(name), summary.numbers(target)
    has_both = np.isfinite(x) & np.isfinite(y)
    if has_both.sum() < max(MIN_ROWS, 0.9 * len(pairs)):
        return ""
    if is_linear(x[has_both], y[has_both]):
        return f"the target {target} in another unit"
    return f"a function of the target {target}" if is_monotonic(x[has_both], y[has_both]) else ""


def is_relabelling(pairs: Sequence[tuple[str, str]]) -> bool:
    """Whether each value of one column belongs to one value of the other, and the other way round."""
    different = set(pairs)
    first, second = ({pair[i] for pair in different} for i in (0, 1))
    is_one_to_one = len(first) == len(second) == len(different)
    return is_one_to_one and len(pairs) >= MIN_ROWS_PER_VALUE * len(different) and len(different) > 1


def is_linear(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether y = a x + b, but for rounding in the sixth digit."""
    if min(len(np.unique(x)), len(np.unique(y))) < 3:
        return False
    slope, offset = np.polyfit((x - x.mean()) / x.std(), y, 1)
    error = slope * (x - x.mean()) / x.std() + offset - y
    return bool(np.abs(error).max() <= TOLERANCE * np.abs(y).max())


def is_monotonic(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether the order of the rows by x is that by y, as of a logarithm, with about as many different values.

    Columns that are in order down the table, such as years, are no function of what grows with them.
    """
    if any(is_sorted(values) or is_sorted(-values) for values in (x, y)):
        return False
    counts = [len(np.unique(values)) for values in (x, y)]
    if min(counts) < max(2 * MIN_ROWS, 0.5 * max(counts)):
        return False
    return any(is_sorted(z[np.lexsort((z, x))]) and is_sorted(x[np.lexsort((x, z))]) for z in (y, -y))


def is_sorted(values: np.ndarray) -> bool:
    return bool((np.diff(values) >= 0).all())
