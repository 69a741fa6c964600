"""OpenAI's wire format: bodies of requests, parsed and checked, and what the model is asked instead."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from ..errors import InputError
from ..inference.completion import CompletionRequest
from ..parsing import check_range, check_types, parse_dataclass, show_value
from .errors import ApiError, refuse_input

MAX_CHARACTERS = 1 << 22  # of all prompts or texts of a request
MAX_PROMPTS, MAX_CHOICES = 2048, 128  # of a request, and of a prompt
MAX_ROWS = 2048  # prompts times choices
COMPLETION_TOKENS = 16  # where a request names no number

HARMLESS = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls",
}  # fmt: skip
"""Fields that change nothing of an answer."""

UNSUPPORTED = {
    "suffix": "this server does not complete in the middle of a text",
    "functions": "use tools", "function_call": "use tools", "audio": "this server answers with text only",
    "modalities": "this server answers with text only", "prediction": "this server takes no predictions",
    "web_search_options": "this server searches nothing", "reasoning_effort": "its models do not reason apart",
    "verbosity": "its models are not trained for it",
}  # fmt: skip
"""Fields of OpenAI's format that no model here has, and what to say of them."""

DEFAULTS: dict[str, tuple[Any, ...]] = {
    "modalities": (["text"],), "functions": ([],), "suffix": ("",), "function_call": ("none", "auto"),
}  # fmt: skip
"""Values of unsupported fields that ask for nothing."""

GUIDED = {
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_grammar": "grammar",
    "guided_choice": "choices",
}
"""Fields as vLLM names them, and those of `CompletionRequest`."""


def parse_body(kind: Any, values: Mapping[str, Any]) -> Any:
    """Return a body as a dataclass. Fields that are null are left out, as if they were not there. Raises ApiError."""
    names = [field.name for field in fields(kind)]
    values = {name: value for name, value in values.items() if value is not None and name not in HARMLESS}
    for name in values.keys() & UNSUPPORTED.keys() - set(names):
        if values[name] not in DEFAULTS.get(name, ()):
            raise ApiError(400, f"{name} is not supported: {UNSUPPORTED[name]}", "unsupported_parameter", name)
    values = {name: value for name, value in values.items() if name in names or name not in UNSUPPORTED}
    try:
        return parse_dataclass(kind, values)
    except InputError as error:
        raise refuse_input(error, (*names, *values)) from None


@dataclass(frozen=True)
class StreamOptions:
    """How an answer is streamed."""

    include_usage: bool = False
    include_obfuscation: bool = False
    """Accepted, and changes nothing."""


@dataclass(frozen=True, kw_only=True)
class SamplingBody:
    """What completions and chats have in common. `top_k`, `min_p`, `repetition_penalty`, `keep`, `truncate` and
    `guided_*` are beyond OpenAI's format."""

    model: str = ""
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    n: int = 1
    stop: str | Sequence[str] = ()
    seed: int | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[str, float] | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    keep: int | None = None
    truncate: bool = True
    """Drop the start of a prompt that exceeds the context, and say so; else it is an error."""
    response_format: dict[str, Any] | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_grammar: str | None = None
    guided_choice: list[str] | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "max_tokens", at_least=0, at_most=10_000_000)
        check_range(self, "temperature", at_least=0, at_most=100)
        check_range(self, "top_p", at_least=0, at_most=1)
        check_range(self, "n", at_least=1, at_most=MAX_CHOICES)
        check_range(self, "seed", at_least=-(1 << 63), below=1 << 63)
        check_range(self, "presence_penalty", "frequency_penalty", at_least=-2, at_most=2)
        check_range(self, "top_k", at_least=1, at_most=1 << 31)
        check_range(self, "min_p", at_least=0, at_most=1)
        check_range(self, "repetition_penalty", at_least=1e-3, at_most=1e3)
        check_range(self, "keep", at_least=1, at_most=10_000_000)
        if any(abs(bias) > 100 for bias in (self.logit_bias or {}).values()):
            raise InputError("logit_bias has a number beyond 100")
        names = [name for name in ("response_format", *GUIDED) if name in self.find_structures()]
        if len(names) > 1:
            raise InputError(f"{names[0]} and {names[1]} exclude each other: an answer has one structure")

    def find_structures(self) -> dict[str, dict[str, Any]]:
        """Return, by the name of each field that asks for a structure, what it is in a `CompletionRequest`."""
        schema = read_response_format(self.response_format)
        structures = {} if schema is None else {"response_format": {"json_schema": schema}}
        values = {name: getattr(self, name) for name in GUIDED}
        return structures | {name: {GUIDED[name]: value} for name, value in values.items() if value is not None}

    def sampling(self, tokens: int) -> dict[str, Any]:
        """Return the fields of `CompletionRequest` for these."""
        names = ("temperature", "presence_penalty", "frequency_penalty", "top_k", "min_p", "repetition_penalty", "keep")
        values: dict[str, Any] = {name: getattr(self, name) for name in names}
        seed = secrets.randbits(32) if self.seed is None else self.seed % (1 << 40)
        values |= {"top_p": max(self.top_p, 1e-9), "samples": self.n, "stop": self.stop, "seed": seed}
        for structure in self.find_structures().values():
            values |= structure
        return values | {"logit_bias": self.logit_bias or {}, "tokens": tokens}


