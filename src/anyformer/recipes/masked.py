"""Masked: hide some tokens of a text and predict them from both sides.

raw    text files or a set by name, as characters, bytes or BPE; protein sequences (FASTA), as residues
nodes  tokens, with a position; some of them hidden, others at each step
edges  full: every node reads every other, except padding; within a document only, if documents are kept apart
head   an MLP on each node, then a logit for each entry of the vocabulary
loss   cross-entropy of the hidden tokens

    anyformer train masked                                     minutes on two cores: the plays of Shakespeare
    anyformer train masked --preset protein --minutes 20       protein sequences

BERT (Devlin et al. 2018, 1810.04805), hidden anew at each step as in RoBERTa (1907.11692).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..data.io.cache import cache_by_files, data_files
from ..data.io.resolve import resolve
from ..data.io.sources import split_sources
from ..data.sequences.prepare import prepare_sequences
from ..data.sequences.read import FASTA_EXTENSIONS, RESIDUES, is_sequence_file
from ..data.text.batches import IGNORE_INDEX
from ..data.text.masking import MaskingPolicy, word_pieces
from ..data.text.mixtures import Mixture, Source
from ..data.text.prepare import Corpus, prepare_corpus, shorten_documents
from ..data.text.read import RowOptions
from ..data.text.shards import corpus_files, holds_shards
from ..data.tokenizers.base import Characters, Tokenizer
from ..data.tokenizers.build import KINDS as TEXT_TOKENIZERS
from ..data.tokenizers.build import load_tokenizer
from ..data.tokenizers.masked_tokenizer import MASK, MaskedTokenizer
from ..data.unusable import DuplicatePolicy, EmptyPolicy, check_unusable
from ..errors import InputError
from ..forms import Form, Task
from ..inference.prompt_reading import pad_rows
from ..metrics import describe_classes, sum_classes
from ..model import MaskedHead, initialize
from ..model.kernels.cross_entropy import cross_entropy, iterate_logits
from ..parsing import check_range, parse_dataclass, path_field
from ..recipe import BatchStream, Examples, SizeOption, StreamState, advance_stream, init_stream
from ..training.config import TrainConfig
from ._shared.encoder import (  # noqa: F401
    EncoderConfig,
    TextEncoder,
    TextRequest,
    as_list,
    batch_by_length,
    compare_texts,
    count_tokens,
    embed,
    export_graph,
)
from ._shared.mixtures import count_sources, score_by_source, tag_batch
from ._shared.presets import BERT, MUON, TINY_TRAIN, make_model_config, make_modern_config
from ._shared.sizes import Size, offer_sizes
from ._shared.text import (  # noqa: F401
    TEXT_COLUMN,
    file_input,
    first_tokens,
    hide_tokens,
    load_config_tokenizer,
    prepare_sources,
    refuse_draft_fields,
)
from ._shared.text_lenses import lens_masked as lens  # noqa: F401
from ._shared.trivial_baselines import Baselines, score_token_frequencies


@dataclass(frozen=True, kw_only=True)
class Config(EncoderConfig):
    """An encoder, its text and its training. A FASTA file as `data` has residues as its tokens."""

    data: str = path_field("plays")
    """The name of a set, a file (txt, md, jsonl, parquet, csv, fasta, sto, each also .gz) or a directory of such; or a
    folder or URL of shards, which come with their tokenizer and validation split (`anyformer shard`). Several are mixed
    by their weights: --data a.jsonl:3 --data b.txt:1."""
    columns: str = TEXT_COLUMN
    """Where the data are rows: the column (or field) of the text."""
    empty: EmptyPolicy = "skip"
    """Rows without a text: skip, error, or few: skip where they are at most 1 %."""
    duplicates: DuplicatePolicy = "keep"
    """Rows, or sequences of FASTA, that repeat another one: keep or skip."""
    too_long: Literal["split", "cut", "skip", "error"] = "split"
    """Documents longer than the context: split over several windows, cut, skip or error."""
    tokenizer: str = path_field("bpe", [".json"])
    """char, byte, bpe (trained on the data), residues (of FASTA), ids (numbers, for a model that came without any), or
    the path of a tokenizer.json."""
    val_fraction: float = 0.1
    """Kept for validation: the end of a text, whole families of near-identical sequences of FASTA."""
    documents: Literal["joined", "apart"] = "joined"  # as in runs from before this field
    """Documents of the data (files, lines of a jsonl, proteins) in one window: joined, they read each other; or apart,
    each reads itself only, at positions from 0."""
    tied: bool = True
    """The head reads the embedding's own weights (1608.05859)."""
    mask_rate: float = 0.15
    """Fraction of a text's tokens that is hidden."""
    whole_words: bool = False
    """Hide all tokens of a word or none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "mask_rate", above=0, below=1)
        check_range(self, "val_fraction", at_least=0, below=1)


MODERN: dict[str, Any] = {"activation": "gelu", "init": "zero"}
TRAIN: dict[str, Any] = {"lr": 4e-3, "weight_decay": 0.01, **MUON}
KINDS = {"sequences": {"preset": "protein"}}
SIZES = (Size(64, 2, 16, 0), Size(96, 3, 16, 800))  # of --minutes
PRESETS = {
    # seconds: for tests
    "tiny": Config(tokenizer="char", documents="apart", model=make_model_config(32, 2, 2, 32), train=TINY_TRAIN),
    # minutes on two cores
    "small": Config(
        documents="apart",
        whole_words=True,
        model=make_modern_config(128, 4, 4, 128, **MODERN),
        train=TrainConfig(steps=2000, batch=32, **TRAIN),
    ),
    # to start `classify` from: 20 minutes on two cores, with --minutes 20
    "novels": Config(
        data="eltec",
        vocab_size=8192,
        val_fraction=0.01,
        documents="apart",
        mask_rate=0.4,
        model=make_modern_config(128, 3, 4, 128, **MODERN),
        train=TrainConfig(steps=4000, batch=32, **TRAIN),
    ),
    # residues of 20,000 proteins
    "protein": Config(
        data="protein",
        tokenizer="residues",
        documents="apart",
        tied=False,
        model=make_modern_config(128, 4, 4, 256, **MODERN),
        train=TrainConfig(steps=3000, batch=16, **TRAIN),
    ),
    # BERT-base (1810.04805), 110 M: bring --data, --tokenizer (its vocab.txt) and a GPU
    "bert": Config(
        vocab_size=30522,
        padded_vocab=30522,
        val_fraction=0.005,
        token_types=2,
        embedding_norm=True,
        model=make_model_config(768, 12, 12, 512, dropout=0.1, **BERT),
        train=TrainConfig(
            steps=1_000_000, batch=32, accumulate=8, lr=1e-4, min_lr=0.0, warmup=10_000, weight_decay=0.01, beta2=0.999
        ),
    ),
}


def sizes(config: Config) -> Iterator[SizeOption]:
    yield from offer_sizes(config, SIZES, steps=1500)


class MaskedModel(TextEncoder):
    """ids (B, T) and the further inputs of `Encoder.hidden` -> logits (B, T, V); with masked_positions (B, K), those of
    these nodes only: (B, K, V)"""

    def __init__(self, config: Config, tokenizer: Tokenizer):
        super().__init__(config, tokenizer)
        self.head = MaskedHead(config.model, self.vocab_size, self.nodes.token if config.tied else None)

    def select_nodes(
        self, ids: Tensor, *inputs: Tensor | None, masked_positions: Tensor | None = None, **named: Tensor | None
    ) -> Tensor:
        x = self.hidden(ids, *inputs, **named)
        if masked_positions is not None:
            x = x.gather(1, masked_positions[..., None].expand(-1, -1, x.shape[-1]))  # (B, K, C)
        return x

    def forward(self, ids: Tensor, *inputs: Tensor | None, **named: Tensor | None) -> Tensor:
        return self.head(self.select_nodes(ids, *inputs, **named))


def build(config: Config) -> MaskedModel:
    model = MaskedModel(config, load_text_tokenizer(config))
    initialize(model, config.model)
    return model


def load_text_tokenizer(config: Config) -> Tokenizer:
    if config.tokenizer == "residues":
        return Characters(RESIDUES)
    return load_config_tokenizer(config, lambda: load_mixture(config).tokenizer)


def load_mixture(config: Config) -> Mixture:
    """Return the tokens of all sources of the config's data, prepared once; files that have changed are read again."""
    rows, sources = RowOptions(config.columns, config.empty, config.duplicates), split_sources(config.data)
    options = config.tokenizer, config.vocab_size, config.val_fraction, rows
    if len(sources) == 1:
        text = Mixture((Source(_prepare(config.data, *options)),))
    else:
        check_kinds([source.name for source in sources], config.tokenizer)
        text = prepare_sources(config.data, *options, _prepare)
    if config.too_long == "split":
        return text
    return Mixture(tuple(replace(source, corpus=_shorten(config, source.corpus)) for source in text.sources))


