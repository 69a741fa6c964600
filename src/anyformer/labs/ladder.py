"""The ladder of history: the same data and the same time for what came before the Transformer, and for it.

For pairs of texts: seq2seq (2014), RNNsearch (2014), the Transformer (2017). For text alone: the window of 2003 and the
Transformer. What comes of it is measured, and written to a folder: a run for each rung, ladder.json, ladder.html.
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
from ..loading import Model
from ..metrics import score_translations
from ..recipes._shared.pairs import load_pairs
from ..report.ladder import render
from ..training.job import RecordCallback
from ..training.run_directory import atomic_write, read_lines

PAIRS, TEXT = ("seq2seq", "rnnsearch", "translation"), ("mlp", "language")
NAMES = {"mlp": "MLP (2003)", "seq2seq": "LSTM pair (2014)", "rnnsearch": "RNNsearch (2014)"}
SHOWN = 3  # sentences whose alignments are drawn
LONGEST_SHOWN = 24  # their tokens
WIDTH = 5  # tokens of source in a bucket of lengths


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
    """Train every rung for `minutes` and compare them on the same validation data. Returns what ladder.json holds.

    on_rung(name, preset) gives who listens to the records of a rung. Raises InputError for data that cannot be used,
    before any of them is trained, and where `out` holds something already.
    """
    if not minutes > 0:
        raise InputError(f"--minutes is {minutes:g}; it must be above 0")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty: choose another --out")
    pairs = paired(data)
    rungs, models = [], []
    for name in PAIRS if pairs else TEXT:
        preset = ("reverse" if data == REVERSE else "multi30k") if pairs else "small"
        often = {"eval_every": 100, "save_every": 500}
        more: dict[str, Any] = {"train": often | {"seed": seed, "device": device, "dtype": "float32"}}
        more |= {"cut_long": True} if pairs else {}
        began, listener = time.monotonic(), on_rung(name, preset)
        models.append(api.train(name, preset, data=data, minutes=minutes, out=out / name, progress=False, on_record=listener, **more))
        rungs.append(told(name, out / name, models[-1], time.monotonic() - began) | {"preset": preset})
    found: dict[str, Any] = {"data": data, "minutes": minutes, "seed": seed, "pairs": pairs}
    if pairs:
        found |= beside(models, rungs, sentences)
    found["rungs"] = rungs
    atomic_write(out / "ladder.json", json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    atomic_write(out / "ladder.html", render(found))
    return found


def paired(data: str) -> bool:
    """Whether this is data of pairs, by its name. Raises InputError where there is no such data."""
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
    ending = path.name.removesuffix(".gz").rpartition(".")[2]
    return ending in ("tsv", "tab") or (ending == "jsonl" and two_sides(path))


def two_sides(path: Path) -> bool:
    with open(path, encoding="utf-8", errors="replace") as file:
        line = file.readline()
    try:
        found = json.loads(line)
    except ValueError:
        return False
    return isinstance(found, dict) and sum(isinstance(value, str) for value in found.values()) == 2


def told(name: str, run: Path, model: Model, seconds: float) -> dict[str, Any]:
    """What a run says of itself: its result, and the loss over time."""
    result = json.loads((run / "result.json").read_text())
    times = {one["step"]: one["seconds"] for one in map(json.loads, read_lines(run / "timings.jsonl"))}
    losses = [
        (one["step"], one["val_loss"]) for one in map(json.loads, read_lines(run / "metrics.jsonl")) if "val_loss" in one
    ]
    pace = max(times.values(), default=0.0) / max(times, default=1)
    return {
        "name": name,
        "title": NAMES.get(name, "Transformer (2017)"),
        "parameters": sum(p.numel() for p in model.module.parameters()),
        "steps": result["step"],
        "steps_per_second": round(1 / pace, 2) if pace else None,
        "seconds": round(seconds, 1),
        "result": {key: value for key, value in result.items() if key.startswith("val_")},
        "losses": [[round(step * pace, 2), loss] for step, loss in losses],
    }


def beside(models: Sequence[Model], rungs: list[dict[str, Any]], sentences: int) -> dict[str, Any]:
    """The same sentences for each: BLEU over the length of the source, and where they looked."""
    config = models[0].config
    pairs = load_pairs(config).split("val")[:sentences]
    reads: Any = models[0].module
    sizes = [len(reads.pair_tokenizer.source.encode(source)) for source, _ in pairs]
    for model, rung in zip(models, rungs, strict=True):
        asked = {"input": [source for source, _ in pairs], "beam": 1, "cut": True}
        texts = [one["text"] for one in model.predict(asked)["results"]]
        rung["scores"] = score_translations(texts, [target for _, target in pairs])
        rung["by_length"] = by_length(texts, [target for _, target in pairs], sizes)
        module: Any = model.module
        rung["path"] = module.path_length_bounds(max(sizes) + 1, max(sizes) + 1)
        rung["says"] = texts[:8]
    shown = [i for i in range(len(pairs)) if sizes[i] <= LONGEST_SHOWN]
    shown = sorted(shown, key=lambda i: -sizes[i])[: 3 * SHOWN : 3]
    return {
        "sentences": len(pairs),
        "measure": "bleu" if any(" " in target for _, target in pairs) else "exact",
        "examples": [list(pair) for pair in pairs[:8]],
        "alignments": [alignment(pairs[i], models, rungs) for i in shown],
    }


def by_length(texts: Sequence[str], wanted: Sequence[str], sizes: Sequence[int]) -> list[dict[str, Any]]:
    """BLEU of the sentences of like length: [{"from", "to", "sentences", "bleu"}, ...]; buckets of few are left out."""
    found = []
    for start in range(0, max(sizes) + 1, WIDTH):
        some = [i for i, size in enumerate(sizes) if start <= size < start + WIDTH]
        if len(some) >= 10:
            score = score_translations([texts[i] for i in some], [wanted[i] for i in some])
            about = {"from": start, "to": start + WIDTH - 1, "sentences": len(some)}
            found.append(about | {"bleu": score["bleu"], "exact": score["exact"]})
    return found


def alignment(pair: tuple[str, str], models: Sequence[Model], rungs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Where the models that look back look, before each token of the true translation."""
    found: dict[str, Any] = {"source": pair[0], "target": pair[1], "maps": []}
    for model, rung in zip(models, rungs, strict=True):
        if hasattr(model.module, "alignment"):
            found["maps"].append({"title": rung["title"]} | align_translation(model.module, *pair))
    return found
