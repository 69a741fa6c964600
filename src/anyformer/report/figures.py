"""What a recipe draws of its model, from figures.json to markup. Nothing in it is trusted: what is not as it should be
is left out, every text is escaped, and an image is shown only if it is a PNG in base64.
"""

import base64
import binascii
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from markupsafe import Markup

from .chart import Series, line_chart
from .heatmap import heatmap

PNG = b"\x89PNG\r\n\x1a\n"
LARGEST = 1 << 26  # bytes of figures.json


def read_figures(path: Path) -> list[dict[str, Any]]:
    """The figures that can be drawn, in their order: {"title", "note", "svg"}, or {"title", "note", "images"}."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size <= LARGEST else []
    except (OSError, ValueError, RecursionError):
        return []
    return [made for one in found if (made := drawn(one)) is not None] if isinstance(found, list) else []


def drawn(figure: Any) -> dict[str, Any] | None:
    """One figure, or None where it cannot be drawn."""
    if not isinstance(figure, dict) or figure.get("kind") not in KINDS:
        return None
    try:
        made = KINDS[figure["kind"]](figure)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return None
    return {"title": str(figure.get("title", "")), "note": str(figure.get("note", "")), **made}


def matrix(figure: dict[str, Any]) -> dict[str, Any]:
    rows, columns = ([str(text) for text in figure.get(side) or ()] for side in ("rows", "columns"))
    cell = 11 if len(figure["values"]) > 12 else 18
    top = figure.get("top")
    svg = heatmap(figure["values"], title="", rows=rows, columns=columns, cell=cell, top=top, standalone=False)
    return {"svg": Markup(svg)}  # ours, its texts escaped


def lines(figure: dict[str, Any]) -> dict[str, Any]:
    series = []
    for i, one in enumerate(figure["lines"]):
        points = [(float(x), float(y)) for x, y in zip(one["x"], one["y"], strict=True)]
        points = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
        few = len(points) <= 60
        series.append(Series(str(one["name"]), [x for x, _ in points], [y for _, y in points], colour=i, dots=few))
    label, zero = str(figure.get("x_label", "")), bool(figure.get("zero", False))
    svg = line_chart(series, title=str(figure.get("title", "")), x_label=label, zero=zero, standalone=False)
    return {"svg": Markup(svg)}  # ours, its texts escaped


def images(figure: dict[str, Any]) -> dict[str, Any]:
    return {"images": [(png(one["png"]), str(one.get("caption", ""))) for one in figure["images"]]}


def png(text: str) -> str:
    """The same base64, if it is a PNG. Raises ValueError."""
    try:
        content = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"no base64: {error}") from None
    if not content.startswith(PNG):
        raise ValueError("no PNG")
    return text


KINDS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"matrix": matrix, "lines": lines, "images": images}
