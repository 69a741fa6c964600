"""Files from elsewhere on the disk of this node, within a bound: those that were used longest ago make room.

    cache/shards/FOLDER/NAME       complete and verified; its modification time is that of its last use
    cache/shards/FOLDER/.new-*     being fetched, with its final size from the start, so that it counts

All processes of a node share it. A file that is removed while another process has mapped it stays readable there.
"""

import contextlib
import errno
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError
from ...events import report_progress
from .cache import cache_dir

try:
    import fcntl
except ImportError:  # Windows: two processes may fetch the same file, each under a name of its own
    fcntl = None

BOUND = "ANYFORMER_SHARD_CACHE"  # environment variable, in GB
DEFAULT_GB = 16.0
STALE_SECONDS = 3600.0  # after which the unfinished file of a killed process is removed
N_LOCKS = 16  # of a folder
TEMPORARY, LOCK = ".new-", ".lock"


@dataclass(frozen=True)
class FileFacts:
    """What the content of a file must be."""

    name: str
    size: int
    crc32: int


def read_bound() -> int:
    """Return the most bytes that the cache may hold. Raises InputError."""
    text = os.environ.get(BOUND, "")
    with contextlib.suppress(ValueError, OverflowError):
        if (bound := int(float(text or DEFAULT_GB) * 1e9)) > 0:
            return bound
    raise InputError(f"${BOUND} is {text[:80]!r}; it must be a number of gigabytes above 0, such as {DEFAULT_GB:g}")


def find_damage(facts: FileFacts, size: int, crc32: int) -> str:
    """Return how a content differs from what it must be; "" if it does not."""
    if size != facts.size:
        return f"has {size:,} bytes instead of {facts.size:,}"
    return "" if crc32 == facts.crc32 else "is damaged, or of another corpus (its checksum is another)"


def fetch_file(folder: str, facts: FileFacts, read_blocks: Callable[[], Iterator[bytes]], address: str) -> Path:
    """Return a file of the cache, which is fetched unless it is there.

    Args:
        folder: the folder in the cache, which no other files of these names share.
        read_blocks: yields the content.
        address: where it comes from, for messages.

    Raises:
        InputError: the content is not what it must be. OSError: the disk is full.
    """
    root, target = cache_dir() / "shards", cache_dir() / "shards" / folder / facts.name
    target.parent.mkdir(parents=True, exist_ok=True)
    number = zlib.crc32(facts.name.encode()) % N_LOCKS
    with lock_file(target.with_name(f"{LOCK}-{number}")):  # another process may fetch it now: it is there afterwards
        if not target.is_file() or target.stat().st_size != facts.size:
            with lock_file(root / LOCK):
                make_room(root, facts.size)
                temporary = reserve_file(target.parent, facts.size)
            try:
                copy_blocks(temporary, facts, read_blocks(), address)
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):  # removed by another process: whoever opens it fetches it again
        os.utime(target)
    return target


def copy_blocks(path: Path, facts: FileFacts, blocks: Iterator[bytes], address: str) -> None:
    size = crc32 = 0
    with open(path, "r+b") as file:
        for block in blocks:
            size, crc32 = size + len(block), zlib.crc32(block, crc32)
            if size > facts.size:
                break
            file.write(block)
            report_progress("fetching", size, facts.size)
    if damage := find_damage(facts, size, crc32):
        raise InputError(f"{address} {damage}: write the shards again")


def make_room(root: Path, size: int) -> None:
    """Remove the files that were used longest ago until there is room for `size` more bytes."""
    bound, entries = read_bound(), []
    if size > bound:
        raise InputError(f"${BOUND} allows {bound / 1e9:g} GB, and one shard has {size / 1e9:g} GB: raise it")
    for path in root.glob("*/*"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            entries.append((status.st_mtime, status.st_size, path))
    excess = sum(entry[1] for entry in entries) + size - bound
    for modified_at, n_bytes, path in sorted(entries):
        is_unfinished = path.name.startswith(TEMPORARY)
        if time.time() - modified_at > STALE_SECONDS if is_unfinished else excess > 0 and path.name[:1] != ".":
            with contextlib.suppress(OSError):  # on Windows, a file that is open stays
                path.unlink()
                excess -= n_bytes


def reserve_file(folder: Path, size: int) -> Path:
    """Create an empty file of this size. Raises OSError where the disk cannot hold it, if that can be known before."""
    handle, name = tempfile.mkstemp(dir=folder, prefix=TEMPORARY)
    try:
        os.truncate(handle, size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # others: the file system cannot do that
            os.unlink(name)
            raise
    finally:
        os.close(handle)
    return Path(name)


@contextlib.contextmanager
def lock_file(path: Path) -> Generator[None]:
    """Let one process, and one thread of it, at a time pass."""
    with open(path, "ab") as file:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks: names are unique all the same
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
