"""Masked: hide some tokens of a text and find them again by what stands on both sides.

raw    text files or a set by name, as characters, bytes or BPE; protein sequences (FASTA), as residues
nodes  tokens, with a position; some of them hidden, others at each step
edges  full: every node reads every other, padding excepted
head   each node thinks once more, then a logit for each entry of the vocabulary
loss   cross-entropy of the hidden tokens

    anyformer train masked                                     minutes on two cores: the plays of Shakespeare
    anyformer train masked --preset protein --minutes 20       protein sequences

BERT (Devlin et al. 2018, 1810.04805), hidden anew at each step as in RoBERTa (1907.11692).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.io.resolve import resolve
from ..data.sequences import fasta
from ..data.text.batches import NOTHING, sweep, windows
from ..data.text.masking import Hiding, glue
from ..data.text.prepare import Corpus, prepare
from ..data.tokenizers.build import Subwords, Tokenizer
from ..data.tokenizers.build import load as load_tokenizer
from ..data.tokenizers.json_layout import of_ids
from ..data.tokenizers.masked_tokenizer import MASK, Wrapped
from ..errors import InputError, nearest
from ..events import progress
from ..inference.text_embedding import embed, pad
from ..model.config import TransformerConfig
from ..model.encoder import Encoder
from ..model.heads import MaskedHead
from ..model.init import initialise
from ..recipe import Graph, Input, Place, begin
from ..training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """An encoder, its text and its training."""

    data: str = "plays"
    """The name of a set, a file (txt, md, jsonl, parquet, fasta, each also .gz) or a directory of texts."""
    tokenizer: str = "bpe"
    """char, byte, bpe (trained on the data), residues (of FASTA), ids (numbers, for a model that came without any), or
    the path of a tokenizer.json."""
    vocab_size: int = 4096
    """Of a BPE trained on the data."""
    val_fraction: float = 0.1
    """Kept for validation: the end of a text, whole families of near-identical sequences of FASTA."""
    padded_vocab: int | None = None
    """Entries of the embedding. None: the tokenizer's ids, and one more for the mask where it has none of its own."""
    tied: bool = True
    """The head reads the embedding's own weights (1608.05859)."""
    kinds: int = 0
    """Kinds of texts that a token can tell (BERT has 2); 0 for none."""
    normed: bool = False
    """Norm the nodes before the first block (BERT)."""
    hidden: float = 0.15
    """How much of a text is hidden."""
    whole_words: bool = False
    """Hide all tokens of a word or none."""
    model: TransformerConfig = field(default_factory=TransformerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


# What the field found after BERT, each named by its paper in TransformerConfig.
MODERN: dict[str, Any] = {"position": "rotary", "norm": "rmsnorm", "qk_norm": True, "bias": False, "init": "zero"}
BERT: dict[str, Any] = {"norm_place": "post", "norm_eps": 1e-12}

PRESETS = {
    # seconds: for tests
    "tiny": Config(
        tokenizer="char",
        model=TransformerConfig(dim=32, n_layer=2, n_head=2, context=32),
        train=TrainConfig(steps=20, batch=8, warmup=2, eval_every=10, eval_batches=4, save_every=10),
    ),
    # minutes on two cores
    "small": Config(
        whole_words=True,
        model=TransformerConfig(dim=128, n_layer=4, n_head=4, context=128, **MODERN),
        train=TrainConfig(
            steps=2000, batch=32, lr=4e-3, optimizer="muon", schedule="trapezoid", min_lr=0.0, weight_decay=0.01
        ),
    ),
    # to begin `classify` from: 20 minutes on two cores, with --minutes 20
    "novels": Config(
        data="eltec",
        vocab_size=8192,
        val_fraction=0.01,
        hidden=0.4,
        model=TransformerConfig(dim=128, n_layer=3, n_head=4, context=128, **MODERN),
        train=TrainConfig(
            steps=4000, batch=32, lr=4e-3, optimizer="muon", schedule="trapezoid", min_lr=0.0, weight_decay=0.01
        ),
    ),
    # residues of 20,000 proteins
    "protein": Config(
        data="protein",
        tokenizer="residues",
        tied=False,
        model=TransformerConfig(dim=128, n_layer=4, n_head=4, context=256, **MODERN),
        train=TrainConfig(
            steps=3000, batch=16, lr=4e-3, optimizer="muon", schedule="trapezoid", min_lr=0.0, weight_decay=0.01
        ),
    ),
    # BERT-base (1810.04805), 110 M: bring --data, --tokenizer (its vocab.txt) and a GPU
    "bert": Config(
        vocab_size=30522,
        padded_vocab=30522,
        val_fraction=0.005,
        kinds=2,
        normed=True,
        model=TransformerConfig(dim=768, n_layer=12, n_head=12, context=512, dropout=0.1, **BERT),
        train=TrainConfig(
            steps=1_000_000, batch=32, accumulate=8, lr=1e-4, min_lr=0.0, warmup=10_000, weight_decay=0.01, beta2=0.999
        ),
    ),
}


class MaskedModel(Encoder):
    """ids (B, T), lengths (B,) -> logits (B, T, vocab_size)"""

    def __init__(self, config: Config, tokenizer: Tokenizer):
        wrapped = Wrapped.of(tokenizer, config.padded_vocab)
        vocab = max(wrapped.vocab_size, config.padded_vocab or 0)
        super().__init__(vocab, config.model, config.kinds, config.normed)
        self.head = MaskedHead(config.model, vocab, self.nodes.token if config.tied else None)
        self.wrapped, self.context = wrapped, config.model.context
        self.files = {"tokenizer.json": tokenizer.json()}

    def forward(self, ids: Tensor, lengths: Tensor | None = None, kind: Tensor | None = None) -> Tensor:
        return self.head(self.hidden(ids, lengths, kind))


def build(config: Config) -> MaskedModel:
    model = MaskedModel(config, tokenizer_of(config))
    initialise(model, config.model)
    return model


def tokenizer_of(config: Config) -> Tokenizer:
    kept = Path(config.tokenizer)  # once trained, the tokenizer is a file of the checkpoint and the text is not needed
    if config.tokenizer == "ids":
        return Subwords(of_ids(config.padded_vocab or config.vocab_size))
    if config.tokenizer == "residues":
        return fasta.residues()
    return load_tokenizer(kept) if kept.exists() else corpus(config).tokenizer


def corpus(config: Config) -> Corpus:
    """The tokens of the config's data, prepared once; a file that has changed since is read again."""
    files = resolve(config.data)
    stamp = tuple((str(path.resolve()), path.stat().st_mtime_ns, path.stat().st_size) for path in files)
    return prepared(config.data, config.tokenizer, config.vocab_size, config.val_fraction, stamp)


@lru_cache(maxsize=4)
def prepared(data: str, tokenizer: str, vocab_size: int, val_fraction: float, stamp: tuple) -> Corpus:
    files = [Path(path) for path, *_ in stamp]
    if any(fasta.is_fasta(path) for path in files):
        own = tokenizer == "residues" or not Path(tokenizer).exists()
        return fasta.corpus(files, fasta.residues() if own else load_tokenizer(Path(tokenizer)), val_fraction)
    if tokenizer == "residues":
        raise InputError(f"data '{data}' is no FASTA file ({', '.join(fasta.ENDINGS)}), which residues are read from")
    return prepare(data, tokenizer, vocab_size, val_fraction, progress)


def batches(config: Config, split: str, place: Place | None = None) -> Iterator[tuple[dict[str, Tensor], Place]]:
    """ "train": random windows for ever, something else hidden at each step. "val" and "all": one pass over the whole,
    the same hidden each time."""
    c, text = config.train, corpus(config)
    place = begin(place, config.data, text.meta["sha256"])
    wrapped = Wrapped.of(text.tokenizer, config.padded_vocab)
    if not 0 < config.hidden < 1:
        raise InputError(f"hidden is {config.hidden}; it must be above 0 and below 1")
    words = glue(text.tokenizer) if config.whole_words else None
    hide = Hiding(wrapped.hiding, text.tokenizer.vocab_size, words, config.hidden)
    tokens, width = text.split(split), config.model.context - wrapped.extra
    if split != "train":
        for i, (x, y) in enumerate(sweep(tokens, width, c.batch, split)):
            yield batch(wrapped, hide, x, (y != NOTHING).sum(1), 0, i), place
    while split == "train":
        x, _ = windows(tokens, width, c.batch, c.seed, place["step"], split)
        hidden = batch(wrapped, hide, x, np.full(len(x), width), c.seed, place["step"])
        place = place | {"step": place["step"] + 1, "tokens": place["tokens"] + x.size}
        yield hidden, place


def batch(wrapped: Wrapped, hide: Hiding, x: np.ndarray, real: np.ndarray, seed: int, step: int) -> dict[str, Tensor]:
    """ids (B, T) with some hidden; where (N,), in the flat array, and the target (N,) there; where rows are padded, how
    many nodes of each are real, lengths (B,)."""
    ids, lengths, text = wrapped.rows(x, real)
    hidden, where, target = hide(ids, text, seed, step)
    made = {"ids": hidden, "where": where, "target": target}
    made |= {} if (lengths == ids.shape[1]).all() else {"lengths": lengths}
    return {name: torch.from_numpy(value) for name, value in made.items()}


def found(model: MaskedModel, batch: dict[str, Tensor]) -> Tensor:
    """Logits of the hidden tokens alone: (N, vocab_size)"""
    nodes = model.hidden(batch["ids"], batch.get("lengths"))
    return model.head(nodes.flatten(0, 1)[batch["where"]]).float()


def loss(model: MaskedModel, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(found(model, batch), batch["target"], reduction="sum") / max(1, len(batch["target"]))


def evaluate(model: MaskedModel, batches: Iterator[dict[str, Tensor]]) -> dict[str, float]:
    """Of the hidden tokens: mean nats, their exponential, and how often the likeliest is right."""
    nats, right, tokens = 0.0, 0, 0
    for batch in batches:
        logits, target = found(model, batch), batch["target"]
        nats += F.cross_entropy(logits, target, reduction="sum").item()
        right += int((logits.argmax(-1) == target).sum())
        tokens += len(target)
    mean = nats / max(1, tokens)
    return {"loss": mean, "perplexity": math.exp(min(mean, 700)), "accuracy": right / max(1, tokens), "tokens": tokens}


def graph(model: MaskedModel) -> Graph:
    inputs = {"ids": Input("batch length", model.nodes.token.num_embeddings), "lengths": Input("batch", counts=True)}
    return Graph(model, inputs, ("logits",), {"length": model.context})


REQUEST = ("input", "top", "embed", "cut")


def predict(model: MaskedModel, request: dict[str, Any]) -> dict[str, Any]:
    """{"input": "The capital of [MASK] is Paris", "top": 5}, or several: {"results": [{"input", "text", "masks": [[{
    "token", "probability"}, ...], ...]}, ...]}, the likeliest tokens of each mask. {"embed": [text, ...]}: {"vectors":
    [[...], ...]}, of length 1. A text longer than the context is refused, unless "cut" is true."""
    for name in request:
        if name not in REQUEST:
            raise InputError(f"a request has no '{name}': {nearest(name, REQUEST)}")
    cut = bool(request.get("cut", False))
    if "embed" in request:
        return {"vectors": embed(model, listed(request["embed"]), cut=cut).tolist()}
    top = request.get("top", 5)
    if not isinstance(top, int) or isinstance(top, bool) or not 1 <= top <= model.wrapped.tokenizer.vocab_size:
        raise InputError(f"top is {top!r}; it must be a whole number from 1 to {model.wrapped.tokenizer.vocab_size}")
    texts = listed(request["input"]) if "input" in request else [opening(model)]
    return {"results": [filled(model, text, top, cut) for text in texts]}


def listed(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [given]


def opening(model: MaskedModel) -> str:
    """A show-piece: the first of these texts that the vocabulary can say."""
    known = model.wrapped.tokenizer
    last = known.decode(range(min(8, known.vocab_size))) + MASK
    for text in ("To be, or not to [MASK]", "To be, o[MASK] not to be", "MKTAYIAKQRQ[MASK]SFVKSHFSRQ", last):
        try:
            model.wrapped.encode(text, model.context)
            return text
        except InputError:
            continue
    return MASK


def filled(model: MaskedModel, text: Any, top: int, cut: bool) -> dict[str, Any]:
    ids = model.wrapped.encode(text, model.context, cut)
    hidden = [i for i, token in enumerate(ids) if token == model.wrapped.hiding]
    if not hidden:
        raise InputError(f"{text!r} hides nothing: write {MASK} where a token is to be found")
    row, lengths = pad([ids], next(model.parameters()).device)
    known = model.wrapped.tokenizer.vocab_size
    likely = model(row, lengths)[0, hidden].float().softmax(-1)[:, :known].topk(top)
    masks = [named(model.wrapped, *best) for best in zip(likely.values.tolist(), likely.indices.tolist())]
    for i, best in zip(hidden, likely.indices[:, 0].tolist()):
        ids[i] = best
    inner = ids[len(model.wrapped.before) : len(ids) - len(model.wrapped.after)]
    return {"input": text, "text": model.wrapped.tokenizer.decode(inner), "masks": masks}


def named(wrapped: Wrapped, probabilities: Sequence[float], ids: Sequence[int]) -> list[dict[str, Any]]:
    return [{"token": wrapped.shown(i), "probability": p} for p, i in zip(probabilities, ids, strict=True)]
