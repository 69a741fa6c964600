"""Rows of named values: a table (csv, tsv, jsonl, parquet), or a set by name. Read anew each time they are asked for.

    table.csv        a header, a row a line; a list in a cell as JSON; the path of an image, a sound, a .npy
    table.jsonl      {"age": 31, "motion": [[0.1, 0.2], ...], "photo": "a.png"}  an object a line
    table.parquet    columns of numbers, texts and lists (needs pyarrow)

An empty cell, a null or a name that a row lacks is a missing value. Paths are meant from where the table lies.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ..audio.read import seal
from ..images.decode import ENDINGS as PICTURES
from ..io import manifest

Row = tuple[str, dict[str, Any]]  # where it stands, and its values by name
ENDINGS = (*manifest.ENDINGS, ".parquet")
FILES = (*PICTURES, ".wav", ".flac", ".ogg", ".mp3", ".npy", ".csv")  # what a cell may point to
STEP = 1024  # rows of a parquet file that are held at a time


@dataclass(frozen=True)
class Table:
    """Rows, each time from the first; the folder that paths in them are meant from."""

    rows: Callable[[], Iterator[Row]]
    folder: Path
    content: str
    """A hash of the file, or of all there is."""
    schema: str = ""
    """What a set says of itself, as TOML."""
    closed: bool = False
    """Nothing in the rows points to other files."""

    def sha256(self) -> str:
        """Of the content: the table, and every file that it names."""
        digest = hashlib.sha256(self.content.encode())
        for _, row in () if self.closed else self.rows():
            for value in row.values():
                if isinstance(value, str) and value.lower().endswith(FILES):
                    digest.update(f"\n{value}\n{seal(self.folder / value)}".encode())
        return digest.hexdigest()


def of_file(path: Path) -> Table:
    """The rows of a file. Raises InputError."""
    name = path.name.lower().removesuffix(".gz")
    if not name.endswith(ENDINGS):
        raise InputError(f"data '{path}': no table: expected {', '.join(ENDINGS)}")
    read = parquet if name.endswith(".parquet") else text
    return Table(lambda: checked(read(path), path), path.parent, seal(path))


def checked(rows: Iterable[Row], path: Path) -> Iterator[Row]:
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise InputError(f"{path}: holds no rows: expected a header and a row a line")


def text(path: Path) -> Iterator[Row]:
    whole, delimiter = manifest.content(path), manifest.ENDINGS[Path(path.name.lower().removesuffix(".gz")).suffix]
    yield from manifest.objects(whole, path) if delimiter is None else manifest.cells(whole, delimiter, path)


def parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet as reader
    except ImportError:
        raise InputError(f"{path}: a .parquet file needs pyarrow: pip install 'anyformer[parquet]'") from None
    number = 0
    try:
        with reader.ParquetFile(path) as file:
            for some in file.iter_batches(STEP):
                for row in some.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from None


def missing(value: Any) -> bool:
    """Whether a cell holds nothing."""
    return value is None or (isinstance(value, str) and not value.strip())


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value
