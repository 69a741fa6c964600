"""What recipes of text encoders have in common: the model without its head, requests, and vectors of texts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from ...data.io.checks import read_json
from ...data.tokenizers.base import Tokenizer
from ...data.tokenizers.masked_tokenizer import MaskedTokenizer
from ...errors import InputError
from ...forms import Task
from ...inference.prompt_reading import pad_rows
from ...model import Edges, Encoder, TransformerConfig, full, window
from ...model.pooling import POOLING
from ...parsing import check_range, path_field
from ...recipe import Graph, GraphInput
from ...training.config import TrainConfig
from .text import VocabularyConfig, first_tokens

MAX_BATCH = 32  # texts in one forward


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(VocabularyConfig):
    """An encoder, its vocabulary and its training."""

    tokenizer: str = path_field("bpe", [".json"])
    vocab_size: int = 4096
    token_types: int = 0
    """Types that a token can have (BERT has 2, for the first and second text); 0 for none."""
    embedding_norm: bool = False
    """Normalize the nodes before the first block (BERT)."""
    first_norm: bool = True
    """Whether the first attention norms what it reads; not in ModernBERT, where the embedding has."""
    window: int | None = None
    """A local layer reads nodes less than so many away, on either side. None: all layers are global."""
    global_every: int = 2
    """With a window: of every so many layers the first is global (ModernBERT, 2412.13663)."""
    embed_pool: Literal["mean", "first"] = "mean"
    """What `embed` makes the vector of a text of: the mean node, or the first."""
    model: TransformerConfig = field(default_factory=TransformerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "token_types", at_least=0, at_most=1000)
        check_range(self, "window", "global_every", at_least=1, at_most=1 << 24)


class TextEncoder(Encoder):
    """An encoder and its tokenizer."""

    head: nn.Module

    def __init__(self, config: EncoderConfig, tokenizer: Tokenizer):
        masked_tokenizer = MaskedTokenizer.from_tokenizer(tokenizer, config.padded_vocab)
        vocab_size = max(masked_tokenizer.vocab_size, config.padded_vocab or 0)
        super().__init__(vocab_size, config.model, config.token_types, config.embedding_norm)
        self.vocab_size, self.context, self.masked_tokenizer = vocab_size, config.model.context, masked_tokenizer
        self.edges, self.embed_pool = build_layer_edges(config), POOLING[config.embed_pool]
        if not config.first_norm:
            self.body.blocks[0].attn_norm = nn.Identity()
        self.files = {"tokenizer.json": tokenizer.to_json(), **tokenizer.extra_files}


def build_layer_edges(config: EncoderConfig) -> list[Edges]:
    """Return the rule of each layer: full, or local except in the first of every `global_every` layers."""
    local = full if config.window is None else window(config.window)
    return [full if i % config.global_every == 0 else local for i in range(config.model.n_layer)]


def export_graph(model: TextEncoder) -> Graph:
    inputs = {"ids": GraphInput("batch length", model.vocab_size), "lengths": GraphInput("batch", is_length=True)}
    return Graph(model, inputs, ("logits",), {"length": model.context})


@torch.inference_mode()
def embed(model: TextEncoder, texts: list[str], cut: bool = False) -> list[list[float]]:
    """Return a vector of length 1 for each text, the mean of its nodes after the last block (1908.10084), or the first.
    Raises InputError for a text that exceeds the context, unless it may be cut."""
    rows = model.masked_tokenizer.encode_batch(texts, model.context, cut)
    vectors = {}
    for indices in batch_by_length(rows):
        ids, lengths = pad_rows([rows[i] for i in indices], next(model.parameters()).device)
        pooled = F.normalize(model.embed_pool(model.hidden(ids, lengths).float(), lengths), dim=-1)
        vectors |= dict(zip(indices, pooled.tolist()))
    return [vectors[i] for i in range(len(rows))]


def count_tokens(model: TextEncoder, texts: list[str], cut: bool = False) -> int:
    """Return how many tokens `embed` reads of texts, special ones included."""
    return sum(map(len, model.masked_tokenizer.encode_batch(texts, model.context, cut)))


def batch_by_length(rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Yield the indices of the rows in batches of similar length."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), MAX_BATCH):
        yield order[start : start + MAX_BATCH]


@dataclass(frozen=True)
class TextRequest:
    """Texts to answer or to embed."""

    input: str | list[str] | None = None
    """A text, or several. None: an example."""
    embed: str | list[str] | None = None
    """A text, or several, to turn into vectors."""
    cut: bool = False
    """Cut texts that are longer than the context instead of refusing them."""


def compare_texts(model: TextEncoder, omit: tuple[str, ...] = ()) -> Task:
    """Describe how texts are compared by their vectors."""
    text = first_tokens(model.masked_tokenizer.tokenizer)
    return Task("Compare texts", "texts", TextRequest, "vectors", "embed", omit=omit, examples=([text, text[::-1]],))


def read_label_names(config: Any) -> list[str] | None:
    """Return the names of the labels, where the config names a file of them. Raises InputError."""
    names = read_json(Path(config.labels), kind=list) if config.labels else None
    if names is not None and (len(names) < 2 or not all(isinstance(name, str) for name in names)):
        raise InputError(f"{config.labels} should hold a list of the labels' names, at least two")
    return names


def as_list(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts
