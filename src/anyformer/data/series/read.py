"""Series of numbers from tables: long (a column names the series of each row) or wide (a column is a series).

    long   shop,date,sales,promotion        a row for each series and time
    wide   date,temperature,wind            a row for each time, a series in each column of numbers

A time column is recognized by its name or its values, years with quarters, weeks, or months, days and hours, in columns
of their own too; without one, rows are steps in their order. Rows at the end that lack the value to forecast say what
is known ahead.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from typing import Any, Literal

import numpy as np

from ...errors import InputError, suggest
from ...events import report_notice
from ..tables.columns import TIME_NAMES
from ..tables.read import Table
from .times import MONTH_NUMBER, WEEK, Frequency, format_time, format_week, infer_frequency, parse_time

Gaps = Literal["error", "fill"]
FINE_PARTS = (("day", "day_of_month", "date_of_month", "mday"), ("hour", "hr"))  # of a time, below its month
ID_NAMES = ["id", "unique_id", "series", "series_id", "item_id"]
ROW_NUMBER_NAMES = ["", "1", "unnamed: 0", "rownames", "row.names", "index"]
MIN_STEPS = 8  # of a series that a number names
VALUE_NAMES = ["value", "y", "target"]
MISSING = {"", "na", "n/a", "nan", "null", "none", "-", ".", "?"}


@dataclass(frozen=True)
class Columns:
    """What columns are for: to forecast (none: every other column of numbers), read up to now, known ahead."""

    target: tuple[str, ...] = ()
    past_covariates: tuple[str, ...] = ()
    future_covariates: tuple[str, ...] = ()


@dataclass(frozen=True)
class Series:
    """Numbers at even steps, T of them, and A more steps of what is known ahead."""

    name: str
    values: np.ndarray  # (T,) float64
    past_covariates: np.ndarray  # (T, features)
    future_covariates: np.ndarray  # (T + A, features)
    start: int | None = None  # seconds of the first step; None where steps are only numbered
    is_log: bool = False  # the values are logarithms


@dataclass(frozen=True)
class SeriesTable:
    """The series of one table, which share the step between their times and their zone."""

    series: tuple[Series, ...]
    frequency: Frequency
    zone: str = ""

    def times(self, series: Series, first: int, count: int) -> np.ndarray | None:
        """Return the times of some steps of a series in seconds, or None where there are none."""
        return None if series.start is None else self.frequency.time(series.start, first + np.arange(count))


class RowTable:
    """The cells of a table by column, with the place of each row for messages."""

    def __init__(self, rows: Iterator[tuple[str, dict[str, Any]]], where: str):
        pairs = list(rows)
        self.where, self.places = where, [place for place, _ in pairs]
        names = dict.fromkeys(str(name) for _, row in pairs for name in row)
        self.cells = {name: [row.get(name) for _, row in pairs] for name in names}
        self.numeric: dict[str, bool] = {}  # what `is_numeric` has found out

    def require(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.cells:
                raise InputError(f"{self.where}: there is no column '{name}': {suggest(name, self.cells)}")

    def is_numeric(self, name: str) -> bool:
        """Whether most of the cells that are not missing are numbers."""
        if name not in self.numeric:
            others = [cell for cell in self.cells[name] if parse_number(cell) is None]
            numbers, texts = len(self.places) - len(others), sum(not is_missing(cell) for cell in others)
            self.numeric[name] = numbers > texts
        return self.numeric[name]

    def read_numbers(self, name: str) -> np.ndarray:
        """Return a column as numbers, NaN where a cell is missing. Raises InputError for a text."""
        numbers = np.full(len(self.places), np.nan)
        for i, cell in enumerate(self.cells[name]):
            if (number := parse_number(cell)) is not None:
                numbers[i] = number
            elif not is_missing(cell):
                raise InputError(f"{self.places[i]}: {name} is {str(cell)[:40]!r}; expected a number")
        return numbers


def is_missing(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and cell.strip().lower() in MISSING) or cell != cell


def parse_number(cell: Any) -> float | None:
    """Return a cell as a finite number, or None."""
    try:
        number = float(cell)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) < 1e30 else None


def read_series(table: Table, where: str, columns: Columns, gaps: Gaps) -> SeriesTable:
    """Read the series of a table. Raises InputError, also for gaps unless they are to be filled."""
    rows = RowTable(table.rows(), where)
    rows.require([*columns.target, *columns.past_covariates, *columns.future_covariates])
    time_columns = find_time_columns(rows)
    times, zone = read_times(rows, time_columns)
    ids = find_ids(rows, times, {*time_columns, *columns.target, *columns.past_covariates, *columns.future_covariates})
    taken = {*time_columns, *find_time_parts(rows), *ids, *columns.past_covariates, *columns.future_covariates}
    targets = list(columns.target) or find_targets(rows, taken, is_long=bool(ids))
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(zip(*(rows.cells[column] for column in ids)) if ids else [()] * len(rows.places)):
        groups.setdefault(" ".join(str(part) for part in name), []).append(i)
    numbers = {
        name: rows.read_numbers(name) for name in {*targets, *columns.past_covariates, *columns.future_covariates}
    }
    frequency, grids = place_rows(rows, times, [np.array(group) for group in groups.values()])
    series = [
        build_series(" ".join(filter(None, (group, name if len(targets) > 1 or not group else ""))), numbers, name,
                     columns, grid, frequency)
        for group, grid in zip(groups, grids, strict=True) for name in targets
    ]  # fmt: skip
    table_of_series = SeriesTable(tuple(one_series for one_series in series if len(one_series.values)), frequency, zone)
    if not table_of_series.series:
        raise InputError(f"{where}: {', '.join(targets)}: every value is missing")
    report_empty(rows, [s.name for s in series if not len(s.values)], taken)
    return fill_gaps(table_of_series, where, gaps)


def report_empty(rows: RowTable, names: list[str], taken: set[str]) -> None:
    """Name the series and columns that hold no values and are left out."""
    names = names + [
        name for name, cells in rows.cells.items() if name not in taken and all(map(is_missing, cells)) and not names
    ]
    if names:
        others = f" and {len(names) - 1} others" if len(names) > 1 else ""
        report_notice(f"{rows.where}: '{names[0]}'{others}: every value is missing; left out")


# --- what the columns are ---


def find_time_columns(rows: RowTable) -> list[str]:
    """Return the column of times; several where only their parts are there; none where there is none."""
    texts = [name for name in rows.cells if not rows.is_numeric(name)]
    if parts := find_time_parts(rows):
        return [name for name in texts if looks_like_times(rows, name)][:1] or parts
    lower = {name.lower(): name for name in reversed(rows.cells)}
    numbers = [name for name in rows.cells if name not in texts and holds_months(rows, name)]
    names = [lower[name] for name in (*TIME_NAMES, "obs") if name in lower] + texts + numbers
    return [name for name in names if looks_like_times(rows, name)][:1]


def find_time_parts(rows: RowTable) -> list[str]:
    """Return the columns of years with quarters, weeks, or months and maybe days and hours; else none."""
    lower = {name.lower(): name for name in reversed(rows.cells) if rows.is_numeric(name)}
    part = lower.get("quarter") or lower.get("month") or lower.get("week")
    if "year" not in lower or not part:
        return []
    fine = [next((lower[name] for name in names if name in lower), "") for names in FINE_PARTS]
    return [lower["year"], part, *takewhile(bool, fine if part.lower() == "month" else [])]


def looks_like_times(rows: RowTable, name: str) -> bool:
    cells = list(islice((cell for cell in read_time_cells(rows, [name]) if not is_missing(cell)), 20))
    return 2 * sum(parse_time(cell) is not None for cell in cells) > len(cells)


def holds_months(rows: RowTable, name: str) -> bool:
    """Whether numbers are months such as 202401, or weeks."""
    return holds_weeks(rows, name) or all(MONTH_NUMBER.fullmatch(str(cell)) for cell in rows.cells[name])


def holds_weeks(rows: RowTable, name: str) -> bool:
    """Whether a column is called after weeks and holds such as 202403."""
    words = re.split(r"[^a-z]+|(?<=year)", name.lower())
    return not {"week", "weeks", "wk"}.isdisjoint(words) and all(
        WEEK.fullmatch(str(x).strip()) for x in rows.cells[name]
    )


def read_time_cells(rows: RowTable, names: list[str]) -> list[Any]:
    """Return the times of the rows as their column has them; weeks, and times in several columns, in ISO 8601."""
    if len(names) == 1:
        cells = rows.cells[names[0]]
        return [format_week(str(cell)) for cell in cells] if holds_weeks(rows, names[0]) else cells
    form = {"quarter": "{:04d}Q{}", "week": "{:04d}-W{:02d}"}.get(names[1].lower(), "{:04d}-{:02d}-{:02d}T{:02d}")
    parts = zip(*(rows.cells[name] for name in names), strict=True)
    return [form.format(*(int(parse_number(part) or 0) for part in row), *(1, 0)[len(row) - 2 :]) for row in parts]


def read_times(rows: RowTable, names: list[str]) -> tuple[np.ndarray | None, str]:
    """Return the seconds of each row and the zone. Raises InputError for what is no time, and for several zones."""
    if not names:
        return None, ""
    seconds, zone, cells = np.zeros(len(rows.places), np.int64), None, read_time_cells(rows, names)
    texts = {text: parse_time(text) for text in {cell for cell in cells if isinstance(cell, str)}}  # of many series
    for i, (place, cell) in enumerate(zip(rows.places, cells, strict=True)):
        parsed = texts[cell] if isinstance(cell, str) else parse_time(cell)
        if parsed is None:
            raise InputError(f"{place}: {names[0]} is {cell!r}; expected a time such as 2024-01-31 or 2024-01-31T12:00")
        zone = parsed[1] if zone is None else zone
        if parsed[1] != zone:
            zones = " and ".join(repr(name or "no zone") for name in (zone, parsed[1]))
            raise InputError(f"{place}: times of several zones, {zones}: write all of them in one zone")
        seconds[i] = parsed[0]
    return seconds, zone or ""


def find_ids(rows: RowTable, times: np.ndarray | None, taken: set[str]) -> list[str]:
    """Return the columns that name the series of a row: of the texts, the first that makes times unique, or all; else
    the first whole numbers of few values that do, such as those of shops and their departments."""
    by_name = [name for name in rows.cells if name.lower() in ID_NAMES and name not in taken]
    others = [name for name in rows.cells if name not in taken and name not in by_name]
    texts = by_name + [name for name in others if not rows.is_numeric(name)]
    if times is None or len(set(times.tolist())) == len(times):
        return by_name

    def is_unique(names: list[str]) -> bool:
        return len(set(zip(times.tolist(), *(map(str, rows.cells[name]) for name in names)))) == len(times)

    numbers = [name for name in others if name not in texts and is_id_number(rows, name)]
    groups = [[name] for name in texts] + [numbers[:count] for count in range(1, len(numbers) + 1)]
    return next((names for names in groups if is_unique(names)), texts)


def is_id_number(rows: RowTable, name: str) -> bool:
    """Whether whole numbers repeat so often that each may name a series."""
    cells = rows.cells[name]
    return MIN_STEPS * len(set(cells)) <= len(cells) and all(str(cell).strip().isdecimal() for cell in cells)


def find_targets(rows: RowTable, taken: set[str], is_long: bool) -> list[str]:
    """Return the columns of numbers, or in a long table the one that is called `value`. Raises InputError."""
    names = [n for n in rows.cells if n not in taken and rows.is_numeric(n) and not is_row_number(rows, n)]
    values = [name for name in names if name.lower() in VALUE_NAMES]
    if not names:
        held = ", ".join(rows.cells)
        raise InputError(f"{rows.where}: no column holds numbers to forecast: the columns are {held}")
    return values[:1] if is_long and values else names


def is_row_number(rows: RowTable, name: str) -> bool:
    """Whether a column numbers the rows, as R and pandas write them."""
    if name.lower() not in ROW_NUMBER_NAMES:
        return False
    numbers = [parse_number(cell) for cell in rows.cells[name]]
    return numbers in (list(range(len(numbers))), list(range(1, len(numbers) + 1)))


# --- rows to even steps ---


def place_rows(
    rows: RowTable, times: np.ndarray | None, groups: list[np.ndarray]
) -> tuple[Frequency, list[tuple[np.ndarray, np.ndarray, int | None]]]:
    """Return the step of the series, and for the rows (N,) of each: the rows in order of time, the step of each of
    them, and the seconds of step 0. Raises InputError for a time that appears twice or lies between two steps."""
    if times is None:
        return Frequency(), [(group, np.arange(len(group)), None) for group in groups]
    groups = [group[np.argsort(times[group], kind="stable")] for group in groups]
    for group in groups:
        if len(twice := np.flatnonzero(np.diff(times[group]) == 0)):
            first, second = (rows.places[group[twice[0] + i]] for i in (0, 1))
            text = format_time(int(times[group[twice[0]]]))
            raise InputError(f"{second}: the time {text} is also that of {first}: a series has one value for each time")
    frequency = infer_frequency(times[max(groups, key=len)])
    placed = []
    for group in groups:
        steps = frequency.position(times[group], int(times[group[0]]))
        if len(uneven := np.flatnonzero(steps != np.round(steps))):
            place, step = rows.places[group[uneven[0]]], describe_step(frequency)
            raise InputError(f"{place}: the times are not even steps: most are {step} apart, and this one is between")
        if steps[-1] > 1000 + 100 * len(rows.places):
            raise InputError(f"{rows.places[group[-1]]}: the times leave most of {int(steps[-1]):,} steps empty")
        placed.append((group, steps.astype(np.int64), int(times[group[0]])))
    return frequency, placed


def describe_step(frequency: Frequency) -> str:
    n, unit = (frequency.months, "months") if frequency.months else (frequency.seconds, "seconds")
    return f"{n} {unit}"


def build_series(
    name: str,
    numbers: dict[str, np.ndarray],
    target: str,
    columns: Columns,
    grid: tuple[np.ndarray, np.ndarray, int | None],
    frequency: Frequency,
) -> Series:
    """Put the rows of one series on even steps, from its first value on. What is missing is NaN."""
    group, steps, start = grid

    def spread(column: str) -> np.ndarray:
        values = np.full(int(steps[-1]) + 1, np.nan)
        values[steps] = numbers[column][group]
        return values

    values = spread(target)
    present = np.flatnonzero(~np.isnan(values))
    first, end = (int(present[0]), int(present[-1]) + 1) if len(present) else (0, 0)
    past_covariates, future_covariates = (
        np.stack([spread(column) for column in group_columns], 1) if group_columns else np.zeros((len(values), 0))
        for group_columns in (columns.past_covariates, columns.future_covariates)
    )
    start = None if start is None else int(frequency.time(start, np.array([first]))[0])
    return Series(name, values[first:end], past_covariates[first:end], future_covariates[first:], start)


def fill_gaps(table: SeriesTable, where: str, gaps: Gaps) -> SeriesTable:
    """Repeat the last value where one is missing. Raises InputError if there are gaps and `gaps` is "error"."""
    counts = [
        int(sum(np.isnan(a).sum() for a in (s.values, s.past_covariates, s.future_covariates))) for s in table.series
    ]
    if not sum(counts):
        return table
    if gaps == "error":
        series = table.series[int(np.argmax(np.array(counts) > 0))]
        step = int(np.argmax(np.isnan(series.values)))
        times = table.times(series, step, 1)
        place = f"step {step}" if times is None else format_time(int(times[0]))
        raise InputError(
            f"{where}: {sum(counts):,} values are missing, the first in the series '{series.name}' at {place}: "
            "complete them, or repeat the last value with --gaps fill"
        )
    names = ("values", "past_covariates", "future_covariates")
    filled = (replace(s, **{name: forward_fill(getattr(s, name)) for name in names}) for s in table.series)
    return replace(table, series=tuple(filled))


def forward_fill(values: np.ndarray) -> np.ndarray:
    """Replace each NaN of (T, ...) by the last number before it in its column, at the start by the first, else 0."""
    columns = values.reshape(len(values), -1).copy()
    for column in columns.T:
        present = np.flatnonzero(~np.isnan(column))
        if len(present):
            last = np.searchsorted(present, np.arange(len(column)), "right") - 1
            column[:] = column[present[np.maximum(last, 0)]]
        else:
            column[:] = 0
    return columns.reshape(values.shape)