def check_kinds(sources: list[str], tokenizer: str) -> None:
    """Raise InputError if the sources of a mixture are sequences and no one tokenizer is for all of them."""
    is_sequences = [not holds_shards(source) and any(map(is_sequence_file, resolve(source))) for source in sources]
    if any(is_sequences) and (not all(is_sequences) or tokenizer in TEXT_TOKENIZERS):
        name, hint = sources[is_sequences.index(True)], "they mix with sequences only, and --tokenizer residues"
        raise InputError(f"data '{name}' are sequences: {hint}")


@cache_by_files(lambda data, tokenizer, *_: [*corpus_files(data), *data_files(tokenizer)], maxsize=16)
def _prepare(data: str, tokenizer: str, vocab_size: int, val_fraction: float, rows: RowOptions) -> Corpus:
    paths = [] if holds_shards(data) else resolve(data)
    if any(is_sequence_file(path) for path in paths):
        file = Path(tokenizer)
        reader = load_tokenizer(file) if tokenizer != "residues" and file.exists() else Characters(RESIDUES)
        return prepare_sequences(paths, reader, val_fraction, rows.duplicates)
    if tokenizer == "residues":
        endings = ", ".join(FASTA_EXTENSIONS)
        raise InputError(f"data '{data}' is no FASTA file ({endings}), which residues are read from")
    return prepare_corpus(data, tokenizer, vocab_size, val_fraction, rows)


