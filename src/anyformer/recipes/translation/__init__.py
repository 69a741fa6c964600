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
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.text import pair_batches as buckets
from ...data.text.batches import NOTHING
from ...data.text.pairs import Pairs, read, stamp
from ...data.tokenizers.bilingual import Bilingual, bilingual
from ...data.tokenizers.build import Subwords, Tokenizer
from ...data.tokenizers.build import load as load_tokenizer
from ...data.tokenizers.json_layout import of_ids
from ...errors import InputError
from ...inference.translation import Request, compare, looks, translate
from ...model.edges import within
from ...model.embeddings import Tokens
from ...model.encoder_decoder import EncoderDecoder
from ...model.heads import LMHead
from ...model.init import initialise
from ...recipe import Figure, Graph, Input, Place, begin
from .config import PRESETS, Config, Texts

__all__ = [
    "PRESETS",
    "Config",
    "Translator",
    "batches",
    "build",
    "evaluate",
    "figures",
    "graph",
    "judge",
    "loss",
    "predict",
]
DRAWN = 3  # sentences
LONGEST_DRAWN = 24  # characters or tokens a side


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


def figures(model: Translator, config: Config) -> list[Figure]:
    """Where the model looks while it writes: the weights of cross-attention on a few pairs of the validation part."""
    words, drawn = model.words, []
    for source, target in pairs_of(config).parts["val"]:
        sizes = [len(known.encode(text)) for known, text in zip(words.tokenizers, (source, target))]
        room = min(LONGEST_DRAWN, config.encoder.context - 1, config.decoder.context - 1)
        if LONGEST_DRAWN // 3 <= max(sizes) <= room:
            seen = looks(model, source, target)
            about = {"kind": "matrix", "title": target, "note": source, "top": 1.0, "values": seen["weights"]}
            drawn.append(about | {side: seen[side] for side in ("rows", "columns")})
        if len(drawn) == DRAWN:
            break
    return drawn
