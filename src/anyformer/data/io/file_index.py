"""Find the files that a table names: by their path, by their name in another folder, or without their extension."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from ...confinement import get_confinement
from .embedded import is_embedded
from .regular_file import join_inside

MAX_FILES = 1_000_000  # that are listed


class FileIndex:
    """The files of a table with some extensions, in the folder of the table or, if there are none, in the one above."""

    def __init__(self, folder: Path, extensions: Sequence[str]):
        self.folder, self.extensions = folder, tuple(extensions)

    @cached_property
    def names(self) -> dict[str, Path]:
        """The path of each file by its name, and by its name without the extension, where that is unique."""
        paths = list_files(self.folder, self.extensions)
        if not paths and get_confinement() is None:
            paths = list_files(self.folder.parent, self.extensions)
        names: dict[str, list[Path]] = {}
        for path in paths:
            for name in {path.name, path.stem}:
                names.setdefault(name, []).append(path)
        return {name: same[0] for name, same in names.items() if len(same) == 1}

    def find(self, name: str) -> Path:
        """Return the path of a file; one that is not there where the table says, if there is none. Raises InputError
        for one that is outside the folder."""
        if is_embedded(name):
            return Path(name)
        for candidate in (name, *(name + extension for extension in self.extensions)):
            if os.path.isfile(self.folder / candidate):  # Path.is_file raises errors for a name that is too long
                return join_inside(self.folder, candidate)
        return self.names.get(Path(name).name, self.folder / name)


def list_files(folder: Path, extensions: Sequence[str]) -> list[Path]:
    """List the visible files of a folder and of its folders, in order."""
    paths: list[Path] = []
    n_files, ends = 0, tuple(extensions)
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [Path(root, name) for name in sorted(files) if name[0] != "." and name.lower().endswith(ends)]
        n_files += len(files) + len(folders)
        if n_files > MAX_FILES:
            break
    return paths
