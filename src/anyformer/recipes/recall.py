"""Recall: a language model that also looks up what followed the last few tokens wherever the text has them.

raw    text files or a set by name, as characters, bytes or BPE
nodes  tokens, with a position
edges  causal, or local and global in turn
head   a logit for each token, plus the log-probability by smoothed n-gram counts, which each node weighs
loss   cross-entropy of the next token; its own occurrence is left out of the counts

    anyformer train recall                        a minute on two cores: the plays of Shakespeare

The counts predict what is local after a moment of counting; the Transformer learns the remainder. Kneser-Ney smoothing
(1995), in the form of Chen and Goodman (1999); a memory beside a language model: 1612.04426, 1911.00172.
"""

import json
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..data.io.checks import read_json
from ..data.text.batches import IGNORE_INDEX
from ..data.text.ngrams import NGramCounts, NGramOrder, count_ngrams
from ..data.text.prepare import Corpus
from ..data.tokenizers.build import Tokenizer
from ..errors import InputError
from ..model import KVCache, initialize
from ..model.compact_cache import build_cache
from ..model.ngram_mixture import NGramMixture, TokenCache
from ..parsing import parse_dataclass, path_field
from ..recipe import BatchStream, StreamState
from ._shared import language
from ._shared.language import (  # noqa: F401
    LanguageConfig,
    LanguageModel,
    baselines,
    decoder,
    evaluate,
    predict,
    stream,
)
from ._shared.presets import MINUTE_TRAIN, TINY_TRAIN, make_model_config, make_modern_config
from ._shared.scaling import mixture_sizes as sizes  # noqa: F401
from ._shared.text import file_input, form, load_corpus, load_text_tokenizer, predict_batch  # noqa: F401
from ._shared.text_lenses import lens_language as lens  # noqa: F401

MAX_ORDER = 16  # tokens of an n-gram before the one that follows
BUFFERS = ("contexts", "starts", "tokens", "counts")  # of each order, by the fields of NGramOrder


@dataclass(frozen=True, kw_only=True)
class Config(LanguageConfig):
    """A language model with n-gram counts, its text and its training."""

    documents: Literal["joined", "apart"] = "joined"
    """As of `language`, without rows: n-grams are counted over the text as a whole."""
    counts: str = path_field("6", [".json"])
    """The longest n-gram that is looked up, in tokens before the one that follows; or the counts.json of a run."""


PRESETS = {
    # seconds: for tests
    "tiny": Config(counts="3", model=make_model_config(32, 2, 2, 32), train=TINY_TRAIN),
    # a minute on two cores
    "small": Config(model=make_modern_config(128, 4, 4, 128), train=MINUTE_TRAIN),
    # seconds: the counts, and a Transformer of hardly any training
    "counts": Config(
        model=make_modern_config(64, 1, 4, 64),
        train=replace(MINUTE_TRAIN, steps=2, batch=64, warmup=0, eval_every=2, eval_batches=1, save_every=2),
    ),
    # little more than a minute on two cores
    "fast": Config(
        model=make_modern_config(128, 4, 4, 256), train=replace(MINUTE_TRAIN, steps=800, batch=8, eval_every=400)
    ),
    # seventeen minutes on two cores
    "quarter": Config(
        model=make_modern_config(192, 6, 6, 256, dropout=0.1),
        train=replace(MINUTE_TRAIN, steps=3000, batch=16, lr=3e-3, eval_every=500, save_every=500),
    ),
}


