"""Pairs of texts: what every recipe that reads one text and writes another has in common, and the Transformer of pairs.

A model of pairs is called with source (B, S) ids, target (B, T) ids and the edges of the source, and returns logits
(B, T, V). It carries its tokenizers as `pair_tokenizer`, and `label_smoothing`.

Shapes: B pairs, S tokens of a source, T tokens of a target, V entries of the vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...data.io.manifest import split_columns
from ...data.sampling import count_rows
from ...data.text import pair_batches
from ...data.text.batches import IGNORE_INDEX
from ...data.text.pairs import Pairs, read_pairs
from ...data.tokenizers.build import KINDS, Tokenizer
from ...data.tokenizers.pair_tokenizer import PairTokenizer, build_pair_tokenizer
from ...data.unusable import DuplicatePolicy, EmptyPolicy, LengthPolicy
from ...errors import InputError
from ...forms import Form, Task
from ...inference.translation import TranslationRequest, align_translation, can_align, translate
from ...metrics import score_classes, score_translations
from ...model import (
    Edges,
    EncoderDecoder,
    LMHead,
    PointerHead,
    TokenEmbedding,
    TransformerConfig,
    full,
    initialize,
    within,
)
from ...model.encoder_decoder import ConditionedDecoder
from ...model.kernels.cross_entropy import cross_entropy, iterate_logits
from ...parsing import check_range, parse_dataclass, path_field
from ...recipe import (
    BatchStream,
    Examples,
    Figure,
    FileInput,
    Graph,
    GraphInput,
    StreamState,
    advance_stream,
    init_stream,
)
from ...training.config import TrainConfig
from .text import (
    LONG_EXAMPLE,
    MAX_VOCAB_SIZE,
    VocabularyConfig,
    choose_examples,
    first_tokens,
    load_config_tokenizer,
)
from .trivial_baselines import Baselines, score_bigrams

COLUMNS = "source,target"  # of a table
NOTHING_SHARED = "two vocabularies have no embedding to share: --no-shared"
MAX_FIGURES = 3  # pairs whose attention is drawn
MAX_FIGURE_TOKENS = 24  # of each side of a pair that is drawn


@dataclass(frozen=True, kw_only=True)
class PairConfig(VocabularyConfig):
    """Pairs of texts and their vocabulary."""

    data: str = path_field("multi30k")
    """A set (multi30k, fra-eng, reverse), a table (tsv, csv, jsonl, json, parquet), two files A,B, or a folder with
    train.en and train.fr."""
    columns: str = ""
    """Names of a table's columns (or fields) of both sides, with a comma between. Empty: source and target, or the only
    two."""
    tokenizer: str = path_field("bpe", [".json"])
    vocab_size: int = 8000
    source_tokenizer: str = path_field("", [".json"])
    """The same of the source alone; `tokenizer` is then the target's alone. Empty: one vocabulary for both sides."""
    backwards: bool = False
    """From the second side of each pair to the first."""
    empty: EmptyPolicy = "few"
    """Pairs with an empty side: skip, error, or few: skip where they are at most 1 %."""
    duplicates: DuplicatePolicy = "keep"
    """Pairs that repeat another one: keep or skip."""
    too_long: LengthPolicy = "few"
    """Pairs with a text longer than the context: cut, skip, error, or few: skip where they are at most 1 %."""
    val_fraction: float = 0.1
    """Kept for validation, where the data have no part for it."""
    start: int | None = None
    """The id that the target begins with. None: as `end`."""
    end: int | None = None
    """The id that ends both sides. None: the tokenizer's end of a text."""
    source_start: int | None = None
    """The id that a source begins with. None: there is none."""
    label_smoothing: float = 0.1
    """Share of the target's probability that is spread over the vocabulary (1512.00567)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "val_fraction", above=0, below=1)
        check_range(self, "start", "end", "source_start", at_least=0, at_most=MAX_VOCAB_SIZE)
        check_range(self, "label_smoothing", at_least=0, below=1)

    @property
    def contexts(self) -> tuple[int, int]:
        """The most tokens of a source and of a target, with the token that ends or begins it."""
        raise NotImplementedError


def load_pairs(config: Any) -> Pairs:
    """Return the pairs of the config's data, read once; a file that has changed is read again."""
    c = config
    return read_pairs(c.data, c.val_fraction, c.backwards, c.empty, c.columns, c.duplicates)


