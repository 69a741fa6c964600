"""Ten tables of several packages: ours, gradient boosting, LightGBM and a linear model on the same folds.

    python -m bench.recipes.tables                             all sets, five folds
    python -m bench.recipes.tables wine cars --folds 2         two sets
    python -m bench.recipes.tables --minutes 0.5               so much time for each of our trainings

Ours is trained as a user would, `anyformer train multimodal --data train.csv --target T`: it takes a
tenth of the training rows for its own validation (best checkpoint, intervals), and the others learn from
all of them, with the defaults of scikit-learn and LightGBM. Nothing is chosen on the held-out fold. The defaults of the
preset were chosen on the sets of `TUNED`; the mean ranks are printed for these and for the others.

Accuracy and cross-entropy of a class, root mean square error of a number; and how many of the held-out numbers lie
within our intervals. A model without a package is left out.
"""

import csv
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bench._common import make_parser
from bench.recipes.table_sets import SETS, TUNED, Row, TableSet, list_columns

OURS, BOOSTING, LIGHTGBM, LINEAR = "ours", "gradient boosting", "LightGBM", "linear"
METRICS = {True: ("accuracy", "loss"), False: ("rmse",)}
IS_BETTER_LOW = {"accuracy": False, "loss": True, "rmse": True}


class Split(NamedTuple):
    """A set and the rows that are held out, (N,) bool."""

    table: TableSet
    rows: list[Row]
    held_out: np.ndarray
    classes: list[str]


def make_splits(table: TableSet, folds: int) -> Iterator[Split]:
    """Yield the folds of a set; classes are spread evenly."""
    rows = table.read()
    order = np.random.default_rng(0).permutation(len(rows))
    classes = sorted({row[table.target] for row in rows}) if table.is_class else []
    if table.is_class:
        order = np.array(sorted(order, key=lambda i: rows[i][table.target]))
    fold = np.empty(len(rows), int)
    fold[order] = np.arange(len(rows)) % folds
    for k in range(folds):
        yield Split(table, rows, fold == k, classes)


def read_labels(split: Split) -> np.ndarray:
    """Return the class indices or the numbers of all rows, (N,)."""
    values = [row[split.table.target] for row in split.rows]
    return np.array([split.classes.index(value) if split.table.is_class else float(value) for value in values])


# --- the models: each returns probabilities (M, K) or numbers (M,) of the rows that are held out ---


