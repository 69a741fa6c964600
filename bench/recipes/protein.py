"""Proteins: the perplexity of a hidden residue, compared with unigrams and an interpolated trigram model.

    python -m bench.recipes.protein --minutes 5

Sequences nearly identical to training sequences are not in the validation split. The trigram model is interpolated with
lower orders, with weights fitted on a tenth of the training split; ours reads both sides of a hidden residue.
"""

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from anyformer import api
from anyformer.recipes import masked
from bench._common import make_parser

MAX_ORDER = 3


def count_ngrams(ids: np.ndarray, size: int) -> list[np.ndarray]:
    """Count how often each residue follows the last 0, 1 and 2: (size ** order, size) each."""
    tables = []
    for order in range(MAX_ORDER):
        context = np.zeros(len(ids) - order, np.int64)
        for offset in range(order):
            context = context * size + ids[offset : len(ids) - order + offset]
        table = np.zeros((size**order, size))
        np.add.at(table, (context, ids[order:]), 1)
        tables.append(table)
    return tables


def predict_orders(tables: list[np.ndarray], ids: np.ndarray, size: int) -> np.ndarray:
    """Return the probability of each residue from the third on, by order: (orders, N)."""
    rows = []
    for order, table in enumerate(tables):
        targets = ids[MAX_ORDER - 1 :]
        context = np.zeros(len(targets), np.int64)
        for offset in range(order, 0, -1):
            context = context * size + ids[MAX_ORDER - 1 - offset : len(ids) - offset]
        total = table.sum(1)
        rows.append((table[context, targets] + 0.1) / (total[context] + 0.1 * size))
    return np.stack(rows)


def perplexity(weights: np.ndarray, probabilities: np.ndarray) -> float:
    return math.exp(-np.log(weights @ probabilities).mean())


def fit_mixture(probabilities: np.ndarray) -> np.ndarray:
    """Fit the weights of a mixture by expectation maximization."""
    weights = np.full(len(probabilities), 1 / len(probabilities))
    for _ in range(100):
        share = weights[:, None] * probabilities
        weights = (share / share.sum(0)).mean(1)
    return weights


def main(minutes: float, seed: int) -> dict[str, float]:
    with TemporaryDirectory() as folder:
        model = api.train("masked", "protein", minutes=minutes, out=Path(folder) / "run", train={"seed": seed})
        corpus = masked.load_mixture(masked.PRESETS["protein"]).sources[0].corpus
        train, val = (corpus.split(name).astype(np.int64) for name in ("train", "val"))
        size, n_fit = int(max(train.max(), val.max())) + 1, len(train) // 10
        weights = fit_mixture(predict_orders(count_ngrams(train[n_fit:], size), train[:n_fit], size))
        tables = count_ngrams(train, size)
        probabilities = predict_orders(tables, val, size)
        return {
            "unigram": perplexity(np.eye(MAX_ORDER)[0], probabilities),
            "trigram": perplexity(weights, probabilities),
            "ours": model.evaluate()["perplexity"],
        }


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    results = main(options.minutes, options.seed)
    if options.json:
        print(json.dumps(results))
    else:
        for name, value in results.items():
            print(f"{name:<8} perplexity of a residue {value:.3f}")
