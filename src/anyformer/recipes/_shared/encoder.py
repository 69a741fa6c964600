"""What recipes of text encoders have in common: the model without its head, requests, and vectors of texts."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from ...data.tokenizers.base import Tokenizer
from ...data.tokenizers.masked_tokenizer import MaskedTokenizer
from ...inference.text_embedding import embed_texts
from ...model.encoder_decoder import Encoder
from ...recipe import Graph, GraphInput


class TextEncoder(Encoder):
    """An encoder and its tokenizer. config: with the fields of the recipes masked and classify."""

    head: nn.Module

    def __init__(self, config: Any, tokenizer: Tokenizer):
        masked_tokenizer = MaskedTokenizer.from_tokenizer(tokenizer, config.padded_vocab)
        vocab_size = max(masked_tokenizer.vocab_size, config.padded_vocab or 0)
        super().__init__(vocab_size, config.model, config.token_types, config.embedding_norm)
        self.vocab_size, self.context, self.masked_tokenizer = vocab_size, config.model.context, masked_tokenizer
        self.files = {"tokenizer.json": tokenizer.to_json()}


def export_graph(model: TextEncoder) -> Graph:
    inputs = {"ids": GraphInput("batch length", model.vocab_size), "lengths": GraphInput("batch", is_length=True)}
    return Graph(model, inputs, ("logits",), {"length": model.context})


def embed(model: TextEncoder, texts: list[str], cut: bool = False) -> list[list[float]]:
    """Return a vector of length 1 for each text: the mean of its nodes after the last block."""
    return embed_texts(model, texts, cut=cut).tolist()


@dataclass(frozen=True)
class TextRequest:
    """Texts to answer or to embed."""

    input: str | list[str] | None = None
    """A text, or several. None: an example."""
    embed: str | list[str] | None = None
    """A text, or several, to turn into vectors."""
    cut: bool = False
    """Cut texts that are longer than the context instead of refusing them."""


def as_list(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts
