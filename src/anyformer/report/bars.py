"""Horizontal bars as SVG text, in groups: pure functions, in the palette of the other charts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, isfinite

from .chart import COLOURS, LETTER, PALETTE, nice_ticks, tick_labels

THICK = 9  # pixels of a bar
BETWEEN = 12  # of the gap between two groups


@dataclass(frozen=True)
class Bar:
    """A group of bars, one for each value."""

    name: str
    values: Sequence[float]


def bars(
    rows: Sequence[Bar],
    names: Sequence[str],
    *,
    title: str,
    marks: Mapping[str, float] | None = None,
    width: int = 640,
    standalone: bool = True,
) -> str:
    """One group of bars a row, `names` saying what each bar of a group is; `marks` are lines across all of them, by
    their name. Bars begin at 0 and may go below. Raises ValueError where a group has more or fewer bars than names."""
    if any(len(row.values) != len(names) for row in rows):
        raise ValueError(f"each group needs {len(names)} bars, one for each of {', '.join(names)}")
    marks = dict(marks or {})
    seen = [x for row in rows for x in row.values if isfinite(x)] + [x for x in marks.values() if isfinite(x)]
    low, high = min([0.0, *seen]), max([0.0, *seen]) or 1.0
    longest = max((len(row.name) for row in rows), default=0)
    left, right, top = min(0.4 * width, 12 + LETTER * 1.1 * longest), width - 12.0, 48.0
    group = THICK * len(names) + BETWEEN
    bottom = top + group * len(rows)

    def at(x: float) -> float:
        return left + (x - low) / (high - low) * (right - left)

    parts = [f'<text class="title" x="0" y="12">{escape(title)}</text>', legend(names, left)]
    ticks = nice_ticks(low, high)
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        x = at(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{label}</text>')
    for i, row in enumerate(rows):
        y = top + i * group + BETWEEN / 2
        middle = y + THICK * len(names) / 2 + 4
        parts.append(f'<text x="{left - 8:.1f}" y="{middle:.1f}" text-anchor="end">{escape(row.name)}</text>')
        for k, value in enumerate(row.values):
            if isfinite(value):
                start, end = sorted((at(0.0), at(value)))
                place = f'x="{start:.1f}" y="{y + k * THICK:.1f}" width="{end - start:.1f}" height="{THICK - 1}"'
                told = f"<title>{escape(f'{row.name}, {names[k]}: {value:.4f}')}</title>"
                parts.append(f'<rect {place} style="fill:var(--c{k % COLOURS})">{told}</rect>')
    for i, (name, value) in enumerate(marks.items()):
        x, y = at(value), bottom + 32 + 14 * i
        parts.append(f'<line class="reference" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{y - 10:.1f}"/>')
        anchor = "end" if x > (left + right) / 2 else "start"
        parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(f"{name}: {value:.3f}")}</text>')
    return framed("".join(parts), title, rows, names, width, ceil(bottom + 24 + 14 * len(marks)), standalone)


def legend(names: Sequence[str], x: float) -> str:
    parts = []
    for k, name in enumerate(names):
        parts.append(f'<rect x="{x:.1f}" y="24" width="12" height="8" style="fill:var(--c{k % COLOURS})"/>')
        parts.append(f'<text x="{x + 18:.1f}" y="32">{escape(name)}</text>')
        x += 18 + LETTER * len(name) + 20
    return "".join(parts)


def framed(
    body: str, title: str, rows: Sequence[Bar], names: Sequence[str], width: int, height: int, standalone: bool
) -> str:
    told = "; ".join(
        f"{row.name}: " + ", ".join(f"{n} {x:.3f}" for n, x in zip(names, row.values, strict=True)) for row in rows
    )
    said = escape(f"{title}. {told}.")
    namespace = ' xmlns="http://www.w3.org/2000/svg"' if standalone else ""
    inner = f"<title>{said}</title><style>{PALETTE}</style>" if standalone else ""
    frame = f'class="chart"{namespace} viewBox="0 0 {width} {height}" role="img" aria-label="{said}"'
    return f"<svg {frame}>{inner}{body}</svg>\n"
