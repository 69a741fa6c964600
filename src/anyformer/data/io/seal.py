"""Seals: what the files of a folder that never changes should be, stored beside them.

    FOLDER/.seal.json   {"tokens.bin": [bytes, modification time in ns, CRC-32], ...}

Checked at each use by size and time, and by content where that is quick or the time is another. A CRC-32 finds what
disks, copies and crashes do; it is no protection from somebody who can write to the folder.
"""

import contextlib
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from ...errors import InputError
from .checks import read_json
from .regular_file import BLOCK_BYTES, open_regular

SEAL_NAME = ".seal.json"
QUICK_BYTES = 16 << 20  # of a folder whose contents are read at each check
MAX_SEAL_BYTES = 256 << 20


def write_seal(folder: Path) -> None:
    """Store what the files of a folder are now, hidden ones left out."""
    facts = {}
    for name in list_names(folder):
        status = os.stat(path := f"{folder}/{name}")
        facts[name] = [status.st_size, status.st_mtime_ns, compute_crc32(path)]
        if status.st_size > QUICK_BYTES:  # not read at each check: a power cut must not leave zeros of this size
            sync_to_disk(path)
    (folder / SEAL_NAME).write_text(json.dumps(facts), "utf-8")


def find_damage(folder: Path, is_deep: bool = False) -> str:
    """Return what is wrong with a sealed folder, "" if nothing is. `is_deep`: read everything."""
    try:
        facts = read_json(folder / SEAL_NAME, MAX_SEAL_BYTES)
        if names := sorted(facts.keys() ^ set(list_names(folder))):
            return f"{names[0]} is {'missing' if names[0] in facts else 'new'}"
        is_quick = sum(size for size, _, _ in facts.values()) <= QUICK_BYTES
        for name, (size, time, crc32) in facts.items():
            path = f"{folder}/{name}"
            status = os.stat(path)
            if status.st_size != size:
                return f"{name} has {status.st_size:,} bytes instead of {size:,}"
            if (is_deep or is_quick or status.st_mtime_ns != time) and compute_crc32(path) != crc32:
                return f"{name} has changed"
            if status.st_mtime_ns != time:  # a copy: the next check is quick again
                with contextlib.suppress(OSError):  # not our own file
                    os.utime(path, ns=(time, time))
    except (OSError, InputError, TypeError, ValueError, AttributeError, OverflowError) as error:
        return f"it cannot be checked ({error})"
    return ""


def list_names(folder: Path) -> Iterator[str]:
    """Yield the paths of the visible files, relative to the folder."""
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        place = Path(root).relative_to(folder)
        prefix = f"{place.as_posix()}/" if place.parts else ""
        yield from (prefix + name for name in sorted(files) if name[0] != ".")


def sync_to_disk(path: str | Path) -> None:
    """Flush a file or folder to disk (on Windows folders cannot be opened, and need no flush)."""
    is_windows = os.name == "nt"
    if is_windows and os.path.isdir(path):
        return
    handle = os.open(path, os.O_RDWR if is_windows else os.O_RDONLY)  # Windows flushes nothing that is only read
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def compute_crc32(path: str) -> int:
    crc32 = 0
    with open_regular(path) as file:
        while block := file.read(BLOCK_BYTES):
            crc32 = zlib.crc32(block, crc32)
    return crc32
