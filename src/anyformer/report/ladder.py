"""The page of `anyformer ladder`: the Transformer and its predecessors on the same data."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from .chart import Series, heatmap, line_chart
from .html import render_template


def render_ladder(facts: Mapping[str, Any]) -> str:
    """Render the content of ladder.json as an HTML page."""
    rungs, is_pairs = facts["rungs"], facts["pairs"]
    losses = {rung["title"]: rung["losses"] for rung in rungs}
    scores = {rung["title"]: score_by_length(rung["by_length"], facts["measure"]) for rung in rungs if is_pairs}
    label = {"bleu": "BLEU", "exact": "exact, %"}[facts["measure"]] if is_pairs else ""
    return render_template(
        "ladder.html.j2",
        facts=facts,
        rows=[format_row(rung) for rung in rungs],
        losses=draw_lines(losses, "Validation loss", "seconds"),
        scores=draw_lines(scores, label, "tokens", zero=True),
        alignments=[draw_alignment(pair) for pair in facts.get("alignments", [])],
        translations=list_translations(facts) if is_pairs else [],
    )


def draw_lines(points: Mapping[str, list], title: str, x_label: str, zero: bool = False) -> str:
    """Draw a line for each rung that has points [[x, y], ...]; "" if none has."""
    series = [
        Series(name, *map(list, zip(*pairs, strict=True)), color=i, dots=True)
        for i, (name, pairs) in enumerate(points.items())
        if pairs
    ]
    return Markup(line_chart(series, title=title, x_label=x_label, zero=zero, standalone=False)) if series else ""


def score_by_length(buckets: list[Mapping[str, Any]], measure: str) -> list[tuple[float, float]]:
    """Return (mean length of the source, BLEU or exact matches in %) of each bucket."""
    return [
        ((bucket["from"] + bucket["to"]) / 2, 100 * bucket["exact"] if measure == "exact" else bucket["bleu"])
        for bucket in buckets
    ]


def format_row(rung: Mapping[str, Any]) -> list[str]:
    """Format a rung as a row of the table."""
    scores, path = rung.get("scores", {}), rung.get("path")
    cells = [rung["title"], f"{rung['parameters'] / 1e6:.2f} M", f"{rung['result']['val_loss']:.4f}"]
    cells += [f"{scores['bleu']:.1f}", f"{scores['exact']:.1%}"] if scores else []
    cells += [f"{rung['steps']:,}", f"{rung['steps_per_second']:g}" if rung["steps_per_second"] else ""]
    return cells + ([f"{path[0]} to {path[1]}"] if path else [])


def draw_alignment(pair: Mapping[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {"cell": 11, "top": 1.0, "standalone": False}
    maps = [
        Markup(heatmap(m["weights"], title=m["title"], rows=m["rows"], columns=m["columns"], **options))
        for m in pair["maps"]
    ]
    return {"source": pair["source"], "target": pair["target"], "maps": maps}


def list_translations(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each example with the translation of every rung."""
    return [
        {"source": source, "target": target, "texts": [(rung["title"], rung["says"][i]) for rung in facts["rungs"]]}
        for i, (source, target) in enumerate(facts["examples"])
    ]
