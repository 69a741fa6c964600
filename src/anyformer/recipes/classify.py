"""Classify: say which class a text is of.

raw    texts with a label each: csv, tsv, jsonl, a file (or a folder) a class, or texts and labels side by side
nodes  tokens, with a position
edges  full: every node reads every other, padding excepted
head   the first node, or the mean of all, to a logit for each class
loss   cross-entropy of the class

    anyformer train classify                                     minutes on two cores: film reviews, good or bad
    anyformer train classify --init runs/masked-eltec-1          from an encoder that has read before

BERT's fine-tuning (1810.04805, section 4.1).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.text.labelled import Labelled, files, read, shuffled
from ..data.tokenizers.build import KINDS, Subwords, Tokenizer, make
from ..data.tokenizers.build import load as load_tokenizer
from ..data.tokenizers.json_layout import of_ids
from ..data.tokenizers.masked_tokenizer import Wrapped, padded
from ..errors import InputError, nearest
from ..inference.text_embedding import embed, pad
from ..model.config import TransformerConfig
from ..model.encoder import Encoder
from ..model.heads import Classifier
from ..model.init import initialise
from ..recipe import Figure, Graph, Input, Place, begin
from ..training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """A classifier, its texts and its training."""

    data: str = "sentence-polarity"
    """The name of a set, a table (csv, tsv, jsonl, each also .gz), a folder, or files with commas between: a text a
    line, named after its class; of two files, one may be labels.txt."""
    columns: str = "text,label"
    """Of a table: what the columns (or fields) of the text and of its class are called."""
    labels: str = ""
    """A labels.json with the names of the classes. Empty: those that the data has."""
    tokenizer: str = "bpe"
    """char, byte, bpe (trained on the data), or the path of a tokenizer.json."""
    vocab_size: int = 4096
    """Of a BPE trained on the data."""
    padded_vocab: int | None = None
    """Entries of the embedding. None: the tokenizer's ids, and one more for the mask where it has none of its own."""
    kinds: int = 0
    """Kinds of texts that a token can tell (BERT has 2); 0 for none."""
    normed: bool = False
    """Norm the nodes before the first block (BERT)."""
    pool: Literal["mean", "first"] = "mean"
    """What the head reads."""
    cut: bool = False
    """Cut texts that are longer than the context, instead of refusing them."""
    model: TransformerConfig = field(default_factory=TransformerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


MODERN: dict[str, Any] = {"position": "rotary", "norm": "rmsnorm", "qk_norm": True, "bias": False, "init": "zero"}
BERT: dict[str, Any] = {"norm_place": "post", "norm_eps": 1e-12}

PRESETS = {
    # seconds: for tests. Is a line of Shakespeare's from a comedy, a history, a tragedy ...?
    "tiny": Config(
        data="plays",
        tokenizer="char",
        cut=True,
        model=TransformerConfig(dim=32, n_layer=2, n_head=2, context=32),
        train=TrainConfig(steps=20, batch=8, warmup=2, eval_every=10, eval_batches=4, save_every=10),
    ),
    # minutes on two cores
    "small": Config(
        model=TransformerConfig(dim=128, n_layer=2, n_head=4, context=128, dropout=0.2, **MODERN),
        train=TrainConfig(steps=600, lr=1e-3, warmup=50, eval_every=100, eval_batches=40, save_every=100),
    ),
    # BERT-base on SST-2 as GLUE has it (1810.04805): bring --data train.tsv and --init
    "sst2": Config(
        columns="sentence,label",
        vocab_size=30522,
        padded_vocab=30522,
        kinds=2,
        normed=True,
        pool="first",
        model=TransformerConfig(dim=768, n_layer=12, n_head=12, context=512, dropout=0.1, **BERT),
        train=TrainConfig(steps=6000, lr=2e-5, min_lr=0.0, warmup=600, weight_decay=0.01, beta2=0.999),
    ),
}


class ClassifyModel(Encoder):
    """ids (B, T), lengths (B,) -> logits (B, classes)"""

    def __init__(self, config: Config, tokenizer: Tokenizer, names: Sequence[str]):
        wrapped = Wrapped.of(tokenizer, config.padded_vocab)
        vocab = max(wrapped.vocab_size, config.padded_vocab or 0)
        super().__init__(vocab, config.model, config.kinds, config.normed)
        self.head = Classifier(config.model.dim, len(names), config.pool)
        self.wrapped, self.context, self.names = wrapped, config.model.context, list(names)
        self.files = {"tokenizer.json": tokenizer.json(), "labels.json": json.dumps(self.names, ensure_ascii=False)}

    def forward(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.head(self.hidden(ids, lengths), lengths)


def build(config: Config) -> ClassifyModel:
    names = labels_of(config)
    model = ClassifyModel(config, tokenizer_of(config), texts(config).names if names is None else names)
    initialise(model, config.model)
    return model


def labels_of(config: Config) -> tuple[str, ...] | None:
    """The names of the classes, where they are kept in a file."""
    if not config.labels:
        return None
    try:
        found = json.loads(Path(config.labels).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{config.labels} cannot be read as JSON: {error}") from None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found) or len(found) < 2:
        raise InputError(f"{config.labels} should hold a list of the classes' names, at least two")
    return tuple(found)


def texts(config: Config) -> Labelled:
    """The labelled texts, read once; a file that has changed since is read again."""
    stamp = tuple((str(path.resolve()), path.stat().st_mtime_ns) for path in files(config.data))
    return texts_of(config.data, config.columns, labels_of(config), stamp)


@lru_cache(maxsize=4)
def texts_of(data: str, columns: str, names: tuple[str, ...] | None, stamp: tuple) -> Labelled:
    text, comma, label = columns.partition(",")
    if not comma or not text or not label:
        raise InputError(f"columns is '{columns}'; it must name two, such as text,label")
    return read(data, (text, label), names)


def tokenizer_of(config: Config) -> Tokenizer:
    if config.tokenizer == "ids":
        return Subwords(of_ids(config.padded_vocab or config.vocab_size))
    if config.tokenizer not in KINDS:
        return load_tokenizer(Path(config.tokenizer))
    return trained(config.tokenizer, config.vocab_size, tuple(texts(config).texts))


@lru_cache(maxsize=4)
def trained(kind: str, vocab_size: int, some: tuple[str, ...]) -> Tokenizer:
    return make(kind, lambda: iter(some), vocab_size)


@lru_cache(maxsize=4)
def coded(config: Config, sha256: str) -> list[list[int]]:
    """The ids of every text of the data that has this hash. Raises InputError that counts those longer than the
    context, unless they may be cut."""
    wrapped, found = Wrapped.of(tokenizer_of(config), config.padded_vocab), texts(config)
    room = config.model.context - wrapped.extra
    bare = [ids.tolist() for ids in wrapped.tokenizer.encode_batch(found.texts)]
    if not config.cut and (long := [i for i, ids in enumerate(bare) if len(ids) > room]):
        raise InputError(
            f"{len(long)} of {len(bare)} texts are longer than the context of {config.model.context} tokens (first: "
            f"{found.places[long[0]]}): a larger --model.context, or --cut"
        )
    return [[*wrapped.before, *ids[:room], *wrapped.after] for ids in bare]


def batches(config: Config, split: str, place: Place | None = None) -> Iterator[tuple[dict[str, Tensor], Place]]:
    """ "train": for ever, each text once an epoch, texts of like length side by side. "val", "test" and "all": once."""
    c, found = config.train, texts(config)
    place = begin(place, config.data, found.sha256)
    part = found.part(split)
    if not len(part):
        raise InputError(f"data '{config.data}' leaves no text for {split}: bring more than {len(found.texts)}")
    rows = coded(config, found.sha256)
    if split != "train":
        part = part[shuffled(len(part), 0, 1)]  # so that the first few batches hold every class
        for start in range(0, len(part), c.batch):
            yield batch(rows, found.classes, part[start : start + c.batch]), place
    epoch, order = -1, []
    while split == "train":
        if epoch != place["step"] // -(-len(part) // c.batch):
            epoch = place["step"] // -(-len(part) // c.batch)
            order = bucketed(part, np.array([len(rows[i]) for i in part]), c.batch, c.seed, epoch)
        made = batch(rows, found.classes, order[place["step"] % len(order)])
        place = place | {"step": place["step"] + 1, "tokens": place["tokens"] + int(made["lengths"].sum())}
        yield made, place


def bucketed(part: np.ndarray, lengths: np.ndarray, size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of an epoch: texts in a random order, sorted by length within each 16 batches, in a random order."""
    order, pool = shuffled(len(part), seed, 2 * epoch), 16 * size
    pools = [order[i : i + pool] for i in range(0, len(order), pool)]
    order = np.concatenate([some[np.argsort(lengths[some], kind="stable")] for some in pools])
    made = [part[order[i : i + size]] for i in range(0, len(order), size)]
    return [made[i] for i in shuffled(len(made), seed, 2 * epoch + 1)]


def batch(rows: list[list[int]], classes: np.ndarray, some: np.ndarray) -> dict[str, Tensor]:
    ids, lengths = padded([rows[i] for i in some])
    made = {"ids": ids, "lengths": lengths, "class": classes[some]}
    return {name: torch.from_numpy(value) for name, value in made.items()}


def graph(model: ClassifyModel) -> Graph:
    inputs = {"ids": Input("batch length", model.nodes.token.num_embeddings), "lengths": Input("batch", counts=True)}
    return Graph(model, inputs, ("logits",), {"length": model.context})


def loss(model: ClassifyModel, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch["ids"], batch["lengths"]).float(), batch["class"])


def evaluate(model: ClassifyModel, batches: Iterator[dict[str, Tensor]]) -> dict[str, float]:
    """Mean nats a text, how often the likeliest class is right, the mean F1 of the classes, and of few classes how
    often each was taken for which (the confusion matrix)."""
    nats, table = confused(model, batches)
    total, right, n = int(table.sum()), table.diag(), len(model.names)
    f1 = 2 * right / (table.sum(0) + table.sum(1)).clamp(min=1)
    found = {"loss": nats / max(1, total), "accuracy": int(right.sum()) / max(1, total), "macro_f1": f1.mean().item()}
    few = range(n if n <= 4 else 0)
    cells = {f"{model.names[i]} as {model.names[j]}": int(table[i, j]) for i in few for j in few}
    return found | cells | {"texts": total}


def confused(model: ClassifyModel, batches: Iterator[dict[str, Tensor]]) -> tuple[float, Tensor]:
    """Nats of all texts together, and how often each class was taken for which: [class, answer], (N, N)"""
    nats, n = 0.0, len(model.names)
    table = torch.zeros(n, n, dtype=torch.long)
    for batch in batches:
        logits = model(batch["ids"], batch["lengths"]).float()
        nats += F.cross_entropy(logits, batch["class"], reduction="sum").item()
        pair = (batch["class"] * n + logits.argmax(-1)).cpu()
        table += torch.bincount(pair, minlength=n * n).view(n, n)
    return nats, table


@torch.inference_mode()
def figures(model: ClassifyModel, config: Config) -> list[Figure]:
    """The confusion matrix of the validation part."""
    where = next(model.parameters()).device
    parts = ({name: value.to(where) for name, value in batch.items()} for batch, _ in batches(config, "val"))
    table = confused(model, parts)[1]
    shares = (table / table.sum(1, keepdim=True).clamp(min=1)).tolist()
    note = "a row for each class, a column for each answer: darker for a larger share of the row"
    about = {"kind": "matrix", "title": "What was taken for what", "note": note, "top": 1.0, "values": shares}
    return [about | {"rows": model.names, "columns": model.names}] if len(model.names) <= 64 else []


REQUEST = ("input", "embed", "cut")


def predict(model: ClassifyModel, request: dict[str, Any]) -> dict[str, Any]:
    """{"input": "a text"}, or several: {"results": [{"input", "label", "probability", "probabilities": {class: p}}]}.
    {"embed": [text, ...]}: {"vectors": [[...], ...]}, of length 1. A text longer than the context is refused, unless
    "cut" is true."""
    for name in request:
        if name not in REQUEST:
            raise InputError(f"a request has no '{name}': {nearest(name, REQUEST)}")
    cut = bool(request.get("cut", False))
    if "embed" in request:
        return {"vectors": embed(model, listed(request["embed"]), cut=cut).tolist()}
    given = listed(request["input"]) if "input" in request else [opening(model.wrapped.tokenizer)]
    return {"results": [judged(model, text, cut) for text in given]}


def listed(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [given]


def opening(tokenizer: Tokenizer) -> str:
    """A show-piece: a text that the vocabulary can say."""
    try:
        tokenizer.encode("as good as it gets")
    except InputError:
        return tokenizer.decode(range(min(8, tokenizer.vocab_size)))
    return "as good as it gets"


def judged(model: ClassifyModel, text: Any, cut: bool) -> dict[str, Any]:
    ids, lengths = pad([model.wrapped.encode(text, model.context, cut)], next(model.parameters()).device)
    shares = model(ids, lengths)[0].float().softmax(-1).tolist()
    likely = sorted(zip(model.names, shares), key=lambda pair: -pair[1])
    return {"input": text, "label": likely[0][0], "probability": likely[0][1], "probabilities": dict(likely)}
