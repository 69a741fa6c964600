"""Rows of parquet files, in bounded memory."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from ...errors import InputError
from .embedded import save_embedded
from .files import import_optional
from .regular_file import check_regular

BATCH_ROWS = 1024


def read_parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with open_parquet(path) as file:
        rows = chain.from_iterable(batch.to_pylist() for batch in file.iter_batches(BATCH_ROWS))
        for number, row in enumerate(rows, 1):
            yield f"{path}, row {number}", row


def read_parquet_table(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows with the paths of files instead of images and sounds, as the rows of other tables have them."""
    for where, row in read_parquet_rows(path):
        yield where, {name: save_embedded(value) for name, value in row.items()}


def count_parquet_rows(path: Path) -> int:
    with open_parquet(path) as file:
        return file.metadata.num_rows


@contextmanager
def open_parquet(path: Path) -> Generator[Any]:
    """Open a parquet file for reading in bounded memory. Raises InputError, within the block too."""
    message = f"{path}: a .parquet file needs pyarrow: pip install 'anyformer[parquet]'"
    pyarrow, parquet = (import_optional(module, message) for module in ("pyarrow", "pyarrow.parquet"))
    check_regular(path)
    try:
        with parquet.ParquetFile(path, buffer_size=1 << 20) as file:  # unbuffered, a column chunk would be in memory
            yield file
    except InputError:
        raise
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} cannot be read as parquet: {reason}") from None
