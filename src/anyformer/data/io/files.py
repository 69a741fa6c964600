"""Open data files, compressed or not, with one-line errors for what is damaged."""

import bz2
import contextlib
import gzip
import importlib
import io
import lzma
import re
import zlib
from collections.abc import Generator, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO

from ...errors import InputError
from .encodings import explain_encoding
from .regular_file import open_regular

MAX_LINE_BYTES = 256 << 20
SAMPLE_BYTES = 64 << 10
ZSTD_BYTES = 1 << 10  # decompressed at a time, to at most 32 MiB
DOCUMENTATION = re.compile(
    r"((\w+[._-])?_?readme|licen[sc]e|copyright|copying|notice|changelog|sha256sums|md5sums|_about|citation)",
    re.IGNORECASE,
)
COMPRESSIONS = {
    b"\x1f\x8b": ".gz",
    b"\xfd7zXZ\x00": ".xz",
    b"BZh": ".bz2",
    b"\x28\xb5\x2f\xfd": ".zst",
}  # by first bytes


def suffix(path: Path) -> str:
    """Return the ending that says how to read a file, in lower case and without `.gz`: ".jsonl" for "a.JSONL.gz"."""
    name = Path(path.name.lower())
    return Path(name.stem).suffix if name.suffix in COMPRESSIONS.values() else name.suffix


def find_compression(head: bytes) -> str:
    """Return the usual ending of files that begin with these bytes: ".gz", ".xz", ".bz2", ".zst", or ""."""
    return next((ending for magic, ending in COMPRESSIONS.items() if head.startswith(magic)), "")


def decompress_file(file: BinaryIO, path: Path, compression: str) -> Any:
    """Return a file of the decompressed bytes of an open one; `compression` is an ending, "" for none."""
    match compression:
        case ".gz":
            return gzip.open(file)
        case ".xz":
            return lzma.open(file)
        case ".bz2":
            return bz2.open(file)
        case ".zst":
            hint = f"pip install zstandard, or decompress it: zstd -d '{path.name}'"
            zstandard = import_optional("zstandard", f"{path}: reading a .zst file needs zstandard: {hint}")
            return io.BufferedReader(ZstdReader(file, zstandard))
    return file


class ZstdReader(io.RawIOBase):
    """The decompressed bytes of a .zst file. Raises EOFError where it is damaged or cut, as the readers of other
    compressions do; zstandard's own reader ends there without a word."""

    def __init__(self, file: BinaryIO, zstandard: Any):
        self.file, self.zstandard, self.pending = file, zstandard, memoryview(b"")
        self.frame: Any = None  # that has begun and not ended
        self.position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.pending and (block := self.file.read(ZSTD_BYTES)):
            self.pending = memoryview(b"".join(self._decompress(block)))  # sliced without a copy
        if not self.pending and self.frame:
            raise EOFError("it ends in the middle")
        n = min(len(buffer), len(self.pending))
        buffer[:n], self.pending = self.pending[:n], self.pending[n:]
        self.position += n
        return n

    def tell(self) -> int:
        return self.position

    def _decompress(self, block: bytes) -> Iterator[bytes]:
        while block:
            self.frame = self.frame or self.zstandard.ZstdDecompressor().decompressobj()
            try:
                yield self.frame.decompress(block)
            except self.zstandard.ZstdError as error:
                raise EOFError(error) from None
            block = self.frame.unused_data
            self.frame = None if self.frame.eof else self.frame


@contextlib.contextmanager
def open_data(path: Path, decompress: bool = True) -> Generator[Any]:
    """Open a binary file for reading and decompress it, by its first bytes. Raises InputError, within the block too."""
    compression = ""
    try:
        with open_regular(path) as raw:
            if decompress:
                compression = ".gz" if path.suffix.lower() == ".gz" else find_compression(raw.read(8))
                raw.seek(0)
            with decompress_file(raw, path, compression) as file:
                yield file
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        name = "gzip" if compression == ".gz" else compression
        raise InputError(f"{path}: damaged {name} file ({error}): fetch or compress it again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_start(path: Path, size: int = SAMPLE_BYTES) -> bytes:
    """Return the first bytes of a file, decompressed."""
    with open_data(path) as file:
        return file.read(size)


def is_documentation(path: Path) -> bool:
    """Whether a file is about the data beside it, by its name."""
    return bool(DOCUMENTATION.match(path.name))


def is_text(path: Path) -> bool:
    """Whether the first bytes of a file are text."""
    head = read_start(path, 2048)
    return bool(head) and all(byte >= 9 for byte in head)


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
            raise InputError(f"{place}: {byte}: {explain_encoding(read_start(path) + line, path)}") from None
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
