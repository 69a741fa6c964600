"""Measure what each field of a row contributes to a trained model: its score without the field, with the field alone,
and with the values of the field taken from other rows.

A field that is left out has no node, which a model trained with field dropout has seen before. A shuffled field is
there but uninformative: permutation importance (1801.01489). All scores are on rows that were not trained on.
"""

import json
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..events import report_progress
from ..recipe import SupportsAblation
from ..report.figures import draw_worth
from ..report.html import write_report
from ..trained_model import Model, select_eval_data
from ..training import loop
from ..training.run_directory import atomic_write

SCORES = ("_accuracy", "_r2")  # of a class, of a number: 1 is the best of both


def measure(model: Model, data: str | None = None, shuffles: int = 3, seed: int = 0) -> dict[str, Any]:
    """Measure what each field is worth.

    Args:
        data: Other data than the run's validation split.
        shuffles: How often the values of a field are shuffled; the mean counts.

    Returns:
        {"score", "all", "none", "rows", "fields": {name: {"without", "only", "shuffled", "worth"}}}. "score" names what
        is measured: the accuracy of a class, R2 of a number, the mean over several targets. "all" and "none" are the
        scores with all fields and with none; "worth" is what is lost when the values are shuffled.

    Raises:
        InputError: If the recipe has no fields.
    """
    recipe: Any = model.recipe
    if not isinstance(recipe, SupportsAblation):
        raise InputError(f"'{model.name}' is no recipe with fields: only those of multimodal runs can be measured")
    config, split = select_eval_data(model, data)
    names: list[str] = recipe.field_names(config)
    passes = [(names, "", 0), ([], "", 0)]  # kept fields, shuffled field, seed
    for name in names:
        passes += [([other for other in names if other != name], "", 0), ([name], "", 0)]
        passes += [(names, name, seed + i) for i in range(shuffles)]
    metrics = []
    for done, (kept, shuffled, shuffle_seed) in enumerate(passes):
        report_progress("passes over the rows", done, len(passes))
        batches = recipe.ablate_fields(config, split, kept, shuffled, shuffle_seed)
        metrics.append(loop.evaluate(recipe, model.module, batches, config.train.dtype))
    score_names = [name for name in metrics[0] if f"_{name}".endswith(SCORES)]
    full, none, *scores = [sum(m[name] for name in score_names) / len(score_names) for m in metrics]
    fields = {}
    for i, name in enumerate(names):
        without, only, *permuted = scores[i * (2 + shuffles) : (i + 1) * (2 + shuffles)]
        mean = sum(permuted) / shuffles
        fields[name] = {"without": without, "only": only, "shuffled": mean, "worth": full - mean}
    score = ", ".join(score_names).replace("_", " ")
    return {"score": score, "all": full, "none": none, "rows": metrics[0].get("rows"), "fields": fields}


def write_worth(folder: Path, facts: dict[str, Any]) -> Path:
    """Write worth.json and worth.svg, and update the report of a run. Returns the path of the picture."""
    atomic_write(folder / "worth.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    atomic_write(folder / "worth.svg", draw_worth(facts))
    if (folder / "report.html").is_file():
        write_report(folder)
    return folder / "worth.svg"
