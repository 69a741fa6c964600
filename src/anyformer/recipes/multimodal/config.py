"""What a model of rows can be told, and the presets."""

from dataclasses import dataclass, field, replace
from typing import Any

from ...model.config import TransformerConfig
from ...training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """A model of rows, its table and its training."""

    data: str = "watch"
    """The name of a set (watch, breast-cancer, spoken-digits, sensors), a .csv, .tsv, .jsonl or .parquet."""
    schema: str = "own"
    """Which column is what: own (what a set says of itself; of other tables it is inferred), inferred, or a schema.toml
    (its path, or what it holds)."""
    target: str = ""
    """Where the schema is inferred: the column to tell, or several with commas between."""
    fold: str = "1/10"
    """Which part of how many is for validation, where the data do not say: whole groups, or rows of each class."""
    absent: float = 0.1
    """In training each field of a row is left out so often (field dropout), though never all."""
    noise: float = 0.0
    """In training every number, reading or channel is shaken by so many of its deviations."""
    stretch: float = 0.0
    """In training the series of a row are made faster or slower by up to this share."""
    turn: float = 0.0
    """In training the series of three channels of a row, vectors in space, are turned together by up to so many
    degrees: a device is never worn quite alike."""
    lenient: bool = False
    """What is damaged (a reading that is NaN, an image or sound that cannot be read) is left out and counted."""
    model: TransformerConfig = field(default_factory=TransformerConfig)
    """Its context bounds the nodes of a row; positions belong to the fields, so its own is none."""
    train: TrainConfig = field(default_factory=TrainConfig)


def sized(dim: int, n_layer: int, n_head: int, context: int, **more: Any) -> TransformerConfig:
    return TransformerConfig(dim=dim, n_layer=n_layer, n_head=n_head, context=context, position="none", **more)


# What the field found after 2017, each named by its paper in TransformerConfig.
MODERN: dict[str, Any] = {"norm": "rmsnorm", "activation": "relu2", "qk_norm": True, "bias": False, "init": "zero"}
ADAMW = TrainConfig(steps=2500, batch=64, warmup=50, min_lr=0.0, eval_every=200, save_every=400)
MUON = replace(ADAMW, optimizer="muon", schedule="trapezoid", steps=1000, lr=3e-3, weight_decay=0.01, clip=0.0)
PRESETS = {
    # seconds: for tests
    "tiny": Config(
        data="sensors",
        fold="1/5",
        model=sized(32, 2, 2, 64),
        train=TrainConfig(steps=20, batch=8, warmup=2, eval_every=10, eval_batches=4, save_every=10),
    ),
    # three minutes on two cores; a fold is a person
    "watch": Config(
        noise=0.1,
        stretch=0.4,
        turn=20.0,
        model=sized(64, 3, 4, 64, dropout=0.1),
        train=ADAMW,
    ),
    # seconds on two cores
    "table": Config(
        data="breast-cancer",
        schema="inferred",
        target="diagnosis",
        noise=0.2,
        model=sized(64, 2, 4, 256, dropout=0.1),
        train=replace(ADAMW, steps=300, lr=5e-4),
    ),
    # minutes on two cores
    "spoken-digits": Config(
        data="spoken-digits",
        absent=0.3,
        model=sized(96, 3, 4, 128, dropout=0.1, **MODERN),
        train=replace(MUON, steps=1500),
    ),
    # for many rows of many kinds: bring --data and a GPU
    "base": Config(
        data="spoken-digits",
        absent=0.3,
        lenient=True,
        model=sized(512, 8, 8, 1024, dropout=0.1, **MODERN),
        train=replace(MUON, steps=50_000, batch=128, warmup=1000),
    ),
}
