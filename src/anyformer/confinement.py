"""Which files may be named: any, by a person at this machine; only those that came with it, by a request over HTTP."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from .errors import InputError

_folder: ContextVar[Path | None] = ContextVar("_folder", default=None)


class ConfinedError(InputError):
    """A request names a file that did not come with it."""


@contextmanager
def confine_files(folder: Path) -> Generator[None]:
    """Let this thread read files of one folder only, by whatever name, while the block runs."""
    token = _folder.set(Path(os.path.realpath(folder)))
    try:
        yield
    finally:
        _folder.reset(token)


def get_confinement() -> Path | None:
    """Return the folder that this thread may read, None without such a limit."""
    return _folder.get()


def check_confined(path: str | Path) -> None:
    """Raise ConfinedError for a path outside of the folder: the same one, whether there is such a file or not."""
    folder = _folder.get()
    if folder is None:
        return
    try:
        is_inside = os.path.realpath(path).startswith(os.path.join(folder, ""))
    except ValueError:  # a zero byte, or a lone surrogate
        is_inside = False
    if not is_inside:
        name = str(path) if len(str(path)) <= 60 else f"{str(path)[:60]}..."
        raise ConfinedError(f"{name!r}: files and data sets of the server cannot be named here: send the file itself")
