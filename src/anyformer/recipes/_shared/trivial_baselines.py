"""What predictions without a Transformer reach on the validation split, learned from the training split alone.

Shapes: N training rows, M validation rows, F features, K classes.
"""

import re
from collections import Counter, defaultdict
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ...data.sampling import sample_evenly
from ...data.text.mixtures import Mixture

MAX_TOKENS = 10_000_000  # of each split
BIGRAM_PRIOR = 20.0  # how many occurrences the frequencies of single tokens count as
MAX_LINEAR_ROWS, MAX_VAL_ROWS = 10_000, 2_000  # that a linear model is fitted to, and evaluated on
MAX_TERMS = 200_000
MAX_WORDS = 500  # of a text
INVERSE_PENALTY = 10.0  # of the weights of logistic regression
N_CELLS, N_DIRECTIONS = 7, 9  # on either side of an image, and of 180 degrees

Tagged = tuple[tuple[str, ...], tuple[str, ...]]  # words and their tags
Baselines = dict[str, dict[str, float]]
"""Metric of `evaluate` -> name of the baseline -> its value."""


def score_token_frequencies(text: Mixture) -> Baselines:
    """Return the loss of an even guess, and of the frequencies of tokens in the training split."""
    vocab_size = text.tokenizer.vocab_size
    train, val = (count_tokens(text, split) for split in ("train", "val"))
    log_probabilities = np.log((train + 1) / (train.sum() + len(train)))
    loss = -(val / max(1, val.sum())) @ log_probabilities[: len(val)]
    unit = {"char": "letter", "byte": "byte"}.get(text.tokenizer.kind, "token")
    return {"loss": {"guessing evenly": float(np.log(vocab_size)), f"{unit} frequencies": float(loss)}}


def count_tokens(text: Mixture, split: str) -> np.ndarray:
    """Return how often each token occurs, where each source counts by its weight: (vocab_size,)"""
    tokens = [np.asarray(source.corpus.split(split)[:MAX_TOKENS], np.int64) for source in text.sources]
    counts = [np.bincount(ids, minlength=text.tokenizer.vocab_size) for ids in tokens]
    total = sum(map(len, tokens))
    scales = [share * total / max(1, len(ids)) for share, ids in zip(text.shares, tokens)]
    return sum((scale * values for scale, values in zip(scales, counts)), np.zeros(1))


def score_majority(train: np.ndarray, val: np.ndarray) -> dict[str, float]:
    """Return the accuracy on labels (M,) of always predicting the most frequent class of labels (N,)."""
    return {"the most frequent class": float((val == np.bincount(train).argmax()).mean())}


def score_bigrams(train: list[np.ndarray], val: list[np.ndarray], vocab_size: int) -> dict[str, float]:
    """Return the loss of the last tokens of each text (one or more ids), by an even guess, by the frequencies of tokens
    in the training texts, and by the token before, which is interpolated with the frequencies."""
    bounded = [row for row, n in zip(train, np.cumsum([len(row) for row in train])) if n <= MAX_TOKENS]
    (before, tokens), (val_before, val_tokens) = map(_split_bigrams, (bounded, val))
    frequencies = (np.bincount(tokens, minlength=vocab_size) + 1) / (len(tokens) + vocab_size)
    codes, counts = np.unique(before * vocab_size + tokens, return_counts=True)
    val_codes = val_before * vocab_size + val_tokens
    index = np.minimum(np.searchsorted(codes, val_codes), len(codes) - 1)
    seen = np.where(codes[index] == val_codes, counts[index], 0)
    totals = np.bincount(before, minlength=vocab_size)[val_before]
    prior = frequencies[val_tokens]
    probabilities = (seen + BIGRAM_PRIOR * prior) / (totals + BIGRAM_PRIOR)
    losses = {"guessing evenly": np.log(vocab_size), "token frequencies": -np.log(prior).mean()}
    return {name: float(x) for name, x in losses.items()} | {"pairs of tokens": float(-np.log(probabilities).mean())}


