"""Rows from Python (a `datasets.Dataset`, a list of dicts, a generator of texts) as a file that is read like any other.

    cache/rows/HASH/rows.jsonl     HASH is that of the file's content

The rows are read once, one at a time, and written as JSON lines. A run stores the path of the file, so that it can be
resumed as long as the cache is there, and otherwise by passing the same rows again.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...events import report_notice, report_progress
from ...parsing import show_value
from .cache import build_directory, cache_dir, has_directory

FOLDER, FILE = "rows", "rows.jsonl"
EXPECTED = 'expected texts, or objects such as {"text": "..."}'
REPORT_ROWS = 1000


def store_rows(rows: Iterable[Any]) -> Path:
    """Return a file with these rows, in the cache. Raises InputError for what are no rows."""
    check_rows(rows)
    parent = cache_dir() / FOLDER
    parent.mkdir(parents=True, exist_ok=True)
    # the name of a temporary directory that `build_directory` removes if this process is killed
    with tempfile.TemporaryDirectory(dir=parent, prefix=".new-") as temporary:
        file = Path(temporary) / FILE
        folder = parent / write_rows(rows, file)
        if not has_directory(folder):
            with build_directory(folder) as new:
                os.replace(file, new / FILE)
    return folder / FILE


def check_rows(rows: Any) -> None:
    """Raise InputError for objects whose items are not rows."""
    if isinstance(rows, Mapping):
        name, names = next(iter(rows), "train"), ", ".join(map(str, list(rows)[:5]))
        raise InputError(f"data is a {type(rows).__name__} of {names}: pass one of them, data=...[{name!r}]")
    if hasattr(rows, "to_dict") and hasattr(rows, "iloc"):  # a table of pandas, whose items are names of columns
        raise InputError("data is a table of pandas: pass its rows, data=table.to_dict('records')")
    if isinstance(rows, bytes) or not isinstance(rows, Iterable):
        raise InputError(f"data is {show_value(rows)}; expected a path, a name, or rows: {EXPECTED}")


def write_rows(rows: Iterable[Any], file: Path) -> str:
    """Write rows as JSON lines and return the SHA-256 of the file. Fields that JSON cannot hold are left out, and
    named."""
    digest, count, dropped = hashlib.sha256(), 0, set()
    with open(file, "wb") as output:
        for count, row in enumerate(rows, 1):
            line = format_row(row, count, dropped)
            digest.update(line)
            output.write(line)
            if count % REPORT_ROWS == 0:
                report_progress("storing rows", count, max(count, get_length(rows)))
    if not count:
        raise InputError(f"data holds no rows: {EXPECTED}")
    if dropped:
        report_notice(f"fields of the rows that JSON cannot hold are left out: {', '.join(sorted(dropped))}")
    return digest.hexdigest()


def get_length(rows: Any) -> int:
    return len(rows) if hasattr(rows, "__len__") else 0


def format_row(row: Any, number: int, dropped: set[str]) -> bytes:
    if isinstance(row, str):
        row = {"text": row}
    if not isinstance(row, Mapping):
        raise InputError(f"row {number} of the data is {show_value(row)}: {EXPECTED}")
    fields = {}
    for name, value in row.items():
        try:
            fields[str(name)] = json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):  # an image, a tensor, NaN
            dropped.add(str(name))
    return ("{" + ", ".join(f"{json.dumps(name)}: {text}" for name, text in fields.items()) + "}\n").encode()


def explain_missing(path: Path) -> str:
    """Say what to do if a file with rows is no longer in the cache; "" for any other file."""
    if path.name != FILE or path.parent.parent.name != FOLDER or path.exists():
        return ""
    return f"data '{path}': rows that came from Python and are no longer in the cache: pass the same rows again as data"
