"""Proteins: how well a hidden residue is guessed, beside what single residues and the two before it tell.

    python -m bench.recipes.protein --minutes 5

Perplexity of a residue in sequences that no near-identical one was trained on. The trigram model is interpolated with
shorter ones, its weights chosen on a tenth of the training part; ours reads both sides of what is hidden.
"""

import argparse
import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from anyformer import api
from anyformer.recipes import masked

ORDERS = 3


def counted(ids: np.ndarray, size: int) -> list[np.ndarray]:
    """How often each residue follows the last 0, 1 and 2: (size ** order, size) each."""
    tables = []
    for order in range(ORDERS):
        context = np.zeros(len(ids) - order, np.int64)
        for back in range(order):
            context = context * size + ids[back : len(ids) - order + back]
        table = np.zeros((size**order, size))
        np.add.at(table, (context, ids[order:]), 1)
        tables.append(table)
    return tables


def probabilities(tables: list[np.ndarray], ids: np.ndarray, size: int) -> np.ndarray:
    """What each order says of each residue from the third on: (orders, N)"""
    found = []
    for order, table in enumerate(tables):
        at = ids[ORDERS - 1 :]
        context = np.zeros(len(at), np.int64)
        for back in range(order, 0, -1):
            context = context * size + ids[ORDERS - 1 - back : len(ids) - back]
        total = table.sum(1)
        found.append((table[context, at] + 0.1) / (total[context] + 0.1 * size))
    return np.stack(found)


def perplexity(weights: np.ndarray, told: np.ndarray) -> float:
    return math.exp(-np.log(weights @ told).mean())


def fitted(told: np.ndarray) -> np.ndarray:
    """The weights of a mixture, by expectation and maximisation."""
    weights = np.full(len(told), 1 / len(told))
    for _ in range(100):
        share = weights[:, None] * told
        weights = (share / share.sum(0)).mean(1)
    return weights


def main(minutes: float, seed: int) -> dict[str, float]:
    with TemporaryDirectory() as folder:
        model = api.train("masked", "protein", minutes=minutes, out=Path(folder) / "run", train={"seed": seed})
        text = masked.load_corpus(masked.PRESETS["protein"])
        train, val = (text.split(name).astype(np.int64) for name in ("train", "val"))
        size, edge = int(max(train.max(), val.max())) + 1, len(train) // 10
        weights = fitted(probabilities(counted(train[edge:], size), train[:edge], size))
        tables = counted(train, size)
        told = probabilities(tables, val, size)
        return {
            "unigram": perplexity(np.eye(ORDERS)[0], told),
            "trigram": perplexity(weights, told),
            "ours": model.evaluate()["perplexity"],
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    asked = parser.parse_args()
    found = main(asked.minutes, asked.seed)
    if asked.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:<8} perplexity of a residue {value:.3f}")