def _split_bigrams(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    before, tokens = (np.concatenate([row[part] for row in rows]) for part in (slice(None, -1), slice(1, None)))
    return before.astype(np.int64), tokens.astype(np.int64)


def score_linear_texts(texts: list[str], classes: np.ndarray, train: np.ndarray, val: np.ndarray) -> float:
    """Return the accuracy of logistic regression over words and pairs of words, weighted by TF-IDF; `train` and `val`
    are indices of the texts."""
    train, val = sample_evenly(train, MAX_LINEAR_ROWS), sample_evenly(val, MAX_VAL_ROWS)
    x, x_val = build_tfidf([texts[i] for i in train], [texts[i] for i in val])
    y, n_classes = torch.from_numpy(classes[train].astype(np.int64)), int(classes.max()) + 1
    weight, bias, penalty = torch.zeros(x.shape[1], n_classes), torch.zeros(n_classes), 1 / (INVERSE_PENALTY * len(y))
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=20, history_size=5, line_search_fn="strong_wolfe")
    x_transposed = x.t().coalesce()

    def compute_loss() -> torch.Tensor:
        """Set the gradients by hand: that of a sparse product is slow."""
        scores = x @ weight + bias
        errors = (scores.softmax(1) - F.one_hot(y, n_classes)) / len(y)
        weight.grad, bias.grad = x_transposed @ errors + penalty * weight, errors.sum(0)
        return F.cross_entropy(scores, y) + 0.5 * penalty * weight.square().sum()

    with torch.no_grad():
        optimizer.step(compute_loss)
        predictions = (x_val @ weight + bias).argmax(1).numpy()
    return float((predictions == classes[val]).mean())


def build_tfidf(train: list[str], val: list[str]) -> list[torch.Tensor]:
    """Return words and pairs of words, 1 + log(count) times log(N / texts with it), rows of length 1: sparse (texts, F)
    of both splits."""
    train_terms, val_terms = ([count_terms(text) for text in texts] for texts in (train, val))
    n_texts = Counter(term for terms in train_terms for term in terms)
    vocabulary = {term: i for i, (term, _) in enumerate(n_texts.most_common(MAX_TERMS))}
    idf = np.array([1 + np.log(len(train) / n_texts[term]) for term in vocabulary], np.float32)
    matrices = []
    for texts in (train_terms, val_terms):
        entries = [(i, vocabulary[t], n) for i, terms in enumerate(texts) for t, n in terms.items() if t in vocabulary]
        rows, columns, counts = np.array(entries, np.int64).reshape(-1, 3).T
        values = (1 + np.log(counts)).astype(np.float32) * idf[columns]
        norms = np.sqrt(np.bincount(rows, values**2, len(texts)))
        values = torch.from_numpy((values / norms[rows]).astype(np.float32))
        index, shape = torch.from_numpy(np.stack([rows, columns])), (len(texts), len(vocabulary))
        matrices.append(torch.sparse_coo_tensor(index, values, shape, check_invariants=True).coalesce())
    return matrices


def count_terms(text: str) -> Counter:
    words = re.findall(r"\w+", text.lower())[:MAX_WORDS]
    return Counter(words) + Counter(pairwise(words))


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
    """Predict by ridge regression: x (N, F), y (N, K), x_val (M, F) -> (M, K). The matrix to solve has the smaller of N
    and F rows."""
    mean, std, ridge = x.mean(0), x.std(0) + 1e-6, 1e-3 * len(x) + 1e-6
    x, x_val, y_centered = (x - mean) / std, (x_val - mean) / std, y - y.mean(0)
    if x.shape[1] > len(x):
        return y.mean(0) + x_val @ x.T @ np.linalg.solve(x @ x.T + ridge * np.eye(len(x)), y_centered)
    return y.mean(0) + x_val @ np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ y_centered)


