"""Speculative decoding: tokens are guessed cheaply, and the model checks several of them in one pass (2211.17192).

A drafter proposes what may come next: what followed the same tokens earlier in the row (prompt lookup), what a text's
counts say, or what a small model says. The model reads all proposals at once, and its own sampler draws at each of
them in turn, as it would have one by one. Where the draw is what was proposed, the next one is already there. So every
token is the one that decoding without drafts gives, greedy or sampled, whatever is proposed.

Shapes: V entries of the vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ..data.text.ngrams import NGramCounts
from ..model.cache import can_go_back
from .decode import Decoder, generate, new_cache
from .prompt_reading import prefill
from .sampling import Sampler, SamplingParams
from .token_filter import TokenFilter

MAX_DRAFT = 16  # tokens that are proposed at once
READ_COST = 0.15  # of a pass, for each proposed token that it reads
FIRST_PAUSE, LONGEST_PAUSE = 8, 256  # tokens without drafts
LOOKUP_ORDERS = (6, 4, 3, 2)  # tokens that must be the same, the longest first


class Drafter(Protocol):
    """Proposes how a row of ids goes on."""

    cost: float
    """Of a proposed token, in passes of the model."""

    def propose(self, ids: Sequence[int], most: int) -> list[int]:
        """Return up to so many tokens that may follow. The row of the next call begins with this one, or is another."""


@runtime_checkable
class HasDrafter(Protocol):
    """A decoder for which drafts are made."""

    new_drafter: Callable[[], Drafter]


class PromptLookup:
    """Proposes what followed the last occurrence of the newest tokens in the row itself (2304.04487)."""

    cost = 0.0

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.places: dict[tuple[int, ...], int] = {}
        """The newest place behind each n-gram but those that end the row."""

    def propose(self, ids: Sequence[int], most: int) -> list[int]:
        if list(ids[: len(self.ids)]) != self.ids:
            self.ids, self.places = [], {}
        for end in range(len(self.ids), len(ids)):
            for order in LOOKUP_ORDERS:
                if end >= order:
                    self.places[tuple(ids[end - order : end])] = end
        self.ids = list(ids)
        for order in LOOKUP_ORDERS:
            place = self.places.get(tuple(ids[-order:])) if len(ids) >= order else None
            if place is not None:
                return continue_cyclically(ids, place, most)
        return []


def continue_cyclically(ids: Sequence[int], place: int, most: int) -> list[int]:
    """Return the tokens from a place on; at the end of the row, those that were returned first come again."""
    period = len(ids) - place
    return [ids[place + i % period] for i in range(most)]


class CountsDrafter:
    """Proposes the most frequent token after the longest context that occurs in counts, one after the other."""

    cost = 0.02

    def __init__(self, counts: NGramCounts, min_order: int = 2):
        self.counts, self.min_order = counts, min(min_order, counts.max_order)

    def propose(self, ids: Sequence[int], most: int) -> list[int]:
        row = list(ids[-self.counts.max_order :])
        for _ in range(most):
            token = self.find_next(row)
            if token is None:
                break
            row.append(token)
        return row[min(len(ids), self.counts.max_order) :]

    def find_next(self, row: Sequence[int]) -> int | None:
        for order in range(min(len(row), self.counts.max_order), self.min_order - 1, -1):
            code = 0
            for token in row[len(row) - order :]:
                code = code * self.counts.vocab_size + token
            table = self.counts.orders[order]
            index = int(np.searchsorted(table.contexts, code))
            if index < len(table.contexts) and table.contexts[index] == code:
                start, stop = table.starts[index], table.starts[index + 1]
                return int(table.tokens[start + int(table.counts[start:stop].argmax())])
        return None


class ModelDrafter:
    """Proposes the likeliest tokens of a small model with the same vocabulary.

    Args:
        cost: of one of its passes, in passes of the large model.
    """

    def __init__(self, model: Decoder, cost: float):
        self.model, self.cost, self.cache = model, cost, new_cache(model, 1)
        self.ids: list[int] = []
        """What the cache holds."""

    def propose(self, ids: Sequence[int], most: int) -> list[int]:
        room = self.cache.size - len(ids)
        if room < 1 or not can_go_back(self.cache):
            return []
        common = next((i for i, (a, b) in enumerate(zip(self.ids, ids)) if a != b), min(len(self.ids), len(ids)))
        common = min(common, len(ids) - 1)
        if common and self.cache.max_length:
            self.cache.trim(torch.tensor([common]))
        else:
            self.cache.reset()
            common = 0
        logits = self.read(ids[common:])
        drafted: list[int] = []
        for i in range(min(most, room)):
            drafted.append(int(logits.argmax()))
            if i + 1 < min(most, room):
                logits = self.read(drafted[-1:])
        self.ids = [*ids, *drafted][: self.cache.max_length]
        return drafted

    def read(self, ids: Sequence[int]) -> Tensor:
        new = torch.tensor([list(ids)], device=self.cache.device)
        return self.model.head(self.model.hidden(new, self.cache)[:, -1])[0]


class Pace:
    """How many tokens to propose: more where all were right, none for a while where it does not pay.

    Args:
        cost: of a proposed token, in passes.
    """

    def __init__(self, cost: float) -> None:
        self.cost, self.size, self.pause, self.next_pause = cost + READ_COST, 4, 0, FIRST_PAUSE
        self.gain = 1.0
        """Passes that a draft saves, a running mean."""

    def choose(self) -> int:
        if self.pause:
            self.pause -= 1
            return 0
        return self.size

    def record(self, proposed: int, accepted: int) -> None:
        self.size = min(MAX_DRAFT, 2 * self.size) if accepted == proposed else max(1, min(self.size, accepted + 1))
        self.gain += (accepted - self.cost * proposed - self.gain) / 4
        if self.gain < 0:
            self.pause, self.gain = self.next_pause, self.cost
            self.next_pause = min(LONGEST_PAUSE, 2 * self.next_pause)
        elif self.gain > 1:
            self.next_pause = FIRST_PAUSE


class DraftedRow:
    """One row, and what the model has read of it and of the tokens that were proposed behind it."""

    def __init__(self, model: Decoder, drafter: Drafter, window: list[int], size: int):
        self.model, self.drafter, self.window, self.pace = model, drafter, window, Pace(drafter.cost)
        self.cache = new_cache(model, 1, size)
        self.logits = prefill(model, [window], self.cache)
        """Of the next token, and of the one behind each of `drafted`: (1 + drafted, V)."""
        self.drafted: list[int] = []
        """Proposed tokens behind the window that the cache holds too."""
        self.n_proposed = 0

    def reset(self, window: list[int]) -> None:
        """Read another window in place of this one."""
        self.window, self.drafted = window, []
        self.logits = prefill(self.model, [window], self.cache)

    def append(self, token: int, most: int) -> None:
        """Go on with a token that was drawn; unless it was read already, read it with up to `most` proposed ones."""
        self.window.append(token)
        if self.drafted and token == self.drafted[0]:
            self.logits, self.drafted = self.logits[1:], self.drafted[1:]
            if not self.drafted:
                self.pace.record(self.n_proposed, self.n_proposed)
            return
        if self.drafted:
            self.pace.record(self.n_proposed, self.n_proposed - len(self.drafted))
            self.cache.trim(torch.tensor([len(self.window) - 1]))
        self.drafted = self.propose(most)
        self.n_proposed = len(self.drafted)
        ids = torch.tensor([[token, *self.drafted]], device=self.logits.device)
        self.logits = self.model.head(self.model.hidden(ids, self.cache)[0])

    def propose(self, most: int) -> list[int]:
        most = min(most, self.cache.size - len(self.window))
        size = min(most, self.pace.choose()) if most > 0 and can_go_back(self.cache) else 0
        return self.drafter.propose(self.window, size) if size else []


def generate_quickly(model: Decoder, prompts: Sequence[Sequence[int]], **settings: Any) -> Iterator[list[int | None]]:
    """Continue prompts as `decode.generate` does, a single one with drafts where the model has a drafter."""
    if len(prompts) == 1 and isinstance(model, HasDrafter):
        return generate_with_drafts(model, model.new_drafter(), prompts, **settings)
    return generate(model, prompts, **settings)


@torch.inference_mode()
def generate_with_drafts(
    model: Decoder,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    sampling: SamplingParams,
    seeds: Sequence[int],
    stop: Callable[[int, int], bool] = lambda row, token: False,
    keep: int | None = None,
    crop: Callable[[Sequence[int], int], list[int]] = lambda ids, size: list(ids[-size:]),
    watch: Callable[[Tensor, Tensor], None] = lambda logits, new: None,
    matchers: Sequence[TokenFilter] = (),
) -> Iterator[list[int | None]]:
    """Continue a single prompt with the tokens that `decode.generate` gives it; the arguments are the same."""
    context = model.body.config.context
    keep = min(keep or max(1, context // 2), context)
    sampler, window = Sampler(sampling, prompts, seeds, matchers), crop(prompts[0], context)
    row = DraftedRow(model, drafter, window, min(context, len(window) + tokens))
    for remaining in range(tokens, 0, -1):
        new = sampler(row.logits[:1])
        watch(row.logits[:1], new)
        token = int(new)
        is_over = stop(0, token) or remaining == 1  # told of every token, the last one too
        yield [token]
        if is_over:
            return
        if len(row.window) < context or row.cache.is_unbounded:
            row.append(token, remaining - 2)
        else:
            row.reset(crop([*row.window, token], keep))
