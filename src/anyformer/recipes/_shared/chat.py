"""What recipes of chat models have in common: a tokenizer with a chat template, and answers to messages."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ...data.tokenizers.base import Tokenizer
from ...data.tokenizers.build import build_tokenizer
from ...data.tokenizers.chat_template import Chat
from ...data.tokenizers.chat_tokens import add_chat_template
from ...inference.completion import Completion, default_prompt
from ...recipe import FileInput, LensView
from . import language
from . import text as shared_text
from .encoder import as_list
from .language import DecoderConfig, LanguageModel
from .text import load_config_tokenizer
from .text_lenses import lens_ids, parse_request


class ChatModel(LanguageModel):
    """ids (B, T) -> logits (B, T, V)"""

    extended_tensors = ("nodes.token.weight", "head.project.weight")


def load_chat_tokenizer(config: DecoderConfig, read_texts: Callable[[], Sequence[str]]) -> Tokenizer:
    """Return the tokenizer of the model, with a chat template; one to be trained reads these texts."""

    def train() -> Tokenizer:
        texts = read_texts()
        return build_tokenizer(config.tokenizer, lambda: iter(texts), config.vocab_size)

    return add_chat_template(load_config_tokenizer(config, train))


def stream(model: ChatModel, request: dict[str, Any]) -> Iterator[list[Completion]]:
    """As `predict`, token by token."""
    return language.stream(model, prepare_request(model, request))


def predict(model: ChatModel, request: dict[str, Any]) -> dict[str, Any]:
    """Answer a message of a user, {"input": "Hello!"}, or several; {"messages": [...]} of a conversation; or continue a
    {"prompt": ...} as it is. The other fields are those of `CompletionRequest`. Returns {"samples": [{"prompt", "text",
    "tokens", "finish_reason"}, ...]}."""
    return language.predict(model, prepare_request(model, request))


def prepare_request(model: ChatModel, request: dict[str, Any]) -> dict[str, Any]:
    """Return a request whose "input", messages of users, is a prompt in tokens. An empty one asks for an example."""
    if {"prompt", "messages"} & request.keys():
        return request
    settings = {name: value for name, value in request.items() if name != "input"}
    return settings | {
        "prompt": encode_questions(model, as_list(request.get("input", default_prompt(model.tokenizer))))
    }


def predict_batch(model: ChatModel, inputs: list[str], settings: dict[str, Any]) -> list[dict[str, Any]]:
    return shared_text.predict_batch(model, encode_questions(model, inputs), settings)


def encode_questions(model: ChatModel, texts: Sequence[str]) -> list[list[int]]:
    return encode_chats(model, [Chat([{"role": "user", "content": text}]) for text in texts])


def encode_chats(model: ChatModel, chats: Sequence[Chat]) -> list[list[int]]:
    return [model.tokenizer.encode_parsing_special(text).tolist() for text in model.tokenizer.render_chats(chats)]


def file_input(model: ChatModel, config: DecoderConfig) -> FileInput:
    return FileInput(("message",), tsv_quotes=False)


def lens(model: ChatModel, request: dict[str, Any]) -> LensView:
    """Show the tokens of a user's message as the chat template writes it, and what follows each."""
    return lens_ids(model, encode_questions(model, [parse_request(request).text])[0])
