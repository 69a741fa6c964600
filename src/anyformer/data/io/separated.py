"""Separated values as people have them: the delimiter, a first line without names and decimal commas are recognized.

sepal,petal,species     also with ; tab or |
"GPA"  "TUCE"           runs of spaces, where some column holds numbers
"GPA" "TUCE"            names for all columns but the first, which holds those of the rows, as R writes tables
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...events import report_notice

DELIMITERS = ("\t", ";", "|", ",")  # in this order where several fit: a comma also occurs in texts and in numbers
SPACES = " "  # runs of spaces and tabs between the values
MIN_SHARE = 0.9  # of the rows that have equally many values in a table
ROW_NAMES = "row"  # the name of a first column that has none
SAMPLE_CHARS, SAMPLE_ROWS = 64 << 10, 200  # that are looked at
USUAL_NAMES = frozenset(("text", "label", "path", "source", "target", "split", "id", "class", "sentence", "name"))
NUMBER = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?")
DECIMAL_COMMA = re.compile(r"[+-]?(\d{1,3}(\.\d{3})+|\d+)(,\d+)?([eE][+-]?\d+)?")  # 1.234,5
YEAR = re.compile(r"(1[89]|2[01])\d\d")
MAX_NAME_CHARS, MIN_SENTENCE_WORDS = 60, 5

Cells = tuple[int, list[str]]  # the line on which a row ends, and its values


def read_separated(
    text: str, path: Path, delimiter: str | None = None, quoting: Any = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) of every line below the names. Columns without names are numbered: "1", "2", ...

    Args:
        path: for messages.
        delimiter: None to recognize it.
        quoting: of the csv module; None to recognize it.
    """
    delimiter = guess_delimiter(text) if delimiter is None else delimiter
    quoting = guess_quoting(text, delimiter) if quoting is None else quoting
    rows = split_rows(text, delimiter, quoting, path)
    if not (sample := list(islice(rows, SAMPLE_ROWS))):
        return
    names, has_names = name_columns([cells for _, cells in sample])
    if duplicates := [name for i, name in enumerate(names) if name in names[:i]]:
        raise InputError(f"{path}, line {sample[0][0]}: two columns are named '{duplicates[0]}': rename one")
    if not has_names:
        report_notice(f"{path}: the first line holds no names: the columns are numbered, 1 to {len(names)}")
    commas = find_decimal_commas(split_rows(text, delimiter, quoting, path), has_names) if delimiter == ";" else set()
    for line, cells in chain(sample[has_names:], rows):
        where = f"{path}, line {line}"
        if len(cells) > len(names):
            raise InputError(f"{where}: has more columns than the header: quote what holds a {delimiter!r}")
        values = (to_decimal_point(cell) if i in commas else cell for i, cell in enumerate(cells))
        yield where, dict.fromkeys(names) | dict(zip(names, values))


def name_columns(rows: Sequence[Sequence[str]]) -> tuple[list[str], bool]:
    """Return the names of the columns, given the first rows, and whether the first row holds them."""
    first, *others = rows
    if not is_header(first, others):
        return [str(i) for i in range(1, max(map(len, rows)) + 1)], False
    names = [name.strip() or str(i) for i, name in enumerate(first, 1)]
    return ([ROW_NAMES, *names] if lacks_row_name(rows) else names), True


def lacks_row_name(rows: Sequence[Sequence[str]]) -> bool:
    """Whether every row but the first has one value more than the first."""
    return len(rows) > 2 and len(rows[0]) > 1 and all(len(row) == len(rows[0]) + 1 for row in rows[1:])


def split_rows(text: str, delimiter: str, quoting: Any, path: Path) -> Iterator[Cells]:
    reader = read_cells(io.StringIO(text, newline=""), delimiter, quoting, guess_quotechar(text))
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from None


def read_cells(lines: Iterable[str], delimiter: str, quoting: Any, quotechar: str = '"') -> Any:
    """Return a csv.reader of lines."""
    lines = (" ".join(line.split()) for line in lines) if delimiter == SPACES else lines
    return csv.reader(lines, delimiter=delimiter, quoting=quoting, quotechar=quotechar)


def guess_quotechar(text: str) -> str:
    """Return the quotation mark of a table: a single one where all names are between such."""
    first = text[:SAMPLE_CHARS].lstrip().partition("\n")[0].strip()
    return "'" if len(first) > 1 and first[0] == first[-1] == "'" else '"'


