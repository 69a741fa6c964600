"""The cache directory, directories that appear complete or not at all, and functions memoized by their files."""

import contextlib
import functools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, TypeVar

from ...confinement import check_confined
from ...events import report_notice
from .seal import SEAL_NAME, find_damage, write_seal

F = TypeVar("F", bound=Callable[..., Any])
STALE_SECONDS = 24 * 3600  # after which the temporary directory of a killed process is removed


def cache_dir() -> Path:
    """Return $ANYFORMER_CACHE, else $XDG_CACHE_HOME/anyformer, else ~/.cache/anyformer. All of it can be rebuilt."""
    if path := os.environ.get("ANYFORMER_CACHE"):
        return Path(path).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "anyformer"


def cache_by_files(files: Callable[..., Iterable[str | Path]], maxsize: int = 4) -> Callable[[F], F]:
    """Memoize a function on its arguments and on the path, modification time and size of the files that it reads.

    Args:
        files: called with the same arguments; returns the files, and folders with all files in them, that the result
            depends on.
        maxsize: the number of results that are kept.
    """

    def decorate(function: F) -> F:
        compute = functools.lru_cache(maxsize)(lambda stamps, *args, **kwargs: function(*args, **kwargs))

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return compute(file_stamps(files(*args, **kwargs)), *args, **kwargs)

        return wrapper  # ty: ignore[invalid-explicit-return]

    return decorate


def data_files(data: str) -> list[Path]:
    """Return the existing files and directories that a `data` argument names; none for a named set, which is fixed."""
    parts = [data, *map(str.strip, data.split(","))] if data else []
    for part in parts:
        check_confined(part)
    paths = [Path(part).expanduser() for part in parts]
    return [path for path in dict.fromkeys(paths) if os.path.exists(path)]  # False for a name that no file can have


def file_stamps(paths: Iterable[str | Path]) -> tuple[tuple[str, int, int], ...]:
    """Return (absolute path, modification time in ns, size) of every file in `paths`, directories walked in order."""
    stamps = []
    for path in map(Path, paths):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                status = file.stat()
                stamps.append((str(file.resolve()), status.st_mtime_ns, status.st_size))
    return tuple(stamps)


def has_directory(target: Path) -> bool:
    """Whether a directory that `build_directory` made is there as it was made. Says in one line if it is damaged."""
    if not (target / SEAL_NAME).is_file():  # not there, or made by an earlier version
        return False
    if damage := find_damage(target):
        report_notice(f"{target} in the cache is damaged, so it is made again: {damage}")
    return not damage


def remove_damaged() -> tuple[int, dict[str, str]]:
    """Read every directory in the cache that `build_directory` made, and remove the damaged ones: they are made again
    when they are needed.

    Returns how many were read, and of each removed one what was wrong.
    """
    seals = sorted(cache_dir().rglob(SEAL_NAME))
    damages = {str(path.parent): damage for path in seals if (damage := find_damage(path.parent, is_deep=True))}
    for folder in damages:
        shutil.rmtree(folder, ignore_errors=True)
    return len(seals), damages


@contextlib.contextmanager
def build_directory(target: Path) -> Generator[Path]:
    """Yield a temporary directory that is sealed and renamed to `target` when the block succeeds.

    A directory that another process has put there is kept unless it is damaged.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for path in target.parent.glob(".new-*"):
        with contextlib.suppress(OSError):
            if time.time() - max(p.stat().st_mtime for p in [path, *path.iterdir()]) > STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=".new-"))
    try:
        yield folder
        write_seal(folder)
        _install(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _install(folder: Path, target: Path) -> None:
    for _ in range(3):
        with contextlib.suppress(OSError):  # the target exists
            os.rename(folder, target)
        if not find_damage(target):
            return
        damaged = folder.with_name(f"{folder.name}-damaged")
        with contextlib.suppress(OSError):
            os.rename(target, damaged)
        shutil.rmtree(damaged, ignore_errors=True)
    raise OSError(f"{target}: cannot be replaced")


def build_cached(folder: Path, name: str, write: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Return the content of the JSON file `name` of a cached directory, which is built first unless it is there.

    `write` fills an empty directory and returns the content of the file.
    """
    if not has_directory(folder):
        with build_directory(folder) as new:
            (new / name).write_text(json.dumps(write(new)), "utf-8")
    return json.loads((folder / name).read_text("utf-8"))
