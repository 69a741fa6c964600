"""How likely a text is after another: the basis of multiple choice, and of standard evaluation.

Shapes: B rows, T tokens, C channels, V entries of the vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.tokenizers.base import Tokenizer
from ..errors import InputError
from ..events import report_progress
from .completion import encode_prompt
from .decode import pad_rows
from .logprobs import MAX_SCORE_ELEMENTS

MAX_BATCH_TOKENS = 1 << 13  # that are read at once


class Pair(NamedTuple):
    """The ids of a text and of what follows it; both have at least one."""

    context: list[int]
    continuation: list[int]


class Likelihood(NamedTuple):
    """Of a continuation: the sum of the log-probabilities of its tokens, and whether each is the likeliest."""

    logprob: float
    is_greedy: bool


def encode_pair(context: str, continuation: str, tokenizer: Tokenizer) -> Pair:
    """Encode a continuation as it is written behind its context. Spaces at the end of the context belong to the
    continuation, since many vocabularies begin words with them. Raises InputError for an empty continuation."""
    if not continuation:
        raise InputError("a continuation is empty: there is nothing to score")
    if not (start := context.rstrip()):
        if tokenizer.end_id is not None:
            return Pair([tokenizer.end_id], tokenizer.encode(context + continuation).tolist())
        start = context or "\n"
    continuation = context[len(start) :] + continuation
    _, first = encode_prompt(start, tokenizer)
    _, joined = encode_prompt(start + continuation, tokenizer)
    return Pair(first, joined[len(first) :] or tokenizer.encode(continuation).tolist())


@torch.inference_mode()
def score_pairs(model: Any, pairs: Sequence[Pair]) -> list[Likelihood]:
    """Score continuations by a `Decoder`, several at once. Of a pair that exceeds the context the beginning is not
    read. Raises InputError for a continuation that exceeds it by itself."""
    context = model.body.config.context
    if (longest := max((len(pair.continuation) for pair in pairs), default=0)) > context:
        raise InputError(f"a continuation has {longest:,} tokens, and the context of the model is {context:,}")
    rows = [(pair.context + pair.continuation)[-context - 1 :] for pair in pairs]
    results: list[Likelihood | None] = [None] * len(pairs)
    n_done = 0
    for batch in group_rows(rows):
        scores = score_rows(model, [rows[i] for i in batch], [len(pairs[i].continuation) for i in batch])
        for i, score in zip(batch, scores, strict=True):
            results[i] = score
        n_done += len(batch)
        report_progress("scoring", n_done, len(pairs))
    return [result for result in results if result is not None]


def group_rows(rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Yield the indices of rows that are read at once, the longest first, since rows are padded to the longest."""
    batch: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: -len(rows[i])):
        if batch and (len(batch) + 1) * len(rows[batch[0]]) > MAX_BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def score_rows(model: Any, rows: Sequence[Sequence[int]], counts: Sequence[int]) -> list[Likelihood]:
    """Score the last counts[b] tokens of each row."""
    device = next(model.parameters()).device
    ids, _ = pad_rows([row[:-1] for row in rows], device)
    nodes = model.hidden(ids)  # (B, T, C)
    last = [nodes[b, len(row) - 1 - count : len(row) - 1] for b, (row, count) in enumerate(zip(rows, counts))]
    labels = torch.tensor([token for row, count in zip(rows, counts) for token in row[-count:]], device=device)
    logprobs, greedy = look_up(model, torch.cat(last), labels)
    parts = zip(logprobs.split(list(counts)), greedy.split(list(counts)))
    return [Likelihood(float(values.sum()), bool(is_greedy.all())) for values, is_greedy in parts]


def look_up(model: Any, nodes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probability of the token after each node, (T,), in float64 for exact sums, and whether it is the
    likeliest, (T,). nodes: (T, C), labels: (T,)"""
    logprobs, greedy = [], []
    size = max(1, MAX_SCORE_ELEMENTS // model.head(nodes[:1]).shape[-1])
    for part, tokens in zip(nodes.split(size), labels.split(size), strict=True):
        logits = model.head(part).float()
        logprobs.append(logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0].double())
        greedy.append(logits.argmax(-1) == tokens)
    return torch.cat(logprobs), torch.cat(greedy)
