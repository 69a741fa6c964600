"""Beam search: the likeliest continuations, not one that was drawn.

At each step every hypothesis is continued by every token and the best `beam` of them live on. One that takes the end
token is finished; the others of its prompt go on until `beam` are finished, or none that lives can still come before
the best that are finished. With one beam this is the greedy choice (1409.3215, section 3.2).

A hypothesis is scored by its log-probability over its length to the power of `penalty` (1609.08144, section 7, without
its constant): 0 favours short ones, 1 compares the mean of a token, above 1 favours long ones.

Shapes: B prompts, K beams, V vocabulary. Row b * K + i of a batch is hypothesis i of prompt b.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .decode import Decoder, new_cache, prefill, step


@dataclass(frozen=True)
class Hypothesis:
    """A continuation: its tokens without the end, and how good it is."""

    tokens: list[int]
    score: float
    log_prob: float
    """Of all tokens, the end too, in nats."""
    finished: bool
    """Whether it ended by itself, not because there were enough tokens."""


@dataclass
class Search:
    """The hypotheses of one prompt."""

    beam: int
    limit: int
    end: int | None
    n_best: int
    penalty: float
    live: list[tuple[float, list[int]]] = field(default_factory=lambda: [(0.0, [])])
    finished: list[Hypothesis] = field(default_factory=list)
    done: bool = False

    def take(self, candidates: Sequence[tuple[float, int, int]]) -> list[tuple[float, int, int]]:
        """The next step: (log-probability, hypothesis, token), best first. Returns those that live on."""
        kept: list[tuple[float, int, int]] = []
        for rank, (log_prob, parent, token) in enumerate(candidates):
            if log_prob == -math.inf or len(kept) == self.beam:
                break
            if token != self.end:
                kept.append((log_prob, parent, token))
            elif rank < self.beam:  # one that ends stands where it would stand if it went on
                self.finish(self.live[parent][1], log_prob, len(self.live[parent][1]) + 1)
        self.live = [(log_prob, [*self.live[parent][1], token]) for log_prob, parent, token in kept]
        if self.live and len(self.live[0][1]) == self.limit:
            for log_prob, tokens in self.live:
                self.finish(tokens, log_prob, len(tokens), by_itself=False)
            self.live = []
        self.done = not self.live or len(self.ended) >= self.beam or self.settled
        return kept

    def finish(self, tokens: list[int], log_prob: float, length: int, by_itself: bool = True) -> None:
        self.finished.append(Hypothesis(tokens, log_prob / length**self.penalty, log_prob, by_itself))

    @property
    def ended(self) -> list[Hypothesis]:
        return [hypothesis for hypothesis in self.finished if hypothesis.finished]

    @property
    def settled(self) -> bool:
        """Whether nothing that lives can still come among the best: log-probabilities only fall."""
        best = self.best()
        if len(best) < self.n_best:
            return False
        log_prob, tokens = self.live[0]
        length = self.limit if self.penalty > 0 else len(tokens) + 1
        return log_prob / length**self.penalty <= best[-1].score

    def best(self) -> list[Hypothesis]:
        return sorted(self.finished, key=lambda hypothesis: -hypothesis.score)[: self.n_best]


@torch.inference_mode()
def search(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    beam: int,
    tokens: int,
    end: int | None,
    n_best: int = 1,
    penalty: float = 1.0,
) -> list[list[Hypothesis]]:
    """The `n_best` continuations of each prompt, best first.

    model: reads B * K rows; what it knows of a row besides its tokens (a memory) is the same for all K of a prompt.
    tokens: the most new ones. end: the token that finishes, None where there is none. Raises ValueError where prompt
    and new tokens do not fit into the model's context.
    """
    longest, context = max(map(len, prompts)), model.body.config.context
    if longest + tokens - 1 > context:
        raise ValueError(f"a prompt of {longest} and {tokens} new tokens are more than the context of {context}")
    searches = [Search(beam, tokens, end, min(n_best, beam), penalty) for _ in prompts]
    rows = [prompt for prompt in prompts for _ in range(beam)]
    cache = new_cache(model, len(rows), longest + tokens - 1)
    logits = prefill(model, rows, cache)
    score = torch.full((len(prompts), beam), -math.inf, dtype=torch.float64, device=logits.device)
    score[:, 0] = 0  # they all begin the same: one is enough
    while True:
        kept = [found.take(c) if not found.done else [] for found, c in zip(searches, candidates(logits, score))]
        if all(found.done for found in searches):
            return [found.best() for found in searches]
        gap = (-math.inf, 0, 0)
        filled = [(row + [gap] * beam)[:beam] for row in kept]  # (B, K) of (log-probability, hypothesis, token)
        score = score.new_tensor([[log_prob for log_prob, _, _ in row] for row in filled])
        parents = [b * beam + parent for b, row in enumerate(filled) for _, parent, _ in row]
        if parents != list(range(len(parents))):
            cache.pick(torch.tensor(parents))
        new = torch.tensor([token for row in filled for _, _, token in row], device=logits.device)
        logits = step(model, new, cache)


def candidates(logits: Tensor, score: Tensor) -> list[list[tuple[float, int, int]]]:
    """The best continuations of each prompt: (log-probability, hypothesis, token), best first. Twice as many as there
    are beams, since half of them at most can end. logits (B * K, V), score (B, K)"""
    (B, K), V = score.shape, logits.shape[-1]
    # In float64, where rounding does not make equals of two tokens of which one is likelier.
    total = score[:, :, None] + logits.double().log_softmax(-1).view(B, K, V)
    best, at = total.flatten(1).topk(min(2 * K, K * V))
    return [
        [(log_prob, place // V, place % V) for log_prob, place in zip(row, places)]
        for row, places in zip(best.tolist(), at.tolist())
    ]
