"""What a model that hears and writes can be told, and the presets."""

from dataclasses import dataclass, field, replace
from typing import Any

from ...model.config import TransformerConfig
from ...training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """A model that hears and writes, its sounds and its training."""

    data: str = "fsdd"
    """fsdd, tones, or a table (csv, tsv, jsonl) with columns path and text, optionally split (train, val)."""
    joined: int = 1
    """Up to so many clips in a row, with gaps and unlike loudness; 1: each by itself. Validation joins at least two."""
    val_fraction: float = 0.1
    """Of the clips, where the data does not say which."""
    skip_broken: bool = False
    """Leave out sound files that cannot be read, instead of stopping at the first."""
    augment: bool = False
    """Hide bands of time and frequency in training (SpecAugment)."""
    tokenizer: str = "char"
    """char, byte, bpe (trained on the data), ids (numbers, for a model that came without any), or the path of a
    tokenizer.json."""
    vocab_size: int = 1024
    """Of a BPE trained on the data."""
    padded_vocab: int | None = None
    """Entries of the embedding where they are more than the tokenizer's ids. None: as many."""
    prompt: str = ""
    """Ids that each text begins with, as "50258 50259 50359 50363". Empty: the tokenizer's end of a text."""
    end: int | None = None
    """The id that ends a text. None: the tokenizer's."""
    mels: int = 80
    """Bands of the mel spectrogram."""
    whole: bool = False
    """Every sound is filled up with silence to the encoder's context, as Whisper wants it."""
    encoder: TransformerConfig = field(default_factory=TransformerConfig)
    """Its context is in nodes of 20 ms."""
    decoder: TransformerConfig = field(default_factory=TransformerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def stacks(dim: int, depth: tuple[int, int], n_head: int, context: tuple[int, int], **more: Any) -> dict[str, Any]:
    """An encoder and a decoder of like shape, depth and context of each given."""
    sides = zip(("encoder", "decoder"), depth, context)
    return {side: TransformerConfig(dim=dim, n_layer=n, n_head=n_head, context=c, **more) for side, n, c in sides}


def mixed(*args: Any, **more: Any) -> dict[str, Any]:
    """As Whisper has it: what was heard has a fixed position, what is written a learned one."""
    made = stacks(*args, **more)
    return made | {"encoder": replace(made["encoder"], position="sinusoidal")}


GROW = 100  # steps until rows may be one clip longer
DIGITS = TrainConfig(steps=1200, weight_decay=0.05, eval_every=200, eval_batches=10, save_every=600)
QUICK: dict[str, Any] = dict(optimizer="muon", schedule="trapezoid", min_lr=0.0, warmup=30, clip=0.0)
STRINGS = TrainConfig(steps=2000, batch=24, lr=3e-3, eval_every=500, eval_batches=4, save_every=500, **QUICK)
# What the field found later, each named by its paper in TransformerConfig.
LLAMA = dict(
    position="rotary", rotary_base=1e6, norm="rmsnorm", activation="swiglu", n_kv_head=2, mlp_dim=344, bias=False
)
LAMDA = dict(position="relative", norm="rmsnorm", norm_eps=1e-6, activation="geglu", head_dim=64, scale=1.0)

PRESETS = {
    # seconds, no data needed: for tests
    "tiny": Config(
        data="tones",
        mels=20,
        **mixed(32, (2, 2), 2, (50, 16)),
        train=TrainConfig(steps=20, batch=8, warmup=2, eval_every=10, eval_batches=2, save_every=10),
    ),
    # isolated digits
    "digits": Config(augment=True, **mixed(128, (3, 2), 4, (150, 16), dropout=0.1), train=DIGITS),
    # strings of digits; dropout on attention would cost half of the speed
    "strings": Config(joined=6, augment=True, **mixed(128, (3, 2), 4, (600, 48)), train=STRINGS),
    # The same strings in the manner of others: what a choice is worth, side by side.
    "vaswani": Config(
        joined=6,
        augment=True,
        **stacks(128, (3, 2), 4, (600, 48), position="sinusoidal", norm_place="post", activation="relu"),
        train=STRINGS,
    ),  # 1706.03762
    "lamda": Config(joined=6, augment=True, **stacks(128, (3, 2), 4, (600, 48), **LAMDA), train=STRINGS),  # 2201.08239
    "llama": Config(
        joined=6, augment=True, **stacks(128, (3, 2), 4, (600, 48), qk_norm=True, init="zero", **LLAMA), train=STRINGS
    ),  # 2407.21783
    # the shape of Whisper base, 72.6 M weights, for a GPU and hours of sound: what `anyformer export` can say
    "whisper": Config(
        data="clips.csv",
        val_fraction=0.01,
        skip_broken=True,
        augment=True,
        tokenizer="bpe",
        vocab_size=50257,
        padded_vocab=51865,
        prompt="50258 50259 50359 50363",
        end=50257,
        whole=True,
        **mixed(512, (6, 6), 8, (1500, 448)),
        train=TrainConfig(steps=100_000, accumulate=8, warmup=2000, beta2=0.98, eval_every=2000, save_every=5000),
    ),
}