@lru_cache(maxsize=16)
def _shorten(config: Config, corpus: Corpus) -> Corpus:
    """Cut or leave out documents that exceed the context, as the config says. Raises InputError."""
    n_special = MaskedTokenizer.from_tokenizer(corpus.tokenizer, config.padded_vocab).n_special
    shorter, n_long, longest = shorten_documents(corpus, config.model.context - n_special, config.too_long)
    problem = f"documents are longer than the context of {config.model.context} tokens"
    hint = f"--too-long split, cut or skip, or --model.context {longest + n_special} for the longest"
    check_unusable(n_long, corpus.n_documents, config.too_long, "--too-long", problem, hint)
    return shorter


def baselines(config: Config) -> Baselines:
    return score_token_frequencies(load_mixture(config))


def describe_sources(config: Config, n_batches: int) -> dict[str, dict[str, Any]]:
    text = load_mixture(config)
    width = config.model.context - read_vocabulary(config, text).n_special
    return count_sources(text, config, width, n_batches)


def batches(config: Config, split: str, state: StreamState | None = None) -> BatchStream:
    """Yield batches; the keys are those of `make_batch`.

    "train" never ends and yields random windows, hidden anew at each step. "val" and "all" yield every window once,
    with the same tokens hidden each time.
    """
    c, text = config.train, load_mixture(config)
    state = init_stream(state, config.data, text.sha256, **text.stream_values)
    tokenizer = read_vocabulary(config, text)
    pieces = word_pieces(text.tokenizer) if config.whole_words else None
    policy = MaskingPolicy(tokenizer.require_mask_id(), text.tokenizer.vocab_size, pieces, config.mask_rate)
    separate = config.documents == "apart" and text.n_documents > 1 and text.separator is not None
    width = config.model.context - tokenizer.n_special
    if split != "train":
        for i, (owners, ids, labels) in enumerate(text.eval_windows(split, width, c.batch)):
            batch = make_batch(tokenizer, policy, ids, (labels != IGNORE_INDEX).sum(1), 0, i, separate)
            yield tag_batch(batch, text, owners), state
    while split == "train":
        ids, _ = text.train_windows(width, c.batch, c.seed, state["step"], c.accumulate)
        batch = make_batch(tokenizer, policy, ids, np.full(len(ids), width), c.seed, state["step"], separate)
        state = advance_stream(state, ids.size)
        yield batch, state


