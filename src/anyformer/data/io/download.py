"""Files from elsewhere, into the cache: downloaded, checked and unpacked under a temporary name, then renamed."""

import contextlib
import hashlib
import lzma
import os
import shutil
import tarfile
import tempfile
import urllib.request
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import InputError

MAX_BYTES = 1 << 30  # bytes of a download, and of all that an archive holds
TIMEOUT_SECONDS = 10.0  # seconds without an answer
BLOCK = 1 << 20


def bounded(file: Any, most: int) -> bytes:
    """What an open file holds, of more than `most` bytes only a little more. In blocks: `read(most)` would take so much
    memory before it has read anything."""
    blocks, size = [], 0
    while size <= most and (block := file.read(BLOCK)):
        blocks.append(block)
        size += len(block)
    return b"".join(blocks)


def verify_sha256(paths: Sequence[Path], sha256: str, what: str) -> None:
    """Raises InputError unless the bytes of these files, one after the other, have this SHA-256."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    if digest.hexdigest() != sha256:
        raise InputError(
            f"{what}: its SHA-256 is {digest.hexdigest()} but must be {sha256}: "
            "the files are not the ones this name stands for, remove them and get them again"
        )


def download(urls: Mapping[str, str], target: Path, sha256: str) -> None:
    """Fetch files (name -> https URL) into a new folder `target`. Raises OSError if one cannot be had."""
    with appearing(target) as folder:
        paths = [folder / name for name in urls]
        for path, url in zip(paths, urls.values(), strict=True):
            _download(url, path)
        verify_sha256(paths, sha256, f"what came from {', '.join(urls.values())}")


def unpack(archive: Path, target: Path, endings: tuple[str, ...] = (".txt",)) -> None:
    """Unpack the files of these kinds from a tar archive into a new folder `target`; nothing can land elsewhere."""
    try:
        with appearing(target) as folder, tarfile.open(archive) as tar:
            members = [m for m in tar if m.isfile() and m.name.endswith(endings)]
            if sum(m.size for m in members) > MAX_BYTES:
                raise InputError(f"{archive}: holds more than {MAX_BYTES >> 20} MiB of {', '.join(endings)}")
            tar.extractall(folder, members, filter="data")
    except (tarfile.TarError, lzma.LZMAError, EOFError) as e:
        raise InputError(f"{archive}: cannot be unpacked ({e})") from None


def _download(url: str, path: Path) -> None:
    if not url.startswith("https://"):
        raise OSError("not https")
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, open(path, "wb") as file:
        if not response.url.startswith("https://"):
            raise OSError(f"sent on to {response.url}, which is not https")
        while block := response.read(BLOCK):
            file.write(block)
            if file.tell() > MAX_BYTES:
                raise OSError(f"more than {MAX_BYTES >> 20} MiB")


@contextlib.contextmanager
def appearing(target: Path) -> Generator[Path]:
    """A temporary folder that becomes `target` at the end if all went well; two at once both end well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        yield folder
        try:
            os.rename(folder, target)
        except OSError:
            if not target.is_dir():  # else another process was faster, with the same content
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
