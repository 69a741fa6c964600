"""A plain table: ours beside gradient boosting and logistic regression, the same folds.

    python -m bench.recipes.table                        breast-cancer: five folds, three seeds
    python -m bench.recipes.table --folds 2 --seeds 1

Accuracy, area under the ROC curve and cross-entropy on the part left out. Ours takes its preset as it is, with its last
checkpoint; the others their library's defaults: no checkpoint is chosen on the part left out. (The preset was: three
settings of it were compared on five such folds.) The table is scikit-learn's.
"""

import argparse
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

from anyformer import api
from anyformer.data.tables.batches import build_batch
from anyformer.inference.table_prediction import to_tensor
from anyformer.recipes import multimodal
from anyformer.training import checkpoints as checkpoint

PEERS: dict[str, Callable[[int], Any]] = {
    "gradient boosting": lambda seed: HistGradientBoostingClassifier(random_state=seed),
    "logistic regression": lambda seed: make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
}


def scored(right: np.ndarray, shares: np.ndarray) -> dict[str, float]:
    return {
        "accuracy": accuracy_score(right, shares.argmax(1)),
        "auc": roc_auc_score(right, shares[:, 1]),
        "loss": log_loss(right, shares),
    }


def ours(fold: str, seed: int, steps: int) -> np.ndarray:
    """The probabilities of the part left out, (N, 2)."""
    with TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        train = {"steps": steps, "seed": seed, "eval_every": steps, "save_every": steps, "device": "cpu"}
        api.train("multimodal", "table", fold=fold, out=run, train=train)
        last = checkpoint.find_latest(run / "checkpoints")
        assert last is not None
        model: Any = api.load(last, "cpu").module
    found = multimodal.load_rows(multimodal.PRESETS["table"])
    made = {name: to_tensor(value) for name, value in build_batch(found, found.split("val", fold)).items()}
    (answer,) = model.predict_batch(made)
    return answer.detach().double().softmax(-1).numpy()


def main(folds: int, seeds: int, steps: int) -> dict[str, Any]:
    found = multimodal.load_rows(multimodal.PRESETS["table"])
    x, y = np.concatenate(found.values, 1), found.targets[:, 0].astype(int)
    told: dict[str, list[dict[str, float]]] = {name: [] for name in ("ours", *PEERS)}
    for fold in (f"{i}/{folds}" for i in range(1, folds + 1)):
        train, val = (found.split(split, fold) for split in ("train", "val"))
        for seed in range(1, seeds + 1):
            began = time.monotonic()
            told["ours"].append(scored(y[val], ours(fold, seed, steps)) | {"seconds": time.monotonic() - began})
            for name, make in PEERS.items():
                began = time.monotonic()
                shares = make(seed).fit(x[train], y[train]).predict_proba(x[val])
                told[name].append(scored(y[val], shares) | {"seconds": time.monotonic() - began})
            line = "  ".join(f"{name} {each[-1]['accuracy']:.4f}" for name, each in told.items())
            print(f"fold {fold} seed {seed}  {line}", flush=True)
    mean = {name: {k: float(np.mean([one[k] for one in each])) for k in each[0]} for name, each in told.items()}
    spread = {name: float(np.std([one["accuracy"] for one in each])) for name, each in told.items()}
    return {"mean": mean, "spread": spread, "folds": folds, "seeds": seeds, "all": told}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=multimodal.PRESETS["table"].train.steps)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout at the end")
    asked = parser.parse_args()
    found = main(asked.folds, asked.seeds, asked.steps)
    if asked.json:
        print(json.dumps(found))
    for name, one in sorted(found["mean"].items(), key=lambda pair: -pair[1]["accuracy"]):
        scores = f"{one['accuracy']:.4f} +- {found['spread'][name]:.4f}  AUC {one['auc']:.4f}  loss {one['loss']:.4f}"
        print(f"{name:<20} accuracy {scores}  {one['seconds']:.1f} s a fit")
