"""Exercises from a watch: ours and a random forest on hand-made features, with each person held out in turn.

    python -m bench.recipes.watch                       ten folds, ten people
    python -m bench.recipes.watch --folds 0 3 --steps 500

Accuracy on windows of two seconds of people that were not trained on; both train on the same windows. Ours uses its
last checkpoint: nothing is chosen on the held-out person. The set is of Burns et al. (2018, 1802.01489).
"""

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import accuracy_score, f1_score

from anyformer.labs import field_importance
from anyformer.recipes import multimodal
from bench._common import make_parser, train_to_end

RATE = 50  # readings a second
FIELDS = ("accelerations", "rotations")


def extract_features(window: np.ndarray) -> np.ndarray:
    """Return hand-made features of windows (B, T, channels): (B, features)."""
    x = window.astype(np.float64)
    quantiles = np.percentile(x, [5, 25, 50, 75, 95], axis=1)
    power = np.abs(np.fft.rfft(x - x.mean(1, keepdims=True), axis=1)) ** 2
    frequency = np.fft.rfftfreq(x.shape[1], 1 / RATE)
    share = power / np.maximum(power.sum(1, keepdims=True), 1e-9)
    deltas = np.diff(x, axis=1)
    parts = [x.mean(1), x.std(1), x.min(1), x.max(1), *quantiles, (x**2).mean(1), np.abs(deltas).mean(1), deltas.std(1)]
    parts += [frequency[power.argmax(1)], power.max(1), (share * frequency[:, None]).sum(1)]
    parts += [
        -(share * np.log(share + 1e-12)).sum(1),
        (np.diff(np.sign(x - x.mean(1, keepdims=True)), axis=1) != 0).mean(1),
    ]
    correlations = np.array([np.corrcoef(window_readings.T)[np.triu_indices(x.shape[2], 1)] for window_readings in x])
    return np.concatenate([*parts, np.nan_to_num(correlations)], 1)


def measure_forest(config: Any, seed: int) -> dict[str, float]:
    """Fit a random forest on the same fold and windows; it also reads which arm wears the watch."""
    dataset = multimodal.load_rows(config)
    x = np.concatenate([extract_features(np.concatenate(dataset.values[:2], 2)), dataset.values[2]], 1)
    y = dataset.targets[:, 0].astype(int)
    train, val = (dataset.split(split, config.fold) for split in ("train", "val"))
    model = RandomForestClassifier(500, n_jobs=1, random_state=seed).fit(x[train], y[train])
    predictions = model.predict(x[val])
    return {"accuracy": accuracy_score(y[val], predictions), "macro_f1": f1_score(y[val], predictions, average="macro")}


def measure_ours(config: Any, steps: int, seed: int, folder: Path) -> dict[str, Any]:
    start = time.monotonic()
    model = train_to_end("multimodal", "watch", folder, steps, seed, fold=config.fold)
    metrics, fields = model.evaluate(), field_importance.measure(model)["fields"]
    scores: dict[str, Any] = {"accuracy": metrics["accuracy"], "macro_f1": metrics["macro_f1"]}
    scores["worth"] = {name: {how: fields[name][how] for how in ("without", "only")} for name in FIELDS}
    return scores | {"seconds": round(time.monotonic() - start, 1)}


def main(folds: list[int], steps: int, seed: int) -> dict[str, Any]:
    results: dict[str, list[dict[str, Any]]] = {"ours": [], "forest": []}
    for fold in folds:
        config = multimodal.Config(fold=f"{fold}/10")
        with TemporaryDirectory() as folder:
            results["forest"].append(measure_forest(config, seed))
            results["ours"].append(measure_ours(config, steps, seed, Path(folder) / "run"))
        print(f"fold {fold}  forest {results['forest'][-1]['accuracy']:.4f}  ours {results['ours'][-1]}", flush=True)
    means = {
        method: {key: float(np.mean([run[key] for run in runs])) for key in ("accuracy", "macro_f1")}
        for method, runs in results.items()
    }
    worth_means = {
        f"ours, {name} {how}": float(np.mean([run["worth"][name][how] for run in results["ours"]]))
        for name in FIELDS
        for how in ("only", "without")
    }
    return {"mean": means, "worth": worth_means, "folds": folds, "steps": steps, **results}


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(1, 11)))
    parser.add_argument("--steps", type=int, default=multimodal.PRESETS["watch"].train.steps)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    summary = main(options.folds, options.steps, options.seed)
    if options.json:
        print(json.dumps(summary))
    for method, scores in summary["mean"].items():
        print(f"{method:<8} accuracy {scores['accuracy']:.4f}  macro F1 {scores['macro_f1']:.4f}")
    for name, score in summary["worth"].items():
        print(f"{name:<32} accuracy {score:.4f}")
