"""Charts as SVG text: pure functions, the same input gives the same bytes, nothing to install.

    line_chart([Series("training", steps, losses)], title="Loss")   # -> "<svg ...>...</svg>"

A chart can stand alone (a file for the docs) or sit inline in a page that holds `PALETTE` once. Every text that comes
in is escaped. The lines carry their scales in `data-` attributes, so that a page's script can read values off them.
"""

import math
from collections.abc import Sequence
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
.chart .mark { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; }
.chart .grid { stroke: var(--hair); } .chart .axis { stroke: var(--muted); }
.chart .reference { stroke: var(--muted); stroke-dasharray: 2 4; }
.chart path { fill: none; stroke-linejoin: round; stroke-linecap: round; stroke-width: 1.75; }
.chart path.faint { stroke-width: 1; opacity: .28; }
.chart .ring { fill: var(--paper); stroke-width: 2; }
"""
COLOURS = 5  # --c0 is the accent, --c1 belongs to validation
LETTER = 6.4  # mean width of a letter at 12 px, to lay out the legend without a font at hand


@dataclass(frozen=True)
class Series:
    """One line: its points, its colour (a slot of the palette) and how loud it is.

    A `faint` series is the raw material behind a smoothed one: no legend, no dots, no read-out.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    faint: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Mark:
    """One point worth naming, for example the best validation loss."""

    x: float
    y: float
    text: str
    colour: int = 1


@dataclass(frozen=True)
class _Frame:
    """Where the data lie and where they go: data ranges to pixel ranges."""

    left: float
    top: float
    right: float
    bottom: float
    x: tuple[float, float]
    y: tuple[float, float]
    log: bool

    def at(self, x: float, y: float) -> tuple[float, float]:
        lo, hi, y = (*map(math.log, self.y), math.log(max(y, self.y[0]))) if self.log else (*self.y, y)
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - lo) / (hi - lo)
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)


def nice_ticks(lo: float, hi: float, count: int = 5) -> list[float]:
    """About `count` round values (1, 2 or 5 times a power of ten apart) inside [lo, hi]."""
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
    """Powers of ten inside [lo, hi]; with fewer than three of them, 2 and 5 times those as well. lo > 0."""
    powers = range(math.floor(math.log10(lo)), math.ceil(math.log10(hi)) + 1)
    for factors in ((1,), (1, 2, 5)):
        ticks = [float(f"{m}e{p}") for p in powers for m in factors if lo <= float(f"{m}e{p}") <= hi]
        if len(ticks) >= 3:
            break
    return ticks[:: math.ceil(len(ticks) / 6)] if ticks else nice_ticks(lo, hi)


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """The ticks as text, written alike: 0, 500, 1,000 · 0.5, 1.0, 1.5 · 0, 2e-4, 4e-4 · 0, 50k, 100k."""
    top = max(map(abs, ticks), default=0.0)
    if top < 0.01:
        return [_science(t) if t else "0" for t in ticks]
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if top >= 20 * size or (top >= size >= 1e6):
            return [f"{t / size:g}{unit}" if t else "0" for t in ticks]
    gaps = [abs(b - a) for a, b in pairwise(ticks)] or [top]
    even = max(gaps) - min(gaps) < 1e-6 * top
    digits = max(0, -math.floor(math.log10(min(gaps)) + 1e-9))
    return [f"{t:,.{digits}f}" if even else f"{t:,g}" for t in ticks]


def _science(value: float) -> str:
    digits, _, power = f"{value:.2e}".partition("e")
    return f"{float(digits):g}e{int(power)}"


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
    """Lines over a common x axis, with ticks, a legend when there is more than one name, and a text for screen readers.

    `heading` prints the title above the plot; `log` puts y on a logarithmic scale (all y > 0); `zero` makes y begin
    at 0; `x_range` widens the x axis, so that charts side by side share it; `reference` is a dashed horizontal line
    with its text; `standalone` adds the palette and the namespace that a file needs. Raises ValueError when no series
    has a point.
    """
    names = _legend_names(series)
    top = 30 if heading or names else 8
    frame = _frame(series, (width, height, top), x_range, log, zero, reference, x_label)
    parts = [f'<text class="title" x="0" y="12">{escape(title)}</text>' if heading else "", _axes(frame, x_label)]
    parts.append(_reference(frame, *reference) if reference else "")
    parts += [_line(frame, one) for one in series]
    parts.append(_legend(names, LETTER * 1.1 * len(title) + 18 if heading else frame.left))
    parts.append(_mark(frame, mark, series) if mark else "")
    said = f"{title}. " + _spoken(series) + (f" {mark.text}." if mark else "")
    plot = (frame.left, frame.top, frame.right, frame.bottom)
    numbers = {"plot": plot, "x": frame.x, "y": frame.y, "log": (int(log),)}
    data = f'data-label="{escape(x_label)}" ' + " ".join(
        f'data-{key}="{" ".join(f"{v:.8g}" for v in values)}"' for key, values in numbers.items()
    )
    return svg(width, height, said, "".join(parts), data, standalone)


