"""The time column of a series: texts to seconds, the step between two times, and the calendar as numbers.

Times are int64 seconds since 1970 in the zone that the data are written in, which must be a single one.
"""

import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import numpy as np

DAY, YEAR = 86400, 365.2425 * 86400
FORMATS = ("%b %d %Y", "%b-%d-%Y", "%d %b %Y", "%d-%b-%Y", "%b %Y", "%Y-%m", "%m/%d/%Y", "%d.%m.%Y", "%m/%d/%Y %H:%M")
DECIMAL_YEAR = re.compile(r"([12]\d{3})(\.\d+)")
PERIOD = re.compile(r"(\d{4})[-: ]?([QM])(\d{1,2})", re.IGNORECASE)  # 2024Q1, 2024-M03
QUARTER_FIRST = re.compile(r"Q([1-4])[-/: ]?(\d{4})", re.IGNORECASE)  # Q1 2024
WEEK = re.compile(r"((?:1[89]|2[01])\d\d)[-/ ]?W?(\d{1,2})", re.IGNORECASE)  # 2024-W03, and 202403 in a column of weeks
MONTH_NUMBER = re.compile(r"(1[89]|2[01])\d\d(0[1-9]|1[0-2])")
SEASONS = ((3600, 24), (DAY, 7), (7 * DAY, 52))  # step in seconds -> steps of a season
CALENDAR_FEATURES = 6


def parse_time(value: Any) -> tuple[int, str] | None:
    """Return the seconds of a time and its zone ("" where it has none), or None for what is no time.

    Understands ISO 8601 ("2024-01-31", "2024/01/31 12:00", "2024-01-31T12:00+02:00", "2024-W03"), years, "2024Q1",
    "Q1 2024", "2024M01", "202401", "20240131", "Jan 31 2024", "01/31/2024", "31.01.2024", months as fractions of a year
    as R writes them ("1949.0833"), and seconds since 1970.
    """
    if isinstance(value, date):  # of parquet; a datetime is a date
        moment = value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)
    else:
        moment = _parse_text(str(value).strip())
    if moment is None:
        return None
    zone = moment.isoformat()[len(moment.replace(tzinfo=None).isoformat()) :]
    return round(moment.replace(tzinfo=UTC).timestamp()), zone


def _parse_text(text: str) -> datetime | None:
    with suppress(ValueError, OverflowError, OSError):  # the last two: seconds that no calendar has
        if text.isdecimal():
            if len(text) >= 9:
                return datetime.fromtimestamp(int(text), UTC).replace(tzinfo=None)
            year, month, day = text[:4], text[4:6] or "1", text[6:8] or "1"
            return datetime(int(year), int(month), int(day)) if len(text) in (4, 6, 8) else None
        if match := QUARTER_FIRST.fullmatch(text):
            return datetime(int(match[2]), 3 * int(match[1]) - 2, 1)
        if match := PERIOD.fullmatch(text):
            return datetime(int(match[1]), int(match[3]) * 3 - 2 if match[2] in "Qq" else int(match[3]), 1)
        if match := DECIMAL_YEAR.fullmatch(text):
            months = 12 * float(match[2])
            is_month = abs(months - round(months)) < 0.02 and round(months) < 12
            return datetime(int(match[1]), 1 + round(months), 1) if is_month else None
        with suppress(ValueError):
            return datetime.fromisoformat(text.replace("/", "-") if text[4:5] == "/" else text)
        for pattern in FORMATS:
            with suppress(ValueError):
                return datetime.strptime(text, pattern)
    return None


def format_week(text: str) -> str:
    """Write a week of a year in any form, such as 202403, as ISO 8601 does: 2024-W03. Other texts stay as they are."""
    match = WEEK.fullmatch(text.strip())
    return f"{match[1]}-W{int(match[2]):02d}" if match else text


def format_time(seconds: int) -> str:
    """Format as ISO 8601, midnight as a date."""
    return str(np.datetime64(seconds, "s")).removesuffix("T00:00:00")


def format_times(times: np.ndarray, zone: str = "") -> list[str]:
    """Format as ISO 8601 with their zone; as dates, if all are midnight and have no zone."""
    unit = "D" if not zone and (times % DAY == 0).all() else "s"
    return [f"{text}{zone}" for text in np.datetime_as_string(times.astype("datetime64[s]"), unit)]


@dataclass(frozen=True)
class Frequency:
    """The step of a series: so many months, or seconds; both 0 where there are no times."""

    months: int = 0
    seconds: int = 0
    shift: int = 0
    """Seconds that are added before months are counted: a day where times are the last day of each month."""

    def position(self, times: np.ndarray, start: int) -> np.ndarray:
        """Return at which step each time is, (T,) float; not whole for a time between two steps."""
        if self.months:
            first, months = (_count_months(np.asarray(t) + self.shift) for t in (start, times))
            return (months - first) / self.months
        return (times - start) / self.seconds

    def time(self, start: int, steps: np.ndarray) -> np.ndarray:
        """Return the times of some steps, (T,) seconds."""
        if not self.months:
            return start + steps * self.seconds
        first = _count_months(np.asarray(start + self.shift))
        offset = start + self.shift - _month_start(first)
        return _month_start(first + steps * self.months) + offset - self.shift

    def seasons(self) -> list[int]:
        """Return the steps of a season that this frequency suggests: a day, a week or a year."""
        if self.months:
            return [12 // self.months] if self.months < 12 and 12 % self.months == 0 else []
        if 0 < self.seconds < 3600:
            return [n for n in (3600 // self.seconds, DAY // self.seconds) if n > 1]
        return [n for seconds, n in SEASONS if seconds == self.seconds]


def _count_months(times: np.ndarray) -> np.ndarray:
    return times.astype("datetime64[s]").astype("datetime64[M]").astype(np.int64)


def _month_start(months: np.ndarray) -> np.ndarray:
    return months.astype("datetime64[M]").astype("datetime64[s]").astype(np.int64)


def infer_frequency(times: np.ndarray) -> Frequency:
    """Infer the step from sorted, distinct times (T,): the most frequent one, in months if all are at the same moment
    of a month."""
    for shift in (0, DAY):
        months = _count_months(times + shift)
        if len(set((times + shift - _month_start(months)).tolist())) == 1 and len(times) > 1:
            return Frequency(months=most_frequent(np.diff(months)), shift=shift)
    return Frequency(seconds=most_frequent(np.diff(times)))


def most_frequent(values: np.ndarray) -> int:
    """Return the most frequent value, the smallest of several; 1 if there is none."""
    counts = Counter(values.tolist())
    return min(counts, key=lambda value: (-counts[value], value), default=1)


def calendar_features(times: np.ndarray | None, count: int) -> np.ndarray:
    """Return sine and cosine of the time of day, the weekday and the time of year of each time, (T, 6); zeros for
    `count` steps without times."""
    if times is None:
        return np.zeros((count, CALENDAR_FEATURES), np.float32)
    days = times / DAY
    phases = np.stack([days % 1, days % 7 / 7, times / YEAR % 1], 1) * 2 * np.pi
    return np.concatenate([np.sin(phases), np.cos(phases)], 1).astype(np.float32)
