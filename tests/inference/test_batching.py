"""Continuous batching: the queue, errors, memory, pauses and the end. That answers are those of a single request is
shown on generated models (tests/fuzz/test_differential.py)."""

import copy
import threading
from typing import Any

import pytest
import torch

from anyformer.data.tokenizers.build import Characters
from anyformer.errors import InputError
from anyformer.inference.batching import Piece, QueueFullError
from anyformer.inference.completion import CompletionRequest, generate_text
from anyformer.inference.logprobs import score_tokens
from anyformer.inference.row_cache import SharedRows
from anyformer.model.config import TransformerConfig
from anyformer.recipes import language
from batching_kit import Arrival, answer_requests, make_batcher

ALPHABET = "abcdefghijklmnopqrstuvwxyz \n"


@pytest.fixture(scope="module")
def model() -> language.LanguageModel:
    torch.manual_seed(0)
    shape = TransformerConfig(dim=32, n_layer=3, n_head=4, context=64, position="rotary")
    model = language.LanguageModel(language.Config(model=shape), Characters(ALPHABET))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def ask(prompt: str | list[str] = "the cat", **settings: Any) -> CompletionRequest:
    return CompletionRequest(prompt=prompt, **{"tokens": 12, "temperature": 0} | settings)


def answer_alone(model: Any, request: CompletionRequest) -> str:
    return list(generate_text(model, model.tokenizer, request))[-1][0].text


def test_requests_share_steps(model: language.LanguageModel):
    batcher, requests = make_batcher(model), [ask(prompt) for prompt in ("a", "the dog runs", "zebra", "it")]
    texts, ends = [""] * 4, []

    def submit(i: int) -> None:
        def add(piece: Piece) -> None:
            texts[i] += piece.text

        batcher.submit(requests[i], add, ends.append)

    with batcher.pause():
        for i in range(4):
            submit(i)
    batcher.close()
    assert ends == [None] * 4 and texts == [answer_alone(model, request) for request in requests]
    assert batcher.n_steps < 2 * 12 < batcher.n_tokens == 4 * 12
    assert batcher.n_prompt_tokens == sum(len(request.prompts[0]) for request in requests)


def test_a_full_queue(model: language.LanguageModel):
    batcher = make_batcher(model, max_rows=1, max_queue=2)
    with batcher.pause():
        tickets = [batcher.submit(ask(), print, print) for _ in range(3)]
        with pytest.raises(QueueFullError, match="too many"):
            batcher.submit(ask(), print, print)
        with pytest.raises(InputError, match="4 completions; at most 3"):
            batcher.submit(ask(samples=4), print, print)
        for ticket in tickets:
            ticket.cancel()
    batcher.close()
    with pytest.raises(QueueFullError, match="shutting down"):
        batcher.submit(ask(), print, print)


def test_a_closed_batcher_ends_its_answers_first(model: language.LanguageModel):
    batcher, ends, pieces = make_batcher(model, max_rows=1), [], []
    with batcher.pause():
        for _ in range(3):
            batcher.submit(ask(), pieces.append, ends.append)
    batcher.close()
    assert ends == [None] * 3 and [piece.finish_reason for piece in pieces].count("length") == 3


def test_a_batcher_closed_at_once_cancels_them(model: language.LanguageModel):
    batcher, ends, pieces = make_batcher(model, max_rows=1), [], []
    with batcher.pause():
        batcher.submit(ask(tokens=10_000), pieces.append, ends.append)
        threading.Thread(target=batcher.close, args=(False,)).start()
        while not batcher.is_closing:
            pass
    batcher.thread.join()
    assert ends == [None] and not pieces


