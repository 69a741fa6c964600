"""What a language model can be told, and the presets."""

from dataclasses import dataclass, field, replace
from typing import Any

from ...model.config import TransformerConfig
from ...training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text and its vocabulary."""

    data: str = "plays"
    """The name of a set, a file (txt, md, jsonl, parquet, each also .gz) or a directory of such."""
    tokenizer: str = "char"
    """char, byte, bpe (trained on the data), ids (numbers, for a model that came without any), or the path of a
    tokenizer.json or of a folder with a public vocabulary."""
    vocab_size: int = 1024
    """Of a BPE trained on the data."""
    val_fraction: float = 0.1
    """The end of the text is kept for validation."""
    padded_vocab: int | None = None
    """Entries of the embedding where they are more than the tokenizer's ids. None: as many."""


@dataclass(frozen=True, kw_only=True)
class Config(Text):
    """A language model, its text and its training."""

    tied: bool = True
    """The head reads the embedding's own weights (1608.05859)."""
    window: int | None = None
    """How many nodes local layers read, themselves included. None: all layers are global."""
    global_every: int = 2
    """With a window: every how many layers one is global."""
    model: TransformerConfig = field(default_factory=TransformerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def sized(dim: int, n_layer: int, n_head: int, context: int, **more: Any) -> TransformerConfig:
    return TransformerConfig(dim=dim, n_layer=n_layer, n_head=n_head, context=context, **more)


def alike(position: str, **more: Any) -> TransformerConfig:
    """As large as the default."""
    return sized(128, 4, 4, 128, position=position, **more)


# What the field found after GPT-2, each named by its paper in TransformerConfig.
MODERN: dict[str, Any] = {
    "position": "rotary",
    "norm": "rmsnorm",
    "activation": "relu2",
    "qk_norm": True,
    "bias": False,
}
MINUTE = TrainConfig(
    steps=450,
    batch=16,
    lr=4e-3,
    optimizer="muon",
    schedule="trapezoid",
    min_lr=0.0,
    warmup=20,
    weight_decay=0.01,
    clip=0.0,
    eval_every=150,
    eval_batches=10,
    save_every=150,
)

PRESETS = {
    # seconds: for tests
    "tiny": Config(
        model=sized(32, 2, 2, 32),
        train=TrainConfig(steps=20, batch=8, warmup=2, eval_every=10, eval_batches=4, save_every=10),
    ),
    # the best for a minute on two cores
    "small": Config(model=sized(128, 4, 4, 128, **MODERN), train=MINUTE),
    # the best for little more than a minute on two cores: --data shakespeare
    "fast": Config(
        model=sized(128, 4, 4, 256, **MODERN), train=replace(MINUTE, steps=950, batch=8, lr=3e-3, eval_every=475)
    ),
    # nanoGPT's README, "I only have a macbook": --data shakespeare
    "nanogpt-cpu": Config(
        data="shakespeare",
        model=sized(128, 4, 4, 64, bias=False),
        train=TrainConfig(steps=2000, batch=12, beta2=0.99),
    ),
    # nanoGPT's config/train_shakespeare_char.py, three minutes on an A100
    "nanogpt-gpu": Config(
        data="shakespeare",
        model=sized(384, 6, 6, 256, bias=False, dropout=0.2),
        train=TrainConfig(steps=5000, batch=64, beta2=0.99, eval_batches=200),
    ),
    # GPT-2 124M (Radford et al. 2019) under nanoGPT's 600,000 steps of half a million tokens: bring --data and a GPU
    "gpt2": Config(
        tokenizer="bpe",
        vocab_size=50257,
        padded_vocab=50304,
        val_fraction=0.0005,
        model=sized(768, 12, 12, 1024, activation="gelu_tanh"),
        train=TrainConfig(
            steps=600_000,
            batch=12,
            accumulate=40,
            lr=6e-4,
            warmup=2000,
            eval_every=1000,
            eval_batches=200,
            save_every=5000,
        ),
    ),
    # The same minute in the manner of others: what a choice is worth, side by side (1706.03762 first).
    "vaswani": Config(model=alike("sinusoidal", norm_place="post", activation="relu"), train=MINUTE),
    "lamda": Config(
        model=alike("relative", norm="rmsnorm", norm_eps=1e-6, activation="geglu", head_dim=64, scale=1.0, bias=False),
        train=MINUTE,
    ),  # 2201.08239
    "bloom": Config(model=alike("alibi"), train=MINUTE),  # 2211.05100
    "llama": Config(
        tied=False,
        model=alike(
            "rotary",
            rotary_base=500_000.0,
            norm="rmsnorm",
            activation="swiglu",
            n_kv_head=2,
            mlp_dim=344,
            bias=False,
        ),
        train=MINUTE,
    ),  # 2407.21783
    "local": Config(
        window=32, global_every=4, model=sized(128, 4, 4, 512, **MODERN), train=replace(MINUTE, batch=4)
    ),  # 2004.05150
}
