"""The gate for every file that a person, a table or a request names: regular files alone, opened without waiting.

A device may have no end, and a FIFO nobody at its other side: both are refused before anything is read.
"""

import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...confinement import check_confined
from ...errors import InputError

BLOCK_BYTES = 1 << 20
MAX_MESSAGE_CHARS = 200
ALLOWED_FOLDERS = "ANYFORMER_FILES"  # environment variable: folders, as in PATH, that every table may name files in
KINDS: dict[str, Callable[[int], bool]] = {
    "a folder": stat.S_ISDIR,
    "a FIFO": stat.S_ISFIFO,
    "a device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
    "a socket": stat.S_ISSOCK,
}


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open a regular file for reading. Raises InputError for anything else: missing, a device, a FIFO, a loop of
    links, a name that no file can have."""
    check_confined(path)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        check_mode(path, os.stat(path).st_mode)  # before it is opened: opening a device may have effects
        file = open(os.open(path, flags), "rb")  # noqa: SIM115 (closed by the caller)
        check_mode(path, os.fstat(file.fileno()).st_mode)  # another one may have taken its place
        return file
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{shorten(path)}: there is no such file") from None
    except OSError as error:
        raise InputError(f"{shorten(path)}: cannot be read ({error.strerror or error})") from None
    except ValueError:  # a zero byte, or a lone surrogate
        raise InputError(f"{shorten(path)!r}: no file can have this name") from None


def check_mode(path: str | Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for name, is_kind in KINDS.items() if is_kind(mode)), "no file")
        raise InputError(f"{shorten(path)} is {kind}: expected a regular file")


def check_regular(path: str | Path) -> None:
    """Raise InputError unless this is a regular file that can be read. For libraries that open a path themselves."""
    open_regular(path).close()


def read_regular(path: str | Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes, whatever its size is said to be. Raises InputError."""
    with open_regular(path) as file:
        return read_bounded(file, limit, path)


def read_bounded(file: Any, limit: int, where: str | Path) -> bytes:
    """Read an open binary file of at most `limit` bytes. Raises InputError.

    In blocks, because `read(limit)` of a compressed file allocates that much before anything is read.
    """
    blocks, size = [], 0
    while block := file.read(min(BLOCK_BYTES, limit + 1 - size)):
        blocks.append(block)
        size += len(block)
        if size > limit:
            bound = f"{limit >> 20:,} MiB" if limit >= 1 << 20 else f"{limit:,} bytes"
            raise InputError(f"{shorten(where)}: holds more than {bound}, the most that is read of such a file")
    return b"".join(blocks)


def shorten(path: str | Path) -> str:
    """Return a path for a message."""
    text = str(path)
    return text if len(text) <= MAX_MESSAGE_CHARS else f"{text[: MAX_MESSAGE_CHARS // 2]}...{text[-20:]}"


def join_inside(folder: Path, name: str) -> Path:
    """Return the path of a file that a table names, relative to the folder of the table.

    Raises InputError for a path that leaves this folder, by ".." or as an absolute path, unless it leads into a folder
    that $ANYFORMER_FILES allows. Links in the folder may lead elsewhere: its owner has made them.
    """
    check_confined(folder / name)
    path, allowed = folder / name, os.environ.get(ALLOWED_FOLDERS, "").split(os.pathsep)
    inside = os.path.abspath(path)
    for root in (folder, *map(Path, filter(None, allowed))):
        if inside.startswith(os.path.join(os.path.abspath(root.expanduser()), "")):
            return path
    hint = f"to allow it, set {ALLOWED_FOLDERS} to the folder of the files"
    raise InputError(f"{shorten(path)!r} is outside {folder}, the folder of the table: {hint}")
