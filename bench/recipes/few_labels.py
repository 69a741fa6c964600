"""Film reviews with few labels: vectors of a trained encoder, and TF-IDF, each with logistic regression.

    python -m bench.recipes.few_labels --init build/weights/minilm --rows 100 300 1000

The vectors are those of `anyformer embed INIT`. The splits are those of `bench.recipes.sentiment`: some texts of the
training split, the regularization chosen on the validation split, accuracy on the test split; mean over the seeds that
draw the texts.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import anyformer
from anyformer.data.text import labeled
from bench._common import make_parser

STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)


def make_tfidf(strength: float) -> Any:
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\S+")
    return make_pipeline(words, LogisticRegression(C=strength, max_iter=1000))


def make_regression(strength: float) -> Any:
    return LogisticRegression(C=strength, max_iter=1000)


def score(make: Any, inputs: np.ndarray, classes: np.ndarray, splits: dict[str, np.ndarray]) -> float:
    """Return the accuracy on the test split of the model that is best on the validation split."""
    rows = splits["train"]
    models = [make(strength).fit(inputs[rows], classes[rows]) for strength in STRENGTHS]
    best = max(models, key=lambda model: model.score(inputs[splits["val"]], classes[splits["val"]]))
    return best.score(inputs[splits["test"]], classes[splits["test"]])


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--init", type=Path, required=True, help="a folder with a BERT (make weights), or a run")
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    data = labeled.read_labeled("sentence-polarity")
    held_out = {name: data.split(name) for name in ("val", "test")}
    drawn = {
        (rows, seed): np.random.default_rng(seed).permutation(data.split("train"))[:rows]
        for rows in options.rows
        for seed in range(options.seeds)
    }
    indices = np.unique(np.concatenate([*held_out.values(), *drawn.values()]))
    texts = np.array(data.texts, object)
    embedded = anyformer.load(options.init, "cpu").embed([data.texts[i] for i in indices], cut=True)
    vectors = np.zeros((len(texts), len(embedded[0])))
    vectors[indices] = embedded
    results = {}
    for rows in options.rows:
        splits = [held_out | {"train": drawn[rows, seed]} for seed in range(options.seeds)]
        results[rows] = {
            "encoder": float(np.mean([score(make_regression, vectors, data.classes, split) for split in splits])),
            "TF-IDF": float(np.mean([score(make_tfidf, texts, data.classes, split) for split in splits])),
        }
        print(rows, {name: round(value, 3) for name, value in results[rows].items()}, flush=True)
    if options.json:
        print(json.dumps(results))