def max_tokens(config: Any) -> tuple[int, int]:
    """Return the most tokens of a source and of a target, without the tokens that end or begin it."""
    return config.contexts[0] - 1 - (config.source_start is not None), config.contexts[1] - 1


def load_tokenizers(config: Any) -> PairTokenizer:
    """Return the tokenizers of both sides and the ids that begin and end a text."""

    def load(spec: str, *sides: int) -> Tokenizer:
        def train() -> Tokenizer:
            pairs = load_pairs(config)
            pair_batches.check_word_counts(pairs, max_tokens(config), config.too_long)
            return pair_batches.build_side_tokenizer(pairs, spec, config.vocab_size, sides)

        return load_config_tokenizer(config, train, spec)

    if not config.source_tokenizer:
        return build_pair(config, load(config.tokenizer, 0, 1))
    source = load(config.source_tokenizer, 0)
    return build_pair(config, load(config.tokenizer, 1), source)


def build_pair(config: Any, target: Tokenizer, source: Tokenizer | None = None) -> PairTokenizer:
    """Combine the tokenizers of both sides (`source` None: one for both) with the config's start and end. Raises
    InputError where the vocabulary does not have these ids."""
    pair = build_pair_tokenizer(target, source, config.start, config.end, config.source_start)
    source_size, target_size = pair.vocab_sizes(config.padded_vocab)
    ids = (("start", pair.start_id, target_size), ("end", pair.end_id, target_size))
    ids = (*ids, ("end", pair.source_end_id, source_size), ("source_start", pair.source_start_id or 0, source_size))
    for name, i, size in ids:
        if i >= size:
            raise InputError(f"{name} is {i}, but the vocabulary has {size:,} ids: 0 to {size - 1}")
    return pair


def batches(config: Any, split: str, state: StreamState | None = None) -> BatchStream:
    """Yield batches of pairs of similar length: source, lengths, target and labels.

    "train" never ends and yields each pair once an epoch; "val" and "all" yield every pair once. A batch holds as many
    pairs as cost no more than `train.batch` pairs that fill the context.
    """
    pairs, tokenizers = load_pairs(config), load_tokenizers(config)

    def encode(split: str) -> pair_batches.EncodedPairs:
        return pair_batches.encode_pairs(pairs, split, tokenizers.tokenizers, max_tokens(config), config.too_long)

    encoded, n_rows = encode(split), count_rows(split, encode)
    skipped = pairs.skipped + encoded.skipped
    state = init_stream(state, config.data, pairs.sha256, skipped=skipped, cut=encoded.cut, rows=n_rows)
    max_cost = config.train.batch * max(config.contexts)

    def make_batch(indices: np.ndarray) -> dict[str, Tensor]:
        arrays = pair_batches.collate(encoded, indices, tokenizers.start_id, tokenizers.end_id, tokenizers.mark_source)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    if split != "train":
        for indices in pair_batches.eval_indices(encoded, max_cost):
            yield make_batch(indices), state
    while split == "train":
        batch = make_batch(pair_batches.sample_indices(encoded, max_cost, config.train.seed, state["step"]))
        tokens = int(batch["lengths"].sum() + (batch["labels"] != IGNORE_INDEX).sum())
        state = advance_stream(state, tokens)
        yield batch, state


