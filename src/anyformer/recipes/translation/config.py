"""The shapes of a translator: its pairs of texts, its two stacks, its presets."""

from dataclasses import dataclass, field, replace
from typing import Any

from ...model.config import TransformerConfig
from ...training.config import TrainConfig


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
