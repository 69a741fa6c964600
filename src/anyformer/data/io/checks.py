"""Checks of untrusted input that the whole package shares: texts, JSON, hashes, numbers."""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

from ...errors import InputError
from .regular_file import BLOCK_BYTES, open_regular, read_regular

MAX_FILE_BYTES = 64 << 20
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


def read_text(path: Path, limit: int = MAX_FILE_BYTES) -> str:
    """Read a UTF-8 file of at most `limit` bytes. Raises InputError."""
    try:
        return read_regular(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read as text: it is not UTF-8 at byte {error.start}") from None


def read_json(path: Path, limit: int = MAX_FILE_BYTES, kind: type = dict) -> Any:
    """Read a JSON file of at most `limit` bytes whose top level is of type `kind`, dict or list. Raises InputError."""
    return parse_json(read_text(path, limit), str(path), kind)


def load_json(path_or_text: str, name: str, limit: int = MAX_FILE_BYTES, kind: type = dict) -> Any:
    """Parse JSON that is given as text or as the path of a file; `name` is for errors. Raises InputError."""
    if path_or_text.lstrip().startswith(("{", "[")):
        return parse_json(path_or_text, f"{name} '{path_or_text[:60]}'", kind)
    try:
        return read_json(Path(path_or_text), limit, kind)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def parse_json(text: str, where: str, kind: type = dict, hint: str = "") -> Any:
    """Parse JSON whose top level is of type `kind`. Raises InputError, from the place `where` to the `hint`."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text.strip() else ""
        raise InputError(f"{where}: not JSON ({error.msg}, {line}column {error.colno}){hint}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error}){hint}") from None
    if SURROGATE.search(text):  # a half of a pair alone
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError):
            raise InputError(f"{where}: holds a lone surrogate, which no text can: \\ud800 to \\udfff{hint}") from None
    if not isinstance(value, kind):
        expected = "object" if kind is dict else kind.__name__
        raise InputError(f"{where}: should hold a JSON {expected}, found {type(value).__name__}{hint}")
    return value


def sha256_file(*paths: Path) -> str:
    """Return the SHA-256, in hexadecimal, of the contents of these files, concatenated."""
    digest = hashlib.sha256()
    for path in paths:
        with open_regular(path) as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def is_finite_number(value: Any) -> bool:
    """Whether a value is an int or a float (not a bool) that is finite as a float."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an int beyond the range of a float
        return False
