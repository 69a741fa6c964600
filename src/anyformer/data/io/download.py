"""Files from elsewhere into the cache: downloaded, verified and unpacked in a temporary directory, then renamed."""

import lzma
import tarfile
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...errors import InputError
from .cache import build_directory
from .checks import BLOCK_BYTES, sha256_file

MAX_BYTES = 1 << 30  # of a download, and of the extracted files of an archive
TIMEOUT_SECONDS = 10.0


def verify_sha256(paths: Sequence[Path], sha256: str, what: str) -> None:
    """Raise InputError unless the concatenated contents of these files have this SHA-256."""
    if (actual := sha256_file(*paths)) != sha256:
        raise InputError(
            f"{what}: its SHA-256 is {actual} but must be {sha256}: "
            "these are not the files of this data set, remove them and get them again"
        )


def download(urls: Mapping[str, str], target: Path, sha256: str) -> None:
    """Fetch files (name -> https URL) into a new directory. Raises OSError, and InputError for another SHA-256."""
    with build_directory(target) as folder:
        for name, url in urls.items():
            _download_file(url, folder / name)
        verify_sha256([folder / name for name in urls], sha256, f"the download from {', '.join(urls.values())}")


def unpack(archive: Path, target: Path, extensions: tuple[str, ...] = (".txt",)) -> None:
    """Extract the files with these extensions from a tar archive into a new directory `target`. Raises InputError."""
    try:
        with build_directory(target) as folder, tarfile.open(archive) as tar:
            members = [m for m in tar if m.isfile() and m.name.endswith(extensions)]
            if sum(m.size for m in members) > MAX_BYTES:
                raise InputError(f"{archive}: holds more than {MAX_BYTES >> 20} MiB of {', '.join(extensions)}")
            tar.extractall(folder, members, filter="data")
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise InputError(f"{archive}: cannot be unpacked ({error})") from None


def _download_file(url: str, path: Path) -> None:
    if not url.startswith("https://"):
        raise OSError("not https")
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, open(path, "wb") as file:
        if not response.url.startswith("https://"):
            raise OSError(f"redirected to {response.url}, which is not https")
        while block := response.read(BLOCK_BYTES):
            file.write(block)
            if file.tell() > MAX_BYTES:
                raise OSError(f"more than {MAX_BYTES >> 20} MiB")
