"""The ladder: the Transformer and what came before it, trained on the same data for the same time.

On pairs of texts: an LSTM pair (2014), RNNsearch (2014) and a Transformer (2017). On text: an MLP over a window of
words (2003) and a Transformer. Each model is a rung. Written to a folder: a run for each rung, ladder.json and
ladder.html.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import api
from ..data.io.resolve import SETS, resolve
from ..data.text.pairs import REVERSE
from ..errors import InputError
from ..inference.translation import align_translation
from ..metrics import score_translations
from ..recipes._shared.pairs import load_pairs
from ..report.chart import Series, heatmap, line_chart
from ..report.curves import read_lines
from ..report.html import render_template
from ..trained_model import Model
from ..training.job import RecordCallback
from ..training.run_directory import atomic_write, require_unused_folder

PAIR_RECIPES, TEXT_RECIPES = ("seq2seq", "rnnsearch", "translation"), ("mlp", "language")
TITLES = {"mlp": "MLP (2003)", "seq2seq": "LSTM pair (2014)", "rnnsearch": "RNNsearch (2014)"}
N_EXAMPLES = 8  # translations that are shown
N_ALIGNMENTS = 3  # sentences whose alignments are drawn
MAX_ALIGNED_TOKENS = 24
BUCKET_WIDTH = 5  # tokens of the source
MIN_BUCKET_SENTENCES = 10


def climb(
    data: str,
    minutes: float,
    out: Path,
    *,
    sentences: int = 500,
    seed: int = 1,
    device: str = "auto",
    on_rung: Callable[[str, str], RecordCallback] = lambda name, preset: api.ignore,
) -> dict[str, Any]:
    """Train every rung and compare them on the same validation data.

    Args:
        data: Pairs or text.
        minutes: Of training of each rung.
        out: The folder to write to; must not exist or be empty.
        sentences: Validation sentences that are translated.
        on_rung: Called as on_rung(recipe, preset) before each rung; returns the callback for its records.

    Returns:
        The content of ladder.json.

    Raises:
        InputError: If the data cannot be used or `out` is not empty, before anything is trained.
    """
    require_unused_folder(out)
    has_pairs = is_pairs(data)
    preset = "small" if not has_pairs else "reverse" if data == REVERSE else "multi30k"
    train = {"eval_every": 100, "save_every": 500, "seed": seed, "device": device, "dtype": "float32"}
    options: dict[str, Any] = {"data": data, "minutes": minutes, "yes": True, "train": train, "progress": False}
    options |= {"too_long": "cut"} if has_pairs else {}
    rungs, models = [], []
    for name in PAIR_RECIPES if has_pairs else TEXT_RECIPES:
        started_at = time.monotonic()
        models.append(api.train(name, preset, out=out / name, on_record=on_rung(name, preset), **options))
        rungs.append(describe_rung(models[-1], out / name, time.monotonic() - started_at) | {"preset": preset})
    facts: dict[str, Any] = {"data": data, "minutes": minutes, "seed": seed, "pairs": has_pairs}
    if has_pairs:
        facts |= compare_translations(models, rungs, sentences)
    facts["rungs"] = rungs
    atomic_write(out / "ladder.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    atomic_write(out / "ladder.html", render_ladder(facts))
    return facts


def is_pairs(data: str) -> bool:
    """Return whether the data are pairs of texts, by their name. Raises InputError if there are no such data."""
    path, set_name = Path(data), data.partition("/")[0]
    if data == REVERSE or ("," in data and not path.exists()):
        return True
    if set_name in SETS and not path.exists():
        return any(file.suffix in (".fr", ".de", ".tsv") for file in resolve(set_name))
    if not path.exists():
        raise InputError(f"data '{data}': no such file, folder or set")
    if path.is_dir():
        names = [file.name for file in path.iterdir()]
        stems = {name.removesuffix(".gz").rpartition(".")[0] for name in names}
        return any(sum(name.startswith(f"{stem}.") for name in names) == 2 for stem in stems if stem)
    extension = path.name.removesuffix(".gz").rpartition(".")[2]
    if extension != "jsonl":
        return extension in ("tsv", "tab")
    first = next(read_lines(path), {})
    return sum(isinstance(value, str) for value in first.values()) == 2


def describe_rung(model: Model, run: Path, seconds: float) -> dict[str, Any]:
    """Return the result of a run, and its validation loss over time."""
    result = json.loads((run / "result.json").read_text())
    times = {record["step"]: record["seconds"] for record in read_lines(run / "timings.jsonl")}
    losses = [(r["step"], r["val_loss"]) for r in read_lines(run / "metrics.jsonl") if "val_loss" in r]
    step_seconds = max(times.values(), default=0.0) / max(times, default=1)
    return {
        "name": model.name,
        "title": TITLES.get(model.name, "Transformer (2017)"),
        "parameters": model.n_parameters,
        "steps": result["step"],
        "steps_per_second": round(1 / step_seconds, 2) if step_seconds else None,
        "seconds": round(seconds, 1),
        "result": {key: value for key, value in result.items() if key.startswith("val_")},
        "losses": [[round(step * step_seconds, 2), loss] for step, loss in losses],
    }


def compare_translations(models: Sequence[Model], rungs: list[dict[str, Any]], sentences: int) -> dict[str, Any]:
    """Translate the same sentences with each model: BLEU by length of the source, and alignments. Adds to `rungs`."""
    pairs = load_pairs(models[0].config).split("val")[:sentences]
    modules: list[Any] = [model.module for model in models]
    lengths = [len(modules[0].pair_tokenizer.source.encode(source)) for source, _ in pairs]
    references = [target for _, target in pairs]
    request = {"input": [source for source, _ in pairs], "beam": 1, "cut": True}
    for model, module, rung in zip(models, modules, rungs, strict=True):
        texts = [result["text"] for result in model.predict(request)["results"]]
        rung["scores"] = score_translations(texts, references)
        rung["by_length"] = score_by_length(texts, references, lengths)
        rung["path"] = module.path_length_bounds(max(lengths) + 1, max(lengths) + 1)
        rung["says"] = texts[:N_EXAMPLES]
    short = [i for i in range(len(pairs)) if lengths[i] <= MAX_ALIGNED_TOKENS]
    longest = sorted(short, key=lambda i: -lengths[i])[: 3 * N_ALIGNMENTS : 3]
    readers = {rung["title"]: m for rung, m in zip(rungs, modules, strict=True) if hasattr(m, "alignment")}
    return {
        "sentences": len(pairs),
        "measure": "bleu" if any(" " in target for target in references) else "exact",
        "examples": [list(pair) for pair in pairs[:N_EXAMPLES]],
        "alignments": [align_pair(*pairs[i], readers) for i in longest],
    }


def score_by_length(texts: Sequence[str], references: Sequence[str], lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Score sentences of similar length: [{"from", "to", "sentences", "bleu", "exact"}]; small buckets are left out."""
    buckets = []
    for start in range(0, max(lengths) + 1, BUCKET_WIDTH):
        rows = [i for i, length in enumerate(lengths) if start <= length < start + BUCKET_WIDTH]
        if len(rows) >= MIN_BUCKET_SENTENCES:
            score = score_translations([texts[i] for i in rows], [references[i] for i in rows])
            bucket = {"from": start, "to": start + BUCKET_WIDTH - 1, "sentences": len(rows)}
            buckets.append(bucket | {"bleu": score["bleu"], "exact": score["exact"]})
    return buckets


