"""Beam search: the likeliest continuations of a prompt.

At each step every hypothesis is extended by every token, and the best `beam` of them are kept. A hypothesis that takes
the end token is finished; the search of a prompt ends when `beam` hypotheses have ended, or when no live one can still
come before the best finished ones. With one beam this is greedy decoding (1409.3215, section 3.2).

The score of a hypothesis is its log-probability over its length to the power of `penalty` (1609.08144, section 7,
without its constant): 0 prefers short hypotheses, 1 compares the mean per token, above 1 prefers long ones.

Shapes: B prompts, K beams, V vocabulary. Row b * K + i of a batch is hypothesis i of prompt b.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .decode import Decoder, new_cache, step
from .prompt_reading import prefill
from .structure import Matcher, stack_allowed


@dataclass(frozen=True)
class Hypothesis:
    """A continuation: its tokens without the end token, and its score."""

    tokens: list[int]
    score: float
    log_prob: float
    """Of all tokens, the end token included, in nats."""
    finished: bool
    """Whether it has ended with the end token, not at the maximum length."""


class Candidate(NamedTuple):
    """The live hypothesis `parent`, extended by a token."""

    log_prob: float
    parent: int
    token: int


@dataclass
class BeamState:
    """The hypotheses of one prompt."""

    beam: int
    max_tokens: int
    end: int | None
    n_best: int
    penalty: float
    live: list[tuple[float, list[int]]] = field(default_factory=lambda: [(0.0, [])])
    finished: list[Hypothesis] = field(default_factory=list)
    done: bool = False
    matchers: list[Matcher] = field(default_factory=list)
    """Of each live hypothesis, which tokens may follow; none: any may."""
    has_structure: bool = False

    def advance(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Take one step with the candidates, best first. Returns those that stay live."""
        kept: list[Candidate] = []
        for rank, candidate in enumerate(candidates):
            if candidate.log_prob == -math.inf or len(kept) == self.beam:
                break
            parent_tokens = self.live[candidate.parent][1]
            if candidate.token != self.end:
                kept.append(candidate)
            elif rank < self.beam:  # an end competes with the candidates that go on
                self.finish(parent_tokens, candidate.log_prob, len(parent_tokens) + 1)
        if not kept and not self.finished:  # no token may follow
            for log_prob, tokens in self.live:
                self.finish(tokens, log_prob, max(1, len(tokens)), finished=False)
        self.live = [(log_prob, [*self.live[parent][1], token]) for log_prob, parent, token in kept]
        self.extend_matchers(kept)
        if self.live and len(self.live[0][1]) == self.max_tokens:
            complete = [matcher.is_complete for matcher in self.matchers] or [False] * len(self.live)
            for (log_prob, tokens), is_complete in zip(self.live, complete, strict=True):
                self.finish(tokens, log_prob, len(tokens), is_complete)
            self.live = []
        ended = sum(hypothesis.finished for hypothesis in self.finished)
        self.done = not self.live or ended >= self.beam or self.is_settled
        return kept

    def extend_matchers(self, kept: Sequence[Candidate]) -> None:
        """Follow the hypotheses that stay live. Raises InputError if none of them, and no finished one, can end."""
        if not self.has_structure:
            return
        self.matchers = [self.matchers[parent].extend(token) for _, parent, token in kept]
        if self.matchers and not self.finished and all(matcher.is_dead for matcher in self.matchers):
            self.matchers[0].check_alive()

    def finish(self, tokens: list[int], log_prob: float, length: int, finished: bool = True) -> None:
        self.finished.append(Hypothesis(tokens, log_prob / length**self.penalty, log_prob, finished))

    @property
    def is_settled(self) -> bool:
        """Whether no live hypothesis can still come among the best: log-probabilities only fall."""
        best = self.best()
        if len(best) < self.n_best:
            return False
        log_prob, tokens = self.live[0]
        length = self.max_tokens if self.penalty > 0 else len(tokens) + 1
        return log_prob / length**self.penalty <= best[-1].score

    def best(self) -> list[Hypothesis]:
        """Return the n_best finished hypotheses, best first; under a structure, those that were cut come last."""
        return sorted(self.finished, key=lambda h: (self.has_structure and not h.finished, -h.score))[: self.n_best]


