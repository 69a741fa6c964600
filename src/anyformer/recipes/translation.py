"""Translation: read one text whole, write another that says the same.

raw    pairs of texts: a table, two files, JSON lines, or a set by name; one vocabulary for both sides, or two
nodes  tokens of the source and tokens of the target, with a position each
edges  the source reads itself whole; the target is causal, and reads the top of the source by cross-attention
head   a logit for each token of the vocabulary
loss   cross-entropy of the target's next token, smoothed (1512.00567)

    anyformer train translation                                       about two minutes on two cores: digits from behind
    anyformer train translation --preset multi30k                     about twenty minutes: captions, English to French
    anyformer train translation --preset multi30k --data pairs.tsv    your own pairs

The Transformer as it began (1706.03762); T5 (1910.10683) is the preset `t5`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import buckets
from ..data.bilingual import Bilingual, bilingual
from ..data.layout import of_ids
from ..data.pairs import Pairs, read, stamp
from ..data.stream import NOTHING
from ..data.tokenizer import Subwords, Tokenizer
from ..data.tokenizer import load as load_tokenizer
from ..errors import InputError
from ..generate.translate import Request, compare, translate
from ..model.config import TransformerConfig
from ..model.edges import within
from ..model.head import LMHead
from ..model.init import initialise
from ..model.nodes import Tokens
from ..model.pair import EncoderDecoder
from ..recipe import Graph, Input, Place, begin
from ..training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Pairs of texts and their vocabulary."""

    data: str = "multi30k"
    """A set (multi30k, fra-eng, reverse), a .tsv or .jsonl, two files A,B, or a folder with train.en and train.fr."""
    backwards: bool = False
    """From the second side of each pair to the first."""
    skip_missing: bool = False
    """Leave out pairs with a missing side instead of refusing the data."""
    cut_long: bool = False
    """Cut texts that are longer than the context instead of refusing the data."""
    val_fraction: float = 0.1
    """Kept for validation, where the data have no part for it."""
    tokenizer: str = "bpe"
    """char, bpe (trained on both sides), ids (numbers), or the path of a tokenizer.json."""
    source_tokenizer: str = ""
    """The same of the source alone; `tokenizer` is then the target's alone. Empty: one vocabulary for both sides."""
    vocab_size: int = 8000
    """Of a BPE trained on the data."""
    padded_vocab: int | None = None
    """Entries of the embedding where they are more than the tokenizer's ids. None: as many."""
    start: int | None = None
    """The id that the target begins with. None: as `end`."""
    end: int | None = None
    """The id that ends both sides. None: the tokenizer's end of a text."""
    label_smoothing: float = 0.1
    """How much of the target's probability is spread over the vocabulary."""


