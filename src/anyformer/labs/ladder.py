"""The ladder: the Transformer and what came before it, trained on the same data for the same time.

On pairs of texts: an LSTM pair (2014), RNNsearch (2014) and a Transformer (2017). On text: an MLP over a window of
words (2003) and a Transformer. Each model is a rung. Written to a folder: a run for each rung, ladder.json and
ladder.html.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import api
from ..data.io.resolve import SETS, resolve
from ..data.text.pairs import REVERSE
from ..errors import InputError
from ..inference.translation import align_translation
from ..metrics import score_translations
from ..recipes._shared.pairs import load_pairs
from ..report.ladder import render_ladder
from ..trained_model import Model
from ..training.job import RecordCallback
from ..training.run_directory import atomic_write, read_lines

PAIR_RECIPES, TEXT_RECIPES = ("seq2seq", "rnnsearch", "translation"), ("mlp", "language")
TITLES = {"mlp": "MLP (2003)", "seq2seq": "LSTM pair (2014)", "rnnsearch": "RNNsearch (2014)"}
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
        seed: Of everything random.
        device: Where to train.
        on_rung: Called as on_rung(recipe, preset) before each rung; returns the callback for its records.

    Returns:
        The content of ladder.json.

    Raises:
        InputError: If the data cannot be used or `out` is not empty, before anything is trained.
    """
    if not minutes > 0:
        raise InputError(f"--minutes is {minutes:g}; it must be above 0")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty: choose another --out")
    has_pairs = is_pairs(data)
    options: dict[str, Any] = {"cut_long": True} if has_pairs else {}
    options["train"] = {"eval_every": 100, "save_every": 500, "seed": seed, "device": device, "dtype": "float32"}
    options |= {"data": data, "minutes": minutes, "progress": False}
    rungs, models = [], []
    for name in PAIR_RECIPES if has_pairs else TEXT_RECIPES:
        preset = ("reverse" if data == REVERSE else "multi30k") if has_pairs else "small"
        started_at, on_record = time.monotonic(), on_rung(name, preset)
        models.append(api.train(name, preset, out=out / name, on_record=on_record, **options))
        seconds = time.monotonic() - started_at
        rungs.append(describe_rung(name, out / name, models[-1], seconds) | {"preset": preset})
    facts: dict[str, Any] = {"data": data, "minutes": minutes, "seed": seed, "pairs": has_pairs}
    if has_pairs:
        facts |= compare_translations(models, rungs, sentences)
    facts["rungs"] = rungs
    atomic_write(out / "ladder.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    atomic_write(out / "ladder.html", render_ladder(facts))
    return facts


def is_pairs(data: str) -> bool:
    """Return whether the data are pairs of texts, by their name. Raises InputError if there are no such data."""
    path = Path(data)
    if data == REVERSE or ("," in data and not path.exists()):
        return True
    if data.partition("/")[0] in SETS and not path.exists():
        return len({file.name.rpartition(".")[2] for file in resolve(data.partition("/")[0])} & {"fr", "de", "tsv"}) > 0
    if not path.exists():
        raise InputError(f"data '{data}': no such file, folder or set")
    names = [file.name for file in path.iterdir()] if path.is_dir() else [path.name]
    stems = {name.removesuffix(".gz").rpartition(".")[0] for name in names}
    if path.is_dir():
        return any(sum(name.startswith(f"{stem}.") for name in names) == 2 for stem in stems if stem)
    extension = path.name.removesuffix(".gz").rpartition(".")[2]
    return extension in ("tsv", "tab") or (extension == "jsonl" and has_two_texts(path))


def has_two_texts(path: Path) -> bool:
    """Return whether the first line of a jsonl file has two texts."""
    with open(path, encoding="utf-8", errors="replace") as file:
        line = file.readline()
    try:
        row = json.loads(line)
    except ValueError:
        return False
    return isinstance(row, dict) and sum(isinstance(value, str) for value in row.values()) == 2


def describe_rung(name: str, run: Path, model: Model, seconds: float) -> dict[str, Any]:
    """Return the result of a run, and its validation loss over time."""
    result = json.loads((run / "result.json").read_text())
    times = {record["step"]: record["seconds"] for record in map(json.loads, read_lines(run / "timings.jsonl"))}
    records = [json.loads(line) for line in read_lines(run / "metrics.jsonl")]
    losses = [(record["step"], record["val_loss"]) for record in records if "val_loss" in record]
    step_seconds = max(times.values(), default=0.0) / max(times, default=1)
    return {
        "name": name,
        "title": TITLES.get(name, "Transformer (2017)"),
        "parameters": sum(p.numel() for p in model.module.parameters()),
        "steps": result["step"],
        "steps_per_second": round(1 / step_seconds, 2) if step_seconds else None,
        "seconds": round(seconds, 1),
        "result": {key: value for key, value in result.items() if key.startswith("val_")},
        "losses": [[round(step * step_seconds, 2), loss] for step, loss in losses],
    }


def compare_translations(models: Sequence[Model], rungs: list[dict[str, Any]], sentences: int) -> dict[str, Any]:
    """Translate the same sentences with each model: BLEU by length of the source, and alignments. Adds to `rungs`."""
    pairs = load_pairs(models[0].config).split("val")[:sentences]
    tokenizer: Any = models[0].module
    lengths = [len(tokenizer.pair_tokenizer.source.encode(source)) for source, _ in pairs]
    references = [target for _, target in pairs]
    for model, rung in zip(models, rungs, strict=True):
        request = {"input": [source for source, _ in pairs], "beam": 1, "cut": True}
        texts = [result["text"] for result in model.predict(request)["results"]]
        rung["scores"] = score_translations(texts, references)
        rung["by_length"] = score_by_length(texts, references, lengths)
        module: Any = model.module
        rung["path"] = module.path_length_bounds(max(lengths) + 1, max(lengths) + 1)
        rung["says"] = texts[:8]
    short = [i for i in range(len(pairs)) if lengths[i] <= MAX_ALIGNED_TOKENS]
    longest = sorted(short, key=lambda i: -lengths[i])[: 3 * N_ALIGNMENTS : 3]
    return {
        "sentences": len(pairs),
        "measure": "bleu" if any(" " in target for target in references) else "exact",
        "examples": [list(pair) for pair in pairs[:8]],
        "alignments": [align_pair(pairs[i], models, rungs) for i in longest],
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


def align_pair(pair: tuple[str, str], models: Sequence[Model], rungs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the attention to the source before each token of the reference, of the models that have attention."""
    maps = [
        {"title": rung["title"]} | align_translation(model.module, *pair)
        for model, rung in zip(models, rungs, strict=True)
        if hasattr(model.module, "alignment")
    ]
    return {"source": pair[0], "target": pair[1], "maps": maps}
