"""A table that says which file holds what: csv, tsv or jsonl with named columns, such as path and text.

    clips.csv      path,text                        a header, then a line for each file
    clips.tsv      the same with tabs
    clips.jsonl    {"path": "a.wav", "text": "..."}  an object a line

Paths are meant from the folder of the table. Each of these may be gzipped (.gz).
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError, suggest
from .download import bounded

MAX_FILE_BYTES = 1 << 30  # bytes of a table: it is kept in memory
DELIMITERS = {".csv": ",", ".tsv": "\t", ".jsonl": None}


@dataclass(frozen=True)
class ManifestRow:
    """One line of the table: where it stands, and its columns."""

    where: str
    values: dict[str, str]

    def __getitem__(self, column: str) -> str:
        return self.values.get(column, "")


def read_manifest(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> list[ManifestRow]:
    """The lines of a table. Every one of `columns` has a text in each line; `optional` ones may lack.

    Raises InputError for a file that is no such table, a column that is missing, an empty value, and no lines.
    """
    ending = path.with_suffix("").suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
    if ending not in DELIMITERS:
        raise InputError(f"{path}: not a table of files: expected {', '.join(DELIMITERS)} with {', '.join(columns)}")
    text, delimiter = content(path), DELIMITERS[ending]
    rows = objects(text, path) if delimiter is None else cells(text, delimiter, path)
    found = []
    for where, row in rows:
        for column in columns:
            if column not in row:
                raise InputError(f"{where}: there is no column '{column}': {suggest(column, map(str, row))}")
            if not isinstance(row[column], str | None):
                raise InputError(bad(where, column, row))
            if not (row[column] or "").strip():
                raise InputError(f"{where}: {column} is empty")
        for column in optional:
            if not isinstance(row.get(column), str | None):
                raise InputError(bad(where, column, row))
        kept = {name: (row.get(name) or "").strip() for name in (*columns, *optional)}
        found.append(ManifestRow(where, kept))
    if not found:
        raise InputError(f"{path}: holds no lines: expected a header and a line for each file")
    return found


def bad(where: str, column: str, row: dict[str, Any]) -> str:
    return f"{where}: {column} is {row[column]!r}; expected a text"


def content(path: Path) -> str:
    """The text of the file. Raises InputError."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as file:
            data = bounded(file, MAX_FILE_BYTES)
        if len(data) > MAX_FILE_BYTES:
            raise InputError(f"{path}: larger than {MAX_FILE_BYTES >> 30} GiB, and a table is kept in memory: cut it")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8: save it as UTF-8") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: damaged gzip file ({error})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def cells(text: str, delimiter: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restkey="")
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if "" in row:
                raise InputError(f"{where}: has more columns than the header: quote what holds a {delimiter!r}")
            yield where, row
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from None


def objects(text: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not JSON ({error}): an object a line is expected") from None
        if not isinstance(row, dict):
            raise InputError(f"{where}: {type(row).__name__}, not an object")
        yield where, row
