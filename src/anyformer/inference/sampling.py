"""Sampling: a chain of small functions from logits to the next token.

Shapes: B rows, V entries of the vocabulary. Every filter maps logits (B, V) to logits; a token of -inf cannot be drawn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import InputError
from ..parsing import check_range, check_types
from .structure import constrain
from .token_filter import TokenFilter

TOP_P_CANDIDATES = 1024  # likeliest tokens that nearly always hold the probability of top-p
MAX_BIASES = 10_000  # of a request
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
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens that were generated before, not of those in the prompt."""
    frequency_penalty: float = 0.0
    """Subtracted from the logit of a token for each time that it was generated before."""
    logit_bias: Mapping[str, float] = field(default_factory=dict)
    """Added to the logits of tokens: {"ID": number}."""

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "temperature", at_least=0, at_most=1e6)
        check_range(self, "top_k", at_least=1, at_most=1 << 31)
        check_range(self, "top_p", at_least=1e-9, at_most=1)
        check_range(self, "min_p", at_least=0, at_most=1)
        check_range(self, "repetition_penalty", at_least=1e-3, at_most=1e3)
        check_range(self, "presence_penalty", "frequency_penalty", at_least=-1e3, at_most=1e3)
        if len(self.logit_bias) > MAX_BIASES or not all(map(is_token_id, self.logit_bias)):
            raise InputError(f'logit_bias maps at most {MAX_BIASES:,} token ids, such as "42", to numbers')
        if any(abs(bias) > 1e6 for bias in self.logit_bias.values()):
            raise InputError("logit_bias has a number beyond 1,000,000")

    @property
    def biases(self) -> tuple[list[int], list[float]]:
        """The token ids of `logit_bias`, and their numbers."""
        return [int(token) for token in self.logit_bias], list(self.logit_bias.values())


def is_token_id(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


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


def process_logits(logits: Tensor, params: SamplingParams) -> Tensor:
    """Apply temperature and filters in the usual order: temperature, top-k, top-p, min-p."""
    if params.temperature == 0:
        return logits
    if params.temperature != 1:
        logits = logits / params.temperature
    if params.top_k is not None:
        logits = top_k(logits, params.top_k)
    if params.top_p is not None and params.top_p < 1:
        logits = top_p(logits, params.top_p)
    if params.min_p:
        logits = min_p(logits, params.min_p)
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


class Sampler:
    """Chooses the next token of each row, and remembers those before as far as the penalties need them.

    Args:
        prompts: The ids of each row, at least one.
        seeds: One for each row; not used at temperature 0.
        matchers: Of each row, which tokens may follow; none: any may.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        matchers: Sequence[TokenFilter] = (),
    ):
        self.params, self.prompts, self.matchers = params, prompts, matchers
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.seen: Tensor | None = None
        """Tokens of the prompt and after it: (B, V) bool."""
        self.counts: Tensor | None = None
        """How often each token was generated: (B, V)."""

    def __call__(self, logits: Tensor) -> Tensor:
        """Choose by the logits of the next token: (B, V) -> (B,). Raises InputError if the logits are not finite, or no
        token may follow."""
        logits = constrain(self.penalize(logits.float()), self.matchers, self.params.temperature)
        logits = process_logits(logits, self.params)
        if not logits.amax(-1).isfinite().all():
            raise InputError("the model's logits are nan or inf: its training diverged; use an earlier checkpoint")
        new = logits.argmax(-1) if self.params.temperature == 0 else sample_tokens(logits, self.generators)
        if self.seen is not None:
            self.seen.scatter_(1, new[:, None], True)
        if self.counts is not None:
            self.counts[torch.arange(len(new), device=new.device), new] += 1
        for matcher, token in zip(self.matchers, new.tolist()) if self.matchers else ():
            matcher.consume(token)
        return new

    def penalize(self, logits: Tensor) -> Tensor:
        """Apply the biases of the request and the penalties for tokens that occurred before: (B, V) -> (B, V)"""
        params = self.params
        if params.logit_bias:
            ids, biases = params.biases
            index, bias = torch.tensor(ids, device=logits.device), logits.new_tensor(biases)
            logits = logits.index_add(1, index, bias.expand(len(logits), -1))
        if params.repetition_penalty != 1:
            self.seen = mark_tokens(logits, self.prompts) if self.seen is None else self.seen
            logits = penalize_repetition(logits, self.seen, params.repetition_penalty)
        if params.presence_penalty or params.frequency_penalty:
            self.counts = torch.zeros_like(logits) if self.counts is None else self.counts
            logits = logits - params.frequency_penalty * self.counts - params.presence_penalty * (self.counts > 0)
        return logits