def read_vocabulary(config: Config, text: Mixture) -> MaskedTokenizer:
    return MaskedTokenizer.from_tokenizer(text.tokenizer, config.padded_vocab)


def make_batch(
    tokenizer: MaskedTokenizer,
    policy: MaskingPolicy,
    windows: np.ndarray,
    sizes: np.ndarray,
    seed: int,
    step: int,
    separate: bool = False,
) -> dict[str, Tensor]:
    """Hide tokens of windows of a text, (B, t), of which the first `sizes` (B,) are text and the others padding.

    Returns:
        ids (B, T), with some hidden; masked_positions (B, K), where these are; labels (B, K), their ids, or
        IGNORE_INDEX where a row has fewer. lengths (B,), if rows are padded. document and positions (B, T), if
        documents are `separate` and a row has several.
    """
    ids, lengths, is_text = tokenizer.wrap_rows(windows, sizes)
    hidden, where, targets = policy(ids, is_text, seed, step)
    batch = {"ids": hidden, **align_labels(where, targets, ids.shape)}
    if (lengths != ids.shape[1]).any():
        batch["lengths"] = lengths
    if separate:
        document, positions = tokenizer.segment_rows(windows, sizes)
        if document.any():  # else every row is one document, which needs no mask
            batch |= {"document": document, "positions": positions}
    return {name: torch.from_numpy(value) for name, value in batch.items()}


