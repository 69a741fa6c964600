"""Charts as SVG markup: pure functions, the same input gives the same bytes.

    line_chart([Series("training", steps, losses)], title="Loss")   # -> "<svg ...>...</svg>"

A chart is a file of its own (`standalone`), or part of a page that holds `PALETTE` once. All text is escaped, so that a
template may insert the markup as it is. Line charts carry their scales in `data-` attributes for the page's script.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from markupsafe import Markup

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
.chart path.band { stroke: none; fill-opacity: .2; }
.chart .ring { fill: var(--paper); stroke-width: 2; }
"""
N_COLORS = 5  # --c0 is the accent, --c1 belongs to validation
CHAR_WIDTH = 6.4  # mean width in pixels at 12 px, to lay out text without a font
BARS_WIDTH, BAR_HEIGHT, BAR_GAP = 640, 9, 12  # pixels: of the chart, of a bar, between two groups of bars

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A line; `color` is an index of the palette."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: int = 0
    faint: bool = False  # thin and pale, without legend and read-out: the raw values behind a smoothed line
    dots: bool = False  # draw each point
    is_band: bool = False  # a filled area: its upper edge forward, then its lower edge backward


@dataclass(frozen=True)
class Mark:
    """A point with a label, such as the best validation loss."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class _Frame:
    """The plot in pixels, and the ranges of the data."""

    left: float
    top: float
    right: float
    bottom: float
    x: tuple[float, float]
    y: tuple[float, float] = (0.0, 1.0)
    log: bool = False

    def to_x(self, x: float) -> float:
        return self.left + (x - self.x[0]) / (self.x[1] - self.x[0]) * (self.right - self.left)

    def to_y(self, y: float) -> float:
        lo, hi, y = (*map(math.log, self.y), math.log(max(y, self.y[0]))) if self.log else (*self.y, y)
        return self.bottom - (y - lo) / (hi - lo) * (self.bottom - self.top)


# --- elements ---


def _color(index: int) -> str:
    return f"var(--c{index % N_COLORS})"


def _text(x: float, y: float, text: str, anchor: str = "", css: str = "") -> str:
    css, anchor = f' class="{css}"' if css else "", f' text-anchor="{anchor}"' if anchor else ""
    return f'<text{css} x="{x:.1f}" y="{y:.1f}"{anchor}>{escape(text)}</text>'


def _line(css: str, x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="{css}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def _draw_legend(names: Iterable[tuple[str, int]], x: float, y: float, swatch: str, gap: int) -> str:
    """Draw (name, color) from left to right, each `gap` pixels behind the left end of its swatch."""
    parts = []
    for name, color in names:
        parts += [swatch.format(x=x, color=_color(color)), _text(x + gap, y, name)]
        x += gap + CHAR_WIDTH * len(name) + 20
    return "".join(parts)


def _wrap_svg(width: float, height: float, label: str, body: str, standalone: bool, attributes: str = "") -> Markup:
    """Wrap a chart in an <svg> element; `label` is what screen readers say."""
    namespace = ' xmlns="http://www.w3.org/2000/svg"' if standalone else ""
    # within a page a <title> would cover the page's own read-out; the aria-label says the same
    inner = f"<title>{escape(label)}</title><style>{PALETTE}</style>" if standalone else ""
    box = f'class="chart"{namespace} viewBox="0 0 {math.ceil(width)} {math.ceil(height)}"'
    return Markup(f'<svg {box} role="img" aria-label="{escape(label)}" {attributes}>{inner}{body}</svg>\n')


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
        parts = [f"{t:.2e}".split("e") for t in ticks]
        return [f"{float(digits):g}e{int(power)}" if float(digits) else "0" for digits, power in parts]
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if top >= 20 * size or (top >= size >= 1e6):
            return [f"{t / size:g}{unit}" if t else "0" for t in ticks]
    gaps = [abs(b - a) for a, b in pairwise(ticks)] or [top]
    even = max(gaps) - min(gaps) < 1e-6 * top
    digits = max(0, -math.floor(math.log10(min(gaps)) + 1e-9))
    return [f"{t:,.{digits}f}" if even else f"{t:,g}" for t in ticks]


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
    legend: bool = True,
    standalone: bool = True,
) -> Markup:
    """Draw lines over a common x axis, with a legend if there are several. Raises ValueError if no line has a point.

    Args:
        title: For screen readers; printed above the plot with `heading`.
        log: A logarithmic y axis (all y > 0).
        zero: The y axis starts at 0.
        x_range: Widens the x axis, so that several charts share it.
        reference: (value, label) of a dashed horizontal line.
        legend: Name several lines above the plot; there is room for a few short names.
        standalone: Add the palette and the namespace that a file needs.
    """
    xs, ys = ([v for line in series for v in getattr(line, axis)] for axis in ("x", "y"))
    if not xs:
        raise ValueError(f"a chart needs at least one point; got {len(series)} series without any")
    xs, ys = [*xs, *(x_range or ())], [*ys, *(reference or ())[:1]]
    names = [(line.name, line.color) for line in series if not line.faint]
    names = names if len(names) > 1 and legend else []
    frame = _build_frame(xs, ys, (width, height, 30 if heading or names else 8), log, zero, x_label)
    lines = [[(frame.to_x(x), frame.to_y(y)) for x, y in zip(line.x, line.y, strict=True)] for line in series]
    parts = [_text(0, 12, title, css="title") if heading else "", _draw_axes(frame, x_label)]
    parts += [_draw_line(line, points) for line, points in zip(series, lines, strict=True)]
    swatch = '<path style="stroke:{color};stroke-width:2.5" d="M{x:.1f} 8h16"/>'
    parts.append(_draw_legend(names, CHAR_WIDTH * 1.1 * len(title) + 18 if heading else frame.left, 12, swatch, 22))
    obstacles = [point for points in lines for point in _interpolate(points)]
    if reference:
        y = frame.to_y(reference[0])
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


def _build_frame(
    xs: list[float], ys: list[float], size: tuple[int, int, int], log: bool, zero: bool, x_label: str
) -> _Frame:
    width, height, top = size
    x0, x1, y0, y1 = min(xs), max(xs), 0.0 if zero else min(ys), max(ys)
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
    left, right, base = frame.left, frame.right, frame.bottom
    parts = []
    y_ticks = log_ticks(*frame.y) if frame.log else nice_ticks(*frame.y)
    for tick, label in zip(y_ticks, tick_labels(y_ticks), strict=True):
        y = frame.to_y(tick)
        parts += [_line("grid", left, right, y, y), _text(left - 8, y + 4, label, "end")]
    x_ticks = nice_ticks(*frame.x, count=max(3, int((right - left) / 100)))
    labels = tick_labels(x_ticks)
    parts.append(_line("axis", left, right, base, base))
    for tick, label in zip(x_ticks, labels, strict=True):
        x = frame.to_x(tick)
        parts.append(_line("axis", x, x, base, base + 4))
        parts.append(_text(min(x, right + 10 - 3.5 * len(label)), base + 18, label, "middle"))
    end = min(left, frame.to_x(x_ticks[0]) - 3.5 * len(labels[0])) - 8
    return "".join([*parts, _text(end, base + 18, x_label, "end")])


def _draw_line(line: Series, points: list[Point]) -> str:
    if not points:
        return ""
    path = "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points)
    if line.is_band:
        return f'<path class="band" style="fill:{_color(line.color)}" d="{path}Z"/>'
    name = ' class="faint"' if line.faint else f' data-name="{escape(line.name)}"'
    dots = points if line.dots or len(points) == 1 else []
    circles = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" style="fill:{_color(line.color)}"/>' for x, y in dots]
    dashes = ";stroke-dasharray:7 5" if line.color >= N_COLORS else ""  # the colors come again
    return f'<path{name} style="stroke:{_color(line.color)}{dashes}" d="{path}"/>' + "".join(circles)


# --- labels that keep off the lines ---


def _interpolate(points: Sequence[Point]) -> list[Point]:
    """Return the points and others between them, at most about 4 pixels apart."""
    dense = list(points[:1])
    for (x0, y0), (x1, y1) in pairwise(points):
        n = max(1, math.ceil(math.hypot(x1 - x0, y1 - y0) / 4))
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
    half = CHAR_WIDTH * len(text) / 2
    columns = (frame.right - half, (frame.left + frame.right) / 2, frame.left + half + 8)
    center = _place_label(frame, text, [(x, y + dy) for dy in (-6, 16) for x in columns], obstacles)
    return _line("reference", frame.left, frame.right, y, y) + _text(*center, text, "middle", "label")


def _draw_mark(frame: _Frame, mark: Mark, obstacles: Sequence[Point]) -> str:
    x, y, stroke = frame.to_x(mark.x), frame.to_y(mark.y), f"stroke:{_color(1)}"
    half = CHAR_WIDTH * len(mark.text) / 2
    columns = (0, -half, half, -half - 14, half + 14)
    centers = [(x + dx, y + dy) for dy in (-16, 26, 4, -36, 46, -60, 70, -90, 100, -130) for dx in columns]
    text_x, text_y = _place_label(frame, mark.text, centers, obstacles)
    end = text_y + 5 if text_y < y else text_y - 13
    leader = f'<path style="{stroke};stroke-width:.75" d="M{text_x:.1f} {end:.1f}L{x:.1f} {y:.1f}"/>'
    ring = f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="4.5" style="{stroke}"/>'
    return (leader if abs(end - y) > 14 else "") + ring + _text(text_x, text_y, mark.text, "middle", "mark")


# --- bars and matrices ---


def bar_chart(
    groups: Mapping[str, Sequence[float]],
    names: Sequence[str],
    *,
    title: str,
    marks: Mapping[str, float] | None = None,
    standalone: bool = True,
) -> Markup:
    """Draw horizontal bars from 0, one group a row. Raises ValueError unless each group has one value for each name.

    Args:
        groups: The values of each row, one for each of `names`, by the name of the row.
        marks: Values by name, drawn as lines across all rows.
    """
    if any(len(values) != len(names) for values in groups.values()):
        raise ValueError(f"each group needs {len(names)} bars, one for each of {', '.join(names)}")
    marks = dict(marks or {})
    finite = [x for row in (*groups.values(), marks.values()) for x in row if math.isfinite(x)]
    ends = min([0.0, *finite]), max([0.0, *finite]) or 1.0
    label_width = 12 + CHAR_WIDTH * 1.1 * max(map(len, groups), default=0)
    row_height, top = BAR_HEIGHT * len(names) + BAR_GAP, 48.0
    bottom = top + row_height * len(groups)
    frame = _Frame(min(0.4 * BARS_WIDTH, label_width), top, BARS_WIDTH - 12, bottom, ends)
    swatch = '<rect x="{x:.1f}" y="24" width="12" height="8" style="fill:{color}"/>'
    legend = _draw_legend(zip(names, range(len(names)), strict=True), frame.left, 32, swatch, 18)
    parts = [_text(0, 12, title, css="title"), legend]
    for tick, label in zip(ticks := nice_ticks(*ends), tick_labels(ticks), strict=True):
        x = frame.to_x(tick)
        parts += [_line("grid", x, x, top, bottom), _text(x, bottom + 16, label, "middle")]
    for i, (group, values) in enumerate(groups.items()):
        parts.append(_draw_bars(frame, group, names, values, top + i * row_height + BAR_GAP / 2))
    for i, (name, value) in enumerate(marks.items()):
        x, y = frame.to_x(value), bottom + 32 + 14 * i
        anchor = "end" if x > (frame.left + frame.right) / 2 else "start"
        parts += [_line("reference", x, x, top, y - 10), _text(x, y, f"{name}: {value:.3f}", anchor)]
    rows = [f"{g}: " + ", ".join(f"{n} {x:.3f}" for n, x in zip(names, v, strict=True)) for g, v in groups.items()]
    height = bottom + 24 + 14 * len(marks)
    return _wrap_svg(BARS_WIDTH, height, f"{title}. {'; '.join(rows)}.", "".join(parts), standalone)


def _draw_bars(frame: _Frame, group: str, names: Sequence[str], values: Sequence[float], y: float) -> str:
    parts = [_text(frame.left - 8, y + BAR_HEIGHT * len(values) / 2 + 4, group, "end")]
    for k, (name, value) in enumerate(zip(names, values, strict=True)):
        if math.isfinite(value):
            start, end = sorted((frame.to_x(0.0), frame.to_x(value)))
            box = f'x="{start:.1f}" y="{y + k * BAR_HEIGHT:.1f}" width="{end - start:.1f}" height="{BAR_HEIGHT - 1}"'
            tooltip = f"<title>{escape(f'{group}, {name}: {value:.4f}')}</title>"
            parts.append(f'<rect {box} style="fill:{_color(k)}">{tooltip}</rect>')
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
) -> Markup:
    """Draw a matrix (Q, K) as squares, darker for larger values: attention weights, edges, a confusion matrix.

    Args:
        matrix: Zero, negative and non-finite cells stay empty.
        cell: Pixels of a square.
        top: The value of the darkest color; None: the largest.
        show_values: Print each value in its square.

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
    parts = [_text(0, 12, title, css="title")]
    for q, row in enumerate(values):
        for k, value in enumerate(row):
            ink = min(value / darkest, 1.0) if math.isfinite(value) and value > 0 else 0.0
            parts.append(_draw_cell(left + k * cell, above + q * cell, cell, ink, value, show_values))
    parts += [_text(left - 6, above + (q + 0.5) * cell + 4, text, "end") for q, text in enumerate(rows)]
    for k, text in enumerate(columns):
        x, y = left + (k + 0.5) * cell + 4, above - 6
        parts.append(f'<text transform="translate({x:.1f} {y:.1f}) rotate(-90)">{escape(text)}</text>')
    label = f"{title}. {len(values)} queries by {n_columns} keys."
    # a small matrix is not enlarged to the width of the page
    style = f'style="width:{width:.0f}px;max-width:100%"'
    return _wrap_svg(width, above + len(values) * cell + 2, label, "".join(parts), standalone, style)


def _draw_cell(x: float, y: float, size: int, ink: float, value: float, show_value: bool) -> str:
    style = f"fill:var(--c0);fill-opacity:{ink:.3f};stroke:var(--hair);stroke-width:.5"
    box = f'<rect x="{x:.1f}" y="{y:.1f}" width="{size}" height="{size}" style="{style}">'
    place = f'x="{x + size / 2:.1f}" y="{y + size / 2 + 4:.1f}" text-anchor="middle"'
    text = f'<text {place} style="fill:var({"--paper" if ink > 0.5 else "--ink"})">{value:.2f}</text>'
    return f"{box}<title>{value:.3g}</title></rect>" + (text if show_value else "")
