"""A matrix as SVG text, like the charts beside it: the same input gives the same bytes.

heatmap(weights, title="Who reads whom")   # rows are queries, columns are keys
"""

import math
from collections.abc import Sequence
from html import escape

from .chart import LETTER, svg


def heatmap(
    matrix: Sequence[Sequence[float]],
    *,
    title: str,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    cell: int = 18,
    top: float | None = None,
    standalone: bool = True,
) -> str:
    """A matrix (Q, K) as squares, darker for more: attention weights, or edges (true and false).

    Rows are queries, columns are keys; `rows` and `columns` label them. `top` is the value of full ink (by default the
    largest). Zero, negative and non-finite cells stay empty. Raises ValueError when the rows differ in length.
    """
    values = [[float(v) for v in row] for row in matrix]
    wide = len(values[0]) if values else 0
    if any(len(row) != wide for row in values):
        raise ValueError(f"a heatmap needs rows of one length; got {sorted({len(row) for row in values})}")
    full = top or max((v for row in values for v in row if math.isfinite(v)), default=0.0) or 1.0
    left = 8 + LETTER * 1.1 * max(map(len, rows), default=0)
    above = 28 + LETTER * 1.1 * max(map(len, columns), default=0)
    width = max(left + wide * cell + 2, LETTER * 1.1 * len(title))
    height = above + len(values) * cell + 2
    parts = [f'<text class="title" x="0" y="12">{escape(title)}</text>']
    for q, row in enumerate(values):
        for k, value in enumerate(row):
            ink = min(value / full, 1.0) if math.isfinite(value) and value > 0 else 0.0
            style = f"fill:var(--c0);fill-opacity:{ink:.3f};stroke:var(--hair);stroke-width:.5"
            place = f'x="{left + k * cell:.1f}" y="{above + q * cell:.1f}" width="{cell}" height="{cell}"'
            parts.append(f'<rect {place} style="{style}"/>')
    for q, text in enumerate(rows):
        y = above + (q + 0.5) * cell + 4
        parts.append(f'<text x="{left - 6:.1f}" y="{y:.1f}" text-anchor="end">{escape(text)}</text>')
    for k, text in enumerate(columns):
        x, y = left + (k + 0.5) * cell + 4, above - 6
        parts.append(f'<text transform="translate({x:.1f} {y:.1f}) rotate(-90)">{escape(text)}</text>')
    said = f"{title}. {len(values)} queries by {wide} keys."
    # cells are squares of `cell` pixels: a small matrix is not blown up to the width of the page
    size = f'style="width:{width:.0f}px;max-width:100%"'
    return svg(math.ceil(width), math.ceil(height), said, "".join(parts), size, standalone)
