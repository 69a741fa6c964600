"""Film reviews, positive or negative: from scratch, after pretraining on novels, from MiniLM (a linear head on it, and
fine-tuned), and TF-IDF with logistic regression.

    python -m bench.recipes.sentiment --minutes 20 --minilm build/weights/minilm

One fixed split (80/10/10 of each class), accuracy on the test split, all in one run. The set is sentence-polarity (Pang
and Lee 2005).
"""

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
from bench._common import make_parser

DATA = "sentence-polarity"


def measure_tfidf() -> dict[str, float]:
    """Score unigrams and bigrams; the regularization is chosen on the validation split."""
    data = labeled.read_labeled(DATA)
    splits = {name: data.split(name) for name in ("train", "val", "test")}
    texts = {name: [data.texts[i] for i in indices] for name, indices in splits.items()}
    labels = {name: data.classes[indices] for name, indices in splits.items()}
    candidates = []
    for strength in (0.3, 1.0, 3.0, 10.0, 30.0):
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\S+")
        model = make_pipeline(words, LogisticRegression(C=strength, max_iter=1000)).fit(texts["train"], labels["train"])
        candidates.append((model.score(texts["val"], labels["val"]), model))
    predictions = max(candidates, key=lambda candidate: candidate[0])[1].predict(texts["test"])
    return {
        "accuracy": accuracy_score(labels["test"], predictions),
        "macro_f1": f1_score(labels["test"], predictions, average="macro"),
    }


def score_test(model: api.Model) -> dict[str, float]:
    """Return accuracy and F1 on the test split, which no training uses."""
    batches = (batch for batch, _ in model.recipe.batches(model.config, "test"))
    metrics = loop.evaluate(model.recipe, model.module, batches)
    return {name: metrics[name] for name in ("accuracy", "macro_f1")}


def measure_ours(
    minutes: float, pretrained: Path | None, minilm: Path | None, out: Path, seed: int
) -> dict[str, dict[str, Any]]:
    """Return the scores and seconds of each model, by name."""
    results = {}

    def train_and_score(name: str, start: float, **options: Any) -> None:
        model = api.train("classify", data=DATA, out=out / name.replace(" ", "-"), **options)
        results[name] = score_test(model) | {"seconds": round(time.monotonic() - start, 1)}
        print(f"{name:<24} {results[name]}", flush=True)

    settings = {"eval_every": 100, "save_every": 100, "seed": seed}
    train_and_score("from scratch", time.monotonic(), train={"seed": seed})
    start = time.monotonic()
    if pretrained is None:
        pretrained = out / "novels"
        api.train("masked", "novels", minutes=minutes, out=pretrained, train={"seed": seed})
    # chosen on the validation split
    scratch_settings = settings | {"steps": 800, "batch": 32, "lr": 2e-3, "warmup": 50}
    train_and_score("after reading novels", start, init=pretrained, model={"dropout": 0.3}, train=scratch_settings)
    if minilm is not None:
        frozen = {"preset": "frozen", "train": {"seed": seed}}
        train_and_score("from MiniLM, frozen", time.monotonic(), init=minilm, **frozen)
        minilm_settings = settings | {"steps": 600, "batch": 32, "lr": 5e-5, "warmup": 80}
        train_and_score("from MiniLM", time.monotonic(), init=minilm, train=minilm_settings)
    return results


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=20, help="of pretraining on novels")
    parser.add_argument("--reader", type=Path, help="a run of --preset novels to use instead of pretraining")
    parser.add_argument("--minilm", type=Path, help="a folder with MiniLM's weights (make weights)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    results: dict[str, Any] = {"TF-IDF and regression": measure_tfidf()}
    print(f"{'TF-IDF and regression':<24} {results['TF-IDF and regression']}", flush=True)
    with TemporaryDirectory() as folder:
        results |= measure_ours(options.minutes, options.reader, options.minilm, Path(folder), options.seed)
    if options.json:
        print(json.dumps(results, default=float))
    for name, scores in results.items():
        print(f"{name:<24} accuracy {np.round(scores['accuracy'], 4)}  macro F1 {np.round(scores['macro_f1'], 4)}")
