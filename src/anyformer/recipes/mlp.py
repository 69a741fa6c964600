"""MLP: the neural language model of 2003, a window of a few words and one hidden layer.

raw    text files, or a set by name: characters, bytes or BPE
nodes  the last few tokens, looked up in one table, side by side
edges  none: whatever lies further back does not exist
head   a hidden layer, then a logit for each token of the vocabulary
loss   cross-entropy of the next token

    anyformer train mlp                               a minute on two cores: the plays of Shakespeare
    anyformer ladder --data plays --minutes 2         beside a Transformer, with the same time

Bengio, Ducharme, Vincent and Jauvin: A Neural Probabilistic Language Model (JMLR 3, 2003).
"""

from dataclasses import dataclass, field, replace

from torch import nn

from ..baselines.recurrent import Window
from ..data.tokenizers.build import Tokenizer
from ..recipe import Graph, Input
from ..training.config import TrainConfig
from . import language
from .language import Text, batches, evaluate, loss, predict, stream

__all__ = ["PRESETS", "batches", "build", "evaluate", "graph", "loss", "predict", "stream"]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How large. Raises ValueError where a number makes no sense."""

    words: int = 8
    """Tokens that the next one is guessed from."""
    dim: int = 32
    """Channels of each."""
    hidden: int = 256
    """Of the layer between."""
    direct: bool = False
    """Connect the words to the answer straight, too."""
    context: int = 128
    """Tokens of a row in training; each is guessed from the words before it."""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("words", "dim", "hidden", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class Config(Text):
    """A window of words, its text and its training."""

    model: Shape = field(default_factory=Shape)
    train: TrainConfig = field(default_factory=TrainConfig)


MINUTE = TrainConfig(steps=3000, batch=32, lr=3e-3, weight_decay=0.01, eval_every=500, save_every=1000)

PRESETS = {
    # seconds: for tests
    "tiny": Config(
        model=Shape(words=3, dim=8, hidden=32, context=32),
        train=TrainConfig(steps=20, batch=8, warmup=2, eval_every=10, eval_batches=4, save_every=10),
    ),
    # a minute on two cores
    "small": Config(model=Shape(words=10, dim=32, hidden=512), train=MINUTE),
    # the paper's own shape, but for pieces of words: 5 of them, 60 channels, 50 hidden, connected straight
    "bengio": Config(
        data="eltec",
        tokenizer="bpe",
        vocab_size=8192,
        val_fraction=0.02,
        model=Shape(words=5, dim=60, hidden=50, direct=True, dropout=0.1),
        train=replace(MINUTE, steps=20_000),
    ),
}


class WordWindow(Window):
    """ids (B, T) -> logits (B, T, vocab_size)"""

    def __init__(self, config: Config, tokenizer: Tokenizer):
        m = config.model
        super().__init__(
            max(tokenizer.vocab_size, config.padded_vocab or 0),
            m.dim,
            m.hidden,
            m.words,
            m.context,
            m.direct,
            m.dropout,
        )
        self.tokenizer, self.files = tokenizer, {"tokenizer.json": tokenizer.json(), **tokenizer.beside}


def build(config: Config) -> nn.Module:
    return WordWindow(config, language.tokenizer_of(config))


def graph(model: WordWindow) -> Graph:
    ids = Input("batch length", model.answer.out_features)
    return Graph(model, {"ids": ids}, ("logits",), {"length": model.body.config.context})