def decode_batch(model: Any, batch: dict[str, Tensor]) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return the head, and the nodes (B, T, C) of which it computes the logits of every next token."""
    source, memory_mask = batch["source"], within(batch["lengths"])
    decoder = model.condition(model.encode(source, memory_mask), memory_mask, source)
    return decoder.head, decoder.hidden(batch["target"])


def loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    smoothing = model.label_smoothing if model.training else 0.0
    return cross_entropy(*decode_batch(model, batch), batch["labels"], smoothing)


def evaluate(model: Any, batches: Iterator[dict[str, Tensor]]) -> dict[str, float]:
    """Return the mean nats per token of the target (not smoothed), their exponential, and the accuracy."""
    parts = (iterate_logits(*decode_batch(model, batch), batch["labels"]) for batch in batches)
    return score_classes(chain.from_iterable(parts))


def baselines(config: Any) -> Baselines:
    """Score models of the target alone: what a translation gains from its source shows beside them."""
    pairs, tokenizers = load_pairs(config), load_tokenizers(config)
    sides = tokenizers.tokenizers, max_tokens(config), config.too_long
    train, val = (pair_batches.encode_pairs(pairs, split, *sides).target for split in ("train", "val"))
    ends = tokenizers.start_id, tokenizers.end_id
    texts = ([np.array([ends[0], *ids, ends[1]]) for ids in targets] for targets in (train, val))
    return {"loss": score_bigrams(*texts, tokenizers.vocab_sizes(config.padded_vocab)[1])}


def examples(config: Any) -> Examples:
    pairs = load_pairs(config).split("val")
    rows = [pairs[i] for i in choose_examples([source for source, _ in pairs])]
    sources, targets = ([row[side][:LONG_EXAMPLE] for row in rows] for side in (0, 1))
    return Examples({"input": sources, "cut": True}, targets)


def predict(model: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Translate a text, or several: {"input": "A dog.", "beam": 4} and the other fields of `TranslationRequest`.

    Returns {"results": [{"input", "text", "score", "finish_reason"}, ...]}, with "candidates" where `n_best` > 1.
    """
    request = {"input": first_tokens(model.pair_tokenizer.source)} | request
    return {"results": translate(model, parse_dataclass(TranslationRequest, request, "request"))}


def file_input(model: Any, config: Any) -> FileInput:
    side = split_columns(config.columns, COLUMNS)[config.backwards] if config.columns else "source"
    return FileInput((side,), tsv_quotes=False, settings={"cut": config.too_long == "cut"})


def form(model: Any, config: Any) -> Form:
    settings: dict[str, Any] = {"settings": {"align": True}} if can_align(model) else {"omit": ("align",)}
    example = first_tokens(model.pair_tokenizer.source)
    return Form((Task("Translate", "text", TranslationRequest, "translations", examples=(example,), **settings),))


def predict_batch(model: Any, inputs: list[str], settings: dict[str, Any]) -> list[dict[str, Any]]:
    return predict(model, settings | {"input": inputs})["results"]


def score(model: Any, config: Any, split: str = "val", **request: Any) -> dict[str, Any]:
    """Translate a whole split and compare: sacreBLEU with its signature, chrF, and the share of exact matches.
    `request` holds further fields of `TranslationRequest`."""
    return score_answers(partial(predict, model), config, split, request)


def score_answers(
    translate_request: Callable[[dict[str, Any]], dict[str, Any]], config: Any, split: str, request: dict[str, Any]
) -> dict[str, Any]:
    """As `score`, of any function that answers such requests."""
    pairs = load_pairs(config).split(split)
    request = {"cut": config.too_long != "error"} | request | {"input": [source for source, _ in pairs]}
    texts = [result["text"] for result in translate_request(request)["results"]]
    return score_translations(texts, [target for _, target in pairs])


def figures(model: Any, config: Any) -> list[Figure]:
    """Draw the weights of cross-attention on a few pairs of the validation split."""
    matrices: list[Figure] = []
    longest = min(MAX_FIGURE_TOKENS, *(context - 1 for context in config.contexts))
    for source, target in load_pairs(config).split("val"):
        sizes = [len(side.encode(text)) for side, text in zip(model.pair_tokenizer.tokenizers, (source, target))]
        if MAX_FIGURE_TOKENS // 3 <= max(sizes) <= longest:
            attention = align_translation(model, source, target)
            matrix = {"kind": "matrix", "title": target, "note": source, "top": 1.0, "values": attention["weights"]}
            matrices.append(matrix | {side: attention[side] for side in ("rows", "columns")})
        if len(matrices) == MAX_FIGURES:
            break
    return matrices


# --- the Transformer of pairs ---