def predict_ours(split: Split, seed: int, minutes: float | None, **fields: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Return also the share of numbers within each interval."""
    from anyformer import api

    with TemporaryDirectory() as folder:
        path = write_csv(Path(folder) / "train.csv", [row for row, out in zip(split.rows, split.held_out) if not out])
        time_limit = {"minutes": minutes, "yes": True} if minutes else {}
        train = {"seed": seed, "device": "cpu"}
        fields |= {"data": str(path), "target": split.table.target, "train": train, "progress": False}
        model = api.train("multimodal", out=Path(folder) / "run", **time_limit, **fields)
    held_out = [row for row, out in zip(split.rows, split.held_out) if out]
    inputs = [{name: value for name, value in row.items() if name != split.table.target} for row in held_out]
    names = [field.name for field in model.module.schema.fields]
    inputs = [{name: row[name] for name in names} for row in inputs]
    results = model.predict(inputs)["results"]
    y = read_labels(split)[split.held_out]
    if split.table.is_class:
        rows = [[result["probabilities"].get(name, 0.0) for name in split.classes] for result in results]
        return np.array(rows), {"step": model.step}
    covered: dict[str, Any] = {}
    for name in results[0]["interval"]:
        inside = [low <= value <= high for (low, high), value in zip((r["interval"][name] for r in results), y)]
        covered[f"within {name}"] = float(np.mean(inside))
    return np.array([result["value"] for result in results]), covered | {"step": model.step}


def write_csv(path: Path, rows: Sequence[Row]) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def build_matrix(split: Split, one_hot: bool) -> tuple[np.ndarray, list[int]]:
    """Return numbers and categories, (N, F), NaN where missing, and which columns are categories; or `one_hot`, with
    the mean of the training rows where a number is missing."""
    columns, categories = [], []
    for name, is_numeric in list_columns(split.rows, split.table.target):
        cells = [row[name] for row in split.rows]
        if is_numeric:
            x = np.array([float(cell) if cell else np.nan for cell in cells])
            columns.append(np.where(np.isnan(x), np.nanmean(x[~split.held_out]), x) if one_hot else x)
            continue
        values = sorted({cell for cell in cells if cell})
        if one_hot:
            columns += [np.array([cell == value for cell in cells], float) for value in values]
        else:
            categories.append(len(columns))
            columns.append(np.array([values.index(cell) if cell else np.nan for cell in cells]))
    return np.stack(columns, 1), categories


def predict_peer(name: str, split: Split, seed: int) -> np.ndarray:
    """Raises ImportError where the package is not installed."""
    is_class = split.table.is_class
    x, categories = build_matrix(split, one_hot=name == LINEAR)
    y, train = read_labels(split), ~split.held_out
    options: dict[str, Any] = {}
    if name == LINEAR:
        linear = LogisticRegression(max_iter=1000) if is_class else RidgeCV(np.logspace(-3, 3, 13))
        model: Any = make_pipeline(StandardScaler(), linear)
    elif name == BOOSTING:
        kind = HistGradientBoostingClassifier if is_class else HistGradientBoostingRegressor
        model = kind(random_state=seed, categorical_features=categories or None)
    else:
        import lightgbm  # ty: ignore[unresolved-import]

        kind = lightgbm.LGBMClassifier if is_class else lightgbm.LGBMRegressor
        model = kind(random_state=seed, verbose=-1, n_jobs=1)
        options = {"categorical_feature": categories} if categories else {}
    model.fit(x[train], y[train], **options)
    return model.predict_proba(x[split.held_out]) if is_class else model.predict(x[split.held_out])


# --- scores ---


def score(split: Split, predictions: np.ndarray) -> dict[str, float]:
    y = read_labels(split)[split.held_out]
    if not split.table.is_class:
        return {"rmse": float(np.sqrt(np.mean((predictions - y) ** 2)))}
    y = y.astype(int)
    nats = -np.log(np.clip(predictions[np.arange(len(y)), y], 1e-6, 1))
    return {"accuracy": float(np.mean(predictions.argmax(1) == y)), "loss": float(nats.mean())}


def measure(
    name: str, folds: int, seed: int, minutes: float | None, first: int | None = None, **fields: Any
) -> dict[str, dict[str, float]]:
    """Return the mean scores of every model on a set, over all folds or only the `first` of them."""
    scores: dict[str, list[dict[str, float]]] = {}
    for split in islice(make_splits(SETS[name], folds), first):
        start = time.monotonic()
        predictions, extra = predict_ours(split, seed, minutes, **fields)
        values = score(split, predictions) | extra | {"seconds": time.monotonic() - start}
        scores.setdefault(OURS, []).append(values)
        for peer in (BOOSTING, LIGHTGBM, LINEAR):
            with suppress(ImportError):
                start = time.monotonic()
                values = score(split, predict_peer(peer, split, seed))
                scores.setdefault(peer, []).append(values | {"seconds": time.monotonic() - start})
    return {peer: {key: float(np.mean([run[key] for run in runs])) for key in runs[0]} for peer, runs in scores.items()}


def rank(scores: dict[str, dict[str, float]], metric: str) -> dict[str, float]:
    """Return the rank of each model by a metric, 1 for the best; equal ones share the mean of their ranks."""
    values = {name: (1 if IS_BETTER_LOW[metric] else -1) * round(x[metric], 6) for name, x in scores.items()}
    ordered = sorted(values.values())
    return {name: float(np.mean([i for i, x in enumerate(ordered, 1) if x == value])) for name, value in values.items()}


def mean_ranks(results: dict[str, Any], names: Sequence[str], proper: bool) -> dict[str, float]:
    """Return the mean rank over sets by accuracy, or `proper` by cross-entropy, and RMSE."""
    ranks = [rank(results[name], METRICS[SETS[name].is_class][-1 if proper else 0]) for name in names]
    return {model: float(np.mean([values[model] for values in ranks])) for model in ranks[0]}


def print_results(results: dict[str, Any]) -> None:
    for name, scores in results.items():
        for metric in METRICS[SETS[name].is_class]:
            ranks = rank(scores, metric)
            best = [model for model in ranks if ranks[model] == min(ranks.values())]
            values = "  ".join(f"{model} {values[metric]:.5g}" for model, values in scores.items())
            print(f"{name:<14} {metric:<9} {values}  best: {' and '.join(best)}")
        extra = {key: value for key, value in scores[OURS].items() if key not in ("accuracy", "loss", "rmse")}
        print(f"{'':<14} ours:     " + "  ".join(f"{key} {value:.3g}" for key, value in extra.items()))
    groups = {"all sets": list(results), "sets of the choice": [name for name in results if name in TUNED]}
    groups["other sets"] = [name for name in results if name not in TUNED]
    for title, names in groups.items():
        for proper in (False, True) if names else ():
            ranks = sorted(mean_ranks(results, names, proper).items(), key=lambda pair: pair[1])
            metric = "loss and RMSE" if proper else "accuracy and RMSE"
            print(f"mean rank, {title}, {metric}: " + "  ".join(f"{model} {value:.2f}" for model, value in ranks))


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"of {', '.join(SETS)}; all of them")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--first", type=int, help="only so many of the folds: a shorter run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, help="of each of our trainings; without, the steps of the preset")
    options = parser.parse_args()
    if unknown := [name for name in options.sets if name not in SETS]:
        parser.error(f"there is no set {unknown[0]}: {', '.join(SETS)}")
    results = {}
    for set_name in options.sets or SETS:
        results[set_name] = measure(set_name, options.folds, options.seed, options.minutes, options.first)
        if not options.json:
            print_results({set_name: results[set_name]})
    if options.json:
        print(json.dumps(results))
    else:
        print_results(results)
