"""Exact sampling under a constraint: answers from the model's own distribution of the texts that have a structure.

Masking makes answers too likely whose beginnings the model seldom goes on from in this structure (2405.21047). Here an
answer is drawn as if there were no constraint, and refused at its first token that may not follow. What is refused is
never drawn again: a trie of the beginnings so far holds, for each, how much of its probability may still lead to an
answer (adaptive rejection sampling, 2510.01902). Whatever the trie holds, an answer that is not refused has exactly the
model's distribution; the trie only spares tries. Where there are few answers, it soon holds them all.

An answer ends with its end token, where something else could follow, and has at most `tokens` tokens.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from .decode import Decoder, HasOwnCache, new_cache
from .prompt_reading import prefill
from .sampling import Sampler, SamplingParams, process_logits
from .structure import Matcher

MAX_TRIES = 10_000  # of an answer
MAX_NUMBERS = 1 << 25  # probabilities in a trie


@dataclass
class Node:
    """The beginning of an answer."""

    tokens: np.ndarray
    """Those that may follow."""
    probabilities: np.ndarray
    """Of each of them, by the model."""
    masses: np.ndarray
    """Of each of them: with which probability what follows it may be of the structure, 1 where nothing is known."""
    children: dict[int, "Node | None"] = field(default_factory=dict)
    """By the index of the token; None: the answer is complete with it."""

    @property
    def next_mass(self) -> float:
        """The probability of a token that may follow."""
        return float(self.probabilities.sum())

    @property
    def mass(self) -> float:
        return float(self.probabilities @ self.masses)

    def choose(self, draw: float) -> int:
        """Return the index of a token, by a random number from 0 to 1."""
        cumulative = (self.probabilities * self.masses).cumsum()
        return min(int(np.searchsorted(cumulative, draw * cumulative[-1], side="right")), len(cumulative) - 1)


class ExactSampler:
    """Draws answers to one prompt.

    Args:
        start: Returns the matcher of a new answer.
        predict: Maps the tokens so far to the probabilities of the next one, (V,).
        max_tokens: Of an answer, its end token included.
    """

    def __init__(self, start: Callable[[], Matcher], predict: Callable[[list[int]], np.ndarray], max_tokens: int):
        self.start, self.predict, self.max_tokens, self.n_numbers = start, predict, max_tokens, 0
        matcher = start()
        self.end_ids = {*matcher.constraint.end_ids}
        self.root = self.build_node([], matcher.mask)

    def build_node(self, tokens: list[int], allowed: np.ndarray) -> Node:
        probabilities = self.predict(tokens)
        allowed = np.flatnonzero(allowed[: len(probabilities)])
        self.n_numbers += len(allowed)
        if self.n_numbers > MAX_NUMBERS:
            raise InputError("exact: too many beginnings of answers to remember: leave exact out, or ask for less")
        return Node(allowed, probabilities[allowed], np.ones(len(allowed)))

    def draw(self, generator: torch.Generator) -> tuple[list[int], float]:
        """Draw an answer: its tokens, without the end, and the sum of the logarithms of its kept masses. Raises
        InputError if it takes too many tries."""
        for _ in range(MAX_TRIES):
            if not self.root.mass:
                raise InputError(
                    f"exact: the model writes no text of this structure of at most {self.max_tokens} tokens"
                )
            path: list[tuple[Node, int]] = []
            if self.extend(path, generator):
                tokens = [int(node.tokens[index]) for node, index in path]
                log_mass = sum(math.log(node.next_mass) for node, _ in path)
                return tokens[: len(tokens) - (tokens[-1] in self.end_ids)], log_mass
        raise InputError(
            f"exact: no answer in {MAX_TRIES:,} tries, for the texts of this structure have at most a probability of "
            f"{self.root.mass:.1g}: leave exact out, or ask for less"
        )

    def extend(self, path: list[tuple[Node, int]], generator: torch.Generator) -> bool:
        """Draw an answer, token by token. Returns whether it was not refused."""
        node, matcher, tokens = self.root, self.start(), []
        while True:
            index = node.choose(draw_number(generator))
            path.append((node, index))
            if (token := int(node.tokens[index])) in self.end_ids:
                return True
            tokens.append(token)
            matcher.advance(token)
            if index in node.children:
                child = node.children[index]
                if child is None:
                    return True
            else:
                child = self.add_child(node, index, tokens, matcher)
                update_masses(path)
                if child is None:
                    return node.masses[index] > 0
                if draw_number(generator) >= child.mass:  # the next token is one that may not follow
                    return False
            node = child

    def add_child(self, node: Node, index: int, tokens: list[int], matcher: Matcher) -> Node | None:
        """Find out what may follow a beginning for the first time. Returns None where nothing does."""
        matcher.look_ahead()
        if matcher.is_complete:
            node.children[index] = None
            return None
        if matcher.is_dead or len(tokens) == self.max_tokens:
            node.masses[index] = 0
            return None
        child = node.children[index] = self.build_node(tokens, matcher.mask)
        return child


def update_masses(path: Sequence[tuple[Node, int]]) -> None:
    """Take into account what is known of the last child in all beginnings before it."""
    for node, index in reversed(path):
        if (child := node.children.get(index)) is not None:
            node.masses[index] = child.mass


def draw_number(generator: torch.Generator) -> float:
    return float(torch.rand(1, dtype=torch.float64, generator=generator))


class Predictor:
    """The next token's probabilities after a prompt, as the sampling parameters make them."""

    def __init__(self, model: Decoder, prompt: Sequence[int], params: SamplingParams, max_tokens: int):
        self.model, self.prompt, self.params = model, [*prompt], params
        context = model.body.config.context
        if len(prompt) + max_tokens - 1 > context:
            text = f"exact: a prompt of {len(prompt):,} and {max_tokens:,} new tokens exceed the context of {context:,}"
            raise InputError(f"{text}: ask for fewer tokens")
        self.sampler = Sampler(params, [prompt], [0])
        self.cache, self.cached = new_cache(model, 1, len(prompt) + max_tokens), list[int]()

    @torch.inference_mode()
    def __call__(self, tokens: list[int]) -> np.ndarray:
        path = [*self.prompt, *tokens]
        n_known = self.go_back(path)
        if n_known:
            ids = torch.tensor([path[n_known:]], device=self.cache.device)
            logits = self.model.head(self.model.hidden(ids, self.cache)[:, -1])
        else:
            logits = prefill(self.model, [path], self.cache)
        self.cached = path
        logits = process_logits(self.sampler.penalize(logits.float()), self.params)
        if not logits.amax().isfinite():
            raise InputError("the model's logits are nan or inf: its training diverged; use an earlier checkpoint")
        return logits[0].double().softmax(-1).cpu().numpy()

    def go_back(self, path: Sequence[int]) -> int:
        """Shorten the cache to the nodes that it shares with a path, and return how many these are; 0 where it cannot
        go back."""
        pairs = enumerate(zip(self.cached, path[:-1]))
        n_known = next((i for i, (old, new) in pairs if old != new), min(len(self.cached), len(path) - 1))
        if n_known == len(self.cached):
            return n_known
        if isinstance(self.model, HasOwnCache):
            return 0
        try:
            self.cache.trim(torch.tensor([n_known]))
        except ValueError:  # a layer that keeps a window
            return 0
        return n_known


