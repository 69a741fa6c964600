"""What counts of n-grams are worth beside a Transformer: alone, and together, for the same time on the same text.

    python -m bench.recipes.ngram_mixture --data shakespeare --minutes 1 --seeds 1 2 3

Loss over the whole validation split, in windows of the context side by side. The counts alone are not trained at all.
"""

import argparse
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


def counts_alone(data: str, longest: int) -> dict[str, Any]:
    """Seconds of counting, and the loss of what was counted."""
    config = replace(recall.PRESETS["small"], data=data)
    text = language.load_corpus(config)
    began = time.perf_counter()
    known = count_ngrams(np.asarray(text.split("train"), np.int64), longest, text.tokenizer.vocab_size)
    seconds = time.perf_counter() - began
    total, n = 0.0, 0
    for batch, _ in language.batches(config, "val"):
        nexts = batch["labels"].numpy()
        said = known.probabilities(batch["ids"].numpy())
        real = nexts != IGNORE_INDEX
        total -= np.log(np.take_along_axis(said, np.where(real, nexts, 0)[..., None], -1)[..., 0][real]).sum()
        n += int(real.sum())
    return {"seconds": round(seconds, 2), "loss": total / n}


def trained(name: str, data: str, minutes: float, seeds: list[int]) -> dict[str, Any]:
    """Seconds of each whole training and its loss."""
    found: list[tuple[float, float]] = []
    for seed in seeds:
        with TemporaryDirectory() as folder:
            began = time.perf_counter()
            out = Path(folder) / "run"
            model = api.train(name, "small", data=data, minutes=minutes, out=out, train={"seed": seed})
            found.append((time.perf_counter() - began, model.evaluate()["loss"]))
    return {"seconds": [round(s, 1) for s, _ in found], "losses": [loss for _, loss in found]}


def main(data: str, minutes: float, seeds: list[int], as_json: bool) -> None:
    found: dict[str, Any] = {f"counts of {k}": counts_alone(data, k) for k in (2, 3, 4, 5, 6)}
    if not as_json:
        for name, one in found.items():
            print(f"{name:<14} {one['seconds']:>7.2f} s   loss {one['loss']:.4f}", flush=True)
    for name in ("language", "recall"):
        found[name] = one = trained(name, data, minutes, seeds)
        if not as_json:
            each = ", ".join(f"{loss:.4f}" for loss in one["losses"])
            print(f"{name:<14} {mean(one['seconds']):>7.2f} s   loss {mean(one['losses']):.4f} ({each})", flush=True)
    if as_json:
        print(json.dumps(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="shakespeare")
    parser.add_argument("--minutes", type=float, default=1.0, help="of training, for each side and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    asked = parser.parse_args()
    main(asked.data, asked.minutes, asked.seeds, asked.json)
