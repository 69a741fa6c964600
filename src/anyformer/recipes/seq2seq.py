"""Seq2seq: translation in 2014, one LSTM reads, one vector goes between, another LSTM speaks.

raw    pairs of texts: a table, two files, JSON lines, or a set by name; one vocabulary for both sides
nodes  tokens, the source from behind
edges  a chain: each state reads the one before it; all that passes from source to target is the last state
head   a logit for each token of the vocabulary
loss   cross-entropy of the target's next token, smoothed

    anyformer train seq2seq                                  minutes on two cores: captions, English to French
    anyformer ladder --data multi30k --minutes 10            beside what came after, with the same time

Sutskever, Vinyals and Le: Sequence to Sequence Learning with Neural Networks (1409.3215).
"""

from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from ..baselines.recurrent import SequenceToSequence, Shape
from ..data.tokenizers.bilingual import Bilingual
from ..training.config import TrainConfig
from . import translation
from .translation import batches, evaluate, judge, loss, predict
from .translation.config import Texts

__all__ = ["PRESETS", "Config", "batches", "build", "evaluate", "judge", "loss", "predict", "sizes"]


@dataclass(frozen=True, kw_only=True)
class Config(Texts):
    """A recurrent pair, its texts and its training. Raises ValueError where a number makes no sense."""

    dim: int = 256
    """Channels of an embedding."""
    hidden: int = 256
    """Of a state."""
    layers: int = 1
    """Nets on top of each other (RNNsearch: in the encoder)."""
    context: int = 64
    """The most tokens of a text."""
    dropout: float = 0.2
    train: TrainConfig = field(default_factory=TrainConfig)
    """A batch holds as many pairs as cost no more than `train.batch` pairs of the longest that fit."""

    @property
    def encoder(self) -> Shape:
        return Shape(self.context)

    decoder = encoder

    def __post_init__(self) -> None:
        for name in ("dim", "hidden", "layers", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")


TINY = Config(
    data="reverse",
    tokenizer="char",
    dim=16,
    hidden=24,
    context=24,
    dropout=0.0,
    train=TrainConfig(steps=20, batch=4, warmup=2, eval_every=10, eval_batches=4, save_every=10),
)
CAPTIONS = TrainConfig(
    steps=4000, batch=24, lr=3e-3, min_lr=0.0, weight_decay=0.01, schedule="trapezoid", eval_every=400, save_every=400
)

PRESETS = {
    # seconds: for tests
    "tiny": TINY,
    "multi30k": Config(vocab_size=6000, layers=2, train=CAPTIONS),
    "reverse": replace(TINY, dim=64, hidden=128, label_smoothing=0.0, train=replace(CAPTIONS, steps=2000, batch=32)),
    # four layers of a thousand and words for each side, as in the paper: bring pairs and a GPU
    "sutskever": Config(
        data="pairs.tsv",
        skip_missing=True,
        cut_long=True,
        source_tokenizer="bpe",
        vocab_size=37_000,
        dim=1000,
        hidden=1000,
        layers=4,
    ),
}


class Speaker(SequenceToSequence):
    """source (B, S) ids, target (B, T) ids -> logits (B, T, vocab_size)"""

    def __init__(self, config: Config, words: Bilingual):
        super().__init__(**sizes(config, words))
        self.words, self.files = words, words.files
        self.label_smoothing = config.label_smoothing


def sizes(config: Config, words: Bilingual) -> dict[str, Any]:
    """What a recurrent pair is built from."""
    names = ("dim", "hidden", "layers", "context", "dropout")
    return {"vocab_sizes": words.sizes(config.padded_vocab)} | {name: getattr(config, name) for name in names}


def build(config: Config) -> nn.Module:
    return Speaker(config, translation.words_of(config))
