"""Figures of matplotlib: curves of runs, what a recipe draws, attention weights.

Each function returns a `matplotlib.figure.Figure` that one can go on with: change its axes, save it. It is closed for
pyplot, so that a notebook shows it once. matplotlib is an extra: `pip install 'anyformer[plot]'`.
"""

import base64
import importlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import InputError
from .curves import Curve
from .figures import check_png

MAX_DOTS = 60  # points of a curve that are marked
IMAGE_COLUMNS = 4


def import_pyplot() -> Any:
    """Raises InputError if matplotlib is not installed."""
    try:
        return importlib.import_module("matplotlib.pyplot")
    except ImportError:
        raise InputError("plots need matplotlib: pip install 'anyformer[plot]'") from None


def make_axes(axes: Any = None, size: tuple[float, float] = (7.0, 4.0)) -> Any:
    """Return axes of a new figure, or those that were given."""
    if axes is not None:
        return axes
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(figsize=size, layout="constrained")
    pyplot.close(figure)
    return axes


def plot_curves(curves: Mapping[str, Curve], axes: Any = None) -> Any:
    """Plot curves over the steps by their names; a noisy one is pale, with its moving average over it."""
    axes = make_axes(axes)
    for name, curve in curves.items():
        xs, ys = curve.points()
        if curve.is_noisy():
            (line,) = axes.plot(xs, ys, alpha=0.3, linewidth=1)
            axes.plot(*curve.smooth(), color=line.get_color(), label=name)
        else:
            axes.plot(xs, ys, marker="o" if len(xs) <= MAX_DOTS else "", markersize=4, label=name)
    axes.set_xlabel("step")
    axes.legend()
    return axes.figure


def plot_matrix(
    values: Sequence[Sequence[float]],
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    title: str = "",
    top: float | None = None,
    axes: Any = None,
) -> Any:
    """Plot a matrix as a heat map, darker for larger values."""
    size = min(10.0, 2.5 + 0.25 * max(len(values), 1))
    axes = make_axes(axes, (size, size))
    image = axes.imshow(values, cmap="Blues", vmin=0, vmax=top)
    axes.figure.colorbar(image, ax=axes, shrink=0.8)
    if rows:
        axes.set_yticks(range(len(rows)), rows)
    if columns:
        axes.set_xticks(range(len(columns)), columns, rotation=90)
    axes.set_title(title)
    return axes.figure


def plot_figure(figure: Mapping[str, Any]) -> Any:
    """Plot what a recipe draws, `recipe.Figure`. Raises KeyError, TypeError or ValueError for a malformed one."""
    return KINDS[figure["kind"]](figure)


def _plot_matrix(figure: Mapping[str, Any]) -> Any:
    labels = [[str(text) for text in figure.get(axis) or ()] for axis in ("rows", "columns")]
    return plot_matrix(figure["values"], *labels, title=str(figure.get("title", "")), top=figure.get("top"))


def _plot_lines(figure: Mapping[str, Any]) -> Any:
    axes = make_axes()
    for line in figure["lines"]:
        axes.plot(line["x"], line["y"], label=str(line["name"]), marker="o" if len(line["x"]) <= MAX_DOTS else "")
    axes.set_xlabel(str(figure.get("x_label", "")))
    axes.set_title(str(figure.get("title", "")))
    if figure.get("zero"):
        axes.set_ylim(bottom=0)
    axes.legend()
    return axes.figure


def _plot_images(figure: Mapping[str, Any]) -> Any:
    pyplot, images = import_pyplot(), figure["images"]
    n_rows = math.ceil(len(images) / IMAGE_COLUMNS)
    drawing = pyplot.figure(figsize=(9, 2.5 * n_rows), layout="constrained")
    pyplot.close(drawing)
    for i, image in enumerate(images, 1):
        axes = drawing.add_subplot(n_rows, IMAGE_COLUMNS, i)
        axes.imshow(pyplot.imread(io.BytesIO(base64.b64decode(check_png(image["png"]))), format="png"))
        axes.set_title(str(image.get("caption", "")), fontsize=8)
        axes.axis("off")
    drawing.suptitle(str(figure.get("title", "")))
    return drawing


KINDS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "matrix": _plot_matrix,
    "lines": _plot_lines,
    "images": _plot_images,
}