@dataclass(frozen=True, kw_only=True)
class CompletionBody(SamplingBody):
    """POST /v1/completions"""

    prompt: str | list[str] | list[int] | list[list[int]] = "\n"
    logprobs: int | None = None
    echo: bool = False
    best_of: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "logprobs", at_least=0, at_most=20)
        check_range(self, "best_of", at_least=1, at_most=MAX_CHOICES)
        if self.best_of not in (None, self.n):
            raise InputError(f"best_of is {self.best_of}; this server returns every choice: it must be n, {self.n}")
        if len(self.prompts) * self.n > MAX_ROWS or not self.prompts:
            raise InputError(f"prompt times n is {len(self.prompts) * self.n:,} choices; it must be 1 to {MAX_ROWS:,}")
        check_length("prompt", self.prompts)

    @property
    def prompts(self) -> list[Any]:
        """The prompts: texts, or lists of ids."""
        is_single = isinstance(self.prompt, str) or (len(self.prompt) > 0 and isinstance(self.prompt[0], int))
        return [self.prompt] if is_single else list(self.prompt)

    def to_request(self, max_tokens: int) -> CompletionRequest:
        tokens = limit_tokens(self.max_tokens, min(COMPLETION_TOKENS, max_tokens), max_tokens)
        values = self.sampling(tokens) | {"prompt": self.prompts, "logprobs": self.logprobs, "echo": self.echo}
        return make_request(values)


@dataclass(frozen=True, kw_only=True)
class ChatBody(SamplingBody):
    """POST /v1/chat/completions"""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    tools: Sequence[dict[str, Any]] = ()
    tool_choice: str | dict[str, Any] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "top_logprobs", at_least=0, at_most=20)
        check_range(self, "max_completion_tokens", at_least=0, at_most=10_000_000)
        if self.top_logprobs is not None and not self.logprobs:
            raise InputError("top_logprobs needs logprobs: true")
        if self.tool_choice not in ("auto", "none"):
            raise InputError("tool_choice can be auto or none: this server cannot force a model to call a tool")
        check_length("messages", [str(self.messages)])

    def to_request(self, max_tokens: int) -> CompletionRequest:
        tokens = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        tools = self.tools if self.tool_choice == "auto" else ()
        values = {"messages": [join_parts(message) for message in self.messages], "tools": list(tools)}
        values["logprobs"] = (self.top_logprobs or 0) if self.logprobs else None
        return make_request(self.sampling(limit_tokens(tokens, max_tokens, max_tokens)) | values)