@torch.inference_mode()
def beam_search(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    beam: int,
    tokens: int | Sequence[int],
    end: int | None,
    n_best: int = 1,
    penalty: float = 1.0,
    no_repeat_ngram: int = 0,
    matchers: Sequence[Matcher] = (),
) -> list[list[Hypothesis]]:
    """Return the `n_best` (at most `beam`) continuations of each prompt, best first.

    Args:
        model: reads B * K rows; a memory that it reads must be the same for all K rows of a prompt.
        prompts: ids of each row, at least one.
        tokens: the most new tokens, of all prompts or of each.
        end: the token that ends a hypothesis.
        no_repeat_ngram: no run of so many tokens occurs twice in prompt and continuation (1705.04304); 0: any may.
        matchers: of each prompt, which tokens may follow it; InputError where none may.

    Raises:
        ValueError: prompt and new tokens exceed the model's context.
    """
    longest, context = max(map(len, prompts)), model.body.config.context
    limits = [tokens] * len(prompts) if isinstance(tokens, int) else list(tokens)
    if longest + max(limits) - 1 > context:
        raise ValueError(f"a prompt of {longest} and {max(limits)} new tokens are more than the context of {context}")
    states = [BeamState(beam, limit, end, min(n_best, beam), penalty) for limit in limits]
    start_matchers(states, matchers)
    rows = [prompt for prompt in prompts for _ in range(beam)]
    cache = new_cache(model, len(rows), longest + max(limits) - 1)
    logits = prefill(model, rows, cache)
    log_probs = torch.full((len(prompts), beam), -math.inf, dtype=torch.float64, device=logits.device)
    log_probs[:, 0] = 0  # all beams of a prompt start equal: one of them counts
    while True:
        banned = find_repeats(states, prompts, no_repeat_ngram) if no_repeat_ngram else []
        candidates = top_candidates(logits, log_probs, banned, mask_tokens(logits, states))
        kept = [[] if state.done else state.advance(row) for state, row in zip(states, candidates)]
        if all(state.done for state in states):
            return [state.best() for state in states]
        filler = Candidate(-math.inf, 0, 0)
        padded = [(row + [filler] * beam)[:beam] for row in kept]  # (B, K)
        log_probs = log_probs.new_tensor([[candidate.log_prob for candidate in row] for row in padded])
        parents = [b * beam + candidate.parent for b, row in enumerate(padded) for candidate in row]
        if parents != list(range(len(parents))):
            cache.reorder(torch.tensor(parents))
        new = torch.tensor([candidate.token for row in padded for candidate in row], device=logits.device)
        logits = step(model, new, cache)


def find_repeats(states: Sequence[BeamState], prompts: Sequence[Sequence[int]], n: int) -> list[tuple[int, int, int]]:
    """Return (prompt, beam, token) of the tokens that would complete a run of n tokens for the second time."""
    banned = []
    for b, state in enumerate(states):
        for k, (_, continuation) in enumerate(() if state.done else state.live):
            tokens = [*prompts[b], *continuation]
            prefix = tokens[len(tokens) - n + 1 :]
            starts = range(len(tokens) - n + 1)
            banned += [(b, k, tokens[i + n - 1]) for i in starts if tokens[i : i + n - 1] == prefix]
    return banned


def start_matchers(states: Sequence[BeamState], matchers: Sequence[Matcher]) -> None:
    for state, matcher in zip(states, matchers):
        state.matchers, state.has_structure = [matcher], True


def mask_tokens(logits: Tensor, states: Sequence[BeamState]) -> Tensor | None:
    """Return which tokens may follow each hypothesis, (B * K, V), None where any may."""
    if not any(state.has_structure for state in states):
        return None
    rows = [[*state.matchers, *[None] * state.beam][: state.beam] for state in states]
    return stack_allowed(logits, [matcher for row in rows for matcher in row])


def top_candidates(
    logits: Tensor,
    log_probs: Tensor,
    banned: Sequence[tuple[int, int, int]] = (),
    allowed: Tensor | None = None,
) -> list[list[Candidate]]:
    """Return the best candidates of each prompt, best first: 2 K of them, since at most K can end.

    logits (B * K, V), log_probs (B, K), banned (prompt, beam, token), allowed (B * K, V): the tokens that may follow
    """
    (B, K), V = log_probs.shape, logits.shape[-1]
    # In float64, so that rounding does not make two tokens equal of which one is likelier.
    total = log_probs[:, :, None] + logits.double().log_softmax(-1).view(B, K, V)
    if allowed is not None:
        total.masked_fill_(~allowed.view(B, K, V), -math.inf)
    if banned:
        total[tuple(torch.tensor(banned, device=total.device).T)] = -math.inf
    best, index = total.flatten(1).topk(min(2 * K, K * V))
    return [
        [Candidate(log_prob, i // V, i % V) for log_prob, i in zip(row, indices)]
        for row, indices in zip(best.tolist(), index.tolist())
    ]
