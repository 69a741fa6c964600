"""Config and presets of recurrent models of pairs (seq2seq and RNNsearch)."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ...baselines.recurrent import RecurrentSeq2Seq
from ...parsing import check_range
from ...recipe import SizeOption
from ...training.config import TrainConfig
from .pairs import PairConfig, load_tokenizers
from .presets import MAX_SIZE, TINY_PAIRS_TRAIN
from .sizes import shrink_train


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig(PairConfig):
    """A recurrent encoder and decoder, their pairs and their training."""

    dim: int = 256
    """Channels of an embedding."""
    hidden: int = 256
    """Channels of a state."""
    layers: int = 1
    """Stacked recurrent layers (RNNsearch: of the encoder)."""
    context: int = 64
    """The most tokens of a text."""
    dropout: float = 0.2
    train: TrainConfig = field(default_factory=TrainConfig)
    """A batch holds as many pairs as cost no more than `train.batch` pairs of the longest that fit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "dim", "hidden", "layers", "context", at_least=1, at_most=MAX_SIZE)
        check_range(self, "dropout", at_least=0, below=1)

    @property
    def contexts(self) -> tuple[int, int]:
        return self.context, self.context


def sizes(config: RecurrentConfig) -> Iterator[SizeOption]:
    """Yield the sizes that `--minutes` chooses from: narrower models of one layer, and then the config itself."""
    for hidden, batch, steps in ((64, 8, 0), (128, 16, 600)):
        if hidden < config.hidden:
            train = shrink_train(config.train, config.hidden / hidden, batch)
            yield SizeOption(
                replace(config, dim=min(hidden, config.dim), hidden=hidden, layers=1, train=train), steps=steps
            )
    yield SizeOption(config, steps=1500)


def build_recurrent(model_class: type[RecurrentSeq2Seq], config: RecurrentConfig) -> RecurrentSeq2Seq:
    """Build a model of `baselines.recurrent`, with its tokenizers."""
    c, pair = config, load_tokenizers(config)
    vocab_sizes = pair.vocab_sizes(c.padded_vocab)
    model: Any = model_class(vocab_sizes, c.dim, c.hidden, c.layers, c.context, c.dropout)
    model.pair_tokenizer, model.files, model.label_smoothing = pair, pair.files, c.label_smoothing
    return model


CAPTIONS_TRAIN = TrainConfig(
    steps=4000, batch=24, lr=3e-3, min_lr=0.0, weight_decay=0.01, schedule="trapezoid", eval_every=400, save_every=400
)
TINY = RecurrentConfig(
    data="reverse", tokenizer="char", dim=16, hidden=24, context=24, dropout=0.0, train=TINY_PAIRS_TRAIN
)
MULTI30K = RecurrentConfig(vocab_size=6000, train=CAPTIONS_TRAIN)
REVERSE = replace(TINY, dim=64, hidden=128, label_smoothing=0.0, train=replace(CAPTIONS_TRAIN, steps=2000, batch=32))
LARGE = RecurrentConfig(
    data="pairs.tsv", empty="skip", too_long="cut", source_tokenizer="bpe", vocab_size=37_000, dim=1000, hidden=1000
)
