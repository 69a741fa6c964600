"""What recipes of text encoders have in common: the model without its head, requests, and vectors of texts."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...data.tokenizers.base import Tokenizer
from ...data.tokenizers.masked_tokenizer import MaskedTokenizer
from ...inference.decode import pad_rows
from ...model.encoder_decoder import Encoder
from ...model.heads import mean_pool
from ...recipe import Graph, GraphInput

EMBED_BATCH = 32  # texts in one forward


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


@torch.inference_mode()
def embed(model: TextEncoder, texts: list[str], cut: bool = False) -> list[list[float]]:
    """Return a vector of length 1 for each text, the mean of its nodes after the last block (1908.10084). Raises
    InputError for a text that exceeds the context, unless it may be cut."""
    rows = [model.masked_tokenizer.encode(text, model.context, cut) for text in texts]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # texts of similar length share a batch
    vectors = {}
    for start in range(0, len(order), EMBED_BATCH):
        indices = order[start : start + EMBED_BATCH]
        ids, lengths = pad_rows([rows[i] for i in indices], next(model.parameters()).device)
        pooled = F.normalize(mean_pool(model.hidden(ids, lengths).float(), lengths), dim=-1)
        vectors |= dict(zip(indices, pooled.tolist()))
    return [vectors[i] for i in range(len(rows))]


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
