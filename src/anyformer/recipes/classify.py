"""Classify: predict the class of a text.

raw    texts with a label each: csv, tsv, jsonl, a file (or a folder) per class, or texts and labels in two files
nodes  tokens, with a position
edges  full: every node reads every other, except padding
head   the first node, or the mean of all, to a logit for each class
loss   cross-entropy of the class

    anyformer train classify                                     minutes on two cores: film reviews, good or bad
    anyformer train classify --init runs/masked-eltec-1          from an encoder that was trained before
    anyformer train classify --init BERT --preset frozen         a linear head on it: minutes, and no fine-tuning

BERT is a run, a folder of a public checkpoint, or owner/name on the Hugging Face hub. BERT's fine-tuning (1810.04805,
section 4.1); a linear head on a frozen encoder (1905.00537 calls it a probe).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.io.cache import cache_by_files, data_files
from ..data.sampling import count_rows
from ..data.text.batches import bucket_by_length, epoch_order, pad_ids
from ..data.text.labeled import LabeledTexts, read_labeled
from ..data.tokenizers.base import Tokenizer
from ..data.tokenizers.build import build_tokenizer
from ..data.tokenizers.masked_tokenizer import MaskedTokenizer
from ..data.unusable import DuplicatePolicy, EmptyPolicy, LengthPolicy, check_unusable, is_refused
from ..errors import InputError
from ..forms import Form, Task
from ..inference.classification import describe_classes
from ..inference.prompt_reading import pad_rows
from ..metrics import accuracy, confusion_matrix, macro_f1
from ..model import Classifier, initialize
from ..parsing import parse_dataclass, path_field, show_value
from ..recipe import BatchStream, Examples, Figure, FileInput, SizeOption, StreamState, advance_stream, init_stream
from ..training.config import TrainConfig
from ..training.device import evaluation_autocast
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
    read_label_names,
)
from ._shared.figures import draw_confusion
from ._shared.presets import BERT, TINY_TRAIN, make_model_config, make_modern_config
from ._shared.sizes import Size, offer_sizes
from ._shared.text import LONG_EXAMPLE, choose_examples, first_tokens, load_config_tokenizer
from ._shared.text_lenses import lens_classify as lens  # noqa: F401
from ._shared.trivial_baselines import Baselines, score_linear_texts, score_majority

MAX_POOLED = 1 << 28  # numbers of a frozen encoder's vectors that are kept: 1 GiB
MAX_CONFUSION_NAMES = 4  # classes of which `evaluate` names every cell of the confusion matrix


@dataclass(frozen=True, kw_only=True)
class Config(EncoderConfig):
    """A classifier, its texts and its training."""

    data: str = path_field("sentence-polarity")
    """The name of a set, a table (csv, tsv, jsonl, json, parquet, each also .gz), a folder of class folders, or files
    with commas between: a text a line, named after its class; of two files, one may be labels.txt."""
    columns: str = "text,label"
    """Names of a table's columns (or fields) of the text and of its class."""
    labels: str = path_field("", [".json"])
    """A labels.json with the names of the classes. Empty: those of the data."""
    pool: Literal["mean", "first"] = "mean"
    """What the head reads: the mean node, or the first."""
    frozen: bool = False
    """Train the head alone, on the encoder of --init as it is: the vector of every text is computed once."""
    empty: EmptyPolicy = "few"
    """Rows without a text or a label: skip, error, or few: skip where they are at most 1 %."""
    duplicates: DuplicatePolicy = "skip"
    """Rows that repeat a text and its label: keep or skip."""
    too_long: LengthPolicy = "few"
    """Texts longer than the context: cut, skip, error, or few: skip where they are at most 1 %."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len([name for name in self.columns.split(",", 1) if name]) != 2:
            raise InputError(f"columns is {show_value(self.columns)}; it must name two, such as text,label")


KINDS = {"labeled text": {"columns": "{text},{label}", "too_long": "cut"}}
SIZES = (Size(64, 1, 32, 0), Size(96, 2, 32, 200))  # of --minutes
TEST_SPLIT = "test"
PRESETS = {
    # seconds: for tests. Is a line of Shakespeare's from a comedy, a history, a tragedy ...?
    "tiny": Config(
        data="plays", tokenizer="char", too_long="cut", model=make_model_config(32, 2, 2, 32), train=TINY_TRAIN
    ),
    # minutes on two cores
    "small": Config(
        model=make_modern_config(128, 2, 4, 128, dropout=0.2, activation="gelu", init="zero"),
        train=TrainConfig(steps=600, lr=1e-3, warmup=50, eval_every=100, eval_batches=40, save_every=100),
    ),
    # a linear head on a trained encoder: bring --init; the first pass over the texts takes nearly all of the time
    "frozen": Config(
        frozen=True,
        train=TrainConfig(
            steps=600, batch=64, lr=1e-2, min_lr=0.0, warmup=20, weight_decay=0.01, eval_every=200, save_every=600
        ),
    ),
    # BERT-base on SST-2 as GLUE has it (1810.04805): bring --data train.tsv and --init
    "sst2": Config(
        columns="sentence,label",
        empty="skip",
        vocab_size=30522,
        padded_vocab=30522,
        token_types=2,
        embedding_norm=True,
        pool="first",
        model=make_model_config(768, 12, 12, 512, dropout=0.1, **BERT),
        train=TrainConfig(steps=6000, lr=2e-5, min_lr=0.0, warmup=600, weight_decay=0.01, beta2=0.999),
    ),
}


def sizes(config: Config) -> Iterator[SizeOption]:
    yield from offer_sizes(config, SIZES, steps=300)


class ClassifyModel(TextEncoder):
    """ids (B, T), lengths (B,) -> logits (B, classes)"""

    def __init__(self, config: Config, tokenizer: Tokenizer, names: Sequence[str]):
        super().__init__(config, tokenizer)
        self.head = Classifier(config.model.dim, len(names), config.pool)
        self.names, self.is_frozen = list(names), config.frozen
        self.files["labels.json"] = json.dumps(self.names, ensure_ascii=False)
        self.pooled: dict[bytes, Tensor] = {}  # of a frozen encoder: the ids of a batch -> its pooled nodes
        if self.is_frozen:
            self.nodes.requires_grad_(False)
            self.body.requires_grad_(False)

    def train(self, mode: bool = True) -> "ClassifyModel":
        """Set the training mode; a frozen encoder stays without dropout."""
        super().train(mode)
        if self.is_frozen:
            self.nodes.eval()
            self.body.eval()
        return self

    def forward(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.head(self.hidden(ids, lengths), lengths)

    def classify_batch(self, batch: dict[str, Tensor]) -> Tensor:
        """The logits of a batch, (B, classes). A frozen encoder reads the same batch once; its vectors are kept."""
        ids, lengths = batch["ids"], batch["lengths"]
        head: Any = self.head
        if not self.is_frozen:
            return self(ids, lengths)
        key = ids.cpu().numpy().tobytes()
        if (vectors := self.pooled.get(key)) is None:
            with torch.no_grad():
                vectors = head.pool(self.hidden(ids, lengths), lengths).float()
            if sum(map(len, self.pooled.values())) * vectors.shape[1] < MAX_POOLED:
                self.pooled[key] = vectors
        return head.project(vectors)


def build(config: Config) -> ClassifyModel:
    names = read_label_names(config) or load_texts(config).names
    model = ClassifyModel(config, load_text_tokenizer(config), names)
    initialize(model, config.model)
    return model


def config_files(config: Config) -> list[Path]:
    return [path for name in (config.data, config.labels, config.tokenizer) for path in data_files(name)]


@cache_by_files(config_files)
def load_texts(config: Config) -> LabeledTexts:
    """Return the labeled texts, read once; a file that has changed since is read again."""
    text, _, label = config.columns.partition(",")
    return read_labeled(config.data, (text, label), read_label_names(config), config.empty, config.duplicates)


@cache_by_files(config_files)
def load_text_tokenizer(config: Config) -> Tokenizer:
    def train() -> Tokenizer:
        texts, context = load_texts(config).texts, config.model.context
        sizes = [text.count(" ") + 1 for text in texts]  # no token holds two words
        if is_refused(sum(size > context for size in sizes), len(texts), config.too_long):
            check_lengths(config, [i for i, size in enumerate(sizes) if size > context], max(sizes))
        return build_tokenizer(config.tokenizer, lambda: iter(texts), config.vocab_size)

    return load_config_tokenizer(config, train)


@cache_by_files(config_files)
def encode_texts(config: Config) -> list[list[int]]:
    """Return the ids of every text, cut to the context; none for a text that is left out. Raises InputError where more
    texts are too long than the config allows."""
    tokenizer = MaskedTokenizer.from_tokenizer(load_text_tokenizer(config), config.padded_vocab)
    data, width = load_texts(config), config.model.context - tokenizer.n_special
    rows = [ids.tolist() for ids in tokenizer.tokenizer.encode_batch(data.texts)]
    long = {i for i, ids in enumerate(rows) if len(ids) > width}
    check_lengths(config, sorted(long), max(map(len, rows)) + tokenizer.n_special)
    left_out = set() if config.too_long == "cut" else long
    return [
        [] if i in left_out else [*tokenizer.prefix_ids, *ids[:width], *tokenizer.suffix_ids]
        for i, ids in enumerate(rows)
    ]


def check_lengths(config: Config, long: list[int], longest: int) -> None:
    """Check the indices of the texts that exceed the context."""
    if long:
        data, context = load_texts(config), config.model.context
        problem = f"texts are longer than the context of {context} tokens (the first: {data.places[long[0]]})"
        hint = f"--too-long cut or skip, or --model.context {longest} for the longest"
        check_unusable(len(long), len(data.texts), config.too_long, "--too-long", problem, hint)


def select_texts(config: Config, split: str) -> np.ndarray:
    """Return the indices of the texts of a split that are used. Raises InputError where there are none."""
    rows, data = encode_texts(config), load_texts(config)
    indices = np.array([i for i in data.split(split) if rows[i]], np.int64)
    if not len(indices):
        raise InputError(f"data '{config.data}' leaves no text for {split}: bring more than {len(data.texts)}")
    return indices


def batches(config: Config, split: str, state: StreamState | None = None) -> BatchStream:
    """Yield batches: ids (B, T), lengths (B,), labels (B,).

    "train" never ends and yields each text once an epoch, texts of similar length together; "val", "test" and "all"
    yield each text once. For a frozen encoder the batches are the same in every epoch, in another order.
    """
    c, data = config.train, load_texts(config)
    state = init_stream(state, config.data, data.sha256, rows=count_rows(split, partial(select_texts, config)))
    indices, rows, ordered_epoch = select_texts(config, split), encode_texts(config), None
    if split != "train":
        indices = indices[epoch_order(len(indices), 0, 1)]  # so that the first few batches hold every class
        for start in range(0, len(indices), c.batch):
            yield make_batch(rows, data.classes, indices[start : start + c.batch]), state
    lengths, n_batches = np.array([len(row) for row in rows]), -(-len(indices) // c.batch)
    while split == "train":
        epoch, index = divmod(state["step"], n_batches)
        if epoch != ordered_epoch:
            ordered_epoch, pool_epoch = epoch, 0 if config.frozen else epoch
            order = bucket_by_length(indices, lengths[indices], c.batch, c.seed, epoch, pool_epoch)
        batch = make_batch(rows, data.classes, order[index])
        state = advance_stream(state, int(batch["lengths"].sum()))
        yield batch, state


def make_batch(rows: list[list[int]], classes: np.ndarray, indices: np.ndarray) -> dict[str, Tensor]:
    ids, lengths = pad_ids([rows[i] for i in indices])
    arrays = {"ids": ids, "lengths": lengths, "labels": classes[indices]}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def loss(model: ClassifyModel, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(model.classify_batch(batch).float(), batch["labels"])


def evaluate(model: ClassifyModel, batches: Iterator[dict[str, Tensor]]) -> dict[str, float]:
    """Return the mean nats of a text, the accuracy, the mean F1 of the classes, and for few classes the cells of the
    confusion matrix: "a as b" counts the texts of class a that were predicted as b."""
    nats, confusion = count_confusions(model, batches)
    texts, n = int(confusion.sum()), len(model.names)
    scores = {"loss": nats / max(1, texts), "accuracy": accuracy(confusion), "macro_f1": macro_f1(confusion)}
    shown = range(n if n <= MAX_CONFUSION_NAMES else 0)
    cells = {f"{model.names[i]} as {model.names[j]}": int(confusion[i, j]) for i in shown for j in shown}
    return scores | cells | {"texts": texts}


def count_confusions(model: ClassifyModel, batches: Iterator[dict[str, Tensor]]) -> tuple[float, Tensor]:
    """Return the nats of all texts together, and the confusion matrix [class, prediction], (classes, classes)."""
    nats, n = 0.0, len(model.names)
    confusion = torch.zeros(n, n, dtype=torch.long)
    for batch in batches:
        logits = model.classify_batch(batch).float()
        nats += F.cross_entropy(logits, batch["labels"], reduction="sum").item()
        confusion += confusion_matrix(batch["labels"], logits.argmax(-1), n)
    return nats, confusion


@torch.inference_mode()
def figures(model: ClassifyModel, config: Config) -> list[Figure]:
    """Draw the confusion matrix of the validation split, or of as much of it as the final evaluation covers."""
    device = next(model.parameters()).device
    evaluated = islice(batches(config, "val"), 0, None, config.train.final_every)
    moved = ({name: value.to(device) for name, value in batch.items()} for batch, _ in evaluated)
    with evaluation_autocast(model, config.train.dtype):
        confusion = count_confusions(model, moved)[1]
    return draw_confusion(confusion, model.names, "texts")


def baselines(config: Config) -> Baselines:
    data = load_texts(config)
    train, val = select_texts(config, "train"), select_texts(config, "val")
    linear = score_linear_texts(data.texts, data.classes, train, val)
    return {"accuracy": score_majority(data.classes[train], data.classes[val]) | {"TF-IDF and a linear model": linear}}


def examples(config: Config) -> Examples:
    data, indices = load_texts(config), select_texts(config, "val")
    rows = indices[choose_examples([data.texts[i] for i in indices])]
    return Examples(
        {"input": [data.texts[i][:LONG_EXAMPLE] for i in rows], "cut": True},
        [data.names[data.classes[i]] for i in rows],
    )


@torch.inference_mode()
def predict(model: ClassifyModel, request: dict[str, Any]) -> dict[str, Any]:
    """Classify texts, or embed them: the fields of `TextRequest`.

    {"input": "a text"} returns {"results": [{"input", "label", "probability", "probabilities": {class: p}}]};
    {"embed": [text, ...]} returns {"vectors": [[...], ...]}, of length 1.
    """
    fields = parse_dataclass(TextRequest, request, "request")
    if fields.embed is not None:
        return {"vectors": embed(model, as_list(fields.embed), fields.cut)}
    texts = first_tokens(model.masked_tokenizer.tokenizer) if fields.input is None else fields.input
    return {"results": classify_texts(model, as_list(texts), fields.cut)}


def classify_texts(model: ClassifyModel, texts: list[str], cut: bool) -> list[dict[str, Any]]:
    results: dict[int, dict[str, Any]] = {}
    rows = model.masked_tokenizer.encode_batch(texts, model.context, cut)
    for indices in batch_by_length(rows):
        ids, lengths = pad_rows([rows[i] for i in indices], next(model.parameters()).device)
        probabilities = model(ids, lengths).float().softmax(-1).cpu()
        results |= {i: describe_classes(row, model.names) for i, row in zip(indices, probabilities)}
    return [{"input": text} | results[i] for i, text in enumerate(texts)]


def file_input(model: ClassifyModel, config: Config) -> FileInput:
    settings = {"cut": config.too_long == "cut"}
    return FileInput((config.columns.partition(",")[0],), tsv_quotes=False, settings=settings)


def form(model: ClassifyModel, config: Config) -> Form:
    examples = (first_tokens(model.masked_tokenizer.tokenizer),)
    return Form((Task("Classify a text", "text", TextRequest, "classes", examples=examples), compare_texts(model)))


def predict_batch(model: ClassifyModel, inputs: list[str], settings: dict[str, Any]) -> list[dict[str, Any]]:
    return predict(model, settings | {"input": inputs})["results"]
