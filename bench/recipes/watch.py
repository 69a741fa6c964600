"""Exercises from a watch: ours beside a random forest on features made by hand, each person left out in turn.

    python -m bench.recipes.watch                       ten folds, ten people
    python -m bench.recipes.watch --folds 0 3 --steps 500

Accuracy on windows of two seconds of people that were not trained on; both sides learn from the same windows. Ours is
the last checkpoint: nothing is chosen on the person left out. The set is of Burns et al. (2018, 1802.01489).
"""

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import accuracy_score, f1_score

from anyformer import api
from anyformer.labs import field_importance as worth
from anyformer.recipes import multimodal
from anyformer.training import checkpoints as checkpoint

RATE = 50  # readings a second


def features(window: np.ndarray) -> np.ndarray:
    """What a person would measure of a window (B, T, channels): (B, features)."""
    x = window.astype(np.float64)
    quantiles = np.percentile(x, [5, 25, 50, 75, 95], axis=1)
    power = np.abs(np.fft.rfft(x - x.mean(1, keepdims=True), axis=1)) ** 2
    frequency = np.fft.rfftfreq(x.shape[1], 1 / RATE)
    share = power / np.maximum(power.sum(1, keepdims=True), 1e-9)
    step = np.diff(x, axis=1)
    parts = [x.mean(1), x.std(1), x.min(1), x.max(1), *quantiles, (x**2).mean(1), np.abs(step).mean(1), step.std(1)]
    parts += [frequency[power.argmax(1)], power.max(1), (share * frequency[:, None]).sum(1)]
    parts += [
        -(share * np.log(share + 1e-12)).sum(1),
        (np.diff(np.sign(x - x.mean(1, keepdims=True)), axis=1) != 0).mean(1),
    ]
    between = np.array([np.corrcoef(one.T)[np.triu_indices(x.shape[2], 1)] for one in x])
    return np.concatenate([*parts, np.nan_to_num(between)], 1)


def forest(config: Any, seed: int) -> dict[str, float]:
    """The same fold, the same windows, which arm told to it too."""
    found = multimodal.load_rows(config)
    x = np.concatenate([features(np.concatenate(found.values[:2], 2)), found.values[2]], 1)
    y = found.targets[:, 0].astype(int)
    train, val = (found.split(split, config.fold) for split in ("train", "val"))
    model = RandomForestClassifier(500, n_jobs=1, random_state=seed).fit(x[train], y[train])
    guess = model.predict(x[val])
    return {"accuracy": accuracy_score(y[val], guess), "macro_f1": f1_score(y[val], guess, average="macro")}


def ours(config: Any, steps: int, seed: int, folder: Path) -> dict[str, Any]:
    began = time.monotonic()
    train = {"steps": steps, "seed": seed, "eval_every": steps, "save_every": steps, "device": "cpu"}
    api.train("multimodal", "watch", fold=config.fold, out=folder, train=train)
    last = checkpoint.find_latest(folder / "checkpoints")
    assert last is not None
    model = api.load(last, "cpu")
    found = model.evaluate()
    fields = worth.measure(model)["fields"]
    told = {name: {key: fields[name][key] for key in ("without", "only")} for name in ("accelerations", "rotations")}
    return {"accuracy": found["accuracy"], "macro_f1": found["macro_f1"], "worth": told} | {
        "seconds": round(time.monotonic() - began, 1)
    }


def main(folds: list[int], steps: int, seed: int) -> dict[str, Any]:
    sides: dict[str, list[dict[str, Any]]] = {"ours": [], "forest": []}
    for fold in folds:
        config = multimodal.Config(fold=f"{fold}/10")
        with TemporaryDirectory() as folder:
            sides["forest"].append(forest(config, seed))
            sides["ours"].append(ours(config, steps, seed, Path(folder) / "run"))
        print(f"fold {fold}  forest {sides['forest'][-1]['accuracy']:.4f}  ours {sides['ours'][-1]}", flush=True)
    mean = {
        side: {key: float(np.mean([one[key] for one in found])) for key in ("accuracy", "macro_f1")}
        for side, found in sides.items()
    }
    only = {
        f"ours, {name} {how}": float(np.mean([one["worth"][name][how] for one in sides["ours"]]))
        for name in ("accelerations", "rotations")
        for how in ("only", "without")
    }
    return {"mean": mean, "worth": only, "folds": folds, "steps": steps, **sides}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(1, 11)))
    parser.add_argument("--steps", type=int, default=multimodal.PRESETS["watch"].train.steps)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout at the end")
    asked = parser.parse_args()
    found = main(asked.folds, asked.steps, asked.seed)
    if asked.json:
        print(json.dumps(found))
    for side, scores in found["mean"].items():
        print(f"{side:<8} accuracy {scores['accuracy']:.4f}  macro F1 {scores['macro_f1']:.4f}")
    for name, score in found["worth"].items():
        print(f"{name:<32} accuracy {score:.4f}")
