"""Log-probabilities of tokens, by the model itself: before temperature, penalties and filters.

Shapes: B rows, T tokens, V entries of the vocabulary.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAX_SCORE_ELEMENTS = 1 << 24  # logits that are computed at once: 64 MiB


class TokenLogprobs(NamedTuple):
    """The log-probability of a token, and the likeliest tokens in its place."""

    token: int
    logprob: float
    top: list[tuple[int, float]]
    """(token, log-probability), the likeliest first."""


def list_logprobs(logits: Tensor, tokens: Tensor, n_top: int) -> list[TokenLogprobs]:
    """Look up each row's token: logits (B, V), tokens (B,)."""
    logprobs = logits.float().log_softmax(-1)
    own = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
    top = logprobs.topk(min(n_top, logprobs.shape[-1]))
    rows = zip(tokens.tolist(), own, top.indices.tolist(), top.values.tolist(), strict=True)
    return [TokenLogprobs(token, logprob, list(zip(ids, values))) for token, logprob, ids, values in rows]


@torch.inference_mode()
def score_tokens(model: Any, ids: Sequence[int], n_top: int = 0) -> list[TokenLogprobs]:
    """Return the log-probabilities of all tokens of a text but the first, each after those before it. The text is
    no longer than the context of the model, a `Decoder`."""
    row = torch.tensor(ids, device=next(model.parameters()).device)
    nodes = model.hidden(row[None, :-1])[0] if len(ids) > 1 else None
    if nodes is None:
        return []
    return score_nodes(model, nodes, row[1:], n_top)


def score_nodes(model: Any, nodes: Tensor, labels: Tensor, n_top: int) -> list[TokenLogprobs]:
    """Look up the token after each node: nodes (T, C), labels (T,)."""
    vocab_size, results = model.head(nodes[:1]).shape[-1], []
    rows = max(1, MAX_SCORE_ELEMENTS // vocab_size)
    for part, tokens in zip(nodes.split(rows), labels.split(rows), strict=True):
        results += list_logprobs(model.head(part), tokens, n_top)
    return results
