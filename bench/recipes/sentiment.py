"""Film reviews, good or bad: from scratch, after novels, and from MiniLM, beside TF-IDF with logistic regression.

    python -m bench.recipes.sentiment --minutes 20 --minilm build/weights/minilm

One split (80/10/10 of each class, fixed), accuracy on the test part, all sides in one run. The set is sentence-polarity
(Pang and Lee 2005).
"""

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.pipeline import make_pipeline

from anyformer import api
from anyformer.data.text import labeled
from anyformer.training import loop

DATA = "sentence-polarity"


def baseline() -> dict[str, float]:
    """Words and pairs of words, weighed; how strongly to regularise is chosen on the validation part."""
    found = labeled.read_labeled(DATA)
    parts = {name: found.split(name) for name in ("train", "val", "test")}
    texts = {name: [found.texts[i] for i in at] for name, at in parts.items()}
    right = {name: found.classes[at] for name, at in parts.items()}
    tried = []
    for strength in (0.3, 1.0, 3.0, 10.0, 30.0):
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\S+")
        model = make_pipeline(words, LogisticRegression(C=strength, max_iter=1000)).fit(texts["train"], right["train"])
        tried.append((model.score(texts["val"], right["val"]), model))
    guess = max(tried, key=lambda one: one[0])[1].predict(texts["test"])
    return {
        "accuracy": accuracy_score(right["test"], guess),
        "macro_f1": f1_score(right["test"], guess, average="macro"),
    }


def scored(model: api.Model) -> dict[str, float]:
    """Accuracy and F1 on the test part, which no run has looked at."""
    batches = (batch for batch, _ in model.recipe.batches(model.config, "test"))
    found = loop.evaluate(model.recipe, model.module, batches)
    return {name: found[name] for name in ("accuracy", "macro_f1")}


def ours(minutes: float, reader: Path | None, minilm: Path | None, out: Path, seed: int) -> dict[str, dict[str, Any]]:
    """Each way by its name, with what it scored and how long it took."""
    found = {}

    def note(name: str, began: float, **more: Any) -> None:
        model = api.train("classify", data=DATA, out=out / name.replace(" ", "-"), **more)
        found[name] = scored(model) | {"seconds": round(time.monotonic() - began, 1)}
        print(f"{name:<24} {found[name]}", flush=True)

    often = {"eval_every": 100, "save_every": 100, "seed": seed}
    note("from scratch", time.monotonic(), train={"seed": seed})
    began = time.monotonic()
    if reader is None:
        reader = out / "novels"
        api.train("masked", "novels", minutes=minutes, out=reader, train={"seed": seed})
    brief = often | {"steps": 800, "batch": 32, "lr": 2e-3, "warmup": 50}  # chosen on the validation part
    note("after reading novels", began, init=reader, model={"dropout": 0.3}, train=brief)
    if minilm is not None:
        gently = often | {"steps": 600, "batch": 32, "lr": 5e-5, "warmup": 80}
        note("from MiniLM", time.monotonic(), init=minilm, train=gently)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20, help="of reading novels")
    parser.add_argument("--reader", type=Path, help="a run of --preset novels to take instead of training one")
    parser.add_argument("--minilm", type=Path, help="a folder with MiniLM's weights (make weights)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout at the end")
    asked = parser.parse_args()
    sides: dict[str, Any] = {"TF-IDF and regression": baseline()}
    print(f"{'TF-IDF and regression':<24} {sides['TF-IDF and regression']}", flush=True)
    with TemporaryDirectory() as folder:
        sides |= ours(asked.minutes, asked.reader, asked.minilm, Path(folder), asked.seed)
    if asked.json:
        print(json.dumps(sides, default=float))
    for name, side in sides.items():
        print(f"{name:<24} accuracy {np.round(side['accuracy'], 4)}  macro F1 {np.round(side['macro_f1'], 4)}")
