"""Language: predict the next token of a text, and so write on.

raw    text files, or a set by name: characters, bytes or BPE
nodes  tokens, with a position
edges  causal; in local layers the last `window` nodes only
head   a logit for each token of the vocabulary, tied to the embedding
loss   cross-entropy of the next token

    anyformer train language                        about a minute on two cores: the plays of Shakespeare
    anyformer train language --preset nanogpt-cpu --data shakespeare       about a minute: loss 1.90

GPT (Radford et al. 2018, 2019), in the small form of Karpathy's nanoGPT.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.text.batches import NOTHING, sweep, windows
from ...data.tokenizers.build import Tokenizer
from ...errors import InputError
from ...inference.completion import CompletionRequest, Completion, generate_text
from ...model.attention import KVCache
from ...model.block import Transformer
from ...model.edges import Edges, causal, window
from ...model.embeddings import Tokens
from ...model.heads import LMHead
from ...model.init import initialise
from ...recipe import Graph, GraphInput, StreamState, init_stream
from .budget import sizes
from .config import PRESETS, Config, Text
from .words import corpus, load_tokenizer_for

__all__ = [
    "PRESETS",
    "Config",
    "LanguageModel",
    "Text",
    "make_batch",
    "batches",
    "build",
    "corpus",
    "evaluate",
    "export_graph",
    "layer_edges",
    "loss",
    "predict",
    "sizes",
    "stream",
    "load_tokenizer_for",
]


class LanguageModel(nn.Module):
    """ids (B, T) -> logits (B, T, vocab_size)"""

    def __init__(self, config: Config, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer, self.files = tokenizer, {"tokenizer.json": tokenizer.json(), **tokenizer.beside}
        vocab = max(tokenizer.vocab_size, config.padded_vocab or 0)
        self.nodes = Tokens(vocab, config.model)
        self.body = Transformer(config.model)
        self.head = LMHead(config.model.dim, vocab, self.nodes.token if config.tied else None)
        self.edges = layer_edges(config)

    def hidden(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """The nodes after the last block, (B, T, C); with a cache, ids are the next ones of each row."""
        positions = None if cache is None else cache.positions(ids.shape[1])
        return self.body(self.nodes(ids, positions), self.edges, cache=cache)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        return self.head(self.hidden(ids, cache))


def layer_edges(config: Config) -> list[Edges]:
    """The rule of each layer: causal, and local but for every `global_every`-th."""
    if config.window is None:
        return [causal] * config.model.n_layer
    local = causal & window(config.window)
    return [causal if (i + 1) % config.global_every == 0 else local for i in range(config.model.n_layer)]


def build(config: Config) -> LanguageModel:
    model = LanguageModel(config, load_tokenizer_for(config))
    initialise(model, config.model)
    return model


def batches(config: Config, split: str, state: StreamState | None = None) -> Iterator[tuple[dict[str, Tensor], StreamState]]:
    """ "train": random windows for ever. "val" and "all": one pass over the whole, each token predicted once."""
    c, text = config.train, corpus(config)
    state = init_stream(state, config.data, text.meta["sha256"])
    tokens, context = text.split(split), config.model.context
    if split != "train":
        for x, y in sweep(tokens, context, c.batch, split):
            yield make_batch(x, y), state
    while split == "train":
        x, y = windows(tokens, context, c.batch, c.seed, state["step"], split)
        state = state | {"step": state["step"] + 1, "tokens": state["tokens"] + x.size}
        yield make_batch(x, y), state


def make_batch(x: np.ndarray, y: np.ndarray) -> dict[str, Tensor]:
    """ids, and which comes next: (B, T) each, the second shifted by one."""
    return {"ids": torch.from_numpy(x), "next": torch.from_numpy(y)}


def loss(model: LanguageModel, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch["ids"]).flatten(0, 1).float(), batch["next"].flatten())


def evaluate(model: LanguageModel, batches: Iterator[dict[str, Tensor]]) -> dict[str, float]:
    """Mean nats a token, their exponential, and bits for each byte of UTF-8, which no tokenizer can flatter."""
    nats, tokens, n_bytes = 0.0, 0, 0
    for batch in batches:
        nexts = batch["next"].flatten()
        real = nexts[nexts != NOTHING]
        nats += F.cross_entropy(model(batch["ids"]).flatten(0, 1).float(), nexts, reduction="sum").item()
        tokens += len(real)
        n_bytes += model.tokenizer.n_bytes(real.cpu().numpy())
    mean = nats / max(1, tokens)
    bits = nats / math.log(2) / max(1, n_bytes)
    return {"loss": mean, "perplexity": math.exp(min(mean, 700)), "bits_per_byte": bits, "tokens": tokens}


def predict(model: LanguageModel, request: dict[str, Any]) -> dict[str, Any]:
    """Continue a prompt, or several: {"prompt": "To be", "tokens": 50, "temperature": 0} and the other fields of
    `Request`; "input" is another name for the prompt. Returns {"samples": [{"prompt", "text", "tokens",
    "finish_reason"}, ...]}."""
    return {"samples": [voice.result() for voice in list(stream(model, request))[-1]]}


def export_graph(model: LanguageModel) -> Graph:
    ids = GraphInput("batch length", model.nodes.token.num_embeddings)
    return Graph(model, {"ids": ids}, ("logits",), {"length": model.body.config.context})


def stream(model: LanguageModel, request: dict[str, Any]) -> Iterator[list[Completion]]:
    """As `predict`, token by token: all voices after each, for whoever wants to watch."""
    asked = {"prompt" if name == "input" else name: value for name, value in request.items()}
    return generate_text(model, model.tokenizer, CompletionRequest.of({"prompt": default_prompt(model.tokenizer)} | asked))


def default_prompt(tokenizer: Tokenizer) -> str:
    """Where there is no prompt a line begins; or a text, where the vocabulary has no line breaks; or anything."""
    try:
        if len(tokenizer.encode("\n")):
            return "\n"
    except InputError:
        pass
    return tokenizer.decode([0]) if tokenizer.end is None else ""
