"""Archives, recognized by their first bytes and unpacked once, below the cache directory, within bounds."""

import hashlib
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ...confinement import check_confined, get_confinement
from ...errors import InputError
from .cache import build_directory, cache_dir, file_stamps, has_directory
from .files import find_compression, open_data
from .regular_file import BLOCK_BYTES, open_regular

MAX_BYTES, MAX_FILES = 16 << 30, 1_000_000  # of an archive, unpacked
ZIP_MAGIC, TAR_MAGIC = (b"PK\x03\x04", b"PK\x05\x06"), b"ustar"
ZIP_FILES = (".npz",)  # are zip files, and not meant to be unpacked
REFUSED = {
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it, and give the folder",
    b"Rar!": "a rar archive: unpack it, and give the folder",
    b"%PDF": "a PDF: save its text as .txt first (pdftotext)",
    b"\xd0\xcf\x11\xe0": "a file of an old Office: save it as .csv or .txt first",
    b"SQLite format 3": "an SQLite database: export its table as .csv first",
}
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, RuntimeError, OSError)


class Member(NamedTuple):
    """A regular file in an archive."""

    name: str
    open: Callable[[], Any]


def unpack_archive(path: Path) -> Path:
    """Return what a file holds if it is an archive: a folder, or its only file; any other path as it is.

    Raises InputError for a damaged archive, one that is too large or has paths outside its folder, and for files of
    kinds that cannot be read.
    """
    check_confined(path)
    if not os.path.isfile(path) or path.suffix.lower() in ZIP_FILES:
        return path
    with open_regular(path) as file:
        head = file.read(512)
    if kind := next((kind for magic, kind in REFUSED.items() if head.startswith(magic)), None):
        raise InputError(f"{path} is {kind}")
    if head.startswith(ZIP_MAGIC):
        members = list_zip
    elif is_tar(path, head):
        members = list_tar
    else:
        return path
    if get_confinement():
        raise InputError(f"{path} is an archive: send the files that are in it")
    stamp = hashlib.sha256(repr(file_stamps([path])).encode()).hexdigest()
    target = cache_dir() / "unpacked" / stamp
    if not has_directory(target):
        try:
            with build_directory(target) as folder:
                write_members(members(path), folder, path)
        except DAMAGED as error:
            raise InputError(f"{path}: cannot be unpacked ({error})") from None
    return enter_single(target)


def is_tar(path: Path, head: bytes) -> bool:
    if find_compression(head):
        with open_data(path) as file:
            head = file.read(512)
    return head[257:262] == TAR_MAGIC


def list_zip(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        if "[Content_Types].xml" in archive.namelist():
            raise InputError(f"{path} is an Office document: save it as .csv or .txt first")
        for info in archive.infolist():
            is_link = (info.external_attr >> 16) & 0o170000 == 0o120000
            if not info.is_dir() and not is_link:
                yield Member(info.filename, lambda info=info: archive.open(info))


def list_tar(path: Path) -> Iterator[Member]:
    with open_data(path) as file, tarfile.open(fileobj=file, mode="r|") as archive:
        for info in archive:
            if info.isreg():  # no links, no devices
                yield Member(info.name, lambda info=info: archive.extractfile(info))


def write_members(members: Iterator[Member], folder: Path, archive: Path) -> None:
    """Write the files of an archive, hidden ones left out. Counts what is really written: sizes can lie."""
    total, n_files = 0, 0
    for member in members:
        parts = PurePosixPath(member.name.replace("\\", "/")).parts
        if not parts or parts[0] == "/" or ".." in parts or ":" in parts[0]:
            raise InputError(f"{archive}: holds the path {member.name!r}, outside its folder: unpack it by hand")
        if any(part.startswith((".", "__MACOSX")) for part in parts):
            continue
        n_files += 1
        target = folder.joinpath(*parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        with member.open() as source, open(target, "wb") as file:
            while block := source.read(BLOCK_BYTES):
                total += len(block)
                if total > MAX_BYTES or n_files > MAX_FILES:
                    limit = f"{MAX_BYTES >> 30} GiB or {MAX_FILES:,} files"
                    raise InputError(f"{archive}: unpacks to more than {limit}: unpack it, and give the folder")
                file.write(block)
    if not n_files:
        raise InputError(f"{archive}: holds no files")


def enter_single(folder: Path) -> Path:
    """Return the innermost folder that holds everything, or the only file; hidden files do not count."""
    while folder.is_dir():
        entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
        if len(entries) != 1:
            return folder
        folder = entries[0]
    return folder
