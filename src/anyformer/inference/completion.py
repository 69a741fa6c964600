"""Text in, text out: prompts to ids, ids to text as it grows, and when to stop.

Knows a tokenizer by what it does, not by its kind.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import InputError, nearest
from .decode import Decoder, generate
from .sampling import Rules

HALF = "\ufffd"  # what decoding shows for a character of which only the first bytes are there


class Tokenizer(Protocol):
    end: int | None

    @property
    def ends(self) -> Sequence[int]: ...
    def encode(self, text: Any) -> Any: ...
    def prompt(self, text: Any) -> Any: ...
    def chat(self, messages: Any) -> str: ...
    def encode_special(self, text: str) -> Any: ...
    def decode(self, ids: Any) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to continue and how. Plain values, so that it can come from a command line or over a wire."""

    prompt: str | Sequence[str] = "\n"
    """One text or several; an empty one starts from the end-of-text token."""
    messages: Sequence[dict[str, str]] = ()
    """Instead of a prompt: what was said so far, {"role": ..., "content": ...} each, by the model's chat template."""
    tokens: int = 200
    """The most new tokens."""
    samples: int = 1
    """Continuations of each prompt."""
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop: Sequence[str] = ()
    """Texts that end a continuation; they are not part of it."""
    seed: int = 0
    """Sample i of every prompt draws from stream (seed, i), whatever else is in the batch."""
    keep: int | None = None
    """Tokens that stay when the context is full and the oldest are cropped. None: half the context."""

    @staticmethod
    def of(values: dict[str, Any]) -> "Request":
        """From plain values. Raises InputError on unknown names and values that mean nothing."""
        names = [field.name for field in dataclasses.fields(Request)]
        for name in values:
            if name not in names:
                raise InputError(f"a request has no '{name}': {nearest(name, names)}")
        return Request(**values)

    def __post_init__(self) -> None:
        for name in ("tokens", "samples"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.keep is not None and self.keep < 1:
            raise InputError(f"keep is {self.keep}; it must be at least 1")
        if not 0 <= self.seed < 1 << 40:
            raise InputError(f"seed is {self.seed}; it must be between 0 and 2^40")
        if not self.prompts:
            raise InputError("there is no prompt to continue")
        _ = self.rules

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else list(self.prompt)

    @property
    def stops(self) -> list[str]:
        return [text for text in ([self.stop] if isinstance(self.stop, str) else self.stop) if text]

    @property
    def rules(self) -> Rules:
        names = [field.name for field in dataclasses.fields(Rules)]
        try:
            return Rules(**{name: getattr(self, name) for name in names})
        except ValueError as error:
            raise InputError(str(error)) from None


class Voice:
    """One continuation as it grows."""

    def __init__(self, prompt: str, ids: list[int], tokenizer: Tokenizer, stops: Sequence[str]):
        self.prompt, self.tokenizer, self.stops = prompt, tokenizer, stops
        self.before = ids[-8:]  # some tokenizers write a word differently after another: keep a little of the prompt
        self.skip = len(tokenizer.decode(self.before))
        self.tokens: list[int] = []
        self.finish_reason: str | None = None
        self.shown = 0

    def add(self, token: int) -> bool:
        """Hear one more token; says whether the continuation ends with it."""
        if token in self.tokenizer.ends:
            self.finish_reason = "stop"
            return True
        self.tokens.append(token)
        if self.stops and self.ending() is not None:
            self.finish_reason = "stop"
        return self.finish_reason is not None

    def whole(self) -> str:
        return self.tokenizer.decode(self.before + self.tokens)[self.skip :]

    def ending(self) -> int | None:
        """Where the first stop text begins, if there is one."""
        text = self.whole()
        return min((at for at in map(text.find, self.stops) if at >= 0), default=None)

    @property
    def text(self) -> str:
        return self.whole()[: self.ending()]

    def fresh(self) -> str:
        """What can be shown since the last call: no half character, nothing that may be the start of a stop text."""
        text = self.text
        if self.finish_reason is None:
            text = text.rstrip(HALF)
            held = max((n for stop in self.stops for n in range(len(stop)) if text.endswith(stop[:n])), default=0)
            text = text[: len(text) - held]
        new, self.shown = text[self.shown :], max(self.shown, len(text))
        return new

    def result(self) -> dict[str, Any]:
        return {"prompt": self.prompt, "text": self.text, "tokens": self.tokens, "finish_reason": self.finish_reason}


def speak(model: Decoder, tokenizer: Tokenizer, request: Request) -> Iterator[list[Voice]]:
    """Continue all prompts in one batch; yields all voices after each token, at the end with their finish reasons.
    Sample j of prompt i is voice i * samples + j."""
    texts, ids = read(request, tokenizer)
    rows = [(text, row) for text, row in zip(texts, ids) for _ in range(request.samples)]
    voices = [Voice(text, row, tokenizer, request.stops) for text, row in rows]
    seeds = [request.seed * 1_000_003 + j for _ in ids for j in range(request.samples)]
    steps = generate(
        model,
        [row for _, row in rows],
        tokens=request.tokens,
        rules=request.rules,
        seeds=seeds,
        stop=lambda row, token: voices[row].add(token),
        keep=request.keep,
    )
    for _ in steps:
        yield voices
    for voice in voices:
        voice.finish_reason = voice.finish_reason or "length"
    yield voices


def read(request: Request, tokenizer: Tokenizer) -> tuple[list[str], list[list[int]]]:
    """What is shown of each prompt, and its ids. Of a chat nothing is shown: the answer speaks for itself."""
    if not request.messages:
        return request.prompts, [encode(text, tokenizer) for text in request.prompts]
    ids = [int(i) for i in tokenizer.encode_special(tokenizer.chat(request.messages))]
    if not ids:
        raise InputError("the chat template makes nothing of these messages")
    return [""], [ids]


def encode(text: str, tokenizer: Tokenizer) -> list[int]:
    ids = [int(i) for i in tokenizer.prompt(text)]
    if not ids and tokenizer.end is not None:
        return [tokenizer.end]
    if not ids:
        raise InputError("the prompt is empty and this vocabulary has no end-of-text token to start from")
    return ids
