"""Causal language modeling: the config, model, batches, loss and answers of a model that predicts the next token.

Shapes: B rows, T tokens, C channels, V entries of the vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...data.text.batches import IGNORE_INDEX, segment
from ...data.tokenizers.build import Tokenizer
from ...inference.completion import Completion, generate_text
from ...inference.notes import build_notes
from ...metrics import describe_tokens
from ...model.cache import KVCache
from ...model.config import TransformerConfig
from ...model.edges import Edges, causal, first, same, window
from ...model.embeddings import TokenEmbedding
from ...model.heads import LMHead
from ...model.kernels.cross_entropy import cross_entropy
from ...model.transformer import Transformer
from ...parsing import check_range
from ...recipe import BatchStream, Graph, GraphInput, StreamState, advance_stream, init_stream
from ...training.config import TrainConfig
from .mixtures import score_by_source, tag_batch
from .text import CausalTextConfig, VocabularyConfig, load_mixture, parse_completion
from .trivial_baselines import Baselines, score_token_frequencies


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(VocabularyConfig):
    """A causal model, its vocabulary and its training."""

    tied: bool = True
    """The head reads the embedding's own weights (1608.05859)."""
    window: int | None = None
    """Nodes that a local layer reads, the node itself included. None: all layers are global."""
    global_every: int = 2
    """With a window: every how many layers one is global."""
    sinks: int = 0
    """First nodes that a local layer reads too, however far away: attention sinks (2309.17453)."""
    logit_softcap: float | None = None
    """Logits x become logit_softcap * tanh(x / logit_softcap) (Gemma 2, 2408.00118)."""
    model: TransformerConfig = field(default_factory=TransformerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "window", "global_every", at_least=1, at_most=1 << 24)
        check_range(self, "sinks", at_least=0, at_most=1 << 24)
        check_range(self, "logit_softcap", at_least=1e-3, at_most=1e6)


@dataclass(frozen=True, kw_only=True)
class LanguageConfig(CausalTextConfig, DecoderConfig):  # in this order: the data are those of a text
    """A language model, its text and its training."""


class LanguageModel(nn.Module):
    """ids (B, T) -> logits (B, T, V)"""

    def __init__(self, config: DecoderConfig, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer, self.files = tokenizer, {"tokenizer.json": tokenizer.to_json(), **tokenizer.extra_files}
        vocab_size = max(tokenizer.vocab_size, config.padded_vocab or 0)
        self.nodes = TokenEmbedding(vocab_size, config.model)
        self.body = Transformer(config.model)
        embedding = self.nodes.token if config.tied else None
        self.head = LMHead(config.model.dim, vocab_size, embedding, cap=config.logit_softcap)
        self.edges = build_layer_edges(config)
        self.notes = build_notes(config, tokenizer) if isinstance(config, CausalTextConfig) else None

    def hidden(
        self, ids: Tensor, cache: KVCache | None = None, document: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Return the nodes after the last block, (B, T, C). With a cache, ids are the next ones of each row. `document`
        and `positions` (B, T) are those of each token, where rows hold documents that are kept apart."""
        edges = self.edges
        if document is not None:
            apart = {rule: keep_apart(rule, document, positions) for rule in set(edges)}  # layers still share rules
            edges = [apart[rule] for rule in edges]
        if cache is not None:
            positions = cache.positions(ids.shape[1])
        return self.body(self.nodes(ids, positions), edges, cache=cache)

    def forward(self, ids: Tensor, cache: KVCache | None = None, **inputs: Tensor | None) -> Tensor:
        return self.head(self.hidden(ids, cache, **inputs))


def build_layer_edges(config: DecoderConfig) -> list[Edges]:
    """Return the rule of each layer: causal, and local except in every `global_every`-th layer."""
    if config.window is None:
        return [causal] * config.model.n_layer
    local = causal & (window(config.window) | first(config.sinks) if config.sinks else window(config.window))
    return [causal if (i + 1) % config.global_every == 0 else local for i in range(config.model.n_layer)]


def keep_apart(rule: Edges, document: Tensor, positions: Tensor | None) -> Edges:
    """Return the rule within each document; its sinks are the first nodes of the document."""
    if rule.pinned and positions is not None:
        rule = rule | causal & Edges(lambda b, h, q, k: positions[b, k] < rule.pinned, "first of a document")
    return rule & same(document)


def batches(config: Any, split: str, state: StreamState | None = None) -> BatchStream:
    """Yield windows of the text: ids and labels, (B, T) each, the labels one token ahead.

    "train": random windows without end. "val" and "all": one pass in which every token is predicted once.
    """
    c, text, context = config.train, load_mixture(config), config.model.context
    state = init_stream(state, config.data, text.sha256, **text.stream_values)
    is_apart = isinstance(config, LanguageConfig) and config.documents != "joined"
    separator = text.separator if is_apart and text.n_documents > 1 else None
    if split != "train":
        for owners, ids, labels in text.eval_windows(split, context, c.batch):
            yield tag_batch(make_batch(ids, labels, separator), text, owners), state
    while split == "train":
        ids, labels = text.train_windows(context, c.batch, c.seed, state["step"], c.accumulate)
        state = advance_stream(state, ids.size)
        yield make_batch(ids, labels, separator), state


def make_batch(ids: np.ndarray, labels: np.ndarray, separator: int | None) -> dict[str, Tensor]:
    """Return ids and labels; where a row holds several documents to be kept apart, also document and positions."""
    batch = {"ids": ids, "labels": labels}
    if separator is not None:
        document, positions = segment(ids, separator)
        batch |= {"document": document, "positions": positions} if document.any() else {}
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def loss(model: Any, batch: dict[str, Tensor], reduction: str = "mean", **arguments: Any) -> Tensor:
    arguments |= {name: batch[name] for name in ("document", "positions", "previous") if name in batch}
    return cross_entropy(model.head, model.hidden(batch["ids"], **arguments), batch["labels"], reduction=reduction)


def evaluate(model: Any, batches: Iterator[dict[str, Tensor]]) -> dict[str, float]:
    """Return the mean nats per token, their exponential, and the bits per byte, which no tokenizer changes."""

    def add(batch: dict[str, Tensor]) -> tuple[float, int, int]:
        predicted = batch["labels"][batch["labels"] != IGNORE_INDEX]
        return loss(model, batch, "sum").item(), model.tokenizer.count_bytes(predicted.cpu().numpy()), len(predicted)

    return score_by_source(batches, add, describe_tokens)


def baselines(config: LanguageConfig) -> Baselines:
    return score_token_frequencies(load_mixture(config))


def predict(model: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Continue prompts: {"prompt": "To be", "tokens": 50} and the other fields of `CompletionRequest`; "input" is the
    prompt by another name. Returns {"samples": [{"prompt", "text", "tokens", "finish_reason"}, ...]}."""
    return {"samples": [completion.result() for completion in list(stream(model, request))[-1]]}


def stream(model: Any, request: dict[str, Any]) -> Iterator[list[Completion]]:
    """As `predict`, token by token: yield all completions after every token."""
    return generate_text(model, model.tokenizer, parse_completion(request, model.tokenizer))


def decoder(model: Any) -> Any:
    """Return the model, whose `tokenizer` is that of its texts."""
    return model


def export_graph(model: Any) -> Graph:
    ids = GraphInput("batch length", model.nodes.token.num_embeddings)
    return Graph(model, {"ids": ids}, ("logits",), {"length": model.body.config.context})
