"""The folder of an evaluation: every answer, the figures, and a page with the curve."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..report.figures import draw_figure
from ..report.html import render_template
from ..training.run_directory import atomic_write, require_unused_folder

N_SHOWN = 10  # answers on the page


def write_evaluation(out: Path, result: Mapping[str, Any], figure: dict[str, Any], origin: Mapping[str, str]) -> None:
    """Write items.jsonl, evaluation.json and report.html. Raises InputError if the folder is not empty."""
    require_unused_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / "items.jsonl", "".join(json.dumps(i, ensure_ascii=False) + "\n" for i in result["items"]))
    facts = {name: value for name, value in result.items() if name != "items"}
    atomic_write(out / "evaluation.json", json.dumps(facts | dict(origin), indent=2, ensure_ascii=False) + "\n")
    atomic_write(out / "report.html", render_page(result, figure, origin))


def render_page(result: Mapping[str, Any], figure: dict[str, Any], origin: Mapping[str, str]) -> str:
    columns = ["examples", "accuracy", "from", "to", "normalized", "from", "to"]
    names = [f"{prefix}{name}" for prefix in ("", "normalized_") for name in ("accuracy", "low", "high")]
    rows = [[str(point["shots"]), *(f"{point[name]:.1%}" for name in names)] for point in result["curve"]]
    table = SimpleNamespace(title="Accuracy", columns=columns, rows=rows, note="with 95 % bootstrap intervals")
    last = [item for item in result["items"] if item["shots"] == result["curve"][-1]["shots"]][:N_SHOWN]
    lines = [f"{'right' if i['right'] else 'wrong'}: {i['question']}\n  -> {i['answer']}" for i in last]
    summary = [f"{result['questions']:,} questions" + (f", chance {result['chance']:.1%}" if result["chance"] else "")]
    page = SimpleNamespace(
        title="Questions with examples", summary=summary, tables=[table], texts=[("Answers", "\n\n".join(lines))]
    )
    figures = [markup for markup in [draw_figure(figure)] if markup is not None]
    return render_template("lab.html.j2", result=page, figures=figures, origin=origin)
