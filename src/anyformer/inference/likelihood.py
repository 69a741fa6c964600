"""How likely a text is after another: the basis of multiple choice, and of standard evaluation.

Shapes: B rows, T tokens, C channels, V entries of the vocabulary.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.tokenizers.base import Tokenizer
from ..errors import InputError
from ..events import report_progress
from ..model.cache import can_go_back
from .completion import encode_prompt
from .decode import HasOwnCache, new_cache
from .logprobs import MAX_SCORE_ELEMENTS
from .prefix_cache import find_max_nodes
from .prompt_reading import pad_rows

MAX_BATCH_TOKENS = 1 << 13  # that are read at once
MAX_SHARED_TOKENS = 1 << 11  # of contexts whose keys and values are kept for several continuations
MIN_SHARED = 16  # tokens of a context: to read fewer again costs less than to keep them


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
    counts = [len(pair.continuation) for pair in pairs]
    results: dict[int, Likelihood] = {}
    for scores in (score_shared(model, rows, counts), score_alone(model, rows, counts, results)):
        for batch in scores:
            results |= batch
            report_progress("scoring", len(results), len(pairs))
    return [results[i] for i in range(len(pairs))]


def score_alone(
    model: Any, rows: Sequence[Sequence[int]], counts: Sequence[int], scores: dict[int, Likelihood]
) -> Iterator[dict[int, Likelihood]]:
    """Yield the scores of rows that have none yet, by their indices, in batches."""
    indices = [i for i in range(len(rows)) if i not in scores]
    for batch in group_rows([rows[i] for i in indices], MAX_BATCH_TOKENS):
        batch = [indices[i] for i in batch]
        yield dict(zip(batch, score_rows(model, [rows[i] for i in batch], [counts[i] for i in batch]), strict=True))


def score_shared(model: Any, rows: Sequence[Sequence[int]], counts: Sequence[int]) -> Iterator[dict[int, Likelihood]]:
    """Yield the scores of rows that have the same context, which is then read once, as the choices of a question do. A
    layer that keeps a window cannot go back to it; other state than keys and values cannot either."""
    limit = find_max_nodes(model.body.config)
    if isinstance(model, HasOwnCache):
        return
    shared = defaultdict[tuple[int, ...], list[int]](list)
    for i, (row, count) in enumerate(zip(rows, counts)):
        if len(row) <= limit and len(row) - count >= MIN_SHARED:
            shared[tuple(row[:-count])].append(i)
    contexts = [key for key, indices in shared.items() if len(indices) > 1]
    for batch in group_rows(contexts, MAX_SHARED_TOKENS):
        owners = [shared[contexts[i]] for i in batch]
        endings = [[rows[i][-counts[i] :] for i in indices] for indices in owners]
        scores = dict(score_endings(model, [contexts[i] for i in batch], endings, owners))
        if not scores:
            return
        yield scores


def score_endings(
    model: Any,
    contexts: Sequence[Sequence[int]],
    endings: Sequence[Sequence[Sequence[int]]],
    owners: Sequence[Sequence[int]],
) -> Iterator[tuple[int, Likelihood]]:
    """Yield the number of each ending of each context, and its score: the contexts are read once, then the first ending
    of each, and the cache goes back to the contexts for the next ones. Yields nothing if it cannot."""
    longest = max(len(ending) for row in endings for ending in row)
    cache = new_cache(model, len(contexts), max(map(len, contexts)) + longest)
    ids, lengths = pad_rows(contexts, cache.device)
    cache.reset(lengths)
    last = model.hidden(ids, cache)[torch.arange(len(ids)), lengths - 1]  # (B, C)
    cache.trim(lengths)
    if not can_go_back(cache):
        return
    for number in range(max(map(len, endings))):
        rows = [list(row[number]) if number < len(row) else [] for row in endings]
        ids, _ = pad_rows([row[:-1] or [0] for row in rows], cache.device)
        nodes = torch.cat([last[:, None], model.hidden(ids, cache)], 1)
        cache.trim(lengths)
        counts = [len(row) for row in rows]
        parts = [nodes[b, :count] for b, count in enumerate(counts)]
        scores = score_nodes(model, parts, [token for row in rows for token in row])
        yield from ((owners[b][number], score) for b, score in enumerate(scores) if counts[b])


def group_rows(rows: Sequence[Sequence[int]], most: int) -> Iterator[list[int]]:
    """Yield the indices of rows that are read at once, at most so many ids with their padding, the longest first, since
    rows are padded to the longest."""
    batch: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: -len(rows[i])):
        if batch and (len(batch) + 1) * len(rows[batch[0]]) > most:
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
    return score_nodes(model, last, [token for row, count in zip(rows, counts) for token in row[-count:]])


def score_nodes(model: Any, nodes: Sequence[Tensor], tokens: Sequence[int]) -> list[Likelihood]:
    """Score the tokens after the nodes of each row, (T, C) each; tokens: of all rows."""
    counts = [len(part) for part in nodes]
    logprobs, greedy = look_up(model, torch.cat(list(nodes)), torch.tensor(tokens, device=nodes[0].device))
    parts = zip(logprobs.split(counts), greedy.split(counts))
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
