"""Files of rows, read and written one row at a time: memory does not grow with them.

    table.csv, .tsv, .jsonl, .parquet    a row per line, as in `read`
    texts.txt, or any other suffix       a value per line

Beside ";" as the delimiter, numbers with decimal commas become numbers with points, as they do for training; the file
is read once more for that. Written are csv and tsv, whose columns are those of the first row, and jsonl; a csv for a
csv has its delimiter and its decimal commas.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

from ...errors import InputError, suggest
from ..io.checks import parse_json
from ..io.files import MAX_LINE_BYTES, decode_lines, open_data, read_start, suffix
from ..io.parquet import count_parquet_rows, read_parquet_table
from ..io.separated import (
    find_decimal_commas,
    guess_delimiter,
    guess_quotechar,
    is_number,
    read_cells,
    to_decimal_point,
)

DELIMITERS = {".csv": ",", ".tsv": "\t", ".jsonl": None}
OUTPUT_SUFFIXES = tuple(DELIMITERS)
RowOrError = dict[str, Any] | InputError


@dataclass
class RowReader:
    """The rows of a file, in order. `done` of `total` says how far it has been read: in bytes, or rows of parquet.

    Args:
        columns: Names that the header of a table must have; the only one is that of the values of a text file.
        tsv_quotes: Whether quotation marks in a tsv file mean what they mean in csv.
    """

    path: Path
    columns: Sequence[str]
    tsv_quotes: bool = True
    done: int = 0
    total: int = 0
    commas: frozenset[str] = frozenset()  # columns with decimal commas, once rows are read
    delimiter: str | None = None  # of a csv, once rows are read

    def peek(self) -> "RowReader":
        """Read the delimiter and the columns with decimal commas of a csv, and nothing else."""
        if suffix(self.path) == ".csv":
            next(self.rows(), None)
        return self

    def rows(self) -> Iterator[tuple[str, RowOrError]]:
        """Yield (place, row); of a row that cannot be read, the error, which names the place. Raises InputError for a
        file that cannot be read on from some place."""
        kind = suffix(self.path)
        if kind == ".parquet":
            yield from self._read_parquet()
        elif kind == ".jsonl":
            for place, line in self._read_lines():
                if line.strip():
                    yield place, self._parse_object(line, place)
        elif kind in DELIMITERS:
            if kind == ".csv":
                self.delimiter = guess_delimiter(read_start(self.path).decode("utf-8", "replace"))
            yield from self._read_separated(self.delimiter or "\t")
        elif len(self.columns) == 1:
            yield from ((place, {self.columns[0]: line}) for place, line in self._read_lines())
        else:
            names = ", ".join(self.columns)
            raise InputError(f"{self.path}: a csv, tsv, jsonl or parquet file is expected, with columns {names}")

    def check_header(self, names: Sequence[str], place: str) -> None:
        """Raise InputError unless these names are different and all columns are among them."""
        if twice := [name for name in names if list(names).count(name) > 1]:
            raise InputError(f"{place}: two columns are called '{twice[0]}'")
        if missing := [name for name in self.columns if name not in names]:
            raise InputError(f"{place}: there is no column '{missing[0]}': {suggest(missing[0], names)}")

    def _read_lines(self) -> Iterator[tuple[str, str]]:
        with open_data(self.path) as file:
            self.total, compressed = self.path.stat().st_size, getattr(file, "fileobj", file)
            for place, line in decode_lines(file, self.path, MAX_LINE_BYTES):
                self.done = compressed.tell()
                yield place, line

    def _read_separated(self, delimiter: str) -> Iterator[tuple[str, RowOrError]]:
        quoting: Any = csv.QUOTE_MINIMAL if self.tsv_quotes or delimiter == "," else csv.QUOTE_NONE
        quotechar = guess_quotechar(read_start(self.path).decode("utf-8", "replace"))

        def read() -> Any:
            return read_cells((f"{line}\n" for _, line in self._read_lines()), delimiter, quoting, quotechar)

        reader = read()
        try:
            header = next(reader, [])
            if not header:
                raise InputError(f"{self.path}: is empty: expected a header with {', '.join(self.columns)}, then rows")
            rows, numbers = reader, [str(i) for i in range(1, len(header) + 1)]
            if has_names := not (set(self.columns) <= set(numbers) and set(self.columns) - set(header)):
                self.check_header(header, f"{self.path}, line 1")
            else:  # the columns are numbered, as they were for training
                rows, header = chain([header], reader), numbers
            commas = find_decimal_commas(enumerate(read()), has_names) if delimiter == ";" else set()
            self.commas = frozenset(header[i] for i in commas)
            for row in rows:
                cells = [to_decimal_point(cell) if i in commas else cell for i, cell in enumerate(row)]
                place = f"{self.path}, line {reader.line_num}"
                if len(cells) > len(header):
                    problem = f"has more columns than the header: quote what holds a {delimiter!r}"
                    yield place, InputError(f"{place}: {problem}")
                elif cells:
                    yield place, dict.fromkeys(header) | dict(zip(header, cells))
        except csv.Error as error:
            raise InputError(f"{self.path}, line {reader.line_num}: {error}") from None

    def _read_parquet(self) -> Iterator[tuple[str, RowOrError]]:
        self.total = count_parquet_rows(self.path)
        for place, row in read_parquet_table(self.path):
            if not self.done:
                self.check_header(list(row), str(self.path))
            self.done += 1
            yield place, row

    def _parse_object(self, line: str, place: str) -> RowOrError:
        expected = ", ".join(f'"{name}": ...' for name in self.columns)
        try:
            return parse_json(line, place, hint=f": expected an object such as {{{expected}}}")
        except InputError as error:
            return error


class RowWriter:
    """Write rows to an open text file, in the format of a suffix (`OUTPUT_SUFFIXES`). A csv is written as the csv that
    `reader` reads, if it does."""

    def __init__(self, file: IO[str], kind: str, reader: RowReader):
        self.file, self.names, self.reader = file, [], reader
        self.delimiter = DELIMITERS[kind]

    def write(self, place: str, row: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Write a row and further values. Raises InputError where csv or tsv has no column for a value of the row;
        further values without a column are left out."""
        line = {**row, **values}
        if self.delimiter is None:
            self.file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
            return
        if not self.names:
            self.names = list(line)
            if self.delimiter == ",":
                self.delimiter = self.reader.delimiter or ","
            self.csv = csv.writer(self.file, delimiter=self.delimiter, lineterminator="\n")
            self.csv.writerow(self.names)
        if extra := [name for name in row if name not in self.names]:
            raise InputError(f"{place}: '{extra[0]}' is no column of the first row: write a .jsonl file instead")
        cells = [format_cell(line.get(name)) for name in self.names]
        if self.reader.commas and self.delimiter != "\t":
            cells = [self._write_comma(name, cell) for name, cell in zip(self.names, cells, strict=True)]
        self.csv.writerow(cells)

    def _write_comma(self, name: str, cell: Any) -> Any:
        """Write a decimal comma in predicted numbers and in the columns that had one."""
        had_comma = name in self.reader.commas and is_number(str(cell))
        return str(cell).replace(".", ",") if had_comma or isinstance(cell, float) else cell


def format_cell(value: Any) -> Any:
    """Return a value as csv writes it: nothing for None, JSON for lists and objects."""
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict) else value
