"""What the columns of a table suggest about its validation: rows that belong together, rows in the order of time.

A suggestion is one line for a person; the split does not change.
"""

from collections.abc import Sequence
from itertools import groupby, pairwise

import numpy as np

from ...events import report_notice
from .columns import INDEX_NAMES, TIME_NAMES, plain_name
from .dates import parse_date
from .schema import Field
from .summary import ColumnSummary, TableSummary

COUNT_NAMES = frozenset(INDEX_NAMES) - {"id"}  # what is called so counts something, or is short for another word
MIN_GROUPS = 3  # different values of a column called id
MIN_BLOCKS = 10  # different values of another column
MIN_MOMENTS = 10  # different times that order the rows


def report_groups(summary: TableSummary, names: Sequence[str], identifiers: Sequence[str]) -> None:
    """Suggest to keep the rows of one value together, of the first of these columns that is an identifier by its name,
    or else by its values."""
    names = [name for name in names if can_be_group(summary.columns[name])]
    named = [name for name in names if name in identifiers and plain_name(name) not in COUNT_NAMES]
    if name := next(iter(named), "") or next((name for name in names if looks_like_group(summary, name)), ""):
        count = f"{summary.columns[name].distinct:,} values in {summary.columns[name].count:,} rows"
        problem = "rows of one value may be in training and in validation"
        hint = f"--group {name} keeps them together, if new ones are to be predicted"
        report_notice(f"{name}: {count}, {problem}: {hint}")


def can_be_group(column: ColumnSummary) -> bool:
    """Whether there are several values, of whole numbers or words, and several rows of each."""
    is_name = not column.numbers or column.is_integer
    return is_name and not column.lists and MIN_GROUPS <= column.distinct <= 0.5 * column.count


def looks_like_group(summary: TableSummary, name: str) -> bool:
    """Whether the rows of each value stand together, the values being words or counted from 0 or 1; or differ in their
    times, which other rows share."""
    column, values = summary.columns[name], summary.values(name)
    is_known = not column.count_when_full and "" not in values
    if column.distinct < MIN_BLOCKS or plain_name(name) in TIME_NAMES or not is_known:
        return False
    blocks = [value for value, _ in groupby(values)]
    if len(blocks) == len(set(blocks)) and (not column.numbers or is_counted([column.numbers[x] for x in blocks])):
        return True
    times = [other for other in summary.columns if plain_name(other) in TIME_NAMES]
    times = [time for time in times if is_repeated(summary.columns[time])]
    return any(len(set(zip(values, summary.values(time)))) == len(values) for time in times)


def is_counted(numbers: Sequence[float]) -> bool:
    return numbers[0] in (0, 1) and all(b - a == 1 for a, b in pairwise(numbers))


def is_repeated(column: ColumnSummary) -> bool:
    return 1 < column.distinct <= 0.5 * column.count


def report_order(summary: TableSummary, fields: Sequence[Field]) -> None:
    """Suggest to validate on the latest rows where the rows are in the order of a time."""
    for field in fields:
        if field.kind != "date" and plain_name(field.name) not in TIME_NAMES:
            continue
        moments = read_moments(summary, field)
        if len(set(moments)) >= MIN_MOMENTS and moments in (sorted(moments), sorted(moments, reverse=True)):
            hint = f"--order {field.name} validates on the latest rows, if the future is to be predicted"
            report_notice(f"{field.name}: the rows are in this order: {hint}")
            return


def read_moments(summary: TableSummary, field: Field) -> list[float]:
    """Return the times of a column in the sample, in the order of the rows, without missing ones."""
    if field.kind == "date":
        moments = (parse_date(text, field.format) for text in summary.values(field.name) if text)
        return [moment for moment in moments if moment is not None]
    numbers = summary.numbers(field.name)
    return numbers[np.isfinite(numbers)].tolist()