@dataclass(frozen=True, kw_only=True)
class EmbeddingBody:
    """POST /v1/embeddings"""

    input: str | list[str]
    model: str = ""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    truncate: bool = False
    """Cut texts that exceed the context, instead of refusing them."""

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "dimensions", at_least=1, at_most=1 << 20)
        if not 1 <= len(self.texts) <= MAX_PROMPTS:
            raise InputError(f"input has {len(self.texts):,} texts; it must have 1 to {MAX_PROMPTS:,}")
        check_length("input", self.texts)

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else list(self.input)


@dataclass(frozen=True, kw_only=True)
class TranscriptionBody:
    """POST /v1/audio/transcriptions and /v1/audio/translations, besides the file."""

    model: str = ""
    language: str = ""
    """Its code, or auto to detect it; empty: that of the model."""
    response_format: Literal["json", "text", "verbose_json", "srt", "vtt"] = "json"
    timestamp_granularities: Sequence[Literal["word", "segment"]] = ("segment",)
    """What verbose_json lists."""
    temperature: float = 0.0
    prompt: str = ""
    stream: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        for name, value in (("temperature", 0.0), ("prompt", ""), ("stream", False)):
            if getattr(self, name) != value:
                raise InputError(f"{name} is not supported: a sound has one transcript, its likeliest")
        if "word" in self.timestamp_granularities and self.response_format != "verbose_json":
            raise InputError("timestamp_granularities needs response_format: verbose_json")

    def settings(self, task: str) -> dict[str, Any]:
        """Return the fields of a recipe's request for these. `task`: of the route."""
        values: dict[str, Any] = {"words": self.needs_words}
        values |= {"language": self.language} if self.language else {}
        return values | ({"task": task} if task == "translate" else {})

    @property
    def needs_words(self) -> bool:
        return "word" in self.timestamp_granularities or self.response_format in ("srt", "vtt")


def read_response_format(value: Any) -> dict[str, Any] | None:
    """Return the JSON schema that OpenAI's `response_format` asks for, None for any text. Raises InputError."""
    if value is None or value == {"type": "text"}:
        return None
    if value == {"type": "json_object"}:
        return {"type": "object"}
    body = value.get("json_schema") if value.get("type") == "json_schema" else None
    if not isinstance(body, dict) or value.keys() != {"type", "json_schema"}:
        expected = (
            '{"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "json_schema": {"name", "schema"}}'
        )
        raise InputError(f"response_format is {show_value(value)}; it must be {expected}")
    if unknown := body.keys() - {"name", "description", "schema", "strict"}:
        raise InputError(f"response_format.json_schema has an unknown field '{min(unknown)}'")
    if not isinstance(body.get("schema"), dict):
        raise InputError("response_format.json_schema.schema is missing; it must be a JSON schema, an object")
    return body["schema"]


def check_length(name: str, prompts: Sequence[Any]) -> None:
    """Raise InputError for more text than is read of a request."""
    if (size := sum(map(len, prompts))) > MAX_CHARACTERS:
        raise InputError(f"{name} has {size:,} characters or tokens; at most {MAX_CHARACTERS:,} are read")


def limit_tokens(tokens: int | None, default: int, limit: int) -> int:
    """Return how many tokens an answer may have. Raises ApiError for more than the server's limit."""
    if tokens is not None and tokens > limit:
        raise ApiError(
            400, f"max_tokens is {tokens:,}; this server answers with at most {limit:,} (--max-tokens)",
            "invalid_value", "max_tokens",
        )  # fmt: skip
    return default if tokens is None else tokens


def make_request(values: dict[str, Any]) -> CompletionRequest:
    try:
        return parse_dataclass(CompletionRequest, values)
    except InputError as error:
        raise refuse_input(error, values) from None


def join_parts(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose content is a text; parts of other kinds than text are refused. Raises ApiError."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
    if not all(isinstance(text, str) for text in texts):
        raise ApiError(
            400, "messages: this server's models read texts: every part must be of type 'text'", param="messages"
        )
    return message | {"content": "".join(map(str, texts))}
