"""What other models reach on a table, on the same split: the most frequent class or the mean, a linear model, and with
`anyformer train --compare` gradient boosting of scikit-learn.

Shapes: N rows, F features.
"""

from typing import Any

import numpy as np

from ...data.io.files import import_optional
from ...data.tables.batches import node_slices
from ...data.tables.cache import TableDataset
from ...errors import InputError
from .trivial_baselines import Baselines, score_target

MAX_ONE_HOT = 100  # categories of a field that the linear model reads
MAX_CATEGORIES = 255  # of a column, in scikit-learn
NAME = "gradient boosting"


def score_table(dataset: TableDataset, train: np.ndarray, val: np.ndarray) -> Baselines:
    """Score the baselines that need no library on the rows `val`, learned from the rows `train`."""
    features, targets = numeric_features(dataset), dataset.schema.targets
    metrics: Baselines = {}
    for i, target in enumerate(targets):
        labels = dataset.targets[:, i]
        rows, val_rows = (indices[~np.isnan(labels[indices])] for indices in (train, val))
        if len(rows) and len(val_rows):
            scores = score_target(target, labels[rows], labels[val_rows], features[rows], features[val_rows])
            prefix = "" if len(targets) == 1 else f"{target.name}_"
            metrics |= {prefix + metric: values for metric, values in scores.items()}
    return metrics


def numeric_features(dataset: TableDataset) -> np.ndarray:
    """Return the numbers, categories (one-hot) and means and deviations of series, (N, F); 0 where there is none."""
    columns = [np.zeros((len(dataset), 0))]
    for column, values in zip(dataset.schema.fields, dataset.values, strict=True):
        if column.kind in ("scalar", "date", "vector"):
            columns.append(values)
        elif column.kind == "category" and len(column.values) <= MAX_ONE_HOT:
            columns.append(values == np.arange(len(column.values)))
        elif column.kind == "series":
            columns += [np.nanmean(values, 1), np.nanstd(values, 1)]
    return np.nan_to_num(np.concatenate(columns, 1).astype(np.float64))


def train_gradient_boosting(dataset: TableDataset, train: np.ndarray, val: np.ndarray, seed: int) -> Baselines:
    """Train HistGradientBoosting with its defaults for each target: accuracy of a class, RMSE of a number, on the rows
    `val`. Raises InputError without scikit-learn, or where no column can be read."""
    message = "--compare trains gradient boosting beside, which needs scikit-learn: pip install 'anyformer[compare]'"
    ensemble: Any = import_optional("sklearn.ensemble", message)
    x, is_categorical = collect_columns(dataset)
    if not x.shape[1]:
        raise InputError("--compare: gradient boosting reads numbers, categories and series, and the data have none")
    scores: Baselines = {}
    for i, target in enumerate(dataset.schema.targets):
        y, is_class = dataset.targets[:, i], target.kind == "class"
        rows, val_rows = (indices[~np.isnan(y[indices])] for indices in (train, val))
        kind = ensemble.HistGradientBoostingClassifier if is_class else ensemble.HistGradientBoostingRegressor
        model = kind(random_state=seed, categorical_features=is_categorical if any(is_categorical) else None)
        predictions = model.fit(x[rows], y[rows]).predict(x[val_rows])
        errors = predictions - y[val_rows]
        value = np.mean(errors == 0) if is_class else np.sqrt(np.mean(errors**2))
        prefix = "" if len(dataset.schema.targets) == 1 else f"{target.name}_"
        scores[prefix + ("accuracy" if is_class else "rmse")] = {NAME: float(value)}
    return scores


def collect_columns(dataset: TableDataset) -> tuple[np.ndarray, list[bool]]:
    """Return numbers, categories and the means and deviations of series, (N, F), NaN where a row has none; and which of
    them are categories."""
    columns, is_categorical = [np.zeros((len(dataset), 0))], []
    for field, values, nodes in zip(dataset.schema.fields, dataset.values, node_slices(dataset.schema), strict=True):
        if field.kind == "series":
            with np.errstate(all="ignore"):
                features = np.concatenate([np.nanmean(values, 1), np.nanstd(values, 1)], 1)
        elif field.kind in ("scalar", "date", "vector", "category") and len(field.values) <= MAX_CATEGORIES:
            features = np.array(values, np.float64)
        else:
            continue
        features[~dataset.present[:, nodes].any(1)] = np.nan
        columns.append(features)
        is_categorical += [field.kind == "category"] * features.shape[1]
    return np.concatenate(columns, 1).astype(np.float64), is_categorical
