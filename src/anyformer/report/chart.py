"""Charts as SVG text: pure functions, the same input gives the same bytes, nothing to install.

    line_chart([Series("training", steps, losses)], title="Loss")   # -> "<svg ...>...</svg>"

A chart is a file of its own (`standalone`), or part of a page that holds `PALETTE` once. All text is escaped. Line
charts carry their scales in `data-` attributes, from which a page's script reads values.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

PALETTE = """\
:root { --paper: #fffefb; --ink: #23211e; --muted: #736e64; --hair: #e7e2d8;
  --c0: #23609f; --c1: #c04d17; --c2: #5d7a24; --c3: #7d4f9e; --c4: #8a6d1c; }
@media screen and (prefers-color-scheme: dark) {
  :root { --paper: #17181b; --ink: #e7e4dd; --muted: #98948b; --hair: #303237;
    --c0: #86b8ea; --c1: #f29a68; --c2: #a9c46c; --c3: #c49fe0; --c4: #d8bb62; } }
.chart { display: block; width: 100%; height: auto; overflow: visible; }
.chart text { font: 12px system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; fill: var(--muted);
  font-variant-numeric: tabular-nums; }
.chart .title, .chart .mark { fill: var(--ink); } .chart .title { font-weight: 600; }
.chart .mark, .chart .label { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; }
.chart .grid { stroke: var(--hair); } .chart .axis { stroke: var(--muted); }
.chart .reference { stroke: var(--muted); stroke-dasharray: 2 4; }
.chart path { fill: none; stroke-linejoin: round; stroke-linecap: round; stroke-width: 1.75; }
.chart path.faint { stroke-width: 1; opacity: .28; }
.chart .ring { fill: var(--paper); stroke-width: 2; }
"""
N_COLORS = 5  # --c0 is the accent, --c1 belongs to validation
CHAR_WIDTH = 6.4  # mean width in pixels at 12 px, to lay out text without a font
BAR_HEIGHT, BAR_GAP = 9, 12  # pixels of a bar, and between two groups of bars

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A line.

    Args:
        name: For the legend.
        x: Of its points.
        y: Of its points.
        color: An index of the palette.
        faint: Thin and pale, without legend and read-out: the raw values behind a smoothed line.
        dots: Draw each point.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: int = 0
    faint: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Mark:
    """A point with a label, such as the best validation loss."""

    x: float
    y: float
    text: str
    color: int = 1


@dataclass(frozen=True)
class BarGroup:
    """A row of a bar chart: one bar for each value."""

    name: str
    values: Sequence[float]


@dataclass(frozen=True)
class _Frame:
    """The plot in pixels, and the ranges of the data."""

    left: float
    top: float
    right: float
    bottom: float
    x: tuple[float, float]
    y: tuple[float, float]
    log: bool

    def to_pixels(self, x: float, y: float) -> Point:
        lo, hi, y = (*map(math.log, self.y), math.log(max(y, self.y[0]))) if self.log else (*self.y, y)
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - lo) / (hi - lo)
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)


# --- axes ---


def nice_ticks(lo: float, hi: float, count: int = 5) -> list[float]:
    """Return about `count` round values (1, 2 or 5 times a power of ten apart) in [lo, hi]."""
    if not hi > lo:
        return [lo]
    rough = (hi - lo) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= 0.8 * rough)
    digits = max(0, 1 - math.floor(math.log10(step)))
    slack = 1e-9 * (hi - lo)
    first, last = math.ceil((lo - slack) / step), math.floor((hi + slack) / step)
    return [round(k * step, digits) for k in range(first, last + 1)]


def log_ticks(lo: float, hi: float) -> list[float]:
    """Return the powers of ten in [lo, hi], and 2 and 5 times them if there are fewer than three. lo > 0."""
    powers = range(math.floor(math.log10(lo)), math.ceil(math.log10(hi)) + 1)
    for factors in ((1,), (1, 2, 5)):
        ticks = [float(f"{m}e{p}") for p in powers for m in factors if lo <= float(f"{m}e{p}") <= hi]
        if len(ticks) >= 3:
            break
    return ticks[:: math.ceil(len(ticks) / 6)] if ticks else nice_ticks(lo, hi)


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Format ticks alike: 0, 500, 1,000 · 0.5, 1.0, 1.5 · 0, 2e-4, 4e-4 · 0, 50k, 100k."""
    top = max(map(abs, ticks), default=0.0)
    if top < 0.01:
        return [_scientific(t) if t else "0" for t in ticks]
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if top >= 20 * size or (top >= size >= 1e6):
            return [f"{t / size:g}{unit}" if t else "0" for t in ticks]
    gaps = [abs(b - a) for a, b in pairwise(ticks)] or [top]
    even = max(gaps) - min(gaps) < 1e-6 * top
    digits = max(0, -math.floor(math.log10(min(gaps)) + 1e-9))
    return [f"{t:,.{digits}f}" if even else f"{t:,g}" for t in ticks]


def _scientific(value: float) -> str:
    digits, _, power = f"{value:.2e}".partition("e")
    return f"{float(digits):g}e{int(power)}"


# --- lines ---


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    width: int = 760,
    height: int = 340,
    x_label: str = "step",
    heading: bool = False,
    log: bool = False,
    zero: bool = False,
    x_range: tuple[float, float] | None = None,
    mark: Mark | None = None,
    reference: tuple[float, str] | None = None,
    standalone: bool = True,
) -> str:
    """Draw lines over a common x axis.

    Args:
        series: The lines; with more than one name there is a legend.
        title: For screen readers; printed above the plot with `heading`.
        log: A logarithmic y axis (all y > 0).
        zero: The y axis starts at 0.
        x_range: Widens the x axis, so that several charts share it.
        mark: A point with a label.
        reference: (value, label) of a dashed horizontal line.
        standalone: Add the palette and the namespace that a file needs.

    Raises:
        ValueError: If no series has a point.
    """
    names = [(line.name, line.color) for line in series if not line.faint]
    names = names if len(names) > 1 else []
    top = 30 if heading or names else 8
    frame = _build_frame(series, (width, height, top), x_range, log, zero, reference, x_label)
    lines = [[frame.to_pixels(*point) for point in zip(line.x, line.y, strict=True)] for line in series]
    parts = [f'<text class="title" x="0" y="12">{escape(title)}</text>' if heading else "", _draw_axes(frame, x_label)]
    parts += [_draw_line(line, points) for line, points in zip(series, lines, strict=True)]
    parts.append(_draw_line_legend(names, CHAR_WIDTH * 1.1 * len(title) + 18 if heading else frame.left))
    obstacles = [point for points in lines for point in _interpolate(points)]
    if reference:
        y = frame.to_pixels(frame.x[0], reference[0])[1]
        parts.append(_draw_reference(frame, y, reference[1], obstacles))
        obstacles += _interpolate([(frame.left, y), (frame.right, y)])
    if mark:
        parts.append(_draw_mark(frame, mark, obstacles))
    visible = [line for line in series if not line.faint and len(line.y)]
    summary = "; ".join(f"{line.name}: from {line.y[0]:.4g} to {line.y[-1]:.4g}" for line in visible)
    label = f"{title}. {summary}." + (f" {mark.text}." if mark else "")
    return _wrap_svg(width, height, label, "".join(parts), standalone, _format_scales(frame, x_label))


def _format_scales(frame: _Frame, x_label: str) -> str:
    """Return the attributes from which the script of a page reads values off the lines."""
    plot = (frame.left, frame.top, frame.right, frame.bottom)
    scales = {"plot": plot, "x": frame.x, "y": frame.y, "log": (int(frame.log),)}
    data = [f'data-{name}="{" ".join(f"{value:.8g}" for value in values)}"' for name, values in scales.items()]
    return f'{" ".join(data)} data-label="{escape(x_label)}"'


def _build_frame(series: Sequence[Series], size, x_range, log: bool, zero: bool, reference, x_label: str) -> _Frame:
    width, height, top = size
    xs = [x for line in series for x in line.x]
    ys = [y for line in series for y in line.y]
    if not xs:
        raise ValueError(f"a chart needs at least one point; got {len(series)} series without any")
    xs += x_range or ()
    ys += reference[:1] if reference else ()
    x0, x1 = min(xs), max(xs)
    y0, y1 = (0.0 if zero else min(ys)), max(ys)
    if log:
        y0, y1 = y0 / 1.1, y1 * 1.1
    else:
        pad = 0.05 * (y1 - y0) or 0.5 * abs(y1) or 1.0
        # the axis of a quantity that is never negative does not go below zero
        y0, y1 = (max(y0 - pad, 0.0) if y0 >= 0 else y0 - pad), y1 + pad
    labels = tick_labels(log_ticks(y0, y1) if log else nice_ticks(y0, y1))
    first = len(tick_labels(nice_ticks(x0, x1))[0])  # the first label of the x axis, centered on the left end
    left = max(36.0, 10 + 7.0 * max(map(len, labels)), 8 + 7.0 * len(x_label) + 3.5 * (first if first > 4 else 0))
    return _Frame(left, top, width - 10, height - 24, (x0, x1 if x1 > x0 else x0 + 1), (y0, y1), log)


def _draw_axes(frame: _Frame, x_label: str) -> str:
    parts = []
    y_ticks = log_ticks(*frame.y) if frame.log else nice_ticks(*frame.y)
    for tick, label in zip(y_ticks, tick_labels(y_ticks), strict=True):
        y = frame.to_pixels(frame.x[0], tick)[1]
        parts.append(f'<line class="grid" x1="{frame.left:.1f}" x2="{frame.right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{frame.left - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    x_ticks = nice_ticks(*frame.x, count=max(3, int((frame.right - frame.left) / 100)))
    base = frame.bottom
    parts.append(f'<line class="axis" x1="{frame.left:.1f}" x2="{frame.right:.1f}" y1="{base:.1f}" y2="{base:.1f}"/>')
    for tick, label in zip(x_ticks, tick_labels(x_ticks), strict=True):
        x = frame.to_pixels(tick, frame.y[0])[0]
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base:.1f}" y2="{base + 4:.1f}"/>')
        x = min(x, frame.right + 10 - 3.5 * len(label))
        parts.append(f'<text x="{x:.1f}" y="{base + 18:.1f}" text-anchor="middle">{label}</text>')
    first = tick_labels(x_ticks)[0]
    end = min(frame.left, frame.to_pixels(x_ticks[0], frame.y[0])[0] - 3.5 * len(first)) - 8
    parts.append(f'<text x="{end:.1f}" y="{base + 18:.1f}" text-anchor="end">{escape(x_label)}</text>')
    return "".join(parts)


def _draw_line(line: Series, points: list[Point]) -> str:
    if not points:
        return ""
    color = f"var(--c{line.color % N_COLORS})"
    path = "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points)
    name = ' class="faint"' if line.faint else f' data-name="{escape(line.name)}"'
    dots = points if line.dots or len(points) == 1 else []
    circles = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" style="fill:{color}"/>' for x, y in dots]
    return f'<path{name} style="stroke:{color}" d="{path}"/>' + "".join(circles)


def _draw_line_legend(names: list[tuple[str, int]], x: float) -> str:
    parts = []
    for name, color in names:
        parts.append(f'<path style="stroke:var(--c{color % N_COLORS});stroke-width:2.5" d="M{x:.1f} 8h16"/>')
        parts.append(f'<text x="{x + 22:.1f}" y="12">{escape(name)}</text>')
        x += 22 + CHAR_WIDTH * len(name) + 20
    return "".join(parts)


# --- labels that keep off the lines ---


def _interpolate(points: Sequence[Point], step: float = 4.0) -> list[Point]:
    """Return the points and others between them, at most about `step` pixels apart."""
    dense = list(points[:1])
    for (x0, y0), (x1, y1) in pairwise(points):
        n = max(1, math.ceil(math.hypot(x1 - x0, y1 - y0) / step))
        dense += [(x0 + (x1 - x0) * i / n, y0 + (y1 - y0) * i / n) for i in range(1, n + 1)]
    return dense


def _place_label(frame: _Frame, text: str, centers: Sequence[Point], obstacles: Sequence[Point]) -> Point:
    """Return the center of a label's baseline: the first of these where it hides no point, else that of the fewest."""
    half = CHAR_WIDTH * len(text) / 2

    def count_hidden(center: Point) -> int:
        x, y = center
        return sum(abs(px - x) < half + 4 and y - 15 < py < y + 7 for px, py in obstacles)

    inside = [(min(max(x, frame.left + half), frame.right - half), y) for x, y in centers]
    inside = [(x, y) for x, y in inside if frame.top + 10 < y < frame.bottom - 4] or inside
    return min(inside, key=count_hidden)


def _draw_reference(frame: _Frame, y: float, text: str, obstacles: Sequence[Point]) -> str:
    line = f'<line class="reference" x1="{frame.left:.1f}" x2="{frame.right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
    half = CHAR_WIDTH * len(text) / 2
    columns = (frame.right - half, (frame.left + frame.right) / 2, frame.left + half + 8)
    x, y = _place_label(frame, text, [(x, y + dy) for dy in (-6, 16) for x in columns], obstacles)
    return line + f'<text class="label" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(text)}</text>'


def _draw_mark(frame: _Frame, mark: Mark, obstacles: Sequence[Point]) -> str:
    x, y = frame.to_pixels(mark.x, mark.y)
    color = f"stroke:var(--c{mark.color % N_COLORS})"
    half = CHAR_WIDTH * len(mark.text) / 2
    columns = (0, -half, half, -half - 14, half + 14)
    centers = [(x + dx, y + dy) for dy in (-16, 26, 4, -36, 46, -60, 70, -90, 100, -130) for dx in columns]
    text_x, text_y = _place_label(frame, mark.text, centers, obstacles)
    end = text_y + 5 if text_y < y else text_y - 13
    leader = f'<path style="{color};stroke-width:.75" d="M{text_x:.1f} {end:.1f}L{x:.1f} {y:.1f}"/>'
    ring = f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="4.5" style="{color}"/>'
    text = f'<text class="mark" x="{text_x:.1f}" y="{text_y:.1f}" text-anchor="middle">{escape(mark.text)}</text>'
    return (leader if abs(end - y) > 14 else "") + ring + text


# --- bars and matrices ---


def bar_chart(
    groups: Sequence[BarGroup],
    names: Sequence[str],
    *,
    title: str,
    marks: Mapping[str, float] | None = None,
    width: int = 640,
    standalone: bool = True,
) -> str:
    """Draw horizontal bars, one group a row. Bars start at 0 and may be negative.

    Args:
        groups: The rows.
        names: Of the bars of each group.
        title: Above the chart.
        marks: Values by name, drawn as lines across all rows.
        width: In pixels.
        standalone: As in `line_chart`.

    Raises:
        ValueError: If a group does not have one value for each name.
    """
    if any(len(group.values) != len(names) for group in groups):
        raise ValueError(f"each group needs {len(names)} bars, one for each of {', '.join(names)}")
    marks = dict(marks or {})
    values = [x for row in (*(group.values for group in groups), marks.values()) for x in row if math.isfinite(x)]
    low, high = min([0.0, *values]), max([0.0, *values]) or 1.0
    label_width = 12 + CHAR_WIDTH * 1.1 * max((len(group.name) for group in groups), default=0)
    left, right, top = min(0.4 * width, label_width), width - 12.0, 48.0
    row_height = BAR_HEIGHT * len(names) + BAR_GAP
    bottom = top + row_height * len(groups)
    frame = _Frame(left, top, right, bottom, (low, high), (0.0, 1.0), False)
    parts = [f'<text class="title" x="0" y="12">{escape(title)}</text>', _draw_bar_legend(names, left)]
    for tick, label in zip(ticks := nice_ticks(low, high), tick_labels(ticks), strict=True):
        x = frame.to_pixels(tick, 0.0)[0]
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{label}</text>')
    parts += [_draw_bars(frame, group, names, top + i * row_height + BAR_GAP / 2) for i, group in enumerate(groups)]
    for i, (name, value) in enumerate(marks.items()):
        x, y = frame.to_pixels(value, 0.0)[0], bottom + 32 + 14 * i
        parts.append(f'<line class="reference" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{y - 10:.1f}"/>')
        anchor = "end" if x > (left + right) / 2 else "start"
        parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(f"{name}: {value:.3f}")}</text>')
    rows = [f"{g.name}: " + ", ".join(f"{n} {x:.3f}" for n, x in zip(names, g.values, strict=True)) for g in groups]
    height = math.ceil(bottom + 24 + 14 * len(marks))
    return _wrap_svg(width, height, f"{title}. {'; '.join(rows)}.", "".join(parts), standalone)


def _draw_bars(frame: _Frame, group: BarGroup, names: Sequence[str], y: float) -> str:
    middle = y + BAR_HEIGHT * len(names) / 2 + 4
    parts = [f'<text x="{frame.left - 8:.1f}" y="{middle:.1f}" text-anchor="end">{escape(group.name)}</text>']
    for k, value in enumerate(group.values):
        if math.isfinite(value):
            start, end = sorted((frame.to_pixels(0.0, 0.0)[0], frame.to_pixels(value, 0.0)[0]))
            box = f'x="{start:.1f}" y="{y + k * BAR_HEIGHT:.1f}" width="{end - start:.1f}" height="{BAR_HEIGHT - 1}"'
            tooltip = f"<title>{escape(f'{group.name}, {names[k]}: {value:.4f}')}</title>"
            parts.append(f'<rect {box} style="fill:var(--c{k % N_COLORS})">{tooltip}</rect>')
    return "".join(parts)


def _draw_bar_legend(names: Sequence[str], x: float) -> str:
    parts = []
    for k, name in enumerate(names):
        parts.append(f'<rect x="{x:.1f}" y="24" width="12" height="8" style="fill:var(--c{k % N_COLORS})"/>')
        parts.append(f'<text x="{x + 18:.1f}" y="32">{escape(name)}</text>')
        x += 18 + CHAR_WIDTH * len(name) + 20
    return "".join(parts)


def heatmap(
    matrix: Sequence[Sequence[float]],
    *,
    title: str,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    cell: int = 18,
    top: float | None = None,
    show_values: bool = False,
    standalone: bool = True,
) -> str:
    """Draw a matrix (Q, K) as squares, darker for larger values: attention weights, edges, a confusion matrix.

    Args:
        matrix: Zero, negative and non-finite cells stay empty.
        title: Above the matrix.
        rows: Labels of the rows (queries).
        columns: Labels of the columns (keys).
        cell: Pixels of a square.
        top: The value of the darkest color; None: the largest.
        show_values: Print each value in its square.
        standalone: As in `line_chart`.

    Raises:
        ValueError: If the rows differ in length.
    """
    values = [[float(v) for v in row] for row in matrix]
    n_columns = len(values[0]) if values else 0
    if any(len(row) != n_columns for row in values):
        raise ValueError(f"a heatmap needs rows of one length; got {sorted({len(row) for row in values})}")
    darkest = top or max((v for row in values for v in row if math.isfinite(v)), default=0.0) or 1.0
    left = 8 + CHAR_WIDTH * 1.1 * max(map(len, rows), default=0)
    above = (28 if title else 10) + CHAR_WIDTH * 1.1 * max(map(len, columns), default=0)
    width = max(left + n_columns * cell + 2, CHAR_WIDTH * 1.1 * len(title))
    height = above + len(values) * cell + 2
    parts = [f'<text class="title" x="0" y="12">{escape(title)}</text>']
    for q, row in enumerate(values):
        for k, value in enumerate(row):
            ink = min(value / darkest, 1.0) if math.isfinite(value) and value > 0 else 0.0
            parts.append(_draw_cell(left + k * cell, above + q * cell, cell, ink, value, show_values))
    for q, text in enumerate(rows):
        y = above + (q + 0.5) * cell + 4
        parts.append(f'<text x="{left - 6:.1f}" y="{y:.1f}" text-anchor="end">{escape(text)}</text>')
    for k, text in enumerate(columns):
        x, y = left + (k + 0.5) * cell + 4, above - 6
        parts.append(f'<text transform="translate({x:.1f} {y:.1f}) rotate(-90)">{escape(text)}</text>')
    label = f"{title}. {len(values)} queries by {n_columns} keys."
    # a small matrix is not enlarged to the width of the page
    style = f'style="width:{width:.0f}px;max-width:100%"'
    return _wrap_svg(math.ceil(width), math.ceil(height), label, "".join(parts), standalone, style)


def _draw_cell(x: float, y: float, size: int, ink: float, value: float, show_value: bool) -> str:
    style = f"fill:var(--c0);fill-opacity:{ink:.3f};stroke:var(--hair);stroke-width:.5"
    box = f'<rect x="{x:.1f}" y="{y:.1f}" width="{size}" height="{size}" style="{style}">'
    text, color = "", "--paper" if ink > 0.5 else "--ink"
    if show_value:
        place = f'x="{x + size / 2:.1f}" y="{y + size / 2 + 4:.1f}" text-anchor="middle"'
        text = f'<text {place} style="fill:var({color})">{value:.2f}</text>'
    return f"{box}<title>{value:.3g}</title></rect>{text}"


def _wrap_svg(width: int, height: int, label: str, body: str, standalone: bool, attributes: str = "") -> str:
    """Wrap a chart in an <svg> element; `label` is what screen readers say."""
    namespace = ' xmlns="http://www.w3.org/2000/svg"' if standalone else ""
    # within a page a <title> would cover the page's own read-out; the aria-label says the same
    inner = f"<title>{escape(label)}</title><style>{PALETTE}</style>" if standalone else ""
    box = f'class="chart"{namespace} viewBox="0 0 {width} {height}"'
    return f'<svg {box} role="img" aria-label="{escape(label)}" {attributes}>{inner}{body}</svg>\n'