def fit_classes(x: np.ndarray, y: np.ndarray, x_val: np.ndarray) -> np.ndarray:
    """Predict one of the classes in y by logistic regression: x (N, F), y (N,), x_val (M, F) -> (M,)"""
    mean, std = x.mean(0), x.std(0) + 1e-6
    inputs, inputs_val = (
        torch.from_numpy(np.c_[(rows - mean) / std, np.ones(len(rows))]).float() for rows in (x, x_val)
    )
    classes, index = np.unique(y, return_inverse=True)  # of very many actions few occur
    labels, weight = torch.from_numpy(index), torch.zeros(inputs.shape[1], len(classes), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def compute_loss() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(inputs @ weight, labels) + 0.5 / len(inputs) * weight[:-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(compute_loss)
    return classes[(inputs_val @ weight).argmax(1).numpy()]


def score_gradients(pixels: np.ndarray, labels: np.ndarray, train: np.ndarray, val: np.ndarray) -> float:
    """Return the accuracy of a linear model of histograms of oriented gradients (Dalal and Triggs 2005). pixels
    (images, height, width, channels) uint8, labels (images,); `train` and `val` are indices of the images."""
    train, val = sample_evenly(train, MAX_LINEAR_ROWS), sample_evenly(val, MAX_VAL_ROWS)
    x, x_val = (
        np.concatenate([count_gradients(pixels[rows[i : i + 500]]) for i in range(0, len(rows), 500)])
        for rows in (train, val)
    )
    classes = np.eye(int(labels.max()) + 1)[labels[train]]
    return float((fit_linear(x, classes, x_val).argmax(1) == labels[val]).mean())


def count_gradients(pixels: np.ndarray) -> np.ndarray:
    """Return the histograms of the gradients' directions in a grid of cells: (N, H, W, channels) -> (N, F)."""
    gray = pixels.mean(-1, dtype=np.float32) / 255
    dy, dx = np.zeros_like(gray), np.zeros_like(gray)
    dy[:, 1:-1], dx[:, :, 1:-1] = gray[:, 2:] - gray[:, :-2], gray[:, :, 2:] - gray[:, :, :-2]
    size = np.hypot(dx, dy)
    bins = (np.arctan2(dy, dx) % np.pi * (N_DIRECTIONS / np.pi)).astype(np.int64) % N_DIRECTIONS
    n, height, width = gray.shape
    rows, columns = (np.arange(length) * min(N_CELLS, length) // length for length in (height, width))
    cells = rows[:, None] * N_CELLS + columns
    codes = (np.arange(n)[:, None, None] * N_CELLS**2 + cells) * N_DIRECTIONS + bins
    shape = (n, N_CELLS**2 * N_DIRECTIONS)
    counts = np.bincount(codes.ravel(), size.ravel(), n * shape[1]).reshape(shape)
    return np.sqrt(counts / (counts.sum(1, keepdims=True) + 1e-6))


def find_nearest(x: np.ndarray, x_val: np.ndarray) -> np.ndarray:
    """Return the index of the row of x (N, F) that is nearest to each row of x_val (M, F), where each feature has
    deviation 1: (M,)"""
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, x_val = (((rows - mean) / std).astype(np.float32) for rows in (x, x_val))
    return (np.square(x).sum(1) - 2 * x_val @ x.T).argmin(1)


def average_parts(x: np.ndarray) -> np.ndarray:
    """Return the means of the beginning, the two middle parts and the end of a sequence: (F, T) -> (4 F,)"""
    length = x.shape[1]
    starts = [i * length // 4 for i in range(5)]
    return np.concatenate([x[:, start : max(stop, start + 1)].mean(1) for start, stop in pairwise(starts)])


def score_actions(x: np.ndarray, y: np.ndarray, x_val: np.ndarray, y_val: np.ndarray) -> Baselines:
    """Score the usual action, a linear model of the state and the action in the nearest state: states x (N, F) and
    x_val (M, F), actions y (N,) and y_val (M,) that are ids, or (N, A) and (M, A), of which the loss is the squared
    error."""
    nearest = y[find_nearest(x, x_val)]
    if y.ndim == 1:
        linear = fit_classes(x, y, x_val)
        scores = {"the most frequent action": (y_val == np.bincount(y).argmax()).mean()}
        scores |= {"a linear model": (y_val == linear).mean(), "the nearest state": (y_val == nearest).mean()}
        return {"accuracy": {name: float(value) for name, value in scores.items()}}
    predicted = {"the mean action": y.mean(0), "a linear model": fit_linear(x, y, x_val), "the nearest state": nearest}
    return {"loss": {name: float(np.square(y_val - values).mean()) for name, values in predicted.items()}}


def score_target(target: Any, y: np.ndarray, y_val: np.ndarray, x: np.ndarray, x_val: np.ndarray) -> Baselines:
    """Score the most frequent class or the mean, and a linear model, on a target of a table: known labels y (N,) and
    y_val (M,), numbers x (N, F) and x_val (M, F), where F may be 0."""
    if target.kind == "class":
        y, y_val = y.astype(np.int64), y_val.astype(np.int64)
        scores = score_majority(y, y_val)
        if x.shape[1]:
            scores["a linear model"] = float((fit_classes(x, y, x_val) == y_val).mean())
        return {"accuracy": scores}
    scores = {"the mean": float(np.sqrt(np.mean((y_val - y.mean()) ** 2)))}
    if x.shape[1]:
        scores["a linear model"] = float(np.sqrt(np.mean((y_val - fit_linear(x, y[:, None], x_val)[:, 0]) ** 2)))
    return {"rmse": scores}
