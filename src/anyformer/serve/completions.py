"""Completions in OpenAI's format: whole, or in pieces as they grow."""

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..data.tokenizers.base import Tokenizer
from ..inference.batching import Piece
from ..inference.completion import REPLACEMENT_CHARACTER
from ..inference.logprobs import TokenLogprobs
from .models import Completions

MIN_LOGPROB = -9999.0  # JSON knows no -inf


@dataclass
class Choice:
    """One completion, or what it has grown by."""

    index: int
    text: str = ""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    n_tokens: int = 0
    finish_reason: str | None = None
    first_token: int | None = None
    """Of a prompt that is repeated before the completion: nothing says how likely it is."""
    offset: int = 0
    """Characters of the prompt and the completion before these."""
    notes: list[str] | None = None
    """Of a model that has notes, those that hold at the end."""

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.logprobs += piece.logprobs
        self.n_tokens += len(piece.tokens)
        self.finish_reason, self.notes = piece.finish_reason, piece.notes

    def format_notes(self) -> dict[str, Any]:
        """Return the notes, which are beyond OpenAI's format."""
        return {} if self.notes is None else {"notes": self.notes}


class TextFormat:
    """/v1/completions"""

    name = chunk_name = "text_completion"
    prefix = "cmpl"
    prompt_field = "prompt"

    def __init__(self, tokenizer: Tokenizer, echo: bool, has_logprobs: bool):
        self.tokenizer, self.echo, self.has_logprobs = tokenizer, echo, has_logprobs

    def begin(self, index: int, completions: Completions) -> Choice:
        """Return a choice as it begins: empty, or the prompt where that is repeated."""
        number = index // completions.ticket.request.samples
        ids, text = completions.ticket.prompt_ids[number], completions.prompt_text(number)
        if not self.echo:
            return Choice(index, offset=len(text))
        scores = completions.ticket.prompt_logprobs
        first = ids[0] if scores is not None and ids else None
        return Choice(index, text, list(scores[number]) if scores is not None else [], first_token=first)

    def format(self, choice: Choice) -> dict[str, Any]:
        logprobs = self.format_logprobs(choice) if self.has_logprobs else None
        values = {"text": choice.text, "index": choice.index, "logprobs": logprobs}
        return values | {"finish_reason": choice.finish_reason} | choice.format_notes()

    format_chunk = format

    def format_logprobs(self, choice: Choice) -> dict[str, Any]:
        lists: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        entries: list[Any] = [] if choice.first_token is None else [TokenLogprobs(choice.first_token, 0.0, [])]
        offset = choice.offset
        for i, entry in enumerate([*entries, *choice.logprobs]):
            is_first = i == 0 and choice.first_token is not None
            text = token_text(self.tokenizer, entry.token)
            top: dict[str, float] = {}
            for token, value in [*entry.top, (entry.token, entry.logprob)]:
                top.setdefault(token_text(self.tokenizer, token), clip(value))
            values = (text, None if is_first else clip(entry.logprob), None if is_first else top, offset)
            for column, value in zip(lists.values(), values, strict=True):
                column.append(value)
            offset += len(self.tokenizer.decode([entry.token]))
        return lists


class ChatFormat:
    """/v1/chat/completions"""

    name, chunk_name, prefix, prompt_field = "chat.completion", "chat.completion.chunk", "chatcmpl", "messages"

    def __init__(self, tokenizer: Tokenizer, has_logprobs: bool):
        self.tokenizer, self.has_logprobs = tokenizer, has_logprobs

    def begin(self, index: int, completions: Completions) -> Choice:
        return Choice(index)

    def format(self, choice: Choice) -> dict[str, Any]:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        return self.finish(choice, {"index": choice.index, "message": message})

    def format_chunk(self, choice: Choice, is_first: bool = False) -> dict[str, Any]:
        delta = {"role": "assistant"} if is_first else {}
        delta |= {"content": choice.text} if is_first or choice.text else {}
        return self.finish(choice, {"index": choice.index, "delta": delta})

    def finish(self, choice: Choice, values: dict[str, Any]) -> dict[str, Any]:
        content = [self.describe(entry.token, entry.logprob, entry.top) for entry in choice.logprobs]
        logprobs = {"content": content, "refusal": None} if self.has_logprobs else None
        return values | {"logprobs": logprobs, "finish_reason": choice.finish_reason} | choice.format_notes()

    def describe(self, token: int, logprob: float, top: Sequence[tuple[int, float]] | None = None) -> dict[str, Any]:
        text = token_text(self.tokenizer, token)
        is_text = not text.startswith("token_id:")
        values: dict[str, Any] = {"token": text, "logprob": clip(logprob)}
        values["bytes"] = list(text.encode("utf-8", "replace")) if is_text else None
        return values if top is None else values | {"top_logprobs": [self.describe(*pair) for pair in top]}