def guess_delimiter(text: str) -> str:
    """Return the delimiter that gives the most rows of the sample as many values, at least two; a comma if none does.

    SPACES are the delimiter only of rows with numbers that no other one divides: texts have spaces too.
    """
    samples = {delimiter: sample_rows(text, delimiter, csv.QUOTE_MINIMAL) for delimiter in DELIMITERS}
    scores = {delimiter: score_widths(rows) for delimiter, rows in samples.items()}
    best = max(DELIMITERS, key=scores.__getitem__)  # the first of equal ones
    if scores[best] < MIN_SHARE:
        rows = sample_rows(text, SPACES, csv.QUOTE_MINIMAL)
        if score_widths(rows) == 1 and any(all(map(is_number, column)) for column in zip(*rows[1:])):
            return SPACES
    return best if scores[best] else ","


def guess_quoting(text: str, delimiter: str) -> Any:
    """Return csv.QUOTE_NONE for a table with tabs or bars in which quotation marks are part of the texts."""
    scores = {
        quoting: score_widths(sample_rows(text, delimiter, quoting)) for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE)
    }
    is_literal = delimiter in "\t|" and scores[csv.QUOTE_NONE] > scores[csv.QUOTE_MINIMAL]
    is_literal |= delimiter in "\t|" and holds_open_quotes(text, delimiter)
    return csv.QUOTE_NONE if is_literal else csv.QUOTE_MINIMAL


def holds_open_quotes(text: str, delimiter: str) -> bool:
    """Whether every line has as many values as the first, and some value starts with a quotation mark that its line
    does not close: those are parts of texts."""
    lines, opened = text.rstrip("\n").split("\n"), f'{delimiter}"'
    if len({line.count(delimiter) for line in lines}) != 1:
        return False
    values = (
        value for line in lines if opened in line or line[:1] == '"' for value in line.rstrip("\r").split(delimiter)
    )
    return any(value[:1] == '"' and value.count('"') % 2 for value in values)


def sample_rows(text: str, delimiter: str, quoting: Any) -> list[list[str]]:
    """Return the first rows that are complete; none where they cannot be split."""
    sample = text[:SAMPLE_CHARS]
    if len(sample) < len(text):
        sample = sample[: sample.rfind("\n") + 1] or sample
    try:
        return [cells for _, cells in islice(split_rows(sample, delimiter, quoting, Path()), SAMPLE_ROWS)]
    except InputError:
        return []


def score_widths(rows: Sequence[Sequence[str]]) -> float:
    """Return the share of the rows that have as many values as the first, at least two."""
    if not rows or len(rows[0]) < 2:
        return 0.0
    return 1.0 if lacks_row_name(rows) else Counter(map(len, rows))[len(rows[0])] / len(rows)


def is_number(cell: str) -> bool:
    return bool(NUMBER.fullmatch(cell.strip()))


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
    is_long = any(len(cell.split()) > 2 or "," in cell for cell in cells)
    if is_long and len(cells) == 2 and all(count_words(values) > 1 for values in columns):
        return False  # pairs of texts, whose names have few words
    return not any(resembles(cell, values) for cell, values in zip(cells, columns))


def count_words(values: Sequence[str]) -> int:
    """Return the median of the words of each value; 0 without values."""
    return sorted(len(value.split()) for value in values)[len(values) // 2] if values else 0


def names_year(cell: str, values: Sequence[str]) -> bool:
    return bool(YEAR.fullmatch(cell)) and not all(map(YEAR.fullmatch, values))


def resembles(cell: str, values: Sequence[str]) -> bool:
    """Whether a text is of the kind of the others: one of them, a sentence, about as long as they are, or a file name
    with the same ending."""
    ending = Path(cell).suffix
    is_file = bool(ending) and " " not in ending and all(Path(value).suffix == ending for value in values)
    is_sentence = len(cell) > MAX_NAME_CHARS or (" " in cell and cell.endswith((".", "!", "?")))
    pattern = mask_digits(cell)
    is_file |= pattern != cell and bool(values) and all(mask_digits(value) == pattern for value in values)
    words, usual = len(cell.split()), count_words(values)
    is_sentence |= words >= MIN_SENTENCE_WORDS and 2 * words > usual
    return bool(cell) and (cell in values or is_sentence or (bool(values) and is_file))


def mask_digits(cell: str) -> str:
    return re.sub(r"\d", "0", cell)


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
