"""Small checks of untrusted input that the whole package shares: JSON files, hashes, numbers."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from ...errors import InputError

MAX_JSON_BYTES = 64 << 20
BLOCK_BYTES = 1 << 20


def read_json(path: Path, limit: int = MAX_JSON_BYTES, kind: type = dict) -> Any:
    """Read a JSON file of at most `limit` bytes whose top level is of type `kind` (dict or list).

    Raises:
        InputError: the file cannot be read, is too large, is not JSON or has another top-level type.
    """
    try:
        with open(path, "rb") as file:
            content = read_bounded(file, limit)
        if len(content) > limit:
            raise InputError(f"{path} is larger than {limit >> 20} MiB, the most that is read of such a file")
        value = json.loads(content.decode("utf-8"))
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, kind):
        expected = "object" if kind is dict else kind.__name__
        raise InputError(f"{path} should hold a JSON {expected}, found {type(value).__name__}")
    return value


def load_json(path_or_text: str, name: str, limit: int = MAX_JSON_BYTES, kind: type = dict) -> Any:
    """Parse a JSON object or list that is given as text, or as the path of a file; `name` says what it is in messages.

    Raises:
        InputError: as `read_json`.
    """
    if not path_or_text.lstrip().startswith(("{", "[")):
        try:
            return read_json(Path(path_or_text), limit, kind)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
    try:
        value = json.loads(path_or_text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} '{path_or_text[:60]}' cannot be read as JSON: {error}") from None
    if not isinstance(value, kind):
        raise InputError(f"{name} '{path_or_text[:60]}' should hold {'an object' if kind is dict else 'a list'}")
    return value


def read_bounded(file: Any, limit: int) -> bytes:
    """Read an open binary file. Of a file of more than `limit` bytes, return a little more than `limit`.

    It reads in blocks, because `read(limit)` on a compressed file allocates all of it before anything is read.
    """
    blocks, size = [], 0
    while size <= limit and (block := file.read(BLOCK_BYTES)):
        blocks.append(block)
        size += len(block)
    return b"".join(blocks)


def sha256_file(*paths: Path) -> str:
    """Return the SHA-256, in hexadecimal, of the contents of these files, concatenated."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def is_finite_number(value: Any) -> bool:
    """Whether a value is an int or a float (not a bool) that is finite as a float."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond the range of a float
        return False