def test_a_request_that_fails_does_not_end_the_others(model: language.LanguageModel):
    """Neither those beside it nor those that take its place: its keys and values are not numbers."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.nodes.token.weight[model.tokenizer.encode("z")] = torch.nan
    model.head = copy.deepcopy(model.head)
    model.head.project.weight = torch.nn.Parameter(model.head.project.weight.nan_to_num())
    batcher, good = make_batcher(model, prompt_tokens=100), ask("and", logit_bias={str(ALPHABET.index("z")): -1e3})
    arrivals = [Arrival(good), Arrival(ask("abcdezfghijk")), Arrival(good, after=5), Arrival(good, after=8)]
    first, bad, *others = answer_requests(batcher, arrivals)
    for answer in (first, *others):
        assert answer.errors == [None] and answer.texts == [answer_alone(model, good)]
    assert "its training diverged" in str(bad.errors[0])
    batcher.close()


def test_a_bias_of_no_token(model: language.LanguageModel):
    batcher = make_batcher(model)
    with pytest.raises(InputError, match="logit_bias names token 99; the vocabulary has 29"):
        batcher.submit(ask(logit_bias={"99": 1.0}), print, print)
    batcher.close()


def test_a_model_that_fails_ends_what_is_in_the_batch_and_answers_the_next(
    model: language.LanguageModel, monkeypatch: pytest.MonkeyPatch
):
    batcher, step = make_batcher(model), SharedRows.step

    def run_out_of_memory(self: SharedRows, ids: list[int]) -> Any:
        monkeypatch.setattr(SharedRows, "step", step)
        raise MemoryError("no")

    monkeypatch.setattr(SharedRows, "step", run_out_of_memory)
    (answer,) = answer_requests(batcher, [Arrival(ask())])
    assert isinstance(answer.errors[0], MemoryError)
    (answer,) = answer_requests(batcher, [Arrival(ask())])
    assert answer.texts == [answer_alone(model, ask())]
    batcher.close()


def test_callbacks_that_raise_harm_nobody(model: language.LanguageModel):
    batcher = make_batcher(model)

    def fail(_: Any) -> None:
        raise RuntimeError("the event loop is closed")

    batcher.submit(ask(), fail, fail)
    (answer,) = answer_requests(batcher, [Arrival(ask())])
    assert answer.texts == [answer_alone(model, ask())]
    batcher.close()


@pytest.mark.slow
def test_rows_wait_where_there_is_no_memory_for_them(model: language.LanguageModel):
    node_bytes = 2 * 3 * 32 * 4
    batcher, most = make_batcher(model, max_rows=8, max_bytes=4 * 64 * node_bytes), 0

    def count(_: Any) -> None:
        nonlocal most
        most = max(most, len(batcher.slots))

    ends: list[Any] = []
    with batcher.pause():
        for _ in range(7):
            batcher.submit(ask(tokens=100), count, ends.append)
    batcher.close()
    assert ends == [None] * 7 and most == 4 and not batcher.rows.lengths
    assert all(kv is None for kv in batcher.rows.layers)  # its memory is free again


def test_nothing_runs_during_a_pause(model: language.LanguageModel):
    batcher, pieces, end = make_batcher(model), [], threading.Event()
    ticket = batcher.submit(ask(tokens=100_000), pieces.append, lambda _: end.set())
    while not pieces:
        pass
    with batcher.pause():
        before = len(pieces), batcher.n_steps
        sum(i for i in range(300_000))
        assert (len(pieces), batcher.n_steps) == before
    ticket.cancel()
    assert end.wait(600)
    batcher.close()


def test_prompts_are_scored(model: language.LanguageModel):
    """Read in pieces, they have the log-probabilities of a single pass."""
    batcher, text = make_batcher(model), "the quick brown fox"
    request = ask([text, "and"], tokens=0, logprobs=2, echo=True)
    (answer,) = answer_requests(batcher, [Arrival(request)])
    batcher.close()
    ids = model.tokenizer.encode(text).tolist()
    logprobs = model(torch.tensor([ids]))[0, :-1].log_softmax(-1)
    expected = logprobs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    assert answer.prompt_logprobs is not None and [len(rows) for rows in answer.prompt_logprobs] == [len(ids) - 1, 2]
    for scores in (answer.prompt_logprobs[0], score_tokens(model, ids, 2)):
        assert [row.token for row in scores] == ids[1:]
        assert torch.tensor([row.logprob for row in scores]).allclose(expected, atol=1e-5)
        assert [row.top[0][0] for row in scores] == logprobs.argmax(-1).tolist()
    completions = list(generate_text(model, model.tokenizer, request))[-1]
    assert [len(c.prompt_logprobs or []) for c in completions] == [len(ids) - 1, 2]
    assert (answer.texts, answer.reasons) == (["", ""], ["length", "length"])


def test_a_prompt_that_is_scored_must_fit_into_the_context(model: language.LanguageModel):
    batcher, request = make_batcher(model), ask("a" * 65, logprobs=0, echo=True)
    with pytest.raises(InputError, match="the prompt has 65 tokens, and the context of the model is 64"):
        batcher.submit(request, print, print)
    with pytest.raises(InputError, match="has 65 tokens"):
        list(generate_text(model, model.tokenizer, request))
    batcher.close()