Format = TextFormat | ChatFormat


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """Return the text of a token, with a space before it where it has one; "token_id:42" for one without a text of its
    own: a special token, or part of a character."""
    text = tokenizer.decode([token])
    text = tokenizer.decode([token, token])[len(text) :] if text else ""
    return text if text and REPLACEMENT_CHARACTER not in text else f"token_id:{token}"


def clip(logprob: float) -> float:
    return max(logprob, MIN_LOGPROB)


class CompletionAnswer:
    """The answer to one request, in its format.

    Args:
        model: The name of the model.
        on_usage: Called with the numbers of prompt tokens and new tokens so far.
    """

    def __init__(self, model: str, completions: Completions, form: Format, on_usage: Callable[[int, int], None]):
        self.completions, self.form, self.on_usage = completions, form, on_usage
        request = completions.ticket.request
        self.n_choices = len(completions.ticket.prompt_ids) * request.samples
        self.head = {"id": f"{form.prefix}-{time.time_ns():x}", "created": int(time.time()), "model": model}
        self.n_tokens = 0
        self.warning = ""
        if completions.n_dropped:
            n, context = completions.n_dropped + completions.context, completions.context
            self.warning = f"the prompt has {n:,} tokens and the context holds {context:,}: its start was dropped"

    def usage(self) -> dict[str, Any]:
        n, details = self.completions.prompt_tokens, {"cached_tokens": self.completions.ticket.n_cached}
        counts = {"prompt_tokens": n, "completion_tokens": self.n_tokens, "total_tokens": n + self.n_tokens}
        return counts | {"prompt_tokens_details": details}

    def count(self, piece: Piece) -> None:
        self.n_tokens += len(piece.tokens)
        self.on_usage(self.completions.prompt_tokens, self.n_tokens)

    async def gather(self) -> dict[str, Any]:
        """Return the whole answer."""
        grown = [Choice(index) for index in range(self.n_choices)]
        async for piece in self.completions.pieces():
            self.count(piece)
            grown[piece.index].add(piece)
        choices = []
        for new in grown:
            choice = self.form.begin(new.index, self.completions)
            choice.add(Piece(new.index, new.text, [], new.logprobs, new.finish_reason, new.notes))
            choices.append(self.form.format(choice))
        extra = {"warning": self.warning} if self.warning else {}
        return {**self.head, "object": self.form.name, "choices": choices, "usage": self.usage(), **extra}

    async def events(self, include_usage: bool) -> AsyncGenerator[dict[str, Any]]:
        """Yield the answer in chunks."""
        head: dict[str, Any] = {**self.head, "object": self.form.chunk_name}
        head |= {"usage": None} if include_usage else {}
        head |= {"warning": self.warning} if self.warning else {}
        offsets: dict[int, int] = {}
        if isinstance(self.form, ChatFormat):
            for index in range(self.n_choices):
                yield head | {"choices": [self.form.format_chunk(Choice(index), is_first=True)]}
        async for piece in self.completions.pieces():
            self.count(piece)
            choice = Choice(piece.index, offset=offsets.get(piece.index, 0))
            if piece.index not in offsets:
                choice = self.form.begin(piece.index, self.completions)
                offsets[piece.index] = choice.offset
            choice.add(piece)
            offsets[piece.index] += len(choice.text)
            if choice.text or choice.logprobs or choice.finish_reason:
                yield head | {"choices": [self.form.format_chunk(choice)]}
        if include_usage:
            yield head | {"choices": [], "usage": self.usage()}
