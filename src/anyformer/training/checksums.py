"""Checksums of a checkpoint: `SHA256SUMS` lists the SHA-256 of every file, in the format of `sha256sum`.

A flipped bit, a cut file or another vocabulary of the same size would otherwise load without an error.
"""

import re
from pathlib import Path

from ..data.io.checks import read_json, read_text, sha256_file
from ..errors import InputError

SUMS_FILE = "SHA256SUMS"


def write_checksums(folder: Path) -> None:
    """Write the checksums of all files of a checkpoint."""
    names = sorted(path.name for path in folder.iterdir() if path.name != SUMS_FILE)
    lines = [f"{sha256_file(folder / name)}  {name}\n" for name in names]
    (folder / SUMS_FILE).write_text("".join(lines), encoding="utf-8")


def verify_files(folder: Path, but: str = "") -> None:
    """Check that every file of a checkpoint is as it was saved; `but` is not read. Raises InputError naming the first
    that is not."""
    for name, sha256 in read_sums(folder).items():
        path = folder / name
        if name == but:
            continue
        if not path.is_file():
            raise InputError(f"{path} is missing: restore it, or use another checkpoint")
        if sha256_file(path) != sha256:
            raise InputError(f"{path} is not the file that was saved: restore the original, or use another checkpoint")


def read_sums(folder: Path) -> dict[str, str]:
    """Return the checksums of a checkpoint by file name; none for one of an early version. Raises InputError."""
    path = folder / SUMS_FILE
    if not path.is_file():  # earlier versions have checksums of the model's own files only, if any
        stored = read_json(folder / "state.json").get("files")
        return {Path(name).name: sha for name, sha in stored.items()} if isinstance(stored, dict) else {}
    lines = [re.fullmatch(r"([0-9a-f]{64})  ([^/\\]+)", line) for line in read_text(path).splitlines()]
    if not lines or None in lines:
        raise InputError(f"{path} is damaged: restore it, or use another checkpoint")
    return {match[2]: match[1] for match in lines if match is not None}
