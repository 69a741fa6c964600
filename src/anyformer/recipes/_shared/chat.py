"""What recipes of chat models have in common: a tokenizer with a chat template, and answers to messages."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ...data.tokenizers.base import Tokenizer
from ...data.tokenizers.build import build_tokenizer
from ...data.tokenizers.chat_template import Chat
from ...data.tokenizers.chat_tokens import add_chat_template
from ...inference.completion import Completion, CompletionRequest, default_prompt, generate_text
from ...parsing import parse_dataclass
from ...recipe import FileInput, LensView
from . import language
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
    """Answer a message of a user, or several: {"input": "Hello!"} returns {"results": [{"input", "text",
    "finish_reason"}, ...]}.

    "messages" of a conversation, or a "prompt" to continue as it is, return what `language` does. The other fields are
    those of `CompletionRequest`.
    """
    if "input" not in request:
        return language.predict(model, prepare_request(model, request))
    settings = {name: value for name, value in request.items() if name != "input"}
    return {"results": predict_batch(model, as_list(request["input"]), settings)}


def predict_batch(model: ChatModel, inputs: list[str], settings: dict[str, Any]) -> list[dict[str, Any]]:
    chats = [Chat([{"role": "user", "content": text}]) for text in inputs]
    request = parse_dataclass(CompletionRequest, settings | {"prompt": encode_chats(model, chats)}, "request")
    results = [completion.result() for completion in list(generate_text(model, model.tokenizer, request))[-1]]
    answers = [{"text": result["text"], "finish_reason": result["finish_reason"]} for result in results]
    groups = [answers[i : i + request.samples] for i in range(0, len(answers), request.samples)]
    return [
        {"input": text} | group[0] | ({"samples": group} if len(group) > 1 else {})
        for text, group in zip(inputs, groups)
    ]


def encode_chats(model: ChatModel, chats: Sequence[Chat]) -> list[list[int]]:
    return [model.tokenizer.encode_parsing_special(text).tolist() for text in model.tokenizer.render_chats(chats)]


def prepare_request(model: ChatModel, request: dict[str, Any]) -> dict[str, Any]:
    """Return a request whose "input", if there is one, is the message of a user. An empty one asks an example."""
    if {"prompt", "messages"} & request.keys():
        return request
    settings = {name: value for name, value in request.items() if name != "input"}
    content = request.get("input", default_prompt(model.tokenizer))
    return settings | {"messages": [{"role": "user", "content": content}]}


def file_input(model: ChatModel, config: DecoderConfig) -> FileInput:
    return FileInput(("prompt",), tsv_quotes=False)


def lens(model: ChatModel, request: dict[str, Any]) -> LensView:
    """Show the tokens of a user's message as the chat template writes it, and what follows each."""
    ids = encode_chats(model, [Chat([{"role": "user", "content": parse_request(request).text}])])[0]
    return lens_ids(model, ids)