class RecallModel(LanguageModel):
    """ids (B, T) -> logits (B, T, V)"""

    def __init__(self, config: Config, tokenizer: Tokenizer):
        super().__init__(config, tokenizer)
        self.head = NGramMixture(self.head, config.model.dim)
        self.memory, shape = nn.ModuleList(), read_shape(config)
        self.discounts = shape.discounts
        for contexts, entries in shape.sizes:
            order = nn.Module()
            for name, size in zip(BUFFERS, (contexts, contexts + 1, entries, entries)):
                order.register_buffer(name, torch.zeros(size, dtype=torch.int64))
            self.memory.append(order)
        self.files |= {"counts.json": json.dumps({"discounts": self.discounts, "sizes": shape.sizes})}
        self._counts: NGramCounts | None = None

    def store_counts(self, counts: NGramCounts) -> None:
        for buffers, order in zip(self.memory, counts.orders, strict=True):
            for name in BUFFERS:
                buffers.get_buffer(name).copy_(torch.from_numpy(getattr(order, name)))

    @property
    def counts(self) -> NGramCounts:
        """The counts as numpy arrays. Raises InputError where the buffers of a checkpoint are inconsistent."""
        if self._counts is None:
            vocab_size, orders = self.nodes.token.num_embeddings, []
            for buffers, discounts in zip(self.memory, self.discounts, strict=True):
                arrays = (buffers.get_buffer(name).cpu().numpy() for name in BUFFERS)
                orders.append(NGramOrder(*arrays, np.array(discounts), vocab_size))
            counts = NGramCounts(tuple(orders), vocab_size)
            if not counts.is_valid():
                raise InputError("the counts of this checkpoint are damaged: bring model.safetensors back")
            self._counts = counts
        return self._counts

    def hidden(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        document: Tensor | None = None,
        positions: Tensor | None = None,
        labels: Tensor | None = None,
        previous: Tensor | None = None,
    ) -> Tensor:
        """Return the nodes after the last block, followed by the n-gram log-probabilities: (B, T, C + V). `labels` are
        the next tokens, where the rows are part of the text that was counted; `previous` (B, P) are the tokens before
        each row, -1 for none, which only the counts read."""
        if isinstance(cache, TokenCache):
            groups = cache.append_ids(ids, self.counts.max_order)
            log_probs = torch.cat([self.look_up(rows)[:, -ids.shape[1] :] for rows in groups])[cache.order]
        else:
            log_probs = self.look_up(ids, labels, positions, previous)
        return torch.cat([super().hidden(ids, cache, document, positions), log_probs], dim=-1)

    def look_up(
        self,
        ids: Tensor,
        labels: Tensor | None = None,
        positions: Tensor | None = None,
        previous: Tensor | None = None,
    ) -> Tensor:
        """Return the log-probabilities of what follows each token, from the tokens of its own document: (B, T, V)"""
        if ids.is_meta:  # only shapes are computed
            return torch.empty(*ids.shape, self.nodes.token.num_embeddings, device="meta")
        own = None if labels is None else labels.masked_fill(labels == IGNORE_INDEX, -1).cpu().numpy()
        starts, rows, length = None if positions is None else positions.cpu().numpy(), ids.cpu().numpy(), ids.shape[1]
        if previous is not None:
            rows, starts = prepend(rows, starts, previous.cpu().numpy())
        probabilities = self.counts.probabilities(rows, own, starts)[:, -length:]
        return torch.from_numpy(probabilities).clamp_(min=1e-9).log_().to(ids.device)

    def new_cache(self, batch: int, size: int | None = None) -> KVCache:
        return build_cache(self.body, batch, size, TokenCache)


def build(config: Config) -> RecallModel:
    model = RecallModel(config, load_text_tokenizer(config))
    initialize(model, config.model)
    nn.init.zeros_(model.get_parameter("head.weigh.weight"))
    if config.counts.isdigit():
        model.store_counts(count_text(config))
    if config.train.compile:  # numpy would be traced, in dozens of graphs; here, since decorating loads the compiler
        model.look_up = torch.compiler.disable(model.look_up)
    return model


@dataclass(frozen=True)
class CountsShape:
    """counts.json: of each order, the discounts, and how many contexts and entries it has."""

    discounts: list[tuple[float, float, float, float]] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)


def read_shape(config: Config) -> CountsShape:
    """Return the shape of the counts, from the text or from counts.json. Raises InputError."""
    if config.counts.isdigit():
        orders = count_text(config).orders
        sizes = [(len(order.contexts), len(order.tokens)) for order in orders]
        return CountsShape([order.discounts.tolist() for order in orders], sizes)
    path = Path(config.counts)
    if not path.is_file():
        raise InputError(f"counts is '{config.counts}': expected a number of tokens, or the path of a counts.json")
    shape, weights = parse_dataclass(CountsShape, read_json(path), str(path)), path.with_name("model.safetensors")
    max_entries = weights.stat().st_size // 8 if weights.is_file() else 0  # int64: a damaged size allocates no more
    is_valid = len(shape.sizes) == len(shape.discounts) > 0 and all(min(pair) >= 1 for pair in shape.sizes)
    if not is_valid or 2 * sum(map(sum, shape.sizes)) > max_entries:
        raise InputError(f"{path} does not hold the sizes of the counts in model.safetensors beside it")
    return shape


@lru_cache(maxsize=2)
def _count(corpus: Corpus, max_order: int, vocab_size: int) -> NGramCounts:
    """`load_corpus` returns the same object while the files are unchanged, so that a text is counted once."""
    return count_ngrams(np.asarray(corpus.split("train"), np.int64), max_order, vocab_size)


def count_text(config: Config) -> NGramCounts:
    """Return the n-grams of the training split, counted once. Raises InputError."""
    max_order, corpus = int(config.counts), load_corpus(config)
    vocab_size = max(corpus.tokenizer.vocab_size, config.padded_vocab or 0)
    if not 1 <= max_order <= MAX_ORDER:
        raise InputError(f"counts is {max_order}; it must be from 1 to {MAX_ORDER} tokens")
    try:
        return _count(corpus, max_order, vocab_size)
    except ValueError as error:
        raise InputError(f"counts is {max_order}: {error}: lower --counts") from None


def batches(config: Config, split: str, state: StreamState | None = None) -> BatchStream:
    """Yield windows of the text, as `language` does. In "val" and "all" a batch also has `previous` (B, P), the tokens
    before each window, so that the contexts of n-grams do not end at its edge."""
    if split == "train":
        yield from language.batches(config, split, state)
        return
    n_previous = int(config.counts) if config.counts.isdigit() else len(read_shape(config).sizes) - 1
    corpus, last = load_corpus(config), np.full(n_previous, -1)
    is_apart = config.documents == "apart" and corpus.n_documents > 1
    for batch, position in language.batches(config, split, state):
        B, T = batch["ids"].shape
        tokens = np.concatenate([last, batch["ids"].numpy().flatten()])
        previous, last = tokens[T * np.arange(B)[:, None] + np.arange(n_previous)], tokens[-n_previous:]
        if is_apart:  # what precedes the document that goes on in the row is not read
            starts = np.concatenate([previous, batch["ids"].numpy()[:, :1]], 1) == corpus.separator
            is_own = np.cumsum(starts[:, :0:-1], 1)[:, ::-1] == 0
            previous = np.where(is_own, previous, -1)
        yield batch | {"previous": torch.from_numpy(previous)}, position


def prepend(ids: np.ndarray, positions: np.ndarray | None, previous: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put the previous tokens (-1: none) of each row in front of it.

    Returns:
        ids: (B, P + T).
        positions: (B, P + T), of each token in its document, as far as it is known: the first tokens of a row belong
            to the document of the previous ones, unless the row starts a document.
    """
    B, T = ids.shape
    positions = np.broadcast_to(np.arange(T), (B, T)) if positions is None else positions
    is_first_document = np.cumsum(positions == 0, axis=1) == 1
    n_previous = (previous >= 0).sum(1, keepdims=True)
    positions = np.where(is_first_document, positions + n_previous, positions)
    before = np.broadcast_to(np.zeros(1, np.int64), previous.shape)
    return np.concatenate([np.maximum(previous, 0), ids], 1), np.concatenate([before, positions], 1)


def loss(model: RecallModel, batch: dict[str, Tensor]) -> Tensor:
    return language.loss(model, batch, labels=batch["labels"] if model.training else None)