@dataclass(frozen=True, kw_only=True)
class Config(Texts):
    """A translator, its pairs and its training. Raises ValueError where the two stacks do not fit together."""

    shared: bool = True
    """Source and target have one embedding."""
    tied: bool = True
    """The head reads the target's own embedding (1608.05859)."""
    scaled: bool = False
    """Embeddings are large and the head divides by the root of dim, as in T5."""
    encoder: TransformerConfig = field(default_factory=TransformerConfig)
    decoder: TransformerConfig = field(default_factory=TransformerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    """A batch holds as many pairs as cost no more than `train.batch` pairs of the longest that fit."""

    def __post_init__(self) -> None:
        if self.encoder.dim != self.decoder.dim:
            raise ValueError(
                f"encoder.dim is {self.encoder.dim} and decoder.dim {self.decoder.dim}: one reads the other"
            )
        if self.shared and self.source_tokenizer:
            raise ValueError("source_tokenizer: two vocabularies have no embedding to share: --no-shared")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it must be at least 0 and below 1")


def stacks(dim: int, n_layer: int, n_head: int, context: int, **more: Any) -> dict[str, Any]:
    """An encoder and a decoder of one shape."""
    shape = TransformerConfig(dim=dim, n_layer=n_layer, n_head=n_head, context=context, **more)
    return {"encoder": shape, "decoder": shape}


# What the field found after 2017, each named by its paper in TransformerConfig.
MODERN = dict(position="rotary", norm="rmsnorm", activation="relu2", qk_norm=True, bias=False, init="zero")
LLAMA = dict(position="rotary", rotary_base=5e5, norm="rmsnorm", activation="swiglu", n_kv_head=2, bias=False)
T5 = dict(position="relative", norm="rmsnorm", norm_eps=1e-6, scale=1.0, head_dim=64, bias=False)
QUICK: dict[str, Any] = dict(optimizer="muon", schedule="trapezoid", min_lr=0.0, warmup=50, weight_decay=0.01, clip=0.0)
CAPTIONS = TrainConfig(steps=3000, batch=24, lr=4e-3, eval_every=300, save_every=300, **QUICK)
PLAIN = TrainConfig(steps=4000, batch=32, warmup=400, eval_every=500, save_every=500)
BASE = TrainConfig(steps=100_000, lr=7e-4, warmup=4000, beta2=0.98, eval_every=2000, save_every=10_000)

PRESETS = {
    # seconds: for tests
    "tiny": Config(
        data="reverse",
        tokenizer="char",
        **stacks(32, 1, 2, 24),
        train=TrainConfig(steps=20, batch=4, warmup=2, eval_every=10, eval_batches=4, save_every=10),
    ),
    # 99 of 100 strings exact
    "reverse": Config(
        data="reverse",
        tokenizer="char",
        label_smoothing=0.0,
        **stacks(64, 2, 4, 24, norm="rmsnorm", activation="swiglu", bias=False),
        train=TrainConfig(steps=2000, batch=32, lr=3e-3, eval_every=500, save_every=500, weight_decay=0.01),
    ),
    "multi30k": Config(vocab_size=6000, **stacks(192, 3, 3, 64, dropout=0.1, **MODERN), train=CAPTIONS),
    # French to English, in the manner of Llama
    "fra-eng": Config(
        data="fra-eng", backwards=True, val_fraction=0.05, **stacks(256, 3, 4, 64, dropout=0.1, **LLAMA), train=PLAIN
    ),
    # T5 v1.0 (1910.10683) in small: what `anyformer export` can say as t5
    "t5": Config(
        start=0, end=0, scaled=True, **stacks(256, 3, 4, 64, activation="relu", dropout=0.1, **T5), train=PLAIN
    ),
    # T5 v1.1 (2002.05202): gated, its head its own
    "t5-v1.1": Config(
        start=0,
        end=0,
        tied=False,
        **stacks(256, 3, 4, 64, activation="geglu", mlp_dim=680, dropout=0.1, **T5),
        train=PLAIN,
    ),
    # The base model of 1706.03762 on pairs of your own, and a GPU
    "base": Config(
        data="pairs.tsv",
        skip_missing=True,
        cut_long=True,
        val_fraction=0.01,
        vocab_size=37_000,
        padded_vocab=37_056,
        shared=False,
        **stacks(512, 6, 8, 256, position="sinusoidal", norm_place="post", activation="relu", dropout=0.1),
        train=replace(BASE, batch=49, accumulate=2, eval_batches=50, average=5, patience=10),
    ),
}


class Translator(EncoderDecoder):
    """source (B, S) ids, target (B, T) ids -> logits (B, T, vocab_size)"""

    source: Tokens
    target: Tokens

    def __init__(self, config: Config, words: Bilingual):
        read, written = words.sizes(config.padded_vocab)
        source, target = Tokens(read, config.encoder), Tokens(written, config.decoder)
        if config.shared:
            target.token = source.token
        dim = config.decoder.dim
        head = LMHead(dim, written, target.token if config.tied else None, dim**-0.5 if config.scaled else 1.0)
        super().__init__(source, config.encoder, target, config.decoder, head)
        self.words, self.files = words, words.files
        self.label_smoothing, self.sentinels = config.label_smoothing, 0


def build(config: Config) -> Translator:
    return made(config, words_of(config))


def made(config: Config, words: Bilingual) -> Translator:
    """A model of this shape, initialised."""
    model = Translator(config, words)
    initialise(model, config.decoder)
    initialise(model.encoder, config.encoder)  # as deep as it is itself
    if config.scaled:
        for module in (model.source, model.target):
            nn.init.normal_(module.get_parameter("token.weight"))
    return model


def words_of(config: Texts) -> Bilingual:
    own = config.source_tokenizer
    source = tokenizer_of(config, own, (0,)) if own else None
    target = tokenizer_of(config, config.tokenizer, (1,) if own else (0, 1))
    return bilingual(target, source, config.start, config.end)


def tokenizer_of(config: Texts, spec: str, sides: tuple[int, ...]) -> Tokenizer:
    if spec == "ids":
        return Subwords(of_ids(config.padded_vocab or config.vocab_size))
    if Path(spec).exists():  # once trained, it is a file of the checkpoint and the pairs are not needed
        return load_tokenizer(Path(spec))
    return buckets.tokenizer(pairs_of(config), spec, config.vocab_size, sides)


def pairs_of(config: Texts) -> Pairs:
    return read(config.data, config.val_fraction, config.backwards, config.skip_missing, stamp(config.data))


def coded(config: Config, split: str, pairs: Pairs) -> tuple[buckets.Coded, tuple[int, int, int]]:
    """The pairs of a split as ids, and those that begin and end a target, and end a source."""
    words = words_of(config)
    rooms = config.encoder.context - 1, config.decoder.context - 1  # the end takes a place
    marks = words.start, words.end, words.source_end
    return buckets.code(pairs, split, words.tokenizers, rooms, config.cut_long), marks


def batches(config: Config, split: str, place: Place | None = None) -> Iterator[tuple[dict[str, Tensor], Place]]:
    """ "train": pairs of like length for ever, each once an epoch. "val" and "all": every pair once."""
    pairs = pairs_of(config)
    known, marks = coded(config, split, pairs)
    place = begin(place, config.data, pairs.sha256, skipped=pairs.skipped, cut=known.cut)
    room = config.train.batch * max(config.encoder.context, config.decoder.context)
    if split != "train":
        for at in buckets.sweep(known, room):
            yield tensors(buckets.batch(known, at, *marks)), place
    while split == "train":
        made = buckets.batch(known, buckets.drawn(known, room, config.train.seed, place["step"]), *marks)
        read = int(made["lengths"].sum() + (made["next"] != NOTHING).sum())
        place = place | {"step": place["step"] + 1, "tokens": place["tokens"] + read}
        yield tensors(made), place


def tensors(batch: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def logits(model: Translator, batch: dict[str, Tensor]) -> Tensor:
    """Of every next token: (B * T, V)"""
    return model(batch["source"], batch["target"], within(batch["lengths"])).flatten(0, 1).float()


def loss(model: Translator, batch: dict[str, Tensor]) -> Tensor:
    smoothing = model.label_smoothing if model.training else 0.0
    return F.cross_entropy(logits(model, batch), batch["next"].flatten(), label_smoothing=smoothing)


def evaluate(model: Translator, batches: Iterator[dict[str, Tensor]]) -> dict[str, float]:
    """Mean nats a token of the target (not smoothed), their exponential, and how often the likeliest was right."""
    nats, right, tokens = 0.0, 0, 0
    for batch in batches:
        guess, nexts = logits(model, batch), batch["next"].flatten()
        nats += F.cross_entropy(guess, nexts, reduction="sum").item()
        right += int((guess.argmax(-1) == nexts).sum())  # never where there is nothing
        tokens += int((nexts != NOTHING).sum())
    mean, n = nats / max(1, tokens), max(1, tokens)
    return {"loss": mean, "perplexity": math.exp(min(mean, 700)), "accuracy": right / n, "tokens": tokens}


def graph(model: Translator) -> Graph:
    inputs = {"source": Input("batch source_length", model.source.token.num_embeddings)}
    inputs["lengths"] = Input("batch", counts=True)
    inputs["target"] = Input("batch length", model.target.token.num_embeddings)
    longest = {"source_length": model.encoder.config.context, "length": model.decoder.config.context}
    return Graph(lambda source, lengths, target: model(source, target, within(lengths)), inputs, ("logits",), longest)


def predict(model: Translator, request: dict[str, Any]) -> dict[str, Any]:
    """Translate a text, or several: {"input": "A dog.", "beam": 4} and the other fields of `Request`. Returns
    {"results": [{"input", "text", "score", "finish_reason"}, ...]}, with "candidates" where more than one is wanted."""
    asked = request if "input" in request else {"input": opening(model.words.source), "cut": True} | request
    return {"results": translate(model, Request.of(asked))}


def opening(tokenizer: Tokenizer) -> str:
    """Something to translate that the vocabulary has."""
    for text in ("A man in an orange hat is looking at something.", "0123456789"):
        try:
            tokenizer.encode(text)
        except InputError:
            continue
        return text
    return ""


def judge(model: Translator, config: Config, split: str = "val", **request: Any) -> dict[str, Any]:
    """Translate a whole split and compare: sacreBLEU (1804.08771) with its signature, chrF, and the share of exact
    ones. More: the fields of `Request`. Raises InputError where sacrebleu is not installed."""
    parts = pairs_of(config).parts
    pairs = [pair for name in parts if split in (name, "all") for pair in parts[name]]
    asked = {"cut": config.cut_long} | request | {"input": [source for source, _ in pairs]}
    texts = [result["text"] for result in predict(model, asked)["results"]]
    return compare(texts, [target for _, target in pairs])
