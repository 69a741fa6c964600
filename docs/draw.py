"""Draw the pictures of the documentation.

python docs/draw.py              edges.svg, from the edge rules themselves
python docs/draw.py graph        graph.svg, three of them as nodes and arrows
python docs/draw.py reverse      reverse.svg, from a translator trained to reverse digits (3 minutes)
python docs/draw.py ladder RUN   ladder.svg, from the result of `anyformer ladder --data multi30k --out RUN`
python docs/draw.py vision RUN   vision.svg, from a run on fashion-mnist: attention of the class token
python docs/draw.py speech RUN   speech.svg, from a run of the preset strings: cross-attention of each character
python docs/draw.py heads RUN    heads.svg, from `anyformer lab in-context --part heads --out RUN`
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
from anyformer.inference.translation import align_translation
from anyformer.model.edges import Edges, causal, full, neighbors, prefix, same, window
from anyformer.report.chart import PALETTE, Series, heatmap, line_chart

NODES = 9
RULES: list[tuple[Edges, str, str]] = [
    (full, "full", "every node"),
    (causal, "causal", "itself and the past"),
    (causal & window(3), "causal & window(3)", "the latest three"),
    (neighbors(3, 3, 1), "neighbors(3, 3, 1)", "adjacent cells of a grid"),
    (same(torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2])), "same(segment)", "its own document"),
    (causal | prefix(torch.tensor([4])), "causal | prefix", "the whole prompt, and the past"),
]
GRAPHS: list[tuple[Edges, str, str]] = [
    (full, "full", "every node reads every other: an encoder"),
    (causal, "causal", "every node reads the past: a decoder"),
    (causal & window(3), "causal & window(3)", "the latest three: a local layer"),
]
WORDS = ("the", "cat", "sat", "on", "the", "mat")
STEP, RADIUS, ARC, GRAPH_WIDTH = 96, 22, 13, 600
CELL, GAP, COLUMNS, HEADER, MARGIN, TOP = 20, 84, 3, 44, 60, 36
STYLE = """\
.edges text { font: 12px system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
.edges text { fill: var(--muted); }
.edges .rule { font: 600 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: var(--ink); }
.edges .paper { fill: var(--paper); stroke: var(--hair); }
.edges .arrow { fill: none; stroke: var(--c0); stroke-width: 1.4; opacity: .75; } .edges .head { fill: var(--c0); }
.edges .node { fill: var(--paper); stroke: var(--c1); stroke-width: 1.6; }
.edges .word { fill: var(--ink); text-anchor: middle; }
.edges .none { fill: var(--hair); opacity: .55; } .edges .edge { fill: var(--c0); } .edges .self { fill: var(--c1); }
"""


def draw_edges() -> str:
    """Draw all rules as masks: rows are queries, columns are keys. Returns SVG text."""
    side = NODES * CELL
    width = 2 * MARGIN + COLUMNS * side + (COLUMNS - 1) * GAP
    panel_height = side + HEADER + 32
    height = TOP + len(RULES) // COLUMNS * panel_height + 44
    parts = [f'<rect class="paper" x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="12"/>']
    for i, (rule, name, description) in enumerate(RULES):
        x, y = MARGIN + i % COLUMNS * (side + GAP), TOP + i // COLUMNS * panel_height
        mask = rule.build_mask(batch=1, queries=NODES, keys=NODES)[0, 0].tolist()
        parts.append(f'<g transform="translate({x} {y})">{draw_mask(mask, name, description)}</g>')
    parts.append(draw_legend(MARGIN, height - 24))
    title = "Which node attends to which under six rules: " + ", ".join(name for _, name, _ in RULES)
    return wrap_svg(parts, title, f"{width} {height}")


def draw_graph() -> str:
    """Draw a few rules as graphs: an arrow leads from a node to one that reads it. Returns SVG text."""
    graphs, top = [], 32
    for rule, name, description in GRAPHS:
        mask = rule.build_mask(batch=1, queries=len(WORDS), keys=len(WORDS))[0, 0].tolist()
        heading = (
            f'<text class="rule" x="24" y="4">{escape(name)}</text><text x="24" y="23">{escape(description)}</text>'
        )
        arrows, height = draw_arrows(mask)
        graphs.append(f'<g transform="translate(0 {top})">{heading}{arrows}</g>')
        top += height
    frame = [
        f'<rect class="paper" x=".5" y=".5" width="{GRAPH_WIDTH - 1}" height="{top - 1}" rx="12"/>',
        '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="head" d="M0 0L8 4L0 8z"/></marker>',
    ]
    title = "Six words as nodes, and who reads whom under three rules: " + ", ".join(name for _, name, _ in GRAPHS)
    return wrap_svg([*frame, *graphs], title, f"{GRAPH_WIDTH} {top}")


def draw_arrows(mask: Sequence[Sequence[bool]]) -> tuple[str, int]:
    """Draw the nodes of one rule in a row: what is read from the left arrives above, from the right below. Returns SVG
    text and its height."""
    edges = [(q, k) for q, row in enumerate(mask) for k, edge in enumerate(row) if edge and q != k]
    y = 48 + RADIUS + ARC * max(q - k for q, k in edges)
    parts = []
    for q, k in edges:
        side = 1 if k < q else -1
        start, end = 60 + k * STEP + side * 9, 60 + q * STEP - side * 9
        bend = y - side * (RADIUS + 16 * abs(q - k))
        path = f"M{start} {y - side * 21}C{start + side * 10} {bend} {end - side * 10} {bend} {end} {y - side * 22}"
        parts.append(f'<path class="arrow" d="{path}" marker-end="url(#head)"/>')
    for i, word in enumerate(WORDS):
        parts.append(f'<circle class="node" cx="{60 + i * STEP}" cy="{y}" r="{RADIUS}"/>')
        parts.append(f'<text class="word" x="{60 + i * STEP}" y="{y + 4}">{word}</text>')
    return "".join(parts), y + RADIUS + 40 + ARC * max(0, *(k - q for q, k in edges))


def wrap_svg(parts: Sequence[str], title: str, size: str) -> str:
    head = f'<svg class="edges" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" role="img">'
    style = f"<style>\n{PALETTE}{STYLE}</style>"
    return "\n".join([head, f"<title>{escape(title)}</title>", style, *parts, "</svg>\n"])


def draw_mask(mask: Sequence[Sequence[bool]], name: str, description: str) -> str:
    """Draw one rule: the cell in row q, column k is filled where node q may attend to node k."""
    parts = [f'<text class="rule" y="12">{escape(name)}</text><text y="31">{escape(description)}</text>']
    for q, row in enumerate(mask):
        for k, edge in enumerate(row):
            kind = "none" if not edge else "self" if q == k else "edge"
            box = f'x="{k * CELL + 1}" y="{HEADER + q * CELL + 1}" width="{CELL - 2}" height="{CELL - 2}"'
            parts.append(f'<rect class="{kind}" {box} rx="3"/>')
    return "".join(parts)


def draw_legend(x: float, y: float) -> str:
    parts = []
    for kind, text in (("edge", "attends"), ("self", "itself"), ("none", "no edge")):
        parts.append(f'<rect class="{kind}" x="{x}" y="{y - 10}" width="12" height="12" rx="2"/>')
        parts.append(f'<text x="{x + 18}" y="{y}">{text}</text>')
        x += 110
    return "".join(parts) + f'<text x="{x}" y="{y}">row: query · column: key</text>'


def draw_reverse(digits: str = "3141592653589793") -> str:
    """Train a model to reverse digits and draw its cross-attention."""
    with TemporaryDirectory() as folder:
        model = api.train("translation", "reverse", out=Path(folder) / "run")
    attention = align_translation(model.module, digits, digits[::-1])
    return heatmap(attention["weights"], title="", rows=attention["rows"], columns=attention["columns"], top=1.0)


def draw_ladder(run: Path) -> str:
    """Draw BLEU by source length for every model of a ladder."""
    result = json.loads((run / "ladder.json").read_text(encoding="utf-8"))
    series = [
        Series(
            rung["title"],
            [(bucket["from"] + bucket["to"]) / 2 for bucket in rung["by_length"]],
            [bucket["bleu"] for bucket in rung["by_length"]],
            color=i,
            dots=True,
        )
        for i, rung in enumerate(result["rungs"])
    ]
    return line_chart(series, title="BLEU by source length", x_label="tokens", height=300, zero=True)


def find_figure(run: Path, kind: str, title: str) -> dict[str, Any]:
    """Return the figure of a run with this kind and beginning of its title."""
    figures = json.loads((run / "figures.json").read_text(encoding="utf-8"))
    return next(figure for figure in figures if figure["kind"] == kind and figure["title"].startswith(title))


def draw_vision(run: Path) -> str:
    """Draw a few images, each beside the attention of the class token."""
    images = find_figure(run, "images", "Where the class")["images"]
    width, height, gap = 200, 100, 16
    parts = []
    for i, image in enumerate(images):
        x, y = gap + i % 3 * (width + gap), gap + i // 3 * (height + 36)
        box = f'x="{x}" y="{y}" width="{width}" height="{height}"'
        parts.append(f'<image {box} href="data:image/png;base64,{image["png"]}" style="image-rendering: pixelated"/>')
        parts.append(f'<text x="{x}" y="{y + height + 16}">{escape(image["caption"])}</text>')
    size = f"{3 * (width + gap) + gap} {-(-len(images) // 3) * (height + 36) + gap}"
    return wrap_svg(parts, "Attention of the class token", size)


def draw_speech(run: Path) -> str:
    """Draw the cross-attention from each character to the frames of a sound."""
    figure = find_figure(run, "matrix", "")
    return heatmap(
        figure["values"], title="", rows=figure.get("rows") or (), columns=figure.get("columns") or (), cell=11
    )


def draw_heads(run: Path) -> str:
    """Draw how induction heads appear with the gain of late positions."""
    records = json.loads((run / "lab.json").read_text(encoding="utf-8"))["heads"]["records"]
    names = {
        "loss of late positions below early ones, nats": "gain",
        "prefix matching of the best head": "induction",
        "loss, nats": "loss",
    }
    steps = [entry["step"] for entry in records]
    series = [
        Series(text, steps, [entry[name] for entry in records], color=i) for i, (text, name) in enumerate(names.items())
    ]
    return line_chart(series, title="Induction heads appear", x_label="steps", height=300, zero=True)


if __name__ == "__main__":
    name = sys.argv[1] if sys.argv[1:] else "edges"
    of_runs: dict[str, Callable[[Path], str]] = {
        "ladder": draw_ladder, "vision": draw_vision, "speech": draw_speech, "heads": draw_heads,
    }  # fmt: skip
    drawings = {"edges": draw_edges, "graph": draw_graph, "reverse": draw_reverse}
    drawings |= {key: partial(function, Path(sys.argv[-1])) for key, function in of_runs.items()}
    Path(__file__).with_name(f"{name}.svg").write_text(drawings[name](), encoding="utf-8")
