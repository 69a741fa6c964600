"""Separated values as people have them: the delimiter, a first line without names and decimal commas are recognized."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...events import report_notice

DELIMITERS = ("\t", ";", "|", ",")  # in this order where several fit: a comma also occurs in texts and in numbers
SAMPLE_CHARS, SAMPLE_ROWS = 64 << 10, 200  # that are looked at
USUAL_NAMES = frozenset(("text", "label", "path", "source", "target", "split", "id", "class", "sentence", "name"))
NUMBER = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?")
DECIMAL_COMMA = re.compile(r"[+-]?(\d{1,3}(\.\d{3})+|\d+)(,\d+)?([eE][+-]?\d+)?")  # 1.234,5
YEAR = re.compile(r"(1[89]|2[01])\d\d")
MAX_NAME_CHARS = 60

Cells = tuple[int, list[str]]  # the line on which a row ends, and its values


def read_separated(
    text: str, path: Path, delimiter: str | None = None, quoting: Any = csv.QUOTE_MINIMAL
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) of every line below the names. Columns without names are numbered: "1", "2", ...

    Args:
        path: for messages.
        delimiter: None to recognize it.
        quoting: of the csv module.
    """
    delimiter = guess_delimiter(text) if delimiter is None else delimiter
    rows = split_rows(text, delimiter, quoting, path)
    if not (sample := list(islice(rows, SAMPLE_ROWS))):
        return
    first, *others = sample
    if has_names := is_header(first[1], [cells for _, cells in others]):
        names = [name.strip() or str(i) for i, name in enumerate(first[1], 1)]
        if duplicates := [name for i, name in enumerate(names) if name in names[:i]]:
            raise InputError(f"{path}, line {first[0]}: two columns are named '{duplicates[0]}': rename one")
    else:
        names = [str(i) for i in range(1, max(len(cells) for _, cells in sample) + 1)]
        report_notice(f"{path}: the first line holds no names: the columns are numbered, 1 to {len(names)}")
    commas = find_decimal_commas(split_rows(text, delimiter, quoting, path), has_names) if delimiter == ";" else set()
    for line, cells in chain(others if has_names else sample, rows):
        where = f"{path}, line {line}"
        if len(cells) > len(names):
            raise InputError(f"{where}: has more columns than the header: quote what holds a {delimiter!r}")
        values = (to_decimal_point(cell) if i in commas else cell for i, cell in enumerate(cells))
        yield where, dict.fromkeys(names) | dict(zip(names, values))


def split_rows(text: str, delimiter: str, quoting: Any, path: Path) -> Iterator[Cells]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from None


def guess_delimiter(text: str) -> str:
    """Return the delimiter that gives the most rows of the sample as many values as the first row, at least two."""
    sample = text[:SAMPLE_CHARS]
    if len(sample) < len(text):
        sample = sample[: sample.rfind("\n") + 1] or sample

    def score(delimiter: str) -> float:
        try:
            rows = [cells for _, cells in islice(split_rows(sample, delimiter, csv.QUOTE_MINIMAL, Path()), SAMPLE_ROWS)]
        except InputError:
            return 0.0
        if not rows or len(rows[0]) < 2:
            return 0.0
        return sum(len(cells) == len(rows[0]) for cells in rows) / len(rows)

    best = max(DELIMITERS, key=score)  # the first of equal ones
    return best if score(best) else ","


def is_header(first: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row holds names, and no values such as those below it.

    It holds values if some column holds numbers, the first row too (not a year: tables have a column for each), or if,
    in a table of texts only, a text looks like those below it.
    """
    cells = [cell.strip() for cell in first]
    counts = [[str(i) for i in range(start, start + len(cells))] for start in (0, 1)]
    if any(cell.lower() in USUAL_NAMES for cell in cells) or (len(cells) > 2 and cells in counts):
        return True
    columns = [[row[i].strip() for row in rows if i < len(row) and row[i].strip()] for i in range(len(cells))]
    are_numbers = [bool(values) and all(map(NUMBER.fullmatch, values)) for values in columns]
    if any(are_numbers):
        numeric = [(cell, values) for cell, values, is_number in zip(cells, columns, are_numbers) if is_number]
        return not any(NUMBER.fullmatch(cell) and not names_year(cell, values) for cell, values in numeric)
    if not rows:
        return not any(NUMBER.fullmatch(cell) for cell in cells)
    return not any(resembles(cell, values) for cell, values in zip(cells, columns))


def names_year(cell: str, values: Sequence[str]) -> bool:
    return bool(YEAR.fullmatch(cell)) and not all(map(YEAR.fullmatch, values))


def resembles(cell: str, values: Sequence[str]) -> bool:
    """Whether a text is of the kind of the others: one of them, a sentence, or a file name with the same ending."""
    ending = Path(cell).suffix
    is_file = bool(ending) and " " not in ending and all(Path(value).suffix == ending for value in values)
    is_sentence = len(cell) > MAX_NAME_CHARS or (" " in cell and cell.endswith((".", "!", "?")))
    return bool(cell) and (cell in values or is_sentence or (bool(values) and is_file))


def find_decimal_commas(rows: Iterator[Cells], has_names: bool) -> set[int]:
    """Return the indices of the columns of numbers of which some have a decimal comma: at least four of five values are
    such numbers, and none is a number with a point only."""
    counts: dict[int, list[int]] = {}  # of a column: its values, numbers, those with a comma, those with a point only
    for _, cells in islice(rows, int(has_names), None):
        for i, cell in enumerate(map(str.strip, cells)):
            if cell:
                is_number = bool(DECIMAL_COMMA.fullmatch(cell))
                facts = (True, is_number, is_number and "," in cell, not is_number and bool(NUMBER.fullmatch(cell)))
                counts[i] = [a + b for a, b in zip(counts.get(i, [0] * 4), facts)]
    return {i for i, (n, numbers, commas, points) in counts.items() if commas and not points and numbers >= 0.8 * n}


def to_decimal_point(cell: str) -> str:
    """Write a number with a decimal comma with a point; other texts are returned as they are."""
    text = cell.strip()
    return text.replace(".", "").replace(",", ".") if DECIMAL_COMMA.fullmatch(text) else cell
