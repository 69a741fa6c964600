"""The loss that each size of a language model reaches by training time, and the law that `train --minutes` chooses by.

    python -m bench.training.budget_law --minutes 0.5 1 2 4 --data shakespeare eltec > more.jsonl
    python -m bench.training.budget_law --fit bench/training/budget_law.jsonl    fit the law to stored trainings

One training of each size for each time and text. The law is fitted by least squares: the ratio of the loss to that of
n-grams (`difficulty`) is (E + A / parameters^a + B / tokens^b) / vocabulary^v. Repeated tokens count less, and
embeddings are not counted as parameters. E is given (--floor), since it is visible only far beyond minutes of training.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from anyformer import api
from anyformer.parsing import to_json
from anyformer.recipes import language
from anyformer.recipes._shared import scaling


def measure_size(data: str, size: int, minutes: float, tokenizer: str, vocab_size: int, seed: int) -> dict[str, Any]:
    config = language.Config(data=data, tokenizer=tokenizer, vocab_size=vocab_size)
    text = language.load_mixture(config)
    config = scaling.resize(replace(config, train=replace(config.train, seed=seed)), *scaling.SIZES[size])
    with TemporaryDirectory() as folder:
        model = api.train("language", "small", minutes=minutes, out=Path(folder) / "run", **to_json(config))
        result = json.loads((Path(folder) / "run" / "result.json").read_text())
    return {
        "data": data,
        "tokenizer": tokenizer,
        "size": size,
        "minutes": minutes,
        "parameters": scaling.count_block_weights(config.model),
        "unique": scaling.count_unique_tokens(text),
        "vocab": text.tokenizer.vocab_size,
        "tokens": model.config.train.steps * config.train.batch * config.model.context,
        "difficulty": scaling.measure_difficulty(text),
        "loss": result["val_loss"],
        "seconds": result["seconds"],
        "steps": [result["best_step"], result["step"]],
    }


def fit_law(points: list[dict[str, Any]], floor: float) -> Iterator[str]:
    """Yield the constants of the law, and its error at each point."""

    def log_errors(law: np.ndarray) -> np.ndarray:
        ratios = []
        for point in points:
            statistics = scaling.TextStatistics(point["difficulty"], point["unique"], point["vocab"])
            loss = scaling.predict_loss(statistics, point["parameters"], point["tokens"], floor, *law)
            ratios.append(loss / point["loss"])
        return np.log(ratios)

    initial = np.array(scaling.LAW[1:])
    solution = least_squares(log_errors, initial, bounds=(0, np.inf), x_scale=initial, loss="soft_l1", f_scale=0.02)
    yield "E, A, a, B, b, v = " + ", ".join(f"{x:.4g}" for x in (floor, *solution.x))
    for point, error in zip(points, log_errors(solution.x)):
        setting = f"{point['data']:<12} {point['tokenizer']:<5} {point['minutes']:>5} min  size {point['size']}"
        yield f"{setting}  loss {point['loss']:.4f}, predicted {point['loss'] * math.exp(error):.4f}"
    yield f"mean error {math.sqrt((log_errors(solution.x) ** 2).mean()):.1%} (root mean square)"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", nargs="+", default=["shakespeare", "eltec"])
    parser.add_argument("--minutes", type=float, nargs="+", default=[0.5, 1, 2, 4])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(range(6)))
    parser.add_argument("--tokenizer", default="char")
    parser.add_argument("--vocab-size", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--floor", type=float, default=scaling.LAW[0], help="E of the law")
    parser.add_argument("--fit", type=Path, help="a file of lines that this script printed")
    options = parser.parse_args()
    if options.fit:
        print("\n".join(fit_law([json.loads(line) for line in options.fit.read_text().splitlines()], options.floor)))
        sys.exit()
    for minutes in options.minutes:
        for data in options.data:
            for size in options.sizes:
                point = measure_size(data, size, minutes, options.tokenizer, options.vocab_size, options.seed)
                print(json.dumps(point), flush=True)
