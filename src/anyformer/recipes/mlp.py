"""MLP: the neural language model of 2003, a window of a few words and one hidden layer.

raw    text files, or a set by name: characters, bytes or BPE
nodes  the last few tokens, embedded by one table and concatenated
edges  none: tokens before the window are not read
head   a hidden layer, then a logit for each token of the vocabulary
loss   cross-entropy of the next token

    anyformer train mlp                               a minute on two cores: the plays of Shakespeare
    anyformer ladder --data plays --minutes 2         beside a Transformer, with the same time

Bengio, Ducharme, Vincent and Jauvin: A Neural Probabilistic Language Model (JMLR 3, 2003).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ..baselines.window_lm import WindowLM
from ..data.tokenizers.build import Tokenizer
from ..parsing import check_range, check_types
from ..recipe import Graph, GraphInput, SizeOption
from ..training.config import TrainConfig
from ._shared.language import baselines, batches, decoder, evaluate, loss, predict, stream  # noqa: F401
from ._shared.mixtures import describe_sources  # noqa: F401
from ._shared.presets import MAX_SIZE, TINY_TRAIN
from ._shared.sizes import shrink_train
from ._shared.text import TextConfig, file_input, form, load_text_tokenizer, predict_batch  # noqa: F401


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """The shape of the model."""

    words: int = 8
    """Tokens from which the next one is predicted."""
    dim: int = 32
    """Channels of a token."""
    hidden: int = 256
    """Channels of the hidden layer."""
    direct: bool = False
    """Also connect the tokens directly to the output."""
    context: int = 128
    """Tokens of a row in training; each is predicted from the words before it."""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "words", "dim", "hidden", "context", at_least=1, at_most=MAX_SIZE)
        check_range(self, "dropout", at_least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
    """A window of words, its text and its training."""

    model: WindowConfig = field(default_factory=WindowConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


MINUTE_TRAIN = TrainConfig(steps=3000, batch=32, lr=3e-3, weight_decay=0.01, eval_every=500, save_every=1000)

PRESETS = {
    # seconds: for tests
    "tiny": Config(model=WindowConfig(words=3, dim=8, hidden=32, context=32), train=TINY_TRAIN),
    # a minute on two cores
    "small": Config(model=WindowConfig(words=10, dim=32, hidden=512), train=MINUTE_TRAIN),
    # the paper's shape (5 words, 60 channels, 50 hidden, direct connections), with subwords
    "bengio": Config(
        data="eltec",
        tokenizer="bpe",
        vocab_size=8192,
        val_fraction=0.02,
        model=WindowConfig(words=5, dim=60, hidden=50, direct=True, dropout=0.1),
        train=replace(MINUTE_TRAIN, steps=20_000),
    ),
}


def sizes(config: Config) -> Iterator[SizeOption]:
    """Yield the sizes that `--minutes` chooses from: a narrower hidden layer, and then the config itself."""
    if config.model.hidden > 128:
        model = replace(config.model, dim=min(16, config.model.dim), hidden=128)
        yield SizeOption(replace(config, model=model, train=shrink_train(config.train, config.model.hidden / 128, 32)))
    yield SizeOption(config, steps=500)


class WindowModel(WindowLM):
    """ids (B, T) -> logits (B, T, V)"""

    def __init__(self, config: Config, tokenizer: Tokenizer):
        m, vocab_size = config.model, max(tokenizer.vocab_size, config.padded_vocab or 0)
        super().__init__(vocab_size, m.dim, m.hidden, m.words, m.context, m.direct, m.dropout)
        self.tokenizer, self.files = tokenizer, {"tokenizer.json": tokenizer.to_json(), **tokenizer.extra_files}


def build(config: Config) -> WindowModel:
    return WindowModel(config, load_text_tokenizer(config))


def export_graph(model: WindowModel) -> Graph:
    ids = GraphInput("batch length", model.output.out_features)
    return Graph(model, {"ids": ids}, ("logits",), {"length": model.body.config.context})
