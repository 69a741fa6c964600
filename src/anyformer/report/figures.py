"""Figures of a run as markup: what its recipe draws (figures.json), and what its fields are worth (worth.json).

Nothing in the files is trusted: what is malformed is left out, all text is escaped, and an image is shown only if it is
a PNG in base64.
"""

import base64
import math
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from markupsafe import Markup

from .chart import Series, bar_chart, heatmap, line_chart
from .run_files import read_content

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError)


def read_figures(run: Path) -> list[dict[str, Any]]:
    """Return the figures that can be drawn, in order: {"title", "note"} and "svg", "images" or "drafts"."""
    figures = [*read_content(run / "figures.json", list), read_content(run / "worth.json") | {"kind": "worth"}]
    return [markup for figure in figures if (markup := draw_figure(figure)) is not None]


def draw_figure(figure: Any) -> dict[str, Any] | None:
    """Draw a figure; None where it cannot be drawn."""
    try:
        markup = KINDS[figure["kind"]](figure)
    except MALFORMED:
        return None
    return {"title": str(figure.get("title", "")), "note": str(figure.get("note", "")), **markup}


def draw_matrix(figure: dict[str, Any]) -> dict[str, Any]:
    rows, columns = ([str(text) for text in figure.get(axis) or ()] for axis in ("rows", "columns"))
    values, top = figure["values"], figure.get("top")
    is_small = len(values) <= 10 and rows == columns
    options: dict[str, Any] = {"cell": 36 if is_small else 11 if len(values) > 12 else 18, "show_values": is_small}
    return {"svg": heatmap(values, title="", rows=rows, columns=columns, top=top, standalone=False, **options)}


def draw_lines(figure: dict[str, Any]) -> dict[str, Any]:
    series = []
    for i, line in enumerate(figure["lines"]):
        edges = [(line["x"], line["y"])] if "y" in line else [(line["x"], line["high"]), (line["x"], line["low"])]
        points = [(float(x), float(y)) for x, y in zip(*edges[0], strict=True)]
        points += [(float(x), float(y)) for x, y in reversed([*zip(*edges[1], strict=True)])] if edges[1:] else []
        points = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
        xs, ys = [x for x, _ in points], [y for _, y in points]
        dots, is_band = len(points) <= 60 and "y" in line, "y" not in line
        series.append(Series(str(line["name"]), xs, ys, color=int(line.get("color", i)), dots=dots, is_band=is_band))
    label, zero = str(figure.get("x_label", "")), bool(figure.get("zero", False))
    title = str(figure.get("title", ""))
    return {"svg": line_chart(series, title=title, x_label=label, zero=zero, standalone=False)}


def draw_images(figure: dict[str, Any]) -> dict[str, Any]:
    return {"images": [(check_png(image["png"]), str(image.get("caption", ""))) for image in figure["images"]]}


def draw_drafts(figure: dict[str, Any]) -> dict[str, Any]:
    """Split each draft into runs of characters, (text, whether they differ from the draft before)."""
    drafts = [str(text) for text in figure["drafts"]]
    return {"drafts": [find_changes(before, text) for before, text in zip(drafts[:1] + drafts, drafts)]}


def find_changes(before: str, text: str) -> list[tuple[str, bool]]:
    if len(before) != len(text):
        return [(text, False)]
    pairs = groupby(zip(before, text), key=lambda pair: pair[0] != pair[1])
    return [("".join(new for _, new in run), is_new) for is_new, run in pairs]


def check_png(text: str) -> str:
    """Return the text if it is a PNG in base64. Raises ValueError."""
    if not base64.b64decode(text, validate=True).startswith(PNG_SIGNATURE):
        raise ValueError("no PNG")
    return text


def draw_field_importance(facts: dict[str, Any]) -> dict[str, Any]:
    """Draw what `anyformer worth` measured."""
    note = f"{facts['score']} over {facts['rows']:,} rows: without a field, with it alone, and with its values "
    note += "taken from other rows"
    return {"title": "What each field is worth", "note": note, "svg": draw_worth(facts, standalone=False)}


def draw_worth(facts: Mapping[str, Any], standalone: bool = True) -> Markup:
    """Draw the result of `field_importance.measure` as SVG, most valuable field first."""
    fields = sorted(facts["fields"].items(), key=lambda item: -item[1]["worth"])
    groups = {name: [values[kind] for kind in ("without", "only", "shuffled")] for name, values in fields}
    marks = {"all fields": facts["all"], "none": facts["none"]}
    title = f"What each field is worth: {facts['score']}" if standalone else ""
    return bar_chart(groups, ("without it", "it alone", "shuffled"), title=title, marks=marks, standalone=standalone)


KINDS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "matrix": draw_matrix,
    "lines": draw_lines,
    "images": draw_images,
    "drafts": draw_drafts,
    "worth": draw_field_importance,
}