def _frame(series: Sequence[Series], size, x_range, log: bool, zero: bool, reference, x_label: str) -> _Frame:
    width, height, top = size
    xs = [x for one in series for x in one.x]
    ys = [y for one in series for y in one.y]
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
        # a quantity that is never negative is not given an axis below zero
        y0, y1 = (max(y0 - pad, 0.0) if y0 >= 0 else y0 - pad), y1 + pad
    labels = tick_labels(log_ticks(y0, y1) if log else nice_ticks(y0, y1))
    under = len(tick_labels(nice_ticks(x0, x1))[0])  # the first number of the axis, whose middle may be at its left end
    left = max(36.0, 10 + 7.0 * max(map(len, labels)), 8 + 7.0 * len(x_label) + 3.5 * (under if under > 4 else 0))
    return _Frame(left, top, width - 10, height - 24, (x0, x1 if x1 > x0 else x0 + 1), (y0, y1), log)


def _axes(frame: _Frame, x_label: str) -> str:
    parts = []
    y_ticks = log_ticks(*frame.y) if frame.log else nice_ticks(*frame.y)
    for tick, label in zip(y_ticks, tick_labels(y_ticks), strict=True):
        y = frame.at(frame.x[0], tick)[1]
        parts.append(f'<line class="grid" x1="{frame.left:.1f}" x2="{frame.right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{frame.left - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    x_ticks = nice_ticks(*frame.x, count=max(3, int((frame.right - frame.left) / 100)))
    base = frame.bottom
    parts.append(f'<line class="axis" x1="{frame.left:.1f}" x2="{frame.right:.1f}" y1="{base:.1f}" y2="{base:.1f}"/>')
    for tick, label in zip(x_ticks, tick_labels(x_ticks), strict=True):
        x = frame.at(tick, frame.y[0])[0]
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base:.1f}" y2="{base + 4:.1f}"/>')
        x = min(x, frame.right + 10 - 3.5 * len(label))
        parts.append(f'<text x="{x:.1f}" y="{base + 18:.1f}" text-anchor="middle">{label}</text>')
    first = tick_labels(x_ticks)[0]
    beside = min(frame.left, frame.at(x_ticks[0], frame.y[0])[0] - 3.5 * len(first)) - 8
    parts.append(f'<text x="{beside:.1f}" y="{base + 18:.1f}" text-anchor="end">{escape(x_label)}</text>')
    return "".join(parts)


def _line(frame: _Frame, one: Series) -> str:
    points = [frame.at(x, y) for x, y in zip(one.x, one.y, strict=True)]
    if not points:
        return ""
    colour = f"var(--c{one.colour % COLOURS})"
    path = "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points)
    name = ' class="faint"' if one.faint else f' data-name="{escape(one.name)}"'
    dots = one.dots or len(points) == 1
    circles = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" style="fill:{colour}"/>' for x, y in points if dots]
    return f'<path{name} style="stroke:{colour}" d="{path}"/>' + "".join(circles)


def _legend_names(series: Sequence[Series]) -> list[tuple[str, int]]:
    names = [(one.name, one.colour) for one in series if not one.faint]
    return names if len(names) > 1 else []


def _legend(names: list[tuple[str, int]], x: float) -> str:
    parts = []
    for name, colour in names:
        parts.append(f'<path style="stroke:var(--c{colour % COLOURS});stroke-width:2.5" d="M{x:.1f} 8h16"/>')
        parts.append(f'<text x="{x + 22:.1f}" y="12">{escape(name)}</text>')
        x += 22 + LETTER * len(name) + 20
    return "".join(parts)


def _reference(frame: _Frame, value: float, text: str) -> str:
    y = frame.at(frame.x[0], value)[1]
    line = f'<line class="reference" x1="{frame.left:.1f}" x2="{frame.right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + f'<text x="{frame.right:.1f}" y="{y - 6:.1f}" text-anchor="end">{escape(text)}</text>'


def _mark(frame: _Frame, mark: Mark, series: Sequence[Series]) -> str:
    x, y = frame.at(mark.x, mark.y)
    colour = f"stroke:var(--c{mark.colour % COLOURS})"
    half = LETTER * len(mark.text) / 2
    middle = min(max(x, frame.left + half), frame.right - half)
    points = [frame.at(*p) for one in series if not one.faint for p in zip(one.x, one.y, strict=True)]
    # the text stands above every line that it would otherwise cross; without room there, below the point
    crest = min([y] + [py for px, py in points if abs(px - middle) < half + 8])
    text_y = crest - 16 if crest - 28 > frame.top else y + 26
    leader = f'<path style="{colour};stroke-width:.75" d="M{x:.1f} {text_y + 5:.1f}L{x:.1f} {y:.1f}"/>'
    ring = f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="4.5" style="{colour}"/>'
    text = f'<text class="mark" x="{middle:.1f}" y="{text_y:.1f}" text-anchor="middle">{escape(mark.text)}</text>'
    return (leader if y - text_y > 24 else "") + ring + text


def _spoken(series: Sequence[Series]) -> str:
    loud = [one for one in series if not one.faint and len(one.y)]
    return "; ".join(f"{one.name}: from {one.y[0]:.4g} to {one.y[-1]:.4g}" for one in loud) + "."


def svg(width: int, height: int, said: str, body: str, data: str, standalone: bool) -> str:
    namespace = ' xmlns="http://www.w3.org/2000/svg"' if standalone else ""
    # inside a page a <title> would pop up as a tooltip over the page's own read-out; the aria-label says the same
    inner = f"<title>{escape(said)}</title><style>{PALETTE}</style>" if standalone else ""
    frame = f'class="chart"{namespace} viewBox="0 0 {width} {height}"'
    return f'<svg {frame} role="img" aria-label="{escape(said)}" {data}>{inner}{body}</svg>\n'