@dataclass(frozen=True, kw_only=True)
class TranslatorConfig(PairConfig):
    """A translator, its pairs and its training. Raises ValueError where the two stacks do not fit together."""

    shared: bool = True
    """Source and target have one embedding."""
    tied: bool = True
    """The head reads the target's own embedding (1608.05859)."""
    copy: bool = False
    """The head can copy tokens of the source, such as names, numbers and tags (1704.04368)."""
    scaled: bool = False
    """Embeddings are large and the head divides by the root of dim, as in T5."""
    embedding_norm: bool = False
    """Embeddings are normed, positions included, as in BART (1910.13461)."""
    logit_bias: bool = False
    """A bias for each token of the target, as in Marian (1804.00344)."""
    encoder: TransformerConfig = field(default_factory=TransformerConfig)
    decoder: TransformerConfig = field(default_factory=TransformerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    """A batch holds as many pairs as cost no more than `train.batch` pairs of the longest that fit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder.dim != self.decoder.dim:
            raise ValueError(
                f"encoder.dim is {self.encoder.dim} and decoder.dim {self.decoder.dim}: they must be equal"
            )
        if self.copy and self.source_tokenizer and not self.shared:
            raise ValueError("copy: tokens of the source can be copied only where both sides have one vocabulary")
        if self.shared and self.source_tokenizer and {self.source_tokenizer, self.tokenizer} & {*KINDS}:
            raise ValueError(f"source_tokenizer: {NOTHING_SHARED}")

    @property
    def contexts(self) -> tuple[int, int]:
        return self.encoder.context, self.decoder.context


class Translator(EncoderDecoder):
    """source (B, S) ids, target (B, T) ids -> logits (B, T, V)"""

    source: TokenEmbedding
    target: TokenEmbedding

    def __init__(self, config: TranslatorConfig, pair_tokenizer: PairTokenizer):
        if config.shared and not pair_tokenizer.has_one_vocabulary:
            raise InputError(f"source_tokenizer: {NOTHING_SHARED}")
        source_size, target_size = pair_tokenizer.vocab_sizes(config.padded_vocab)
        norm, scale = config.embedding_norm, config.decoder.dim**-0.5 if config.scaled else 1.0
        source = TokenEmbedding(source_size, config.encoder, embedding_norm=norm)
        target = TokenEmbedding(target_size, config.decoder, embedding_norm=norm)
        if config.shared:
            target.token = source.token
        tied = target.token if config.tied else None
        head = LMHead(config.decoder.dim, target_size, tied, scale)
        if config.logit_bias:
            head.project.bias = nn.Parameter(torch.zeros(target_size))
        super().__init__(source, config.encoder, target, config.decoder, head)
        self.pair_tokenizer, self.files = pair_tokenizer, pair_tokenizer.files
        self.label_smoothing, self.sentinels = config.label_smoothing, 0


class CopyingTranslator(Translator):
    """A translator whose head can copy tokens of the source; its logits are log-probabilities."""

    head: PointerHead

    def __init__(self, config: TranslatorConfig, pair_tokenizer: PairTokenizer):
        super().__init__(config, pair_tokenizer)
        self.head = PointerHead(config.decoder.dim, self.head)

    def forward(self, source: Tensor, ids: Tensor, memory_mask: Edges = full) -> Tensor:
        memory = self.encode(source, memory_mask)
        return self.condition(memory, memory_mask, source).head(self.decode(ids, memory, memory_mask))

    def condition(self, memory: Tensor, memory_mask: Edges = full, source: Any = None) -> ConditionedDecoder:
        is_real = memory_mask.build_mask(memory.shape[0], 1, memory.shape[1], device=memory.device)[:, 0, 0]
        keys = self.head.key(memory)

        def head(x: Tensor) -> Tensor:  # (B, T, C), or (B, C) of one step
            logits = self.head(x if x.ndim == 3 else x[:, None], keys, source, is_real)
            return logits if x.ndim == 3 else logits[:, 0]

        decoder = super().condition(memory, memory_mask, source)
        decoder.head = head
        return decoder


def build_translator(config: TranslatorConfig, pair_tokenizer: PairTokenizer) -> Translator:
    """Build an initialized model of the config's shape for these tokenizers."""
    model = (CopyingTranslator if config.copy else Translator)(config, pair_tokenizer)
    initialize(model, config.decoder)
    initialize(model.encoder, config.encoder)  # its own depth scales its output maps
    if config.scaled:
        for module in (model.source, model.target):
            nn.init.normal_(module.get_parameter("token.weight"))
    return model


def export_graph(model: Translator) -> Graph:
    inputs = {"source": GraphInput("batch source_length", model.source.token.num_embeddings)}
    inputs["lengths"] = GraphInput("batch", is_length=True)
    inputs["target"] = GraphInput("batch length", model.target.token.num_embeddings)
    longest = {"source_length": model.encoder.config.context, "length": model.decoder.config.context}
    return Graph(lambda source, lengths, target: model(source, target, within(lengths)), inputs, ("logits",), longest)
