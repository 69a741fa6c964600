"""Tables that list files: csv, tsv or jsonl with named columns such as path and text.

    clips.csv      path,text                         a header, then a line for each file
    clips.tsv      the same with tabs
    clips.jsonl    {"path": "a.wav", "text": "..."}  an object in each line

Relative paths start from the folder of the table. Each of these may be gzipped (.gz).
"""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...errors import InputError, suggest
from .checks import parse_json, read_bounded
from .files import open_data, suffix

MAX_FILE_BYTES = 1 << 30  # the table is held in memory
DELIMITERS = {".csv": ",", ".tsv": "\t", ".jsonl": None}


def read_manifest(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> list[tuple[str, dict[str, str]]]:
    """Read (place, row) of a table, with a text in each of `columns`; `optional` ones may be "". Raises InputError."""
    if suffix(path) not in DELIMITERS:
        raise InputError(f"{path}: not a table of files: expected {', '.join(DELIMITERS)} with {', '.join(columns)}")
    rows = []
    for where, row in read_rows(path):
        for column in (*columns, *optional):
            if column in columns and column not in row:
                raise InputError(f"{where}: there is no column '{column}': {suggest(column, map(str, row))}")
            if not isinstance(row.get(column), str | None):
                raise InputError(f"{where}: {column} is {row[column]!r}; expected a text")
            if column in columns and not (row[column] or "").strip():
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
        raise InputError(f"{path}: byte {error.start} is not UTF-8: save it as UTF-8") from None
    if delimiter := DELIMITERS[suffix(path)]:
        quoting = csv.QUOTE_MINIMAL if tsv_quotes or delimiter == "," else csv.QUOTE_NONE
        yield from _read_separated(text, delimiter, quoting, path)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, parse_json(line, where, hint=': expected an object such as {"path": "a.wav"}')


def _read_separated(text: str, delimiter: str, quoting: Any, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, restkey="")
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if "" in row:
                raise InputError(f"{where}: has more columns than the header: quote what holds a {delimiter!r}")
            yield where, row
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from None
