"""What predictions without a Transformer reach on the validation split, learned from the training split alone.

Shapes: N training rows, M validation rows, F features, K classes.
"""

from collections import Counter, defaultdict
from typing import Any

import numpy as np

from ...data.text.prepare import Corpus

MAX_TOKENS = 10_000_000  # of each split

Tagged = tuple[tuple[str, ...], tuple[str, ...]]  # words and their tags
Baselines = dict[str, dict[str, float]]
"""Metric of `evaluate` -> name of the baseline -> its value."""


def score_token_frequencies(corpus: Corpus, tokenizer: str) -> Baselines:
    """Return the loss of an even guess, and of the frequencies of tokens in the training split."""
    vocab_size = corpus.tokenizer.vocab_size
    train, val = (
        np.bincount(corpus.split(split)[:MAX_TOKENS].astype(np.int64), minlength=vocab_size)
        for split in ("train", "val")
    )
    log_probabilities = np.log((train + 1) / (train.sum() + len(train)))
    loss = -(val / max(1, val.sum())) @ log_probabilities[: len(val)]
    unit = {"char": "letter", "byte": "byte"}.get(tokenizer, "token")
    return {"loss": {"guessing evenly": float(np.log(vocab_size)), f"{unit} frequencies": float(loss)}}


def score_majority(train: np.ndarray, val: np.ndarray) -> dict[str, float]:
    """Return the accuracy on labels (M,) of always predicting the most frequent class of labels (N,)."""
    return {"the most frequent class": float((val == np.bincount(train).argmax()).mean())}


def score_naive_bayes(rows: list[list[int]], classes: np.ndarray, train: np.ndarray, val: np.ndarray) -> float:
    """Return the accuracy of multinomial naive Bayes over the tokens of texts: rows of ids, the class of each, and the
    indices of the training and validation texts."""
    vocab_size = 1 + max(max(row, default=0) for row in rows)
    members = [train[classes[train] == number] for number in range(int(classes.max()) + 1)]
    tokens = [[token for i in indices for token in rows[i]] for indices in members]
    counts = np.stack([1.0 + np.bincount(np.array(ids, np.int64), minlength=vocab_size) for ids in tokens])
    log_counts = np.log(counts / counts.sum(1, keepdims=True)).T
    priors = np.log(1 + np.bincount(classes[train], minlength=len(counts)))
    predictions = [int((priors + log_counts[rows[i]].sum(0)).argmax()) for i in val]
    return float((np.array(predictions) == classes[val]).mean())


def score_usual_tags(train: list[Tagged], val: list[Tagged]) -> dict[str, float]:
    """Return the accuracy of the most frequent tag of all, and of that of each word; sentences as words and tags."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for words, tags in train:
        for word, tag in zip(words, tags):
            counts[word][tag] += 1
    usual = sum(counts.values(), Counter()).most_common(1)[0][0]
    pairs = [pair for words, tags in val for pair in zip(words, tags)]
    by_word = sum(tag == (counts[word].most_common(1)[0][0] if word in counts else usual) for word, tag in pairs)
    right = {"the most frequent tag": sum(tag == usual for _, tag in pairs), "the usual tag of each word": by_word}
    return {name: n / len(pairs) for name, n in right.items()}


def fit_linear(x: np.ndarray, y: np.ndarray, x_val: np.ndarray) -> np.ndarray:
    """Predict by ridge regression: x (N, F), y (N, K), x_val (M, F) -> (M, K)."""
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, x_val = (x - mean) / std, (x_val - mean) / std
    ridge = x.T @ x + (1e-3 * len(x) + 1e-6) * np.eye(x.shape[1])
    return y.mean(0) + x_val @ np.linalg.solve(ridge, x.T @ (y - y.mean(0)))


def score_nearest_mean(pixels: np.ndarray, labels: np.ndarray, train: np.ndarray, val: np.ndarray) -> float:
    """Return the accuracy of the class whose mean image is nearest. pixels (images, ...), labels (images,)"""
    classes = np.unique(labels[train])
    means = np.stack([pixels[train[labels[train] == c]].mean(0).ravel() for c in classes]).astype(np.float32)
    right = 0
    for start in range(0, len(val), 500):
        rows = val[start : start + 500]
        x = pixels[rows].reshape(len(rows), -1).astype(np.float32)
        distances = (means**2).sum(1) - 2 * x @ means.T  # |x|^2 is the same for all classes
        right += int((classes[distances.argmin(1)] == labels[rows]).sum())
    return right / max(1, len(val))


def score_target(target: Any, y: np.ndarray, y_val: np.ndarray, x: np.ndarray, x_val: np.ndarray) -> Baselines:
    """Score the most frequent class or the mean, and a linear model, on a target of a table: known labels y (N,) and
    y_val (M,), numbers x (N, F) and x_val (M, F), where F may be 0."""
    if target.kind == "class":
        y, y_val = y.astype(np.int64), y_val.astype(np.int64)
        scores = score_majority(y, y_val)
        if x.shape[1]:
            predictions = fit_linear(x, np.eye(int(y.max()) + 1)[y], x_val).argmax(1)
            scores["a linear model"] = float((predictions == y_val).mean())
        return {"accuracy": scores}
    scores = {"the mean": float(np.sqrt(np.mean((y_val - y.mean()) ** 2)))}
    if x.shape[1]:
        scores["a linear model"] = float(np.sqrt(np.mean((y_val - fit_linear(x, y[:, None], x_val)[:, 0]) ** 2)))
    return {"rmse": scores}
