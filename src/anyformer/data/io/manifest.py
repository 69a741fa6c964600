"""Tables that list files: csv, tsv or jsonl with named columns such as path and text.

    clips.csv      path,text                         a header, then a line for each file; also with ; tab or |
    clips.tsv      the same with tabs
    clips.jsonl    {"path": "a.wav", "text": "..."}  an object in each line

Relative paths start from the folder of the table. Each of these may be compressed. In a table without a header the
columns are taken in the order in which they are asked for.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...errors import InputError, suggest
from .checks import parse_json, read_bounded
from .encodings import explain_encoding
from .files import open_data, suffix
from .separated import read_separated

MAX_FILE_BYTES = 1 << 30  # the table is held in memory
TABLE_EXTENSIONS = (".csv", ".tsv", ".jsonl")


def read_manifest(
    path: Path, columns: Sequence[str], optional: Sequence[str] = (), may_be_empty: Sequence[str] = ()
) -> list[tuple[str, dict[str, str]]]:
    """Read (place, row) of a table, with a text in each of `columns` but those that `may_be_empty`; `optional` ones
    may be missing. Raises InputError."""
    if suffix(path) not in TABLE_EXTENSIONS:
        expected = f"{', '.join(TABLE_EXTENSIONS)} with {', '.join(columns)}"
        raise InputError(f"{path}: not a table of files: expected {expected}")
    rows = []
    for where, row in read_rows(path):
        row = name_by_order(row, (*columns, *optional), len(columns))
        for column in (*columns, *optional):
            if column in columns and column not in row:
                raise InputError(f"{where}: there is no column '{column}': {suggest(column, map(str, row))}")
            if not isinstance(row.get(column), str | None):
                raise InputError(f"{where}: {column} is {row[column]!r}; expected a text")
            if column in columns and column not in may_be_empty and not (row[column] or "").strip():
                raise InputError(f"{where}: {column} is empty")
        rows.append((where, {name: (row.get(name) or "").strip() for name in (*columns, *optional)}))
    if not rows:
        raise InputError(f"{path}: holds no lines: expected a header and a line for each file")
    return rows


def read_rows(path: Path, tsv_quotes: bool = True) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) of every line of a csv, tsv or jsonl file. Raises InputError.

    tsv_quotes: whether quotation marks in a tsv file mean what they mean in csv.
    """
    with open_data(path) as file:
        content = read_bounded(file, MAX_FILE_BYTES, path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = f"{path}, line {content.count(10, 0, error.start) + 1}: byte 0x{content[error.start]:02X} is not UTF-8"
        raise InputError(f"{place}: {explain_encoding(content, path)}") from None
    if suffix(path) != ".jsonl":
        is_tsv = suffix(path) == ".tsv"
        quoting = csv.QUOTE_MINIMAL if tsv_quotes or not is_tsv else csv.QUOTE_NONE
        yield from read_separated(text, path, "\t" if is_tsv else None, quoting)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, parse_json(line, where, hint=': expected an object such as {"path": "a.wav"}')


def name_by_order(row: dict[str, Any], names: Sequence[str], at_least: int) -> dict[str, Any]:
    """Name the numbered columns of a row ("1", "2", ...) in this order; other rows are returned as they are."""
    is_numbered = list(row) == [str(i) for i in range(1, len(row) + 1)] and at_least <= len(row) <= len(names)
    return dict(zip(names, row.values())) if is_numbered else row
