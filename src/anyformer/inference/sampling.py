"""Sampling: a chain of small functions from logits to the next token.

Shapes: B rows, V entries of the vocabulary. Every filter maps logits (B, V) to logits; a token of -inf cannot be drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..parsing import check_range, check_types

TOP_P_CANDIDATES = 1024  # likeliest tokens that nearly always hold the probability of top-p
MAX_DRAW_ELEMENTS = 1 << 22  # probabilities that are computed at once in float64, which bounds the memory


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen. Raises InputError on values that make no sense."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int | None = None
    """Only the k likeliest tokens (1805.04833)."""
    top_p: float | None = None
    """Only the likeliest tokens that together reach probability p (1904.09751)."""
    min_p: float | None = None
    """Only tokens at least this fraction as likely as the likeliest (2407.01082)."""
    repetition_penalty: float = 1.0
    """Makes tokens that occurred before less likely (1909.05858); 1 changes nothing."""

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "temperature", at_least=0, at_most=1e6)
        check_range(self, "top_k", at_least=1, at_most=1 << 31)
        check_range(self, "top_p", at_least=1e-9, at_most=1)
        check_range(self, "min_p", at_least=0, at_most=1)
        check_range(self, "repetition_penalty", at_least=1e-3, at_most=1e3)


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k likeliest tokens, and those as likely as the last of them."""
    threshold = logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1:]
    return logits.masked_fill(logits < threshold, -torch.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the likeliest tokens until their sum reaches p; always at least one."""
    probabilities = logits.softmax(-1)
    for count in (min(TOP_P_CANDIDATES, probabilities.shape[-1]), probabilities.shape[-1]):
        likeliest, index = probabilities.topk(count)
        total = likeliest.cumsum(-1)
        if (total[:, -1] >= p).all():  # no other token is kept, so the others need not be sorted
            break
    is_kept = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, index, total - likeliest < p)
    return logits.masked_fill(~is_kept, -torch.inf)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keep tokens at least p times as likely as the likeliest."""
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), -torch.inf)


def mark_tokens(logits: Tensor, rows: Sequence[Sequence[int]]) -> Tensor:
    """Return which tokens of the vocabulary occur in each row: (B, V) bool, on the device of the logits (B, V)."""
    seen = torch.zeros_like(logits, dtype=torch.bool)
    for row, ids in enumerate(rows):
        seen[row, list(ids)] = True
    return seen


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide positive logits of tokens seen before by the penalty, and multiply negative ones. seen: (B, V) bool"""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def process_logits(logits: Tensor, seen: Tensor | None, sampling: SamplingParams) -> Tensor:
    """Apply all filters in the usual order: repetition penalty, temperature, top-k, top-p, min-p."""
    logits = logits.float()
    if seen is not None and sampling.repetition_penalty != 1:
        logits = penalize_repetition(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return logits
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    if sampling.top_k is not None:
        logits = top_k(logits, sampling.top_k)
    if sampling.top_p is not None and sampling.top_p < 1:
        logits = top_p(logits, sampling.top_p)
    if sampling.min_p:
        logits = min_p(logits, sampling.min_p)
    return logits


def sample_tokens(logits: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw one token for each row: (B, V) -> (B,)

    Every row draws one number from its own generator (on the CPU), so that its tokens do not depend on the other rows
    of the batch, nor on the device.
    """
    device = logits.device if logits.is_cuda else torch.device("cpu")  # MPS has no float64
    draws = torch.cat([torch.rand(1, 1, dtype=torch.float64, generator=g) for g in generators]).to(device)
    tokens = []
    rows = max(1, MAX_DRAW_ELEMENTS // logits.shape[-1])
    for row_logits, draw in zip(logits.to(device).split(rows), draws.split(rows)):
        cumulative = row_logits.softmax(-1, dtype=torch.float64).cumsum(-1)
        tokens.append(torch.searchsorted(cumulative, draw * cumulative[:, -1:], right=True))
    return torch.cat(tokens).squeeze(1).clamp_(max=logits.shape[-1] - 1).to(logits.device)


def select_next(
    logits: Tensor, seen: Tensor | None, sampling: SamplingParams, generators: Sequence[torch.Generator]
) -> Tensor:
    """Choose the next token of each row: (B, V) -> (B,)

    Args:
        logits: of the next token.
        seen: (B, V) bool, the tokens that occurred before; None where there is no repetition penalty.
        sampling: how the token is chosen.
        generators: one for each row; not used at temperature 0.

    Raises:
        InputError: If the logits are not finite.
    """
    logits = process_logits(logits, seen, sampling)
    if not logits.amax(-1).isfinite().all():
        raise InputError("the model's logits are nan or inf: its training diverged; use an earlier checkpoint")
    return logits.argmax(-1) if sampling.temperature == 0 else sample_tokens(logits, generators)
