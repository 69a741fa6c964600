"""Requests to a `Batcher` in an order that does not depend on threads: each joins after a number of pieces."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from anyformer.inference.batching import Batcher, Piece
from anyformer.inference.completion import CompletionRequest
from anyformer.inference.logprobs import TokenLogprobs


@dataclass
class Answer:
    """What has come of a request: the text, tokens and log-probabilities of each completion, and its end."""

    texts: list[str]
    tokens: list[list[int]]
    logprobs: list[list[TokenLogprobs]]
    reasons: list[str | None]
    prompt_logprobs: list[list[TokenLogprobs]] | None = None
    errors: list[BaseException | None] = field(default_factory=list)


@dataclass(frozen=True)
class Arrival:
    """A request that joins once `after` pieces of the earlier ones have come, and is cancelled after so many of its
    own."""

    request: CompletionRequest
    after: int = 0
    cancel_after: int | None = None


def answer_requests(batcher: Batcher, arrivals: Sequence[Arrival]) -> list[Answer]:
    """Submit requests, some from inside the callbacks of others, and wait until all have ended."""
    answers, n_pieces, is_done = [], 0, threading.Semaphore(0)
    pending, failures = list(arrivals), []

    def submit(arrival: Arrival) -> None:
        request, own_pieces = arrival.request, 0
        n = len(request.prompts) * request.samples
        answer = Answer([""] * n, [[] for _ in range(n)], [[] for _ in range(n)], [None] * n)
        answers.append(answer)

        def add(piece: Piece) -> None:
            nonlocal n_pieces, own_pieces
            n_pieces, own_pieces = n_pieces + 1, own_pieces + 1
            answer.texts[piece.index] += piece.text
            answer.tokens[piece.index] += piece.tokens
            answer.logprobs[piece.index] += piece.logprobs
            answer.reasons[piece.index] = piece.finish_reason
            if own_pieces == arrival.cancel_after:
                ticket.cancel()
            submit_due()

        def end(error: BaseException | None) -> None:
            answer.errors.append(error)
            answer.prompt_logprobs = ticket.prompt_logprobs
            submit_due(has_ended=True)
            is_done.release()

        try:
            with batcher.condition:  # nothing comes before the ticket is known
                ticket = batcher.submit(request, add, end)
        except BaseException as error:
            failures.append(error)
            is_done.release()

    def submit_due(has_ended: bool = False) -> None:
        is_idle = has_ended and sum(bool(answer.errors) for answer in answers) == len(answers)
        while pending and (is_idle or n_pieces >= pending[0].after):
            is_idle = False
            submit(pending.pop(0))

    submit(pending.pop(0))
    for _ in arrivals:
        assert is_done.acquire(timeout=600)
    if failures:
        raise failures[0]
    return answers


def make_batcher(model: Any, **settings: Any) -> Batcher:
    return Batcher(model, **{"max_rows": 4, "prompt_tokens": 3} | settings)
