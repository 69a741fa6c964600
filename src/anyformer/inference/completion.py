"""Text completion: prompts to ids, ids to text as it grows, and when to stop."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..data.tokenizers.base import Tokenizer
from ..errors import InputError
from ..parsing import check_range, parse_dataclass
from .decode import Decoder
from .exact_sampling import check_exact, sample_exactly
from .logprobs import TokenLogprobs, list_logprobs, score_tokens
from .notes import Notes, choose_crop, find_notes, read_prompt
from .sampling import SamplingParams
from .speculative import generate_quickly
from .structure import StructureParams, compile_structure
from .token_filter import TokenFilter

REPLACEMENT_CHARACTER = "\ufffd"  # decoded from the first bytes of a character whose other bytes are still missing
CONTEXT_TOKENS = 8  # tokens of the prompt that new tokens are decoded with: a word may depend on the one before it
WINDOW_TOKENS = 64  # newest tokens that are decoded again with each new one, and half of them in any case
MAX_STOPS, MAX_STOP_CHARACTERS = 64, 1000  # of a request
MAX_LOGPROBS = 100  # of a token
MAX_SAMPLES = 10_000  # of a prompt; they are generated together


@dataclass(frozen=True, kw_only=True)
class CompletionRequest(SamplingParams, StructureParams):
    """What to continue and how, in plain values. Raises InputError on values that make no sense."""

    prompt: str | Sequence[str] | Sequence[Sequence[int]] = "\n"
    """One text or several, or lists of token ids; an empty one starts from the end-of-text token."""
    messages: Sequence[dict[str, Any]] = ()
    """Instead of a prompt, a chat: {"role": ..., "content": ...} each, formatted by the model's chat template."""
    tools: Sequence[dict[str, Any]] = ()
    """Of a chat: functions as JSON schemas, for the template."""
    tokens: int = 200
    """The most new tokens; 0 for the log-probabilities of the prompts alone."""
    samples: int = 1
    """Continuations of each prompt."""
    temperature: float = 0.8
    stop: str | Sequence[str] = ()
    """Texts that end a continuation; they are not part of it."""
    seed: int = 0
    """Sample i of every prompt draws from stream (seed, i), whatever else is in the batch."""
    keep: int | None = None
    """Tokens that stay when the context is full and the oldest are dropped. None: half of the context."""
    logprobs: int | None = None
    """Also return the log-probability of each new token, and so many of the likeliest tokens in its place."""
    notes: bool = False
    """Read each prompt in pieces, however long it is, and let the model write notes on the way."""
    echo: bool = False
    """With `logprobs`, also return those of the prompts, which must fit into the context."""
    exact: bool = False
    """With a structure, draw from the model's own distribution of the texts that have it (`exact_sampling`), which may
    take many tries."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "tokens", at_least=0, at_most=10_000_000)
        check_range(self, "keep", at_least=1, at_most=10_000_000)
        check_range(self, "logprobs", at_least=0, at_most=MAX_LOGPROBS)
        check_range(self, "samples", at_least=1, at_most=MAX_SAMPLES)
        check_range(self, "seed", at_least=0, below=1 << 40)
        if len(self.stops) > MAX_STOPS or any(len(text) > MAX_STOP_CHARACTERS for text in self.stops):
            raise InputError(f"stop: at most {MAX_STOPS} texts of {MAX_STOP_CHARACTERS:,} characters")
        if not self.prompts:
            raise InputError("there is no prompt to continue")
        self.check_structure()
        if self.exact and self.structure is None:
            raise InputError("exact needs a json_schema, a regex, a grammar or choices")
        if self.exact:
            check_exact(self)
        if self.notes and self.echo:
            raise InputError("echo: the log-probabilities of a prompt that is read with notes are not known")

    @property
    def prompts(self) -> list[Any]:
        return [self.prompt] if isinstance(self.prompt, str) else list(self.prompt)

    @property
    def stops(self) -> list[str]:
        return [text for text in ([self.stop] if isinstance(self.stop, str) else self.stop) if text]


class GrowingText:
    """The text of ids that come one after the other, of which only the newest are decoded again.

    What an id adds may depend on those before it: a character can have several ids, a word a space before it. The
    oldest ids of the window are dropped only where decoding without them gives the same text, except at its start.
    """

    def __init__(self, tokenizer: Tokenizer, context_ids: Sequence[int]):
        self.tokenizer, self.window, self.limit = tokenizer, list(context_ids), WINDOW_TOKENS
        self.decoded = tokenizer.decode(self.window)
        self.skip = len(self.decoded)
        """Characters at the start of the window's text that are not new: of the prompt, or in `parts`."""
        self.parts: list[str] = []
        self.settled_length = 0
        """Characters in `parts`, the text of ids that have left the window."""
        self.is_decoded = True

    def append(self, token: int) -> None:
        self.window.append(token)
        self.is_decoded = False

    def text_from(self, start: int) -> str:
        """The text from this character on."""
        if not self.is_decoded:
            self.decoded, self.is_decoded = self.tokenizer.decode(self.window), True
            if len(self.window) >= self.limit:
                self.shrink()
        pieces, first = [self.decoded[self.skip :]], self.settled_length
        for part in reversed(self.parts):
            if first <= start:
                break
            pieces.append(part)
            first -= len(part)
        return "".join(reversed(pieces))[start - first :]

    def shrink(self) -> None:
        """Drop the older half of the window, or let it grow where the text depends on it."""
        half = len(self.window) // 2
        for ids in (self.window[half:], self.window[:half] + self.window[-CONTEXT_TOKENS:]):  # or the newer has no text
            decoded = self.tokenizer.decode(ids)
            pairs = enumerate(zip(reversed(self.decoded), reversed(decoded)))
            common = next((i for i, (a, b) in pairs if a != b), min(len(self.decoded), len(decoded)))
            if 2 * common > len(decoded) or decoded == self.decoded:
                cut = max(len(self.decoded) - common, self.skip)
                self.parts.append(self.decoded[self.skip : cut])
                self.settled_length += cut - self.skip
                self.skip = len(decoded) - (len(self.decoded) - cut)
                self.window, self.decoded = ids, decoded
                self.limit = max(WINDOW_TOKENS, len(ids) + WINDOW_TOKENS // 2)
                return
        self.limit = 2 * len(self.window)


class Completion:
    """One continuation of a prompt, as it grows."""

    def __init__(
        self,
        prompt: str,
        ids: list[int],
        tokenizer: Tokenizer,
        stops: Sequence[str],
        matcher: TokenFilter | None = None,
        notes: Notes | None = None,
    ):
        self.prompt, self.tokenizer, self.stops, self.matcher = prompt, tokenizer, stops, matcher
        self.prompt_ids, self.notes = ids, notes
        self.growing_text = GrowingText(tokenizer, ids[-CONTEXT_TOKENS:])
        self.tokens: list[int] = []
        self.prompt_logprobs: list[TokenLogprobs] | None = None
        """Of the tokens of the prompt but the first."""
        self.logprobs: list[TokenLogprobs] | None = None
        self.finish_reason: str | None = None
        self.shown_length = 0
        self.stop_start: int | None = None
        """The character at which the first stop text begins."""
        self.log_grammar_mass: float | None = None
        """Of an exact sample: at most this is the log-probability of all texts that have its structure."""
        self.n_checked = 0
        """Characters before which no stop text ends the continuation."""

    def add(self, token: int) -> bool:
        """Append a token. Returns whether the continuation ends with it."""
        if token in self.tokenizer.end_ids:
            self.finish_reason = "stop"
            return True
        self.tokens.append(token)
        self.growing_text.append(token)
        if self.stops:
            self.find_stop()
        if self.matcher is not None:
            self.finish_reason = "stop" if self.matcher.is_complete else self.finish_reason
            self.matcher.is_over = self.finish_reason is not None
        return self.finish_reason is not None

    def find_stop(self) -> None:
        """Look for stop texts in what is new, and in what they may have begun in. Under a constraint, one counts only
        where the text before it is a whole answer."""
        start = max(self.n_checked, self.growing_text.settled_length - max(map(len, self.stops)))
        text = self.growing_text.text_from(start)
        while starts := [i for i in (text.find(stop, max(0, self.n_checked - start)) for stop in self.stops) if i >= 0]:
            stop_start = start + min(starts)
            if self.matcher is None or self.matcher.accepts(self.growing_text.text_from(0)[:stop_start]):
                self.stop_start, self.finish_reason = stop_start, "stop"
                return
            self.n_checked = stop_start + 1

    @property
    def text(self) -> str:
        """The text before the first stop text."""
        return self.growing_text.text_from(0)[: self.stop_start]

    def new_text(self) -> str:
        """Return the text added since the last call, without an incomplete character or the start of a stop text."""
        text = self.growing_text.text_from(self.shown_length)
        if self.stop_start is not None:
            text = text[: max(0, self.stop_start - self.shown_length)]
        if self.finish_reason is None:
            text = text.rstrip(REPLACEMENT_CHARACTER)
            text = text[: len(text) - max((overlap(text, stop) for stop in self.stops), default=0)]
        self.shown_length += len(text)
        return text

    def list_notes(self) -> list[str] | None:
        """Return the notes that hold after the newest token; None of a model without notes."""
        return None if self.notes is None else self.notes.list_texts([*self.prompt_ids, *self.tokens])

    def result(self) -> dict[str, Any]:
        values: dict[str, Any] = {"prompt": self.prompt, "text": self.text, "tokens": self.tokens}
        values |= {"finish_reason": self.finish_reason}
        values |= {} if self.matcher is None else {"log_kept_mass": self.matcher.log_kept_mass}
        values |= {} if self.log_grammar_mass is None else {"log_grammar_mass": self.log_grammar_mass}
        values |= {} if self.notes is None else {"notes": self.list_notes()}
        lists = {"logprobs": self.logprobs, "prompt_logprobs": self.prompt_logprobs}
        return values | {name: [*map(TokenLogprobs._asdict, rows)] for name, rows in lists.items() if rows is not None}


def overlap(text: str, stop: str) -> int:
    """The length of the longest end of the text with which a stop text could begin."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def choose_filters(
    request: CompletionRequest,
    tokenizer: Tokenizer,
    prompts: Sequence[tuple[str, list[int]]],
    start_filter: Callable[[str], TokenFilter] | None,
) -> list[TokenFilter]:
    """Return what limits the continuation of each prompt; [] if nothing does."""
    constraint = compile_structure(request, tokenizer)
    if constraint is not None:
        return [constraint.start(ids[-CONTEXT_TOKENS:]) for _, ids in prompts]
    return [] if start_filter is None else [start_filter(text) for text, _ in prompts]


def generate_text(
    model: Decoder,
    tokenizer: Tokenizer,
    request: CompletionRequest,
    start_filter: Callable[[str], TokenFilter] | None = None,
) -> Iterator[list[Completion]]:
    """Continue all prompts in one batch; yield all completions after every token, and at the end with their finish
    reasons. Sample j of prompt i is completion i * samples + j. Of a request without a structure, `start_filter` gives
    the filter of a continuation, for its prompt."""
    rows, notes = encode_prompts(request, tokenizer), find_notes(model)
    if request.notes:
        rows = [(text, read_prompt(model, ids, request.keep)) for text, ids in rows]
    prompts = [row for row in rows for _ in range(request.samples)]
    matchers = choose_filters(request, tokenizer, prompts, start_filter)
    completions = [
        Completion(text, ids, tokenizer, request.stops, matcher, notes)
        for (text, ids), matcher in zip(prompts, matchers or [None] * len(prompts), strict=True)
    ]
    add_prompt_logprobs(model, request, prompts, completions)
    seeds = [sample_seed(request.seed, i % request.samples) for i in range(len(prompts))]
    if request.exact:
        yield from sample_exactly(model, request, completions, [ids for _, ids in prompts], seeds)
        return

    def add_logprobs(logits: Tensor, new: Tensor) -> None:
        for completion, row in zip(completions, list_logprobs(logits, new, request.logprobs or 0)):
            if completion.finish_reason is None and completion.logprobs is not None:
                completion.logprobs.append(row)

    def stop(row: int, token: int) -> bool:
        return completions[row].add(token)

    settings: dict[str, Any] = {"tokens": request.tokens, "sampling": request, "seeds": seeds, "stop": stop}
    settings |= {"keep": request.keep, "matchers": matchers, "crop": choose_crop(model)}
    settings |= {} if request.logprobs is None else {"watch": add_logprobs}
    steps = generate_quickly(model, [ids for _, ids in prompts], **settings)
    for _ in steps if request.tokens else ():
        yield completions
    for completion in completions:
        completion.finish_reason = completion.finish_reason or "length"
        if completion.logprobs is not None:
            del completion.logprobs[len(completion.tokens) :]  # that of the end-of-text token
    yield completions


def sample_seed(seed: int, sample: int) -> int:
    """The seed of sample i of every prompt, whatever else is in the batch."""
    return seed * 1_000_003 + sample


def add_prompt_logprobs(
    model: Decoder, request: CompletionRequest, prompts: Sequence[tuple[str, list[int]]], completions: list[Completion]
) -> None:
    """Begin the log-probabilities of completions, where the request has any. Raises InputError if a prompt to be scored
    is longer than the context."""
    if request.logprobs is None:
        return
    for i, (completion, (_, ids)) in enumerate(zip(completions, prompts)):
        completion.logprobs = []
        if request.echo:
            check_echo(ids, model)
            is_first = i % request.samples == 0
            scores = score_tokens(model, ids, request.logprobs) if is_first else completions[i - 1].prompt_logprobs
            completion.prompt_logprobs = scores


def check_echo(ids: Sequence[int], model: Decoder) -> None:
    """Raise InputError if the prompt cannot be scored."""
    if len(ids) > (context := model.body.config.context):
        raise InputError(f"echo: the prompt has {len(ids):,} tokens, and the context of the model is {context:,}")


def parse_request(request: dict[str, Any], tokenizer: Tokenizer) -> CompletionRequest:
    """Return a request in plain values; "input" is the prompt by another name. Raises InputError."""
    request = {"prompt" if name == "input" else name: value for name, value in request.items()}
    return parse_dataclass(CompletionRequest, {"prompt": default_prompt(tokenizer)} | request, "request")


def encode_prompts(request: CompletionRequest, tokenizer: Tokenizer) -> list[tuple[str, list[int]]]:
    """Return the text that is shown of each prompt (of a chat, nothing) and its ids. Raises InputError."""
    if (highest := max(request.biases[0], default=0)) >= tokenizer.vocab_size:
        raise InputError(f"logit_bias names token {highest:,}; the vocabulary has {tokenizer.vocab_size:,}")
    if request.messages:
        ids = tokenizer.encode_parsing_special(tokenizer.apply_chat_template(request.messages, request.tools)).tolist()
        if not ids:
            raise InputError("the chat template returns an empty text for these messages")
        return [("", ids)]
    return [encode_prompt(prompt, tokenizer) for prompt in request.prompts]


def encode_prompt(prompt: str | Sequence[int], tokenizer: Tokenizer) -> tuple[str, list[int]]:
    """Return the text and the ids of a prompt that is either. Raises InputError."""
    if isinstance(prompt, str):
        text, ids = prompt, tokenizer.encode_prompt(prompt).tolist()
    else:
        if not all(0 <= token < tokenizer.vocab_size for token in prompt):
            raise InputError(
                f"prompt has token ids that the vocabulary lacks: valid are 0 to {tokenizer.vocab_size - 1}"
            )
        text, ids = tokenizer.decode(prompt), list(prompt)
    ids = ids or ([] if tokenizer.end_id is None else [tokenizer.end_id])
    if not ids:
        raise InputError("the prompt is empty and this vocabulary has no end-of-text token to start from")
    return text, ids


def default_prompt(tokenizer: Tokenizer) -> str:
    """Return a prompt that the vocabulary can encode: a line break, else the end of a text, else any token."""
    try:
        if len(tokenizer.encode("\n")):
            return "\n"
    except InputError:
        pass
    return tokenizer.decode([0]) if tokenizer.end_id is None else ""
