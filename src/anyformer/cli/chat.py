"""anyformer chat RUN: a conversation with a language model in the terminal."""

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..errors import InputError, suggest
from ..parsing import check_range
from .flags import REPEATABLE, CacheFlag, DeviceFlag, RecipeFlag, RunArgument, WeightsFlag
from .terminal import print_status

if TYPE_CHECKING:
    from ..inference.completion import CompletionRequest

COMMANDS = {
    "/reset": "forget the conversation",
    "/save FILE": "write it to a file, as a line of JSON that `anyformer train` reads",
    "/help": "these lines",
    "/quit": "end; so does Ctrl-D",
}
SAMPLING_FIELDS = ("tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class Command:
    """Talk with a language model: each line is a message, and the answer is shown as it grows.

    The model's own chat template is applied; a model without one continues a
    dialogue of lines "User: ..." and "Assistant: ...". Ctrl-C stops an answer.
    Lines from a pipe are answered one after the other."""

    run: RunArgument
    system: Annotated[str | None, "A message before the conversation: who the assistant is."] = None
    tokens: Annotated[int, "Most new tokens of each answer."] = 500
    temperature: Annotated[float, "0 always takes the most probable token; above 1 flattens the distribution."] = 0.8
    top_k: Annotated[int | None, "Keep only the k most probable tokens."] = None
    top_p: Annotated[float | None, "Keep only the most probable tokens that together reach probability p."] = None
    min_p: Annotated[float | None, "Keep tokens at least this fraction as probable as the most probable one."] = None
    repetition_penalty: Annotated[float, "Above 1, tokens that occurred already become less probable."] = 1.0
    stop: Annotated[tuple[str, ...], REPEATABLE, "A text that ends an answer. May be repeated."] = ()
    seed: Annotated[int, "Seed of the random draws; each answer has its own stream."] = 0
    recipe: RecipeFlag = None
    device: DeviceFlag = "auto"
    weights: WeightsFlag = "float32"
    cache_dtype: CacheFlag = "float32"

    def __post_init__(self) -> None:
        check_range(self, "tokens", at_least=1, at_most=10_000_000)


class Conversation:
    """The messages so far, and the model that answers them. What it has read and written is not read again."""

    def __init__(self, decoder: Any, options: Command):
        from ..inference.batching import Batcher

        self.decoder, self.options = decoder, options
        self.batcher = Batcher(decoder, max_rows=1, prefix_bytes=None)
        self.messages: list[dict[str, str]] = []
        self.n_answers = 0
        self.reset()

    def reset(self) -> None:
        system = self.options.system
        self.messages = [] if system is None else [{"role": "system", "content": system}]

    def answer(self, text: str) -> Iterator[str]:
        """Yield the answer to a message as it grows. What was yielded until the end, or until the caller leaves, is
        part of the conversation. Raises InputError; the message is then forgotten."""
        from ..inference.batching import stream_text

        before, pieces = list(self.messages), []
        self.messages.append({"role": "user", "content": text})
        self.n_answers += 1
        try:
            request = self.fit_request()
            for piece in stream_text(self.batcher, request):
                pieces.append(piece)
                yield piece
        except InputError:
            self.messages = before
            raise
        finally:
            if len(self.messages) > len(before) or pieces:
                self.messages.append({"role": "assistant", "content": "".join(pieces).strip()})

    def fit_request(self) -> "CompletionRequest":
        """Return the request for the next answer. Messages that no longer fit into the context are left out, the oldest
        first."""
        from ..inference.completion import encode_prompts, parse_request

        first = int(self.options.system is not None)
        while True:
            request = parse_request(self.build_request(), self.decoder.tokenizer)
            ids = encode_prompts(request, self.decoder.tokenizer)[0][1]
            if len(ids) <= self.decoder.body.config.context or len(self.messages) <= first + 1:
                return request
            del self.messages[first : first + 2]
            print_status("(the oldest messages no longer fit into the context and were left out)")

    def build_request(self) -> dict[str, Any]:
        options = self.options
        request: dict[str, Any] = {name: getattr(options, name) for name in SAMPLING_FIELDS}
        request["seed"] = options.seed * 1000 + self.n_answers - 1
        if self.decoder.tokenizer.has_chat_template:
            return request | {"messages": self.messages, "stop": options.stop}
        lines = [
            message["content"] if message["role"] == "system" else f"{message['role'].title()}: {message['content']}"
            for message in self.messages
        ]
        return request | {"prompt": "\n".join([*lines, "Assistant:"]), "stop": (*options.stop, "\nUser:")}

    def save(self, path: str) -> None:
        """Write the conversation. Raises InputError."""
        if not path:
            raise InputError("/save needs the name of a file")
        try:
            with Path(path).expanduser().open("x", encoding="utf-8") as file:
                file.write(json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n")
        except FileExistsError:
            raise InputError(f"{path} exists: name another file") from None
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"{path}: cannot be written ({error})") from None
        print_status(f"{path}: {len(self.messages)} messages")


def run(options: Command) -> None:
    from .. import api
    from ..recipe import SupportsCompletion, SupportsStream

    names = ("weights", "cache_dtype", "recipe")
    model = api.load(options.run, options.device, **{name: getattr(options, name) for name in names})
    if not (isinstance(model.recipe, SupportsCompletion) and isinstance(model.recipe, SupportsStream)):
        hint = model.task_hint or f"use anyformer predict {shlex.quote(str(options.run))}"
        raise InputError(f"{options.run} is a run of the recipe '{model.name}', which generates no text: {hint}")
    conversation = Conversation(model.recipe.decoder(model.module), options)
    if sys.stdin.isatty():
        print_status(f"{model.name}, {model.n_parameters:,} parameters; /help shows the commands")
    try:
        talk(conversation)
    finally:
        conversation.batcher.close(drain=False)


def talk(conversation: Conversation) -> None:
    """Answer lines until there are no more. Raises InputError for one of a pipe that cannot be answered."""
    for line in read_lines():
        if line.strip() == "/quit":
            return
        try:
            handle_line(conversation, line)
        except InputError as error:
            if not sys.stdin.isatty():
                raise
            print_status(f"anyformer: {error}")


def read_lines() -> Iterator[str]:
    """Yield the lines that a person types, with a prompt before each, or those of a pipe. Empty ones are left out."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with suppress(ImportError):
            import readline  # noqa: F401 (lets input() edit its line)
    while True:
        try:
            line = input("> ") if is_terminal else sys.stdin.readline()
        except KeyboardInterrupt:
            print_status("\n(/quit or Ctrl-D ends)")
            continue
        except EOFError:
            print(flush=True)
            return
        except UnicodeDecodeError as error:
            raise InputError(f"stdin is not UTF-8 at byte {error.start}: text is expected") from None
        if not is_terminal and not line:
            return
        if line.strip():
            yield line.rstrip("\n")


def handle_line(conversation: Conversation, line: str) -> None:
    """Do what a line says: a command, or a message to answer. Raises InputError."""
    command, _, value = line.strip().partition(" ")
    if not line.startswith("/"):
        print_answer(conversation.answer(line.strip()))
    elif command == "/reset":
        conversation.reset()
    elif command == "/save":
        conversation.save(value.strip())
    elif command == "/help":
        print_status("\n".join(f"{name:<12}{text}" for name, text in COMMANDS.items()))
    else:
        raise InputError(f"there is no command '{command}': {suggest(command, [c.split()[0] for c in COMMANDS])}")


def print_answer(pieces: Iterator[str]) -> None:
    """Print an answer as it grows; Ctrl-C stops it."""
    is_first = True
    try:
        for piece in pieces:
            text = piece.lstrip() if is_first else piece
            is_first = is_first and not text
            print(text, end="", flush=True)
    except KeyboardInterrupt:
        print(" ...", end="")
    print(flush=True)