def check_exact(request: Any) -> None:
    """Raise InputError for what exact sampling cannot take into account."""
    if request.temperature == 0:
        raise InputError("exact needs a temperature above 0: it draws, and does not search for the likeliest answer")
    unset = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "logprobs": None}
    names = [name for name, value in unset.items() if getattr(request, name) != value] + ["stop"] * bool(request.stops)
    if names:
        raise InputError(f"exact and {names[0]} exclude each other")
    if not request.tokens:
        raise InputError("exact: tokens is 0; it must be at least 1")


def sample_exactly(
    model: Decoder, request: Any, completions: list[Any], prompts: Sequence[list[int]], seeds: Sequence[int]
) -> Iterator[list[Any]]:
    """Fill the completions of a `CompletionRequest`, of `request.samples` for each prompt; yield them after each.

    The samples of a prompt share a trie: the same request has the same answers, but not each of its samples alone.
    """
    sampler = None
    for i, (completion, ids, seed) in enumerate(zip(completions, prompts, seeds, strict=True)):
        if i % request.samples == 0 or sampler is None:
            predict = Predictor(model, ids, request, request.tokens)
            sampler = ExactSampler(completion.matcher.copy, predict, request.tokens)
        tokens, completion.matcher.log_kept_mass = sampler.draw(torch.Generator().manual_seed(seed))
        for token in tokens:
            completion.add(token)
        completion.finish_reason, completion.log_grammar_mass = "stop", math.log(sampler.root.mass)
        yield completions