def align_pair(source: str, target: str, models: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attention to the source before each token of the reference, of models by their title."""
    maps = [{"title": title} | align_translation(model, source, target) for title, model in models.items()]
    return {"source": source, "target": target, "maps": maps}


# --- the page ---


def render_ladder(facts: Mapping[str, Any]) -> str:
    """Render the content of ladder.json as an HTML page."""
    rungs = facts["rungs"]
    losses = {rung["title"]: rung["losses"] for rung in rungs}
    values: dict[str, Any] = {"scores": "", "alignments": [], "translations": []}
    if facts["pairs"]:
        key, scale, label = ("exact", 100, "exact, %") if facts["measure"] == "exact" else ("bleu", 1, "BLEU")
        scores = {r["title"]: [((b["from"] + b["to"]) / 2, scale * b[key]) for b in r["by_length"]] for r in rungs}
        values["scores"] = draw_lines(scores, label, "tokens", zero=True)
        values["alignments"] = [{**pair, "maps": [draw_map(**m) for m in pair["maps"]]} for pair in facts["alignments"]]
        values["translations"] = [
            {"source": source, "target": target, "texts": [(rung["title"], rung["says"][i]) for rung in rungs]}
            for i, (source, target) in enumerate(facts["examples"])
        ]
    rows = [format_row(rung) for rung in rungs]
    losses_chart = draw_lines(losses, "Validation loss", "seconds")
    return render_template("ladder.html.j2", facts=facts, rows=rows, losses=losses_chart, **values)


def draw_lines(points: Mapping[str, list], title: str, x_label: str, zero: bool = False) -> str:
    """Draw a line for each rung that has points [[x, y], ...]; "" if none has."""
    series = [
        Series(name, *map(list, zip(*pairs, strict=True)), color=i, dots=True)
        for i, (name, pairs) in enumerate(points.items())
        if pairs
    ]
    return line_chart(series, title=title, x_label=x_label, zero=zero, standalone=False) if series else ""


def draw_map(weights: list[list[float]], title: str, rows: list[str], columns: list[str]) -> str:
    return heatmap(weights, title=title, rows=rows, columns=columns, cell=11, top=1.0, standalone=False)


def format_row(rung: Mapping[str, Any]) -> list[str]:
    """Format a rung as a row of the table."""
    scores, path = rung.get("scores", {}), rung.get("path")
    cells = [rung["title"], f"{rung['parameters'] / 1e6:.2f} M", f"{rung['result']['val_loss']:.4f}"]
    cells += [f"{scores['bleu']:.1f}", f"{scores['exact']:.1%}"] if scores else []
    cells += [f"{rung['steps']:,}", f"{rung['steps_per_second']:g}" if rung["steps_per_second"] else ""]
    return cells + ([f"{path[0]} to {path[1]}"] if path else [])
