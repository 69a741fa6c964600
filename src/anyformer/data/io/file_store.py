"""Folders of files that are read and written by name, here or elsewhere: a path, https://, or a URL that fsspec opens.

s3:// needs the package s3fs, gs:// gcsfs, other protocols their own; https:// and local folders need none.
"""

import os
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError
from .download import is_url, open_url
from .files import import_optional
from .regular_file import BLOCK_BYTES, open_regular, read_bounded

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}  # protocol -> extra of anyformer
DENIED, MISSING = (401, 403), (404, 410)  # HTTP status codes


class UnreachableError(InputError):
    """A file could not be read now. Another attempt may succeed."""


@dataclass(frozen=True)
class FileStore:
    """The files in one folder."""

    location: str

    @property
    def local_folder(self) -> Path | None:
        """The folder on this machine; None if it is elsewhere."""
        return None if "://" in self.location else Path(self.location).expanduser()

    def address(self, name: str) -> str:
        return f"{self.location.rstrip('/')}/{name}"

    def read_blocks(self, name: str) -> Iterator[bytes]:
        """Yield the content of a file. Raises InputError: UnreachableError where another attempt may succeed."""
        with self._open(name) as file:
            while block := self._call(name, file.read, BLOCK_BYTES):
                yield block

    def read(self, name: str, limit: int) -> bytes:
        """Return the content of a file of at most `limit` bytes. Raises InputError."""
        with self._open(name) as file:
            return self._call(name, read_bounded, file, limit, self.address(name))

    def has(self, name: str) -> bool:
        """Whether there is a file of this name. Raises InputError where that cannot be known."""
        if (folder := self.local_folder) is not None:
            return (folder / name).exists()
        if is_url(self.location):
            raise InputError(f"{self.location}: nothing can be written over http: give a folder or a bucket (s3://)")
        filesystem, path = self._connect()
        return self._call(name, filesystem.exists, f"{path.rstrip('/')}/{name}")

    def write(self, name: str, content: bytes) -> None:
        """Write a file, which is visible when it is complete. Raises InputError for a URL that cannot be written to."""
        if (folder := self.local_folder) is None:
            filesystem, path = self._connect()
            self._call(name, filesystem.pipe_file, f"{path.rstrip('/')}/{name}", content)
            return
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.chmod(temporary, 0o644)  # mkstemp makes it private
            os.replace(temporary, folder / name)
        except BaseException:
            os.unlink(temporary)
            raise

    @contextmanager
    def _open(self, name: str) -> Generator[Any]:
        if (folder := self.local_folder) is not None:
            with open_regular(folder / name) as file:
                yield file
        else:
            file = self._call(name, self._open_remote, name)
            try:
                yield file
            finally:
                file.close()

    def _open_remote(self, name: str) -> Any:
        if is_url(self.location):
            return open_url(self.address(name))
        filesystem, path = self._connect()
        return filesystem.open(f"{path.rstrip('/')}/{name}", "rb")

    def _connect(self) -> tuple[Any, str]:
        """Return the file system of fsspec and the path in it."""
        protocol = self.location.partition("://")[0]
        hint = f"pip install 'anyformer[{EXTRAS[protocol]}]'" if protocol in EXTRAS else "see the protocols of fsspec"
        core = import_optional("fsspec.core", f"{self.location} needs fsspec: {hint}")
        try:
            return core.url_to_fs(self.location)
        except (ImportError, ValueError) as error:  # a package is missing, or there is no such protocol
            raise InputError(f"{self.location} cannot be opened ({get_first_line(error)}): {hint}") from None

    def _call(self, name: str, function: Any, *arguments: Any) -> Any:
        """Call a function. Raises InputError for whatever the library of a protocol may raise."""
        try:
            return function(*arguments)
        except InputError:
            raise
        except Exception as error:
            raise explain_error(error, self.address(name)) from None


def explain_error(error: Exception, address: str) -> InputError:
    """Return the error for a file that cannot be read or written."""
    status, text = getattr(error, "code", None), get_first_line(error)
    if isinstance(error, FileNotFoundError) or status in MISSING:
        return InputError(f"{address}: there is no such file, folder or bucket ({text})")
    if isinstance(error, PermissionError) or status in DENIED or "Credentials" in type(error).__name__:
        return InputError(f"{address}: no right to read or write it ({text}): check the credentials")
    return UnreachableError(f"{address}: cannot be reached ({text})")


def get_first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
