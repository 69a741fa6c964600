"""Rows of tables, and tables that list files: csv, tsv, jsonl, json or parquet with columns such as path and text.

    clips.csv      path,text                         a header, then a line for each file; also with ; tab, | or spaces
    clips.tsv      the same with tabs
    clips.jsonl    {"path": "a.wav", "text": "..."}  an object in each line
    clips.json     [{"path": "a.wav"}, ...]          a list of objects, or an object that holds one
    clips.parquet  columns path and text             (needs pyarrow)

Relative paths start from the folder of the table. Each of these may be compressed. In a table without a header the
columns are taken in the order in which they are asked for.
"""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...confinement import check_confined
from ...errors import InputError, suggest
from ...parsing import show_value
from .checks import parse_json
from .encodings import explain_encoding
from .files import open_data, read_start, suffix
from .parquet import read_parquet_table
from .regular_file import read_bounded
from .separated import MIN_SHARE, guess_delimiter, guess_quoting, read_separated, sample_rows, score_widths

MAX_FILE_BYTES = 1 << 30  # the table is held in memory
TABLE_EXTENSIONS = (".csv", ".tsv", ".jsonl", ".parquet")
FURTHER_EXTENSIONS = (".json", ".ndjson", ".tab")


def is_table(path: Path) -> bool:
    """Whether a file is one of rows: by its name, or for any other name by its first lines."""
    check_confined(path)
    if suffix(path) in (*TABLE_EXTENSIONS, *FURTHER_EXTENSIONS):
        return True
    start = read_start(path) if path.is_file() else b"\0"
    text = start.decode("utf-8-sig", "replace")
    delimiter = guess_delimiter(text)
    rows = sample_rows(text, delimiter, guess_quoting(text, delimiter))
    return b"\0" not in start and len(rows) > 1 and score_widths(rows) >= MIN_SHARE


def read_manifest(
    path: Path,
    columns: Sequence[str],
    optional: Sequence[str] = (),
    may_be_empty: Sequence[str] = (),
    may_be_number: Sequence[str] = (),
) -> list[tuple[str, dict[str, str]]]:
    """Read (place, row) of a table, with a text in each of `columns` but those that `may_be_empty`; `optional` ones
    may be missing, and whole numbers of JSON are texts in those that `may_be_number`. Raises InputError."""
    if not is_table(path):
        expected = f"{', '.join(TABLE_EXTENSIONS)} with {', '.join(columns)}"
        raise InputError(f"{path}: not a table of files: expected {expected}")
    rows = []
    for where, row in read_rows(path):
        row = name_by_order(row, (*columns, *optional), len(columns))
        check_columns(row, columns, where)
        for column in (*columns, *optional):
            if not isinstance(row.get(column), str | int | None if column in may_be_number else str | None):
                raise InputError(f"{where}: {column} is {row[column]!r:.60}; expected a text")
            if column in columns and column not in may_be_empty and not to_text(row[column]):
                raise InputError(f"{where}: {column} is empty")
        rows.append((where, {name: to_text(row.get(name)) for name in (*columns, *optional)}))
    if not rows:
        raise InputError(f"{path}: holds no lines: expected a header and a line for each file")
    return rows


def check_columns(row: dict[str, Any], columns: Sequence[str], where: str) -> None:
    """Raise InputError unless a row has all these columns."""
    if missing := [column for column in columns if column not in row]:
        hint = f"{suggest(missing[0], map(str, row))} (--columns names what to read instead of {','.join(columns)})"
        raise InputError(f"{where}: there is no column '{missing[0]}': {hint}")


def split_columns(columns: str, default: str) -> tuple[str, ...]:
    """Return the names of a field `columns`, with commas between. Raises InputError unless they are as many as those
    of the default."""
    names = tuple(name.strip() for name in columns.split(",") if name.strip())
    if len(names) != default.count(",") + 1:
        number = ("one", "two", "three")[default.count(",")]
        raise InputError(f"columns is {show_value(columns)}; it must name {number}, such as {default}")
    return names


def plain_name(name: str) -> str:
    """Return the name of a column in lower case, with _ between its words."""
    return re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")


def to_text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def read_rows(path: Path, tsv_quotes: bool = True) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) of every line of a table, or row of parquet. Raises InputError.

    tsv_quotes: whether quotation marks in a tsv file mean what they mean in csv.
    """
    if suffix(path) == ".parquet":
        yield from read_parquet_table(path)
        return
    with open_data(path) as file:
        content = read_bounded(file, MAX_FILE_BYTES, path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = f"{path}, line {content.count(10, 0, error.start) + 1}: byte 0x{content[error.start]:02X} is not UTF-8"
        raise InputError(f"{place}: {explain_encoding(content, path)}") from None
    if suffix(path) in (".jsonl", ".ndjson", ".json"):
        yield from read_json_rows(text, path, is_lines=suffix(path) != ".json")
        return
    is_tsv = suffix(path) in (".tsv", ".tab")
    yield from read_separated(
        text, path, "\t" if is_tsv else None, None if tsv_quotes or not is_tsv else csv.QUOTE_NONE
    )


def read_json_rows(text: str, path: Path, is_lines: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of JSON lines, or unless `is_lines` of a list that is all of a text or the only one in its
    object."""
    hint = ': expected an object such as {"path": "a.wav"}'
    first = text.lstrip()[:1]
    if not is_lines and (first == "[" or (first == "{" and not is_json_lines(text))):
        value = parse_json(text, str(path), kind=list if first == "[" else dict)
        lists = [value] if isinstance(value, list) else [part for part in value.values() if isinstance(part, list)]
        if len(lists) != 1:
            raise InputError(f"{path}: holds {len(lists)} lists: expected a list of objects, or an object in each line")
        for number, row in enumerate(lists[0], start=1):
            if not isinstance(row, dict):
                raise InputError(f"{path}, entry {number}: should hold a JSON object, found {type(row).__name__}{hint}")
            yield f"{path}, entry {number}", row
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, parse_json(line, where, hint=hint)


def is_json_lines(text: str) -> bool:
    """Whether a text is an object in each line, and not one object with the rows in it."""
    first, _, others = text.strip().partition("\n")
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return not first.rstrip().endswith(("{", "["))
    lists = [part for part in value.values() if isinstance(part, list)] if isinstance(value, dict) else []
    holds_rows = len(lists) == 1 and bool(lists[0]) and all(isinstance(row, dict) for row in lists[0])
    return bool(others.strip()) or not holds_rows


def name_by_order(row: dict[str, Any], names: Sequence[str], at_least: int) -> dict[str, Any]:
    """Name the numbered columns of a row ("1", "2", ...) in this order; other rows are returned as they are."""
    is_numbered = list(row) == [str(i) for i in range(1, len(row) + 1)] and at_least <= len(row) <= len(names)
    is_numbered = is_numbered and not any(name in row for name in names)  # the user has named columns by their numbers
    return dict(zip(names, row.values())) if is_numbered else row