def align_labels(where: np.ndarray, targets: np.ndarray, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Arrange hidden tokens by rows: where (N,) in the flat array of this shape, targets (N,) -> (B, K) each."""
    row, column = np.divmod(where, shape[1])
    counts = np.bincount(row, minlength=shape[0])
    slot = np.arange(len(where)) - np.repeat(np.cumsum(counts) - counts, counts)
    positions = np.zeros((shape[0], max(1, counts.max(initial=0))), np.int64)
    labels = np.full_like(positions, IGNORE_INDEX)
    positions[row, slot], labels[row, slot] = column, targets
    return {"masked_positions": positions, "labels": labels}


def examples(config: Config) -> Examples:
    text = load_mixture(config)
    return hide_tokens(text, MASK, 1, config.model.context - read_vocabulary(config, text).n_special)


def compute_nodes(model: MaskedModel, batch: dict[str, Tensor]) -> Tensor:
    """Return the nodes of the hidden tokens: (B, K, C)"""
    return model.select_nodes(**{name: value for name, value in batch.items() if name != "labels"})


def loss(model: MaskedModel, batch: dict[str, Tensor]) -> Tensor:
    nats = cross_entropy(model.head, compute_nodes(model, batch), batch["labels"], reduction="sum")
    return nats / (batch["labels"] != IGNORE_INDEX).sum().clamp(min=1)


def evaluate(model: MaskedModel, batches: Iterator[dict[str, Tensor]]) -> dict[str, float]:
    """Return of the hidden tokens the mean nats, their exponential, and the accuracy."""

    def add(batch: dict[str, Tensor]) -> list[float]:
        return sum_classes(iterate_logits(model.head, compute_nodes(model, batch), batch["labels"]))

    return score_by_source(batches, add, describe_classes)


@dataclass(frozen=True)
class Request(TextRequest):
    """Texts with [MASK] for the tokens to predict, or texts to embed."""

    top: int = 5
    """How many tokens to name for each mask, likeliest first."""

    def __post_init__(self) -> None:
        check_range(self, "top", at_least=1, at_most=1 << 31)


@torch.inference_mode()
def predict(model: MaskedModel, request: dict[str, Any]) -> dict[str, Any]:
    """Predict the hidden tokens of texts, or embed texts: the fields of `Request`.

    {"input": "The capital of [MASK] is Paris", "top": 5} returns {"results": [{"input", "text", "masks": [[{"token",
    "probability"}, ...], ...]}]}: for each mask the likeliest tokens, and the text with the likeliest filled in.
    {"embed": [text, ...]} returns {"vectors": [[...], ...]}, of length 1.
    """
    refuse_draft_fields(request)
    fields = parse_dataclass(Request, request, "request")
    if fields.embed is not None:
        return {"vectors": embed(model, as_list(fields.embed), fields.cut)}
    tokenizer, n = model.masked_tokenizer, model.masked_tokenizer.tokenizer.vocab_size
    if fields.top > n:
        raise InputError(f"request: top is {fields.top}; it must be a whole number from 1 to {n}")
    texts = first_tokens(tokenizer.tokenizer) + MASK if fields.input is None else fields.input
    return {"results": fill_texts(model, as_list(texts), fields.top, fields.cut)}


def form(model: MaskedModel, config: Config) -> Form:
    """Describe what can be asked: of a model without a mask token, the vectors of texts."""
    tokenizer = model.masked_tokenizer
    examples, usual = (first_tokens(tokenizer.tokenizer) + MASK,), {"top": (1, 20)}
    fill = Task("Predict hidden words", "text", Request, "masks", mark=MASK, usual=usual, examples=examples)
    return Form((fill, compare_texts(model)))


def predict_batch(model: MaskedModel, inputs: list[str], settings: dict[str, Any]) -> list[dict[str, Any]]:
    return predict(model, settings | {"input": inputs})["results"]


def fill_texts(model: MaskedModel, texts: list[str], top: int, cut: bool) -> list[dict[str, Any]]:
    """Predict the masks of texts. Raises InputError where one has none."""
    results: dict[int, dict[str, Any]] = {}
    rows = model.masked_tokenizer.encode_batch(texts, model.context, cut)
    mask_id = model.masked_tokenizer.require_mask_id()
    masks = [[i for i, token in enumerate(ids) if token == mask_id] for ids in rows]
    if without := [text for text, places in zip(texts, masks) if not places]:
        raise InputError(f"{without[0]!r} hides nothing: write {MASK} where a token is to be predicted")
    for indices in batch_by_length(rows):
        counts = [len(masks[i]) for i in indices]
        positions, _ = pad_rows([masks[i] for i in indices])  # the logits of other tokens are not computed
        ids, lengths = pad_rows([rows[i] for i in indices])
        inputs = {"ids": ids, "lengths": lengths, "masked_positions": positions}
        device = next(model.parameters()).device
        logits = model(**{name: value.to(device) for name, value in inputs.items()}).float().cpu()
        results |= {i: fill_masks(model, rows[i], masks[i], row[:n], top) for i, row, n in zip(indices, logits, counts)}
    return [{"input": text} | results[i] for i, text in enumerate(texts)]


def fill_masks(model: MaskedModel, ids: list[int], masks: list[int], logits: Tensor, top: int) -> dict[str, Any]:
    """Describe the predictions for the masks of one text: logits (masks, V)"""
    ids, tokenizer = list(ids), model.masked_tokenizer
    best = logits.softmax(-1)[:, : tokenizer.tokenizer.vocab_size].topk(top)
    ranked = [
        [{"token": tokenizer.token_text(i), "probability": p} for p, i in zip(*row, strict=True)]
        for row in zip(best.values.tolist(), best.indices.tolist())
    ]
    for i, token in zip(masks, best.indices[:, 0].tolist()):
        ids[i] = token
    inner = ids[len(tokenizer.prefix_ids) : len(ids) - len(tokenizer.suffix_ids)]
    return {"text": tokenizer.tokenizer.decode(inner), "masks": ranked}
