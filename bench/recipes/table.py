"""A table: ours, gradient boosting and logistic regression on the same folds.

    python -m bench.recipes.table                        breast-cancer: five folds, three seeds
    python -m bench.recipes.table --folds 2 --seeds 1

Accuracy, area under the ROC curve and cross-entropy on the held-out fold. Ours uses its preset and its last checkpoint,
the others the defaults of scikit-learn: nothing is chosen on the held-out fold. (The preset was chosen among three
settings on five such folds.)
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from anyformer.data.tables.batches import build_batch
from anyformer.inference.table_prediction import to_tensor
from anyformer.recipes import multimodal
from bench._common import make_parser, train_to_end

PEERS: dict[str, Callable[[int], Any]] = {
    "gradient boosting": lambda seed: HistGradientBoostingClassifier(random_state=seed),
    "logistic regression": lambda seed: make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
}


def score(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    return {
        "accuracy": accuracy_score(labels, probabilities.argmax(1)),
        "auc": roc_auc_score(labels, probabilities[:, 1]),
        "loss": log_loss(labels, probabilities),
    }


def measure_ours(fold: str, seed: int, steps: int) -> np.ndarray:
    """Return the probabilities of the held-out fold, (N, 2)."""
    with TemporaryDirectory() as folder:
        model = train_to_end("multimodal", "table", Path(folder) / "run", steps, seed, fold=fold).module
    dataset = multimodal.load_rows(multimodal.PRESETS["table"])
    batch = {name: to_tensor(value) for name, value in build_batch(dataset, dataset.split("val", fold)).items()}
    (output,) = model.predict_batch(batch)
    return output.detach().double().softmax(-1).numpy()


def main(folds: int, seeds: int, steps: int) -> dict[str, Any]:
    dataset = multimodal.load_rows(multimodal.PRESETS["table"])
    x, y = np.concatenate(dataset.values, 1), dataset.targets[:, 0].astype(int)
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in ("ours", *PEERS)}
    for fold in (f"{i}/{folds}" for i in range(1, folds + 1)):
        train, val = (dataset.split(split, fold) for split in ("train", "val"))
        for seed in range(1, seeds + 1):
            start = time.monotonic()
            probabilities = measure_ours(fold, seed, steps)
            scores["ours"].append(score(y[val], probabilities) | {"seconds": time.monotonic() - start})
            for name, build in PEERS.items():
                start = time.monotonic()
                probabilities = build(seed).fit(x[train], y[train]).predict_proba(x[val])
                scores[name].append(score(y[val], probabilities) | {"seconds": time.monotonic() - start})
            line = "  ".join(f"{name} {runs[-1]['accuracy']:.4f}" for name, runs in scores.items())
            print(f"fold {fold} seed {seed}  {line}", flush=True)
    mean = {name: {k: float(np.mean([run[k] for run in runs])) for k in runs[0]} for name, runs in scores.items()}
    deviation = {name: float(np.std([run["accuracy"] for run in runs])) for name, runs in scores.items()}
    return {"mean": mean, "spread": deviation, "folds": folds, "seeds": seeds, "all": scores}


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=multimodal.PRESETS["table"].train.steps)
    options = parser.parse_args()
    results = main(options.folds, options.seeds, options.steps)
    if options.json:
        print(json.dumps(results))
    for name, means in sorted(results["mean"].items(), key=lambda pair: -pair[1]["accuracy"]):
        accuracy = f"accuracy {means['accuracy']:.4f} +- {results['spread'][name]:.4f}  AUC {means['auc']:.4f}"
        print(f"{name:<20} {accuracy}  loss {means['loss']:.4f}  {means['seconds']:.1f} s per fit")
