"""Text completion: prompts to ids, ids to text as it grows, and when to stop."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.tokenizers.base import Tokenizer
from ..errors import InputError
from ..parsing import check_range
from .decode import Decoder, generate
from .sampling import SamplingParams

REPLACEMENT_CHARACTER = "\ufffd"  # decoded from the first bytes of a character whose other bytes are still missing
CONTEXT_TOKENS = 8  # tokens of the prompt that new tokens are decoded with: a word may depend on the one before it
MAX_SAMPLES = 10_000  # of a prompt; they are generated together


@dataclass(frozen=True, kw_only=True)
class CompletionRequest(SamplingParams):
    """What to continue and how, in plain values. Raises InputError on values that make no sense."""

    prompt: str | Sequence[str] = "\n"
    """One text or several; an empty one starts from the end-of-text token."""
    messages: Sequence[dict[str, Any]] = ()
    """Instead of a prompt, a chat: {"role": ..., "content": ...} each, formatted by the model's chat template."""
    tokens: int = 200
    """The most new tokens."""
    samples: int = 1
    """Continuations of each prompt."""
    temperature: float = 0.8
    stop: str | Sequence[str] = ()
    """Texts that end a continuation; they are not part of it."""
    seed: int = 0
    """Sample i of every prompt draws from stream (seed, i), whatever else is in the batch."""
    keep: int | None = None
    """Tokens that stay when the context is full and the oldest are dropped. None: half of the context."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "tokens", "keep", at_least=1, at_most=10_000_000)
        check_range(self, "samples", at_least=1, at_most=MAX_SAMPLES)
        check_range(self, "seed", at_least=0, below=1 << 40)
        if not self.prompts:
            raise InputError("there is no prompt to continue")

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else list(self.prompt)

    @property
    def stops(self) -> list[str]:
        return [text for text in ([self.stop] if isinstance(self.stop, str) else self.stop) if text]


class Completion:
    """One continuation of a prompt, as it grows."""

    def __init__(self, prompt: str, ids: list[int], tokenizer: Tokenizer, stops: Sequence[str]):
        self.prompt, self.tokenizer, self.stops = prompt, tokenizer, stops
        self.context_ids = ids[-CONTEXT_TOKENS:]
        self.context_length = len(tokenizer.decode(self.context_ids))
        self.tokens: list[int] = []
        self.finish_reason: str | None = None
        self.shown_length = 0

    def add(self, token: int) -> bool:
        """Append a token. Returns whether the continuation ends with it."""
        if token in self.tokenizer.end_ids:
            self.finish_reason = "stop"
            return True
        self.tokens.append(token)
        if self.stops and len(self.text) < len(self.decode()):
            self.finish_reason = "stop"
        return self.finish_reason is not None

    def decode(self) -> str:
        """Return the text of all tokens, a stop text included."""
        return self.tokenizer.decode(self.context_ids + self.tokens)[self.context_length :]

    @property
    def text(self) -> str:
        """The text before the first stop text."""
        text = self.decode()
        return text[: min((i for i in map(text.find, self.stops) if i >= 0), default=None)]

    def new_text(self) -> str:
        """Return the text added since the last call, without an incomplete character or the start of a stop text."""
        text = self.text
        if self.finish_reason is None:
            text = text.rstrip(REPLACEMENT_CHARACTER)
            withheld = max((n for stop in self.stops for n in range(len(stop)) if text.endswith(stop[:n])), default=0)
            text = text[: len(text) - withheld]
        new, self.shown_length = text[self.shown_length :], max(self.shown_length, len(text))
        return new

    def result(self) -> dict[str, Any]:
        return {"prompt": self.prompt, "text": self.text, "tokens": self.tokens, "finish_reason": self.finish_reason}


def generate_text(model: Decoder, tokenizer: Tokenizer, request: CompletionRequest) -> Iterator[list[Completion]]:
    """Continue all prompts in one batch; yield all completions after every token, and at the end with their finish
    reasons. Sample j of prompt i is completion i * samples + j."""
    prompts = [row for row in encode_prompts(request, tokenizer) for _ in range(request.samples)]
    completions = [Completion(text, ids, tokenizer, request.stops) for text, ids in prompts]
    steps = generate(
        model,
        [ids for _, ids in prompts],
        tokens=request.tokens,
        sampling=request,
        seeds=[request.seed * 1_000_003 + i % request.samples for i in range(len(prompts))],
        stop=lambda row, token: completions[row].add(token),
        keep=request.keep,
    )
    for _ in steps:
        yield completions
    for completion in completions:
        completion.finish_reason = completion.finish_reason or "length"
    yield completions


def encode_prompts(request: CompletionRequest, tokenizer: Tokenizer) -> list[tuple[str, list[int]]]:
    """Return the text that is shown of each prompt (of a chat, nothing) and its ids. Raises InputError."""
    if request.messages:
        ids = tokenizer.encode_parsing_special(tokenizer.apply_chat_template(request.messages)).tolist()
        if not ids:
            raise InputError("the chat template returns an empty text for these messages")
        return [("", ids)]
    end = [] if tokenizer.end_id is None else [tokenizer.end_id]
    rows = [(text, tokenizer.encode_prompt(text).tolist() or end) for text in request.prompts]
    if not all(ids for _, ids in rows):
        raise InputError("the prompt is empty and this vocabulary has no end-of-text token to start from")
    return rows


def default_prompt(tokenizer: Tokenizer) -> str:
    """Return a prompt that the vocabulary can encode: a line break, else the end of a text, else any token."""
    try:
        if len(tokenizer.encode("\n")):
            return "\n"
    except InputError:
        pass
    return tokenizer.decode([0]) if tokenizer.end_id is None else ""
