"""The ladder of history as one offline page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .chart import PALETTE, Series, line_chart
from .heatmap import heatmap


def render(found: Mapping[str, Any]) -> str:
    """The page of what ladder.json holds."""
    rungs = found["rungs"]
    losses = [
        Series(one["title"], *map(list, zip(*one["losses"], strict=True)), colour=i, dots=True)
        for i, one in enumerate(rungs)
        if one["losses"]
    ]
    room = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return room.get_template("ladder.html.j2").render(
        palette=Markup(PALETTE),
        found=found,
        rows=[row(one) for one in rungs],
        losses=Markup(line_chart(losses, title="Validation loss", x_label="seconds", standalone=False))
        if losses
        else "",
        lengths=[Markup(svg) for svg in lengths(rungs, found["measure"])] if found["pairs"] else [],
        alignments=[alignments(one) for one in found.get("alignments", [])],
        said=said(found) if found["pairs"] else [],
    )


def row(one: Mapping[str, Any]) -> list[str]:
    """A rung as a row of the table."""
    scores, path = one.get("scores", {}), one.get("path")
    cells = [one["title"], f"{one['parameters'] / 1e6:.2f} M", f"{one['result']['val_loss']:.4f}"]
    cells += [f"{scores['bleu']:.1f}", f"{scores['exact']:.1%}"] if scores else []
    cells += [
        f"{one['steps']:,}",
        f"{one['steps_per_second']:g}" if one["steps_per_second"] else "",
    ]
    return cells + ([f"{path[0]} to {path[1]}"] if path else [])


def lengths(rungs: list[Mapping[str, Any]], measure: str) -> list[str]:
    """BLEU (of single words: how many are exact) over the length of the source."""
    series = [
        Series(
            one["title"],
            [(bucket["from"] + bucket["to"]) / 2 for bucket in one["by_length"]],
            [100 * bucket["exact"] if measure == "exact" else bucket["bleu"] for bucket in one["by_length"]],
            colour=i,
            dots=True,
        )
        for i, one in enumerate(rungs)
        if one["by_length"]
    ]
    if not series:
        return []
    return [
        line_chart(
            series, title={"bleu": "BLEU", "exact": "exact, %"}[measure], x_label="tokens", zero=True, standalone=False
        )
    ]


def alignments(one: Mapping[str, Any]) -> dict[str, Any]:
    maps = [
        Markup(
            heatmap(
                m["weights"], title=m["title"], rows=m["rows"], columns=m["columns"], cell=11, top=1.0, standalone=False
            )
        )
        for m in one["maps"]
    ]
    return {"source": one["source"], "target": one["target"], "maps": maps}


def said(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each example with what every rung makes of it."""
    return [
        {"source": source, "target": target, "says": [(one["title"], one["says"][i]) for one in found["rungs"]]}
        for i, (source, target) in enumerate(found["examples"])
    ]
