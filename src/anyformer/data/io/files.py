"""Open data files, gzipped or not, with one-line errors for what is damaged."""

import contextlib
import gzip
import importlib
import zlib
from collections.abc import Generator, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ...errors import InputError

MAX_LINE_BYTES = 256 << 20


def suffix(path: Path) -> str:
    """Return the ending that says how to read a file, in lower case and without `.gz`: ".jsonl" for "a.JSONL.gz"."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


@contextlib.contextmanager
def open_data(path: Path, decompress: bool = True) -> Generator[Any]:
    """Open a binary file for reading and decompress it if it ends in .gz. Raises InputError, within the block too."""
    try:
        with gzip.open(path) if decompress and path.suffix.lower() == ".gz" else open(path, "rb") as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: damaged gzip file ({error}): fetch or compress it again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_lines(path: Path, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[tuple[str, str]]:
    """Yield (place, line without its end) of a UTF-8 file; a place is "FILE, line 3". Raises InputError."""
    with open_data(path) as file:
        yield from decode_lines(file, path, max_line_bytes)


def decode_lines(file: Any, path: Path, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[tuple[str, str]]:
    """Yield (place, line without its end) of an open binary file. Raises InputError."""
    number = 0
    while line := file.readline(max_line_bytes + 1):
        number += 1
        place = f"{path}, line {number}"
        if len(line) > max_line_bytes:
            raise InputError(f"{place}: longer than {max_line_bytes >> 20} MiB")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            byte = f"byte 0x{line[error.start]:02X} is not UTF-8 (offset {error.start})"
            raise InputError(f"{place}: {byte}: save the file as UTF-8") from None
        yield place, text.rstrip("\r\n")


def read_line_pairs(first: Path, second: Path, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Any]:
    """Yield a line of each file as ((place, line), (place, line)). Raises InputError if one file has more lines."""
    counts = [0, 0]
    for lines in zip_longest(read_lines(first, max_line_bytes), read_lines(second, max_line_bytes)):
        counts = [n + (line is not None) for n, line in zip(counts, lines)]
        if None not in lines:
            yield lines
    if counts[0] != counts[1]:
        raise InputError(f"{first} has {counts[0]:,} lines and {second} has {counts[1]:,}: the counts must be equal")


def import_optional(module: str, message: str) -> Any:
    """Import a module of an optional dependency. Raises InputError with this message where it is not installed."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError):  # OSError: a package without its shared library
        raise InputError(message) from None
