"""Rows of named values, from csv, tsv, jsonl and parquet. A table is read again from the start each time.

    table.csv        a header, then a row per line; lists as JSON; images, sounds and .npy arrays as paths
    table.jsonl      {"age": 31, "motion": [[0.1, 0.2], ...], "photo": "a.png"}  an object per line
    table.parquet    columns of numbers, texts and lists (needs pyarrow)

An empty cell, NA, NaN, null, ?, an error of a spreadsheet (#REF!) or an absent name is a missing value. Relative paths
start from the folder of the table.
"""

import hashlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, time
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ..audio.read import AUDIO_EXTENSIONS
from ..images.read import IMAGE_EXTENSIONS
from ..io.checks import sha256_file
from ..io.files import import_optional, suffix
from ..io.manifest import TABLE_EXTENSIONS as MANIFEST_EXTENSIONS
from ..io.manifest import read_rows

Row = tuple[str, dict[str, Any]]  # its place, for messages, and its values by name
TABLE_EXTENSIONS = (*MANIFEST_EXTENSIONS, ".parquet")
CELL_FILE_EXTENSIONS = (*IMAGE_EXTENSIONS, *AUDIO_EXTENSIONS, ".npy", ".csv")  # of files that a cell may name
MISSING_MARKERS = frozenset(
    """
    na n/a n.a. #n/a <na> nan nat null (null) \\N ? . -- --- #value! #ref! #div/0! #num! #name?
    """.lower().split()
) | {""}
PARQUET_BATCH_ROWS = 1024


@dataclass(frozen=True)
class Table:
    """Rows that can be read several times."""

    rows: Callable[[], Iterator[Row]]  # yields all rows from the start
    folder: Path  # where relative paths in the rows start
    content: str  # hash of the table itself
    schema: str = ""  # TOML, of a named set
    self_contained: bool = False  # the rows name no files

    def sha256(self) -> str:
        """Hash the table and every file that it names."""
        digest = hashlib.sha256(self.content.encode())
        for _, row in () if self.self_contained else self.rows():
            for value in row.values():
                if isinstance(value, str) and value.lower().endswith(CELL_FILE_EXTENSIONS):
                    path = self.folder / value
                    file_hash = sha256_file(*[path] if path.is_file() else [])  # a missing file is reported later
                    digest.update(f"\n{value}\n{file_hash}".encode())
        return digest.hexdigest()


def read_table(path: Path) -> Table:
    """Open a file of rows. Raises InputError, also for one without rows when they are read."""
    if suffix(path) not in TABLE_EXTENSIONS:
        raise InputError(f"data '{path}': not a table: expected {', '.join(TABLE_EXTENSIONS)}")

    def rows() -> Iterator[Row]:
        iterator = read_parquet_rows(path) if suffix(path) == ".parquet" else read_rows(path)
        if (first := next(iterator, None)) is None:
            raise InputError(f"{path}: holds no rows: expected a header and a row per line")
        yield first
        yield from iterator

    return Table(rows, path.parent, sha256_file(path))


def read_parquet_rows(path: Path) -> Iterator[Row]:
    with open_parquet(path) as file:
        rows = chain.from_iterable(batch.to_pylist() for batch in file.iter_batches(PARQUET_BATCH_ROWS))
        for number, row in enumerate(rows, 1):
            yield f"{path}, row {number}", row


def count_parquet_rows(path: Path) -> int:
    with open_parquet(path) as file:
        return file.metadata.num_rows


@contextmanager
def open_parquet(path: Path) -> Generator[Any]:
    """Open a parquet file for reading in bounded memory. Raises InputError, within the block too."""
    message = f"{path}: a .parquet file needs pyarrow: pip install 'anyformer[parquet]'"
    pyarrow, parquet = (import_optional(module, message) for module in ("pyarrow", "pyarrow.parquet"))
    try:
        with parquet.ParquetFile(path, buffer_size=1 << 20) as file:  # unbuffered, a column chunk would be in memory
            yield file
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from None


def is_missing(value: Any) -> bool:
    """Whether a cell is empty or says that its value is missing, such as NA."""
    return value is None or (isinstance(value, str) and value.strip().lower() in MISSING_MARKERS)


def to_json_value(value: Any) -> Any:
    """Convert numpy arrays and scalars to plain Python values."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, date | time):
        return value.isoformat()
    return value.item() if isinstance(value, np.generic) else value
