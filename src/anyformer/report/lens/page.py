"""The lens as one HTML page that works offline: its data, its scripts and its style are in it."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ...training.run_directory import atomic_write
from ..html import render_template

FOLDER = Path(__file__).parent
SCRIPTS = ("graph.js", "tables.js")


def write_lens(path: Path, data: dict[str, Any]) -> Path:
    """Write the page of what `build_lens` returns, atomically."""
    atomic_write(path, render_lens(data))
    return path


def render_lens(data: dict[str, Any]) -> str:
    """Return the page as text. Whatever the data hold, they are shown as text."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    parts = {"data": escape_json(text), "style": read_asset("page.css"), "script": "\n".join(map(read_asset, SCRIPTS))}
    markup = {name: Markup(part) for name, part in parts.items()}
    texts = {name: data[name] for name in ("title", "facts", "notes")}
    return render_template("lens/page.html.j2", **texts, **markup)


def escape_json(text: str) -> str:
    """JSON that can stand in a script element: no "<" ends it."""
    return text.replace("<", "\\u003c")


@cache
def read_asset(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
