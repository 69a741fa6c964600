"""Rows of named values, from csv, tsv, jsonl and parquet. A table is read again from the start each time.

    table.csv        a header, then a row per line; lists as JSON; images, sounds and .npy arrays as paths
    table.jsonl      {"age": 31, "motion": [[0.1, 0.2], ...], "photo": "a.png"}  an object per line
    table.parquet    columns of numbers, texts and lists (needs pyarrow)

An empty cell, NA, NaN, null, ?, an error of a spreadsheet (#REF!) or an absent name is a missing value. Relative paths
start from the folder of the table.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ..audio.read import AUDIO_EXTENSIONS
from ..images.read import IMAGE_EXTENSIONS
from ..io.checks import sha256_file
from ..io.embedded import is_embedded
from ..io.file_index import FileIndex
from ..io.manifest import TABLE_EXTENSIONS, is_table, read_rows
from ..io.regular_file import join_inside

Row = tuple[str, dict[str, Any]]  # its place, for messages, and its values by name
CELL_FILE_EXTENSIONS = (*IMAGE_EXTENSIONS, *AUDIO_EXTENSIONS, ".npy", ".csv")  # of files that a cell may name
MISSING_MARKERS = frozenset(
    """
    na n/a n.a. #n/a <na> nan nat null (null) \\N ? . -- --- #value! #ref! #div/0! #num! #name?
    """.lower().split()
) | {""}


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
    if not is_table(path):
        raise InputError(f"data '{path}': not a table: expected {', '.join(TABLE_EXTENSIONS)}")

    index = FileIndex(path.parent, (*IMAGE_EXTENSIONS, *AUDIO_EXTENSIONS))

    def rows() -> Iterator[Row]:
        is_empty = True
        for place, row in read_rows(path):
            is_empty = False
            yield place, {name: locate_file(value, index) for name, value in row.items()}
        if is_empty:
            raise InputError(f"{path}: holds no rows: expected a header and a row per line")

    return Table(rows, path.parent, sha256_file(path))


def locate_file(value: Any, index: FileIndex) -> Any:
    """Return a value, or where the image or sound that it names is, if not at its path from the folder of the table."""
    if not isinstance(value, str) or not value.lower().endswith(index.extensions):
        return value
    path = index.find(value)
    return value if path == index.folder / value else str(path)


def find_media(folder: Path, name: str) -> str:
    """Return the path of an image or a sound that a table in a folder names, as training finds it."""
    path = index_media(folder).find(name)
    is_there = is_embedded(name) or path != folder / name
    return str(path if is_there else join_inside(folder, name))


@lru_cache(maxsize=4)
def index_media(folder: Path) -> FileIndex:
    return FileIndex(folder, (*IMAGE_EXTENSIONS, *AUDIO_EXTENSIONS))


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
