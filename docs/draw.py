"""Draw the pictures of the tour.

python docs/draw.py            edges.svg, from the rules themselves
python docs/draw.py reverse    reverse.svg, from a translator that learns to write digits from behind (3 minutes)
python docs/draw.py ladder RUN ladder.svg, from what `anyformer ladder --data multi30k --out RUN` has measured
python docs/draw.py vision RUN vision.svg, from a run on fashion-mnist: where the class node looks
python docs/draw.py speech RUN speech.svg, from a run of the preset strings: where each character was heard
"""

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from anyformer import api
from anyformer.labs import ladder
from anyformer.model.edges import Edges, causal, full, neighbours, prefix, same, window
from anyformer.report.chart import PALETTE, Series, line_chart
from anyformer.report.heatmap import heatmap

NODES = 9
RULES: list[tuple[Edges, str, str]] = [
    (full, "full", "everyone reads everyone"),
    (causal, "causal", "itself and the past"),
    (causal & window(3), "causal & window(3)", "the newest three"),
    (neighbours(3, 3, 1), "neighbours(3, 3, 1)", "the cells around it on a grid"),
    (same(torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2])), "same(segment)", "its own document"),
    (causal | prefix(torch.tensor([4])), "causal | prefix", "the whole prompt, and the past"),
]
CELL, GAP, COLUMNS, ABOVE, MARGIN = 20, 84, 3, 44, 60
TOP = 36
STYLE = """\
.edges text { font: 12px system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
.edges text { fill: var(--muted); }
.edges .rule { font: 600 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: var(--ink); }
.edges .paper { fill: var(--paper); stroke: var(--hair); }
.edges .none { fill: var(--hair); opacity: .55; } .edges .edge { fill: var(--c0); } .edges .self { fill: var(--c1); }
"""


def picture() -> str:
    """All rules side by side, as SVG text: rows are readers, columns are read."""
    side = NODES * CELL
    width = 2 * MARGIN + COLUMNS * side + (COLUMNS - 1) * GAP
    high = side + ABOVE + 32
    height = TOP + len(RULES) // COLUMNS * high + 44
    parts = [f'<rect class="paper" x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="12"/>']
    for i, (rule, name, about) in enumerate(RULES):
        x, y = MARGIN + i % COLUMNS * (side + GAP), TOP + i // COLUMNS * high
        table = rule.dense(batch=1, queries=NODES, keys=NODES)[0, 0].tolist()
        parts.append(f'<g transform="translate({x} {y})">{panel(table, name, about)}</g>')
    parts.append(legend(MARGIN, height - 24))
    said = "Who may read whom under six rules: " + ", ".join(name for _, name, _ in RULES)
    head = f'<svg class="edges" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
    return (
        f"{head}>\n<title>{escape(said)}</title>\n<style>\n{PALETTE}{STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def panel(table: Sequence[Sequence[bool]], name: str, about: str) -> str:
    """One rule: row q, column k is filled where node q may read node k."""
    parts = [f'<text class="rule" y="12">{escape(name)}</text><text y="31">{escape(about)}</text>']
    for q, row in enumerate(table):
        for k, edge in enumerate(row):
            kind = "none" if not edge else "self" if q == k else "edge"
            place = f'x="{k * CELL + 1}" y="{ABOVE + q * CELL + 1}" width="{CELL - 2}" height="{CELL - 2}"'
            parts.append(f'<rect class="{kind}" {place} rx="3"/>')
    return "".join(parts)


def legend(x: float, y: float) -> str:
    parts = []
    for kind, text in (("edge", "may read"), ("self", "reads itself"), ("none", "no edge")):
        parts.append(f'<rect class="{kind}" x="{x}" y="{y - 10}" width="12" height="12" rx="2"/>')
        parts.append(f'<text x="{x + 18}" y="{y}">{text}</text>')
        x += 110
    return "".join(parts) + f'<text x="{x}" y="{y}">row: who reads · column: who is read</text>'


def looks(digits: str = "3141592653589793") -> str:
    """Where a model looks that has just learned to write digits from behind."""
    with TemporaryDirectory() as folder:
        model = api.train("translation", "reverse", out=Path(folder) / "run")
    drawn = ladder.alignment((digits, digits[::-1]), [model], [{"title": "Cross-attention"}])["maps"][0]
    return heatmap(drawn["weights"], title="", rows=drawn["rows"], columns=drawn["columns"], top=1.0)


def rungs(run: Path) -> str:
    """BLEU over the length of the source, of every rung of a ladder."""
    found = json.loads((run / "ladder.json").read_text(encoding="utf-8"))
    series = [
        Series(
            one["title"],
            [(bucket["from"] + bucket["to"]) / 2 for bucket in one["by_length"]],
            [bucket["bleu"] for bucket in one["by_length"]],
            colour=i,
            dots=True,
        )
        for i, one in enumerate(found["rungs"])
    ]
    return line_chart(series, title="BLEU over the length of the source", x_label="tokens", height=300, zero=True)


def figure(run: Path, kind: str, title: str) -> dict[str, Any]:
    """The figure of a run whose title begins so."""
    found = json.loads((run / "figures.json").read_text(encoding="utf-8"))
    return next(one for one in found if one["kind"] == kind and one["title"].startswith(title))


def seen(run: Path) -> str:
    """A few images, each beside itself with what was read of it."""
    images = figure(run, "images", "Where the class node looks")["images"]
    wide, high, gap = 200, 100, 16
    parts = []
    for i, one in enumerate(images):
        x, y = gap + i % 3 * (wide + gap), gap + i // 3 * (high + 36)
        place = f'x="{x}" y="{y}" width="{wide}" height="{high}"'
        parts.append(f'<image {place} href="data:image/png;base64,{one["png"]}" style="image-rendering: pixelated"/>')
        parts.append(f'<text x="{x}" y="{y + high + 16}">{escape(one["caption"])}</text>')
    size = f"{3 * (wide + gap) + gap} {-(-len(images) // 3) * (high + 36) + gap}"
    head = f'<svg class="edges" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" role="img">'
    return f"{head}\n<title>Where the class node looks</title>\n<style>\n{PALETTE}{STYLE}</style>\n" + "\n".join(
        [*parts, "</svg>\n"]
    )


def heard(run: Path) -> str:
    """Which frames of a sound each character was read from."""
    one = figure(run, "matrix", "")
    return heatmap(one["values"], title="", rows=one.get("rows") or (), columns=one.get("columns") or (), cell=11)


if __name__ == "__main__":
    what = sys.argv[1:] or ["edges"]
    runs: dict[str, Callable[[Path], str]] = {"ladder": rungs, "vision": seen, "speech": heard}
    draw = ({"edges": picture, "reverse": looks} | {n: partial(f, Path(what[-1])) for n, f in runs.items()})[what[0]]
    Path(__file__).with_name(f"{what[0]}.svg").write_text(draw(), encoding="utf-8")
