"""NumPy's files, .npy and .npz, without pickles: what a header claims is checked before memory is taken."""

import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from .regular_file import check_regular, open_regular

MAX_ARRAY_BYTES = 8 << 30  # of all arrays of a file together
READ_ERRORS = (
    OSError, ValueError, EOFError, KeyError, NotImplementedError, RuntimeError, OverflowError, struct.error, zlib.error,
    zipfile.BadZipFile, tokenize.TokenError, SyntaxError,
)  # fmt: skip


class NpzFile(Mapping[str, np.ndarray]):
    """The arrays of an open .npz file by name; each is read when it is asked for."""

    def __init__(self, archive: zipfile.ZipFile):
        self.archive = archive
        self.members = {m.filename.removesuffix(".npy"): m for m in archive.infolist() if m.filename.endswith(".npy")}

    def __getitem__(self, name: str) -> np.ndarray:
        member = self.members[name]
        with self.archive.open(member) as file:
            return read_array(file, member.file_size)

    def __iter__(self) -> Iterator[str]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)


@contextmanager
def open_npz(path: Path) -> Generator[NpzFile]:
    """Open a .npz file. Raises InputError, within the block too."""
    with report_damage(path, ".npz"), open_regular(path) as raw, zipfile.ZipFile(raw) as archive:
        size = sum(member.file_size for member in archive.infolist())
        if size > MAX_ARRAY_BYTES:
            raise InputError(f"{path} unpacks to {size:,} bytes, more than {MAX_ARRAY_BYTES >> 30} GiB")
        yield NpzFile(archive)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of a .npz file. Raises InputError."""
    with open_npz(path) as arrays:
        return dict(arrays)


def read_npy(path: Path) -> np.ndarray:
    """Read a .npy file. Raises InputError."""
    with report_damage(path, ".npy"), open_regular(path) as file:
        return read_array(file, os.fstat(file.fileno()).st_size)


def map_npy(path: Path) -> np.ndarray:
    """Map a .npy file, which is read as its elements are used; changes are not written back. Raises InputError."""
    with report_damage(path, ".npy"):
        check_regular(path)
        return np.lib.format.open_memmap(path, mode="c")


@contextmanager
def report_damage(path: Path, kind: str) -> Generator[None]:
    try:
        yield
    except InputError:
        raise
    except READ_ERRORS as error:
        raise InputError(f"{path} cannot be read as {kind}: {str(error).strip() or type(error).__name__}") from None


def read_array(file: Any, size: int) -> np.ndarray:
    """Read an array from an open file of `size` bytes. Raises ValueError."""
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never loaded: save arrays of numbers or texts")
    n_bytes = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or n_bytes > min(size, MAX_ARRAY_BYTES):
        raise ValueError(f"an array of shape {shape} is claimed, {n_bytes:,} bytes, in {size:,} bytes")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)
