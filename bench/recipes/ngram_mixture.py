"""N-gram counts and a Transformer: each alone and both together, for the same time on the same text.

    python -m bench.recipes.ngram_mixture --data shakespeare --minutes 1 --seeds 1 2 3

Loss over the validation split in consecutive windows of the context. The counts alone are not trained.
"""

import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from anyformer import api
from anyformer.data.text.batches import IGNORE_INDEX
from anyformer.data.text.ngrams import count_ngrams
from anyformer.recipes import language, recall
from bench._common import make_parser


def measure_counts(data: str, max_order: int) -> dict[str, Any]:
    """Return the seconds of counting, and the loss of the counts alone."""
    config = replace(recall.PRESETS["small"], data=data)
    corpus = language.load_corpus(config)
    start = time.perf_counter()
    counts = count_ngrams(np.asarray(corpus.split("train"), np.int64), max_order, corpus.tokenizer.vocab_size)
    seconds = time.perf_counter() - start
    total, n = 0.0, 0
    for batch, _ in language.batches(config, "val"):
        labels = batch["labels"].numpy()
        probabilities = counts.probabilities(batch["ids"].numpy())
        is_label = labels != IGNORE_INDEX
        chosen = np.take_along_axis(probabilities, np.where(is_label, labels, 0)[..., None], -1)[..., 0]
        total -= np.log(chosen[is_label]).sum()
        n += int(is_label.sum())
    return {"seconds": round(seconds, 2), "loss": total / n}


def measure_training(name: str, data: str, minutes: float, seeds: list[int]) -> dict[str, Any]:
    """Return the seconds and the loss of each training."""
    runs: list[tuple[float, float]] = []
    for seed in seeds:
        with TemporaryDirectory() as folder:
            start = time.perf_counter()
            out = Path(folder) / "run"
            model = api.train(name, "small", data=data, minutes=minutes, out=out, train={"seed": seed})
            runs.append((time.perf_counter() - start, model.evaluate()["loss"]))
    return {"seconds": [round(s, 1) for s, _ in runs], "losses": [loss for _, loss in runs]}


def main(data: str, minutes: float, seeds: list[int], as_json: bool) -> None:
    results: dict[str, Any] = {f"counts of {k}": measure_counts(data, k) for k in (2, 3, 4, 5, 6)}
    if not as_json:
        for name, result in results.items():
            print(f"{name:<14} {result['seconds']:>7.2f} s   loss {result['loss']:.4f}", flush=True)
    for name in ("language", "recall"):
        results[name] = result = measure_training(name, data, minutes, seeds)
        if not as_json:
            losses = ", ".join(f"{loss:.4f}" for loss in result["losses"])
            print(
                f"{name:<14} {mean(result['seconds']):>7.2f} s   loss {mean(result['losses']):.4f} ({losses})",
                flush=True,
            )
    if as_json:
        print(json.dumps(results))


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--data", default="shakespeare")
    parser.add_argument("--minutes", type=float, default=1.0, help="of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    options = parser.parse_args()
    main(options.data, options.minutes, options.seeds, options.json)
