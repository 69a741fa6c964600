"""Sampling: a pipe of small functions from logits to the next token.

Shapes: B rows, V vocabulary. Every function takes and gives logits (B, V); -inf is a token that cannot come.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FIRST = 1024  # tokens, which nearly always hold as much probability as is asked for


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How the next token is chosen. Raises ValueError on values that mean nothing."""

    temperature: float = 1.0
    """Logits are divided by it; 0 takes the likeliest token."""
    top_k: int | None = None
    """Only the k likeliest tokens (1805.04833)."""
    top_p: float | None = None
    """Only the likeliest tokens that together reach probability p (1904.09751)."""
    min_p: float | None = None
    """Only tokens at least this fraction as likely as the likeliest (2407.01082)."""
    repetition_penalty: float = 1.0
    """Tokens already seen are made less likely (1909.05858); 1 changes nothing."""

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0, 1e6)
        _within("top-k", self.top_k, 1, 1 << 31)
        _within("top-p", self.top_p, 1e-9, 1)
        _within("min-p", self.min_p, 0, 1)
        _within("repetition-penalty", self.repetition_penalty, 1e-3, 1e3)


def _within(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:  # also refuses nan
        raise ValueError(f"{name} is {value}; it must be between {low:g} and {high:g}")


def top_k(logits: Tensor, k: int) -> Tensor:
    least = logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """The likeliest tokens until their sum reaches p; always at least one."""
    chance = logits.softmax(-1)
    for some in (min(FIRST, chance.shape[-1]), chance.shape[-1]):
        likeliest, index = chance.topk(some)
        total = likeliest.cumsum(-1)
        if (total[:, -1] >= p).all():  # all others stay behind, and need not be put in order
            break
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, index, total - likeliest < p)
    return logits.masked_fill(~kept, -torch.inf)


def min_p(logits: Tensor, p: float) -> Tensor:
    chance = logits.softmax(-1)
    return logits.masked_fill(chance < p * chance.amax(-1, keepdim=True), -torch.inf)


def repeat_less(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """seen (B, V) bool: positive logits of seen tokens are divided by the penalty, negative ones multiplied."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def shape(logits: Tensor, seen: Tensor, rules: Rules) -> Tensor:
    """All rules in their usual order: penalty, temperature, top-k, top-p, min-p."""
    logits = logits.float()
    if rules.repetition_penalty != 1:
        logits = repeat_less(logits, seen, rules.repetition_penalty)
    if rules.temperature == 0:
        return logits
    if rules.temperature != 1:
        logits = logits / rules.temperature
    if rules.top_k is not None:
        logits = top_k(logits, rules.top_k)
    if rules.top_p is not None and rules.top_p < 1:
        logits = top_p(logits, rules.top_p)
    if rules.min_p:
        logits = min_p(logits, rules.min_p)
    return logits


def pick(logits: Tensor, rngs: Sequence[torch.Generator]) -> Tensor:
    """Draw one token a row, each row from its own stream, so that what a row draws does not depend on its company.
    (B, V) -> (B,)"""
    drawn = []
    for row, rng in zip(logits.cpu(), rngs):  # one by one, so that the memory of one serves the next
        chance = row.double().softmax(-1).cumsum(-1)
        draw = torch.rand(1, dtype=torch.float64, generator=rng)
        drawn.append(torch.searchsorted(chance, draw * chance[-1], right=True))
    return torch.cat(drawn).to(logits.device)


def choose(logits: Tensor, seen: Tensor, rules: Rules, rngs: Sequence[torch.Generator]) -> Tensor:
    """The next token of each row. (B, V) -> (B,)"""
    logits = shape(logits, seen, rules)
    return logits.argmax(-1) if rules.temperature == 0 else pick(logits, rngs)
