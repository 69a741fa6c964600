"""Tagging: predict a tag for each word of a text, such as names (NER) or parts of speech.

raw    sentences of words with a tag each: CoNLL, CoNLL-U or JSON lines
nodes  tokens, with a position; a word has one or more
edges  full: every node reads every other, except padding
head   the first token of each word to a logit for each tag
loss   cross-entropy of the tags

    anyformer train tagging                                a minute on two cores: persons and places in errands
    anyformer train tagging --data train.conll             your own; a folder has train.conll and dev.conll
    anyformer train tagging --init runs/masked-eltec-1     from an encoder that was trained before

BERT's named entity recognition (1810.04805, section 5.3).
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.io.cache import cache_by_files, data_files
from ..data.sampling import count_rows
from ..data.text.batches import IGNORE_INDEX, bucket_by_length, epoch_order
from ..data.text.tagged import TaggedTexts, read_tagged
from ..data.text.tagged_batches import Row, collate_tagged, encode_tagged, encode_words
from ..data.tokenizers.base import Tokenizer
from ..data.tokenizers.build import build_tokenizer
from ..data.tokenizers.masked_tokenizer import MaskedTokenizer
from ..data.unusable import LengthPolicy
from ..forms import Form, Task
from ..inference.prompt_reading import pad_rows
from ..metrics import find_spans, score_classes, score_spans
from ..model import initialize
from ..parsing import parse_dataclass, path_field
from ..recipe import BatchStream, Examples, FileInput, LensView, SizeOption, StreamState, advance_stream, init_stream
from ..training.config import TrainConfig
from ._shared.encoder import EncoderConfig, TextEncoder, batch_by_length, export_graph, read_label_names  # noqa: F401
from ._shared.presets import BERT, TINY_TRAIN, make_model_config, make_modern_config
from ._shared.sizes import Size, offer_sizes
from ._shared.text import choose_examples, first_tokens, load_config_tokenizer
from ._shared.text_lenses import lens_words, parse_request
from ._shared.trivial_baselines import Baselines, score_usual_tags

WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


@dataclass(frozen=True, kw_only=True)
class Config(EncoderConfig):
    """A tagger, its sentences and its training."""

    data: str = path_field("errands")
    """The set errands, a file (.conll, .conllu, .jsonl), or a folder with train.* and dev.*."""
    vocab_size: int = 2048
    labels: str = path_field("", [".json"])
    """A labels.json with the names of the tags. Empty: those of the data."""
    too_long: LengthPolicy = "few"
    """Sentences longer than the context: cut, skip, error, or few: skip where they are at most 1 %."""


KINDS = {"tagged text": {}}
SIZES = (Size(64, 1, 32, 0), Size(96, 2, 32, 200))  # of --minutes
PRESETS = {
    # seconds: for tests
    "tiny": Config(tokenizer="char", too_long="cut", model=make_model_config(32, 2, 2, 48), train=TINY_TRAIN),
    # minutes on two cores
    "small": Config(
        model=make_modern_config(128, 2, 4, 128, dropout=0.1, activation="gelu", init="zero"),
        train=TrainConfig(steps=600, lr=1e-3, warmup=50, eval_every=100, eval_batches=20, save_every=100),
    ),
    # BERT-base on the names of CoNLL-2003 (1810.04805): bring --data, a folder with train.* and dev.*, and --init
    "bert": Config(
        data="train.conll",
        vocab_size=28996,
        padded_vocab=28996,
        token_types=2,
        embedding_norm=True,
        too_long="cut",
        model=make_model_config(768, 12, 12, 512, dropout=0.1, **BERT),
        train=TrainConfig(steps=1400, lr=5e-5, min_lr=0.0, warmup=140, weight_decay=0.01, beta2=0.999),
    ),
}


def sizes(config: Config) -> Iterator[SizeOption]:
    yield from offer_sizes(config, SIZES, steps=300)


class Tagger(TextEncoder):
    """ids (B, T), lengths (B,) -> logits (B, T, tags)"""

    def __init__(self, config: Config, tokenizer: Tokenizer, names: list[str]):
        super().__init__(config, tokenizer)
        self.head = nn.Linear(config.model.dim, len(names))
        self.names = names
        self.files["labels.json"] = json.dumps(names, ensure_ascii=False)

    def forward(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.head(self.hidden(ids, lengths))


def build(config: Config) -> Tagger:
    model = Tagger(config, load_text_tokenizer(config), read_label_names(config) or load_sentences(config).names)
    initialize(model, config.model)
    return model


def config_files(config: Config) -> list[Path]:
    return [path for name in (config.data, config.labels, config.tokenizer) for path in data_files(name)]


@cache_by_files(config_files)
def load_sentences(config: Config) -> TaggedTexts:
    return read_tagged(config.data, read_label_names(config))


@cache_by_files(config_files)
def load_text_tokenizer(config: Config) -> Tokenizer:
    def train() -> Tokenizer:
        texts = [" ".join(words) for words, _, _ in load_sentences(config).split("all")]
        return build_tokenizer(config.tokenizer, lambda: iter(texts), config.vocab_size)

    return load_config_tokenizer(config, train)


@cache_by_files(config_files)
def encode_sentences(config: Config) -> dict[str, list[Row]]:
    tokenizer = MaskedTokenizer.from_tokenizer(load_text_tokenizer(config), config.padded_vocab)
    return encode_tagged(load_sentences(config), tokenizer, config.model.context, config.too_long)


def batches(config: Config, split: str, state: StreamState | None = None) -> BatchStream:
    """Yield batches: ids (B, T), lengths (B,), labels (B, T), the tag at the first token of each word.

    "train" never ends and yields each sentence once an epoch, sentences of similar length together; "val" and "all"
    yield each once.
    """
    c, splits, ordered_epoch = config.train, encode_sentences(config), None
    rows, n_rows = splits[split], count_rows(split, splits.__getitem__)
    state = init_stream(state, config.data, load_sentences(config).sha256, rows=n_rows)
    indices, lengths = np.arange(len(rows)), np.array([len(ids) for ids, _ in rows])
    if split != "train":
        indices = epoch_order(len(rows), 0, 1)
        for start in range(0, len(rows), c.batch):
            yield make_batch([rows[i] for i in indices[start : start + c.batch]]), state
    n_batches = -(-len(rows) // c.batch)
    while split == "train":
        epoch, index = divmod(state["step"], n_batches)
        if epoch != ordered_epoch:
            ordered_epoch = epoch
            order = bucket_by_length(indices, lengths, c.batch, c.seed, epoch)
        batch = make_batch([rows[i] for i in order[index]])
        state = advance_stream(state, int(batch["lengths"].sum()))
        yield batch, state


def make_batch(rows: list[Row]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in collate_tagged(rows).items()}


def loss(model: Tagger, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch["ids"], batch["lengths"]).flatten(0, 1).float(), batch["labels"].flatten())


def evaluate(model: Tagger, batches: Iterator[dict[str, Tensor]]) -> dict[str, float]:
    """Return the mean nats of a word, the accuracy, and where tags are B-X, I-X and O, the F1 of whole spans."""
    pairs: list[tuple[Tensor, Tensor]] = []
    predicted, expected = [], []
    for batch in batches:
        logits, labels = model(batch["ids"], batch["lengths"]).float(), batch["labels"]
        pairs.append((logits.flatten(0, 1), labels.flatten()))
        for row, row_labels in zip(logits.argmax(-1).tolist(), labels.tolist()):
            words = [i for i, label in enumerate(row_labels) if label != IGNORE_INDEX]
            predicted.append([model.names[row[i]] for i in words])
            expected.append([model.names[row_labels[i]] for i in words])
    scores = score_classes(pairs)
    return {name: scores[name] for name in ("loss", "accuracy")} | score_spans(expected, predicted)


def baselines(config: Config) -> Baselines:
    data = load_sentences(config)
    train, val = ([(s[0], s[1]) for s in data.split(split)] for split in ("train", "val"))
    return {"accuracy": score_usual_tags(train, val)}


def examples(config: Config) -> Examples:
    sentences = load_sentences(config).split("val")
    rows = [sentences[i] for i in choose_examples([" ".join(words) for words, _, _ in sentences])]
    return Examples({"input": [" ".join(words) for words, _, _ in rows]}, [mark_tags(*row[:2]) for row in rows])


@dataclass(frozen=True)
class Request:
    """Texts to tag."""

    input: str | list[str] | None = None
    """A text, or several. None: an example."""


@torch.inference_mode()
def predict(model: Tagger, request: dict[str, Any]) -> dict[str, Any]:
    """Tag the words of texts: {"input": "a text"} returns {"results": [{"input", "text", "words": [{"word",
    "tag", "probability"}], "spans": [{"text", "tag"}]}]}; "text" has the tags behind the words, "spans" are of tags
    B-X, I-X and O. Words that exceed the context have no tag."""
    texts = parse_dataclass(Request, request, "request").input
    texts = first_tokens(model.masked_tokenizer.tokenizer) if texts is None else texts
    return {"results": predict_batch(model, [texts] if isinstance(texts, str) else texts, {})}


def predict_batch(model: Tagger, inputs: list[str], settings: dict[str, Any]) -> list[dict[str, Any]]:
    words = [WORD.findall(text) for text in inputs]
    rows = [encode_words(model.masked_tokenizer, sentence, model.context) for sentence in words]
    results = {i: describe_words(model, inputs[i], [], torch.empty(0, 1)) for i, row in enumerate(rows) if not row[1]}
    for indices in batch_by_length([ids for ids, _ in rows]):
        if indices := [i for i in indices if i not in results]:
            ids, lengths = pad_rows([rows[i][0] for i in indices], next(model.parameters()).device)
            probabilities = model(ids, lengths).float().softmax(-1).cpu()
            for i, row in zip(indices, probabilities):
                results[i] = describe_words(model, inputs[i], words[i], row[rows[i][1]])
    return [results[i] for i in range(len(inputs))]


def lens(model: Tagger, request: dict[str, Any]) -> LensView:
    """Show the tokens of a text, and the tag of each word."""
    return lens_words(model, WORD.findall(parse_request(request).text))


def describe_words(model: Tagger, text: str, words: list[str], probabilities: Tensor) -> dict[str, Any]:
    """Describe words by their probabilities (words, tags); further words have none."""
    best, index = probabilities.max(-1)
    tags = [model.names[i] for i in index.tolist()]
    described = [{"word": w, "tag": t, "probability": p} for w, t, p in zip(words, tags, best.tolist())]
    spans = [{"text": " ".join(words[start:stop]), "tag": kind} for start, stop, kind in find_spans(tags)]
    return {"input": text, "text": mark_tags(words, tags), "words": described, "spans": spans}


def mark_tags(words: Sequence[str], tags: Sequence[str]) -> str:
    """Return words as a text, with each tag other than O behind its word."""
    return " ".join(word if tag == "O" else f"{word}/{tag}" for word, tag in zip(words, tags))


def form(model: Tagger, config: Config) -> Form:
    examples = (first_tokens(model.masked_tokenizer.tokenizer),)
    return Form((Task("Tag the words", "text", Request, "tags", examples=examples),))


def file_input(model: Tagger, config: Config) -> FileInput:
    return FileInput(("text",), tsv_quotes=False)
