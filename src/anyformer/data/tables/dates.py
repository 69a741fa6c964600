"""Dates and times of a table: the format of a column, and the numbers that a moment becomes.

A moment is its position in time and those of its parts that vary: the year, the month, the day of the week (one of 12
and of 7), and the time of day (a point on a circle, with its first harmonic).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from typing import Any, Literal

import numpy as np

from ..series.times import DAY, YEAR, parse_time

Part = Literal["year", "month", "weekday", "hour"]
PART_SIZES: Mapping[Part, int] = {"year": 1, "month": 12, "weekday": 7, "hour": 4}
CLOCKS = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
NUMERIC = {"/": ("%m/%d/", "%d/%m/"), "-": ("%d-%m-", "%m-%d-"), ".": ("%d.%m.", "%m.%d.")}  # the usual order first
FORMATS = (
    *("%d %B %Y", "%B %d, %Y", "%b %d, %Y", "%B %d %Y", "%d-%b-%y", "%d %b %y", "%B %Y", "%b-%y", "%b-%Y", "%b %y"),
    *("%a, %d %b %Y %H:%M:%S", "%a %b %d %H:%M:%S %Y", "%b %d, %Y %H:%M", "%H:%M", "%H:%M:%S", "%I:%M %p"),
)
MONTHS = ("%m/%Y", "%m/%y")
MAX_LENGTH = 40  # of the text of a date
SAMPLE, TRIALS = 200, 8  # values by which a format is chosen, and the first of them


def parse_date(value: Any, pattern: str = "") -> float | None:
    """Return the seconds since 1970 of a date, or None for what is none.

    Args:
        pattern: The format, as strptime understands it; "" for all that `series.times.parse_time` reads.
    """
    if not pattern or isinstance(value, date):
        parsed = parse_time(value)
        return None if parsed is None else float(parsed[0])
    with suppress(ValueError, OverflowError):
        seconds = datetime.strptime(str(value).strip(), pattern).replace(tzinfo=UTC).timestamp()
        return seconds % DAY if pattern[:2] in ("%H", "%I") else seconds  # a time of day without a date
    return None


def find_format(texts: Sequence[str], may_lack_days: bool = False) -> str | None:
    """Return the format that most of some texts have, at least nine of ten; None where there is none.

    Where days and months could be either way round, as in 01/02/2024, the usual order for the separator is taken.

    Args:
        may_lack_days: Whether 1/86 is a month.
    """
    sample = texts[:SAMPLE]
    if not sample or max(map(len, sample)) > 2 * MAX_LENGTH or not any(map(str.isdigit, "".join(sample))):
        return None

    def count(pattern: str, texts: Sequence[str]) -> int:
        return sum(parse_date(text, pattern) is not None for text in texts)

    patterns = [*_list_formats(sample), *(MONTHS if may_lack_days else ())]
    patterns = patterns if _is_order_of_numbers_open(sample) else ["", *patterns]
    likely = [pattern for pattern in patterns if count(pattern, sample[:TRIALS]) > 0.5 * len(sample[:TRIALS])]
    best = max(likely, key=lambda pattern: count(pattern, sample), default=None)
    return best if best is not None and count(best, sample) >= 0.9 * len(sample) else None


def _is_order_of_numbers_open(sample: Sequence[str]) -> bool:
    """Whether the texts have days and months as numbers in front of the year: `parse_time` knows one order only."""
    return sum(text[1:3].strip("0123456789")[:1] in NUMERIC and text[:1].isdigit() for text in sample) > len(sample) / 2


def _list_formats(sample: Sequence[str]) -> Iterator[str]:
    """Yield the formats that may fit."""
    for separator, orders in NUMERIC.items():
        if sum(text.count(separator) >= 2 for text in sample) >= len(sample) / 2:
            yield from (f"{order}{year}{clock}" for order in orders for year in ("%Y", "%y") for clock in CLOCKS)
    yield from FORMATS


def is_order_open(texts: Sequence[str], pattern: str) -> bool:
    """Whether texts could as well have day and month the other way round."""
    first, second = pattern[:2], pattern[3:5]
    if {first, second} != {"%d", "%m"}:
        return False
    swapped = f"{second}{pattern[2]}{first}{pattern[5:]}"
    return all(parse_date(text, swapped) is not None for text in texts)


def find_parts(seconds: np.ndarray) -> tuple[Part, ...]:
    """Return the parts of some moments, (N,), that vary. Where all have the same day of the month, as in monthly data,
    the day of the week says nothing."""
    moments = seconds.astype("datetime64[s]")
    days, months = moments.astype("datetime64[D]"), moments.astype("datetime64[M]")
    values: dict[Part, np.ndarray] = {
        "year": moments.astype("datetime64[Y]"),
        "month": months.astype(np.int64) % 12,
        "weekday": days.astype(np.int64) % 7,
        "hour": seconds.astype(np.int64) % DAY // 3600,
    }
    varied: list[Part] = [part for part in values if len(np.unique(values[part])) > 1]
    has_days = len(np.unique((days - months.astype("datetime64[D]")).astype(np.int64))) > 3
    return tuple(part for part in varied if part != "weekday" or has_days)


def count_numbers(parts: Sequence[Part]) -> int:
    return 1 + sum(PART_SIZES[part] for part in parts)


def encode_moment(seconds: float, parts: Sequence[Part]) -> np.ndarray:
    """Return the position in time, in years since 1970, and the numbers of the parts, (count_numbers(parts),)."""
    moment = np.datetime64(math.floor(seconds), "s")
    numbers = [np.array([seconds / YEAR])]
    month = int(moment.astype("datetime64[M]").astype(np.int64))
    for part in parts:
        if part == "year":
            numbers.append(np.array([1970 + month // 12]))
        elif part == "month":
            numbers.append(np.eye(12)[month % 12])
        elif part == "weekday":
            numbers.append(np.eye(7)[int(seconds // DAY) % 7])
        else:
            phase = 2 * np.pi * (seconds % DAY) / DAY * np.array([1, 2])
            numbers.append(np.concatenate([np.sin(phase), np.cos(phase)]))
    return np.concatenate(numbers).astype(np.float32)
