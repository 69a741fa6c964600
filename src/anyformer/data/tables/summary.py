"""What the values of a column have in common, collected in one pass over the rows of a table in bounded memory."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from .encode import category_name, parse_array
from .number_formats import DECIMALS, Decimal, is_code, read_number, read_text
from .read import Table, is_missing

MAX_DISTINCT = 20_000  # values of a column that are told apart
MAX_TOTAL_DISTINCT = 2_000_000  # of all columns
MAX_NAME_CHARS = 200  # longer texts are cut
SAMPLE_ROWS = 10_000  # kept to compare columns with each other
MIN_FILE_SHARE = 0.8  # of different values that are names of files
MAX_WORDS = 20  # different texts that a column of numbers or dates may hold, each a missing value


@dataclass
class ColumnSummary:
    """The values of a column that are not missing."""

    name: str
    limit: int = MAX_DISTINCT
    count: int = 0
    counts: Counter[str] = field(default_factory=Counter)  # of the first values that differ, up to the limit
    count_when_full: int = 0  # values that had been seen when the limit was reached; 0 where it was not
    extra_words: Counter[str] = field(default_factory=Counter)  # beyond the limit: what is no number
    lists: int = 0
    lengths: set[int] = field(default_factory=set)  # of the texts and lists
    item_shape: tuple[int, ...] = ()  # of a list, without its first axis
    extensions: Counter[str] = field(default_factory=Counter)  # of different file names; "" for other texts

    def add(self, value: Any) -> None:
        self.count += 1
        if self._add_list(value):
            return
        name = category_name(value)[:MAX_NAME_CHARS]
        if name in self.counts:
            self.counts[name] += 1
            return
        if len(self.counts) < self.limit:
            self.counts[name] = 1
        else:
            self.count_when_full = self.count_when_full or self.count - 1
            if (name in self.extra_words or len(self.extra_words) <= MAX_WORDS) and read_number(name) is None:
                self.extra_words[name] += 1
        if isinstance(value, str):
            self.lengths.add(len(value))
            self.extensions[value[value.rfind(".") :].lower() if "." in value[-6:] else ""] += 1

    def names_files(self, extensions: Sequence[str]) -> bool:
        """Whether the values are files with these extensions; a few others are mistakes, which their reader names."""
        return sum(self.extensions[ending] for ending in extensions) > MIN_FILE_SHARE * self.extensions.total()

    def _add_list(self, value: Any) -> bool:
        """Add a list of numbers. Returns False for other values, among them texts in brackets."""
        is_text = isinstance(value, str)
        if not isinstance(value, list | np.ndarray) and not (is_text and value.lstrip().startswith("[")):
            return False
        try:
            array = parse_array(value, Path())
        except InputError:
            if is_text:
                return False
            raise
        if not array.ndim:
            return False
        self.lists, self.item_shape = self.lists + 1, array.shape[1:]
        self.lengths.add(len(array))
        return True

    @property
    def is_list(self) -> bool:
        return self.lists == self.count

    @property
    def distinct(self) -> int:
        """The number of different values, up to the limit."""
        return len(self.counts)

    @property
    def share_of_distinct(self) -> float:
        """Different values per value: 1 where no value is repeated."""
        return self.distinct / max(1, self.count_when_full or self.count)

    def count_texts(self, texts: Sequence[str]) -> int:
        """Return how many values are one of these texts."""
        return sum(self.counts[text] + self.extra_words[text] for text in texts)

    def share_of_frequent(self, at_least: int) -> float:
        """Return which part of the values occur so many times."""
        return sum(n for n in self.counts.values() if n >= at_least) / max(1, self.count)

    @cached_property
    def decimal(self) -> Decimal:
        """What separates the fractions of its numbers: the character that fits more of the values."""
        fits = {d: sum(read_text(name, d) is not None for name in self.counts) for d in DECIMALS}
        return "," if fits[","] > fits["."] else "."

    @cached_property
    def numbers(self) -> dict[str, float]:
        """The values that are numbers, by their texts; none where they are codes such as 02139, or true and false."""
        if any(map(is_code, self.counts)):
            return {}
        numbers = {name: read_number(name, self.decimal) for name in self.counts}
        return {name: number for name, number in numbers.items() if number is not None}

    @cached_property
    def words(self) -> list[str]:
        """The values that are no numbers."""
        return [*(name for name in self.counts if name not in self.numbers), *self.extra_words]

    @property
    def is_integer(self) -> bool:
        return not self.words and all(number % 1 == 0 for number in self.numbers.values())

    @property
    def words_per_text(self) -> float:
        return sum(n * len(name.split()) for name, n in self.counts.items()) / max(1, sum(self.counts.values()))


@dataclass
class TableSummary:
    """The columns of a table, and its first rows."""

    columns: dict[str, ColumnSummary] = field(default_factory=dict)
    rows: int = 0
    sample: list[dict[str, Any]] = field(default_factory=list)

    def values(self, name: str) -> list[str]:
        """Return the texts of a column in the sample, "" where a value is missing."""
        cells = (row.get(name) for row in self.sample)
        return ["" if is_missing(cell) else category_name(cell)[:MAX_NAME_CHARS] for cell in cells]

    def numbers(self, name: str) -> np.ndarray:
        """Return the numbers of a column in the sample, (N,), NaN where there is none."""
        numbers = self.columns[name].numbers
        return np.array([numbers.get(text, np.nan) for text in self.values(name)])


def summarize(table: Table) -> TableSummary:
    """Read all rows of a table once. Raises InputError, with the place."""
    summary = TableSummary()
    for place, row in table.rows():
        summary.rows += 1
        for name, value in row.items():
            if name not in summary.columns:
                limit = max(500, min(MAX_DISTINCT, MAX_TOTAL_DISTINCT // len(row)))
                summary.columns[name] = ColumnSummary(name, limit)
            try:
                if not is_missing(value):
                    summary.columns[name].add(value)
            except InputError as error:
                raise InputError(f"{place}, {name}: {error}") from None
        if summary.rows <= SAMPLE_ROWS:
            summary.sample.append({k: v for k, v in row.items() if not isinstance(v, list | np.ndarray)})
    return summary
