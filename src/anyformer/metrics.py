"""Metrics: how good predictions are, from labels and predictions to plain numbers.

Shapes: N predictions, K classes.
"""

import math
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .data.text.batches import IGNORE_INDEX
from .errors import InputError


def score_classes(predictions: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Return the mean nats of labels (N,) under logits (N, K) over all batches, their exponential and the accuracy."""
    return describe_classes(*sum_classes(predictions))


def sum_classes(predictions: Iterable[tuple[Tensor, Tensor]]) -> list[float]:
    """Return the sums of `count_classes` over all batches; nothing where there are none."""
    return [sum(counts) for counts in zip(*(count_classes(logits, labels) for logits, labels in predictions))]


def count_classes(logits: Tensor, labels: Tensor) -> tuple[float, int, int]:
    """Return the nats of labels (N,) under logits (N, K), how many are right, and how many there are."""
    nats = F.cross_entropy(logits, labels, reduction="sum").item()
    right = int((logits.argmax(-1) == labels).sum())  # never equal where a label is ignored
    return nats, right, int((labels != IGNORE_INDEX).sum())


def describe_classes(nats: float = 0.0, right: float = 0, count: float = 0) -> dict[str, float]:
    """Return the metrics for sums over all labels."""
    mean, total = nats / max(1, count), max(1, count)
    return {"loss": mean, "perplexity": math.exp(min(mean, 700)), "accuracy": right / total, "tokens": round(count)}


def describe_tokens(nats: float = 0.0, n_bytes: float = 0, count: float = 0) -> dict[str, float]:
    """Return the metrics of a language model for sums over all tokens: the bits per byte are those of any tokenizer."""
    mean, bits = nats / max(1, count), nats / math.log(2) / max(1, n_bytes)
    return {"loss": mean, "perplexity": math.exp(min(mean, 700)), "bits_per_byte": bits, "tokens": round(count)}


def describe_bound(nats: Tensor, sizes: Tensor, n_bytes: int) -> dict[str, float]:
    """Return the metrics of a bound on the nats of rows (N,) of so many tokens (N,): per token, with the standard error
    over the rows and what was drawn for each, and in bits per byte."""
    nats, sizes = nats.detach(), sizes.to(nats.dtype)
    mean, bits = float(nats.sum() / sizes.sum()), float(nats.sum()) / math.log(2) / max(1, n_bytes)
    error = float(((nats - mean * sizes) ** 2).sum().sqrt() / sizes.sum())
    values = {"loss": mean, "perplexity": math.exp(min(mean, 700)), "bits_per_byte": bits, "standard_error": error}
    return values | {"rows": len(nats), "tokens": round(float(sizes.sum()))}


def confusion_matrix(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """Count how often each class was predicted as which: (N,), (N,) -> (K, K) [label, prediction], on the CPU."""
    pairs = (labels.long() * classes + predictions).cpu()
    return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)


def accuracy(confusion: Tensor) -> float:
    """Return the share of predictions that are right, from a confusion matrix (K, K)."""
    return int(confusion.diag().sum()) / max(1, int(confusion.sum()))


def macro_f1(confusion: Tensor) -> float:
    """Return the mean F1 of the classes that occur among labels or predictions, from a confusion matrix (K, K)."""
    sizes = confusion.sum(0) + confusion.sum(1)
    f1 = 2 * confusion.diag() / sizes.clamp(min=1)
    return f1[sizes > 0].mean().item() if bool((sizes > 0).any()) else 0.0


def find_spans(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return (start, stop, kind) of each run of B-KIND and I-KIND tags; I-KIND after another kind begins a run."""
    spans: list[tuple[int, int, str]] = []
    for i, tag in enumerate(tags):
        mark, _, kind = tag.partition("-")
        if mark not in ("B", "I") or not kind:
            continue
        if mark == "I" and spans and spans[-1][1:] == (i, kind):
            spans[-1] = (spans[-1][0], i + 1, kind)
        else:
            spans.append((i, i + 1, kind))
    return spans


def score_spans(labels: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return the F1 of whole spans of sentences (`span_f1`, as CoNLL-2003 counts them); nothing where no tag is B-X."""
    if not any(tag.startswith("B-") for tags in labels for tag in tags):
        return {}
    expected, predicted = (
        {(i, *span) for i, tags in enumerate(rows) for span in find_spans(tags)} for rows in (labels, predictions)
    )
    return {"span_f1": 2 * len(expected & predicted) / max(1, len(expected) + len(predicted))}


def regression_scores(labels: Tensor, predictions: Tensor) -> dict[str, float]:
    """Return the root mean squared error in the unit of the labels, and R2, the share of their variance explained;
    nothing where there are no labels."""
    if not len(labels):
        return {}
    labels, predictions = labels.double(), predictions.double()
    error, variance = ((predictions - labels) ** 2).mean(), labels.var(correction=0)
    return {"rmse": error.sqrt().item(), "r2": (1 - error / variance.clamp(min=1e-12)).item()}


def error_rates(references: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
    """Return the word and character error rate (wer, cer) of texts whose reference is not empty; nothing without jiwer
    or such texts."""
    rows = [i for i, reference in enumerate(references) if reference.strip()]
    if not rows or find_spec("jiwer") is None:
        return {}
    import jiwer

    pair = [references[i] for i in rows], [texts[i] for i in rows]
    return {"wer": float(jiwer.wer(*pair)), "cer": float(jiwer.cer(*pair))}


def score_translations(texts: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """Return BLEU and chrF as computed by sacreBLEU (1804.08771), and the share of exact matches. Raises InputError."""
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        raise InputError("BLEU needs sacrebleu: pip install 'anyformer[scores]'") from None
    bleu, chrf, exact = BLEU(), CHRF(), sum(map(str.__eq__, texts, references))
    return {
        "bleu": bleu.corpus_score(list(texts), [list(references)]).score,
        "chrf": chrf.corpus_score(list(texts), [list(references)]).score,
        "exact": exact / max(1, len(texts)),
        "sentences": len(texts),
        "signature": str(bleu.get_signature()),
    }


def score_retrieval(
    queries: Tensor, candidates: Tensor, query_numbers: Tensor, candidate_numbers: Tensor, tops: Sequence[int] = (1, 5)
) -> list[float]:
    """Return the share of queries that have a right candidate among the nearest 1 and 5 (recall at 1 and 5).

    Row i of both is a pair. Rows of the same number are one query, or one candidate; all candidates that some row pairs
    with a query are right. Of equal similarities, those of the others come first.

    Shapes:
        queries, candidates: (N, C), vectors of length 1
        query_numbers, candidate_numbers: (N,)
    """
    (query, first_query), (candidate, first) = map(number_rows, (query_numbers, candidate_numbers))
    similarity = queries[first_query] @ candidates[first].T  # (different queries, different candidates)
    is_right = torch.zeros_like(similarity, dtype=torch.bool)
    is_right[query, candidate] = True
    best = similarity.masked_fill(~is_right, -torch.inf).amax(1, keepdim=True)
    rank = ((similarity >= best) & ~is_right).sum(1)
    return [(rank < top).double().mean().item() for top in tops]


def number_rows(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Return an index from 0 on for each row, the same for equal numbers, and the first row of each index."""
    values, index = numbers.unique(return_inverse=True)
    rows = torch.arange(len(numbers), device=numbers.device)
    first = rows.new_full((len(values),), len(numbers)).scatter_reduce_(0, index, rows, "amin")
    return index, first
