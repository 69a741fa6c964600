"""What a classifier of images can be told, and the presets."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ...data.images.augment import Augment
from ...model.config import TransformerConfig
from ...training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """A classifier of images, its images and its training."""

    data: str = "fashion-mnist"
    """The name of a set (digits, fashion-mnist, cifar10), a folder of class folders, a .csv of path,label, a .npz, or a
    folder of idx files."""
    labels: str = ""
    """What the classes are called: as the data have it, or a labels.json (its path, or what it holds)."""
    looks: str = "measured"
    """How pixels become numbers: measured (mean 0 and deviation 1 on the training images), half (from -1 to 1), or a
    looks.json (its path, or what it holds)."""
    height: int = 28
    """Pixels. Images of other sizes are stretched."""
    width: int = 28
    """Pixels."""
    channels: Literal[1, 3] = 1
    """1: grey, 3: red, green, blue."""
    patch: int = 4
    """Side of a patch in pixels."""
    pool: Literal["first", "mean"] = "first"
    """What the head reads: a class node in front of the patches, or the mean of the patches."""
    local: int = 0
    """How many of the first layers have edges only between patches near each other."""
    radius: int = 1
    """In these layers each patch reads the square of so many patches around it."""
    augment: Augment = field(default_factory=Augment)
    smoothing: float = 0.0
    """Of the label: how much of it is spread over all classes."""
    val_fraction: float = 0.1
    """Kept for validation where the data have no part of their own for it."""
    skip_unreadable: bool = False
    """Leave out images that cannot be read, and count them."""
    model: TransformerConfig = field(default_factory=TransformerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def sized(dim: int, n_layer: int, n_head: int, context: int, **more: Any) -> TransformerConfig:
    return TransformerConfig(dim=dim, n_layer=n_layer, n_head=n_head, context=context, **more)


def square(side: int, patch: int, channels: int) -> dict[str, Any]:
    return {"height": side, "width": side, "patch": patch, "channels": channels}


# What the field found after ViT, each named by its paper in TransformerConfig.
MODERN: dict[str, Any] = {"norm": "rmsnorm", "activation": "relu2", "qk_norm": True, "bias": False, "init": "zero"}
SHIFTED = Augment(flip=True, crop=2)
MUON = TrainConfig(optimizer="muon", schedule="trapezoid", min_lr=0.0, weight_decay=0.01, clip=0.0)
DIGITS = replace(MUON, steps=800, batch=64, lr=4e-3, warmup=20, eval_every=200, save_every=400)
FASHION = replace(DIGITS, steps=6000, lr=3e-3, warmup=100, eval_every=500, eval_batches=40, save_every=1000)

PRESETS = {
    # seconds: for tests
    "tiny": Config(
        data="digits",
        **square(8, 4, 1),
        val_fraction=0.2,
        model=sized(32, 2, 2, 5),
        train=TrainConfig(steps=20, batch=8, warmup=2, eval_every=10, eval_batches=4, save_every=10),
    ),
    # 15 minutes on two cores
    "small": Config(
        local=3, augment=SHIFTED, model=sized(96, 6, 4, 50, init="zero"), train=replace(FASHION, steps=10_000)
    ),
    # a minute on two cores
    "digits": Config(
        data="digits",
        **square(8, 2, 1),
        val_fraction=0.2,
        augment=Augment(mix=0.4),
        model=sized(64, 4, 4, 17, **MODERN),
        train=DIGITS,
    ),
    # half an hour on two cores
    "cifar10": Config(
        data="cifar10",
        **square(32, 4, 3),
        pool="mean",
        local=3,
        augment=Augment(flip=True, crop=4),
        smoothing=0.1,
        model=sized(128, 6, 4, 64, position="sinusoidal", **MODERN),
        train=replace(FASHION, steps=13_000, warmup=300, eval_every=1000),
    ),
    # a hundred epochs for a GPU
    "cifar10-gpu": Config(
        data="cifar10",
        **square(32, 4, 3),
        pool="mean",
        augment=Augment(flip=True, crop=4, distort=1, mix=0.8),
        smoothing=0.1,
        model=sized(192, 9, 6, 64, position="sinusoidal", **MODERN),
        train=replace(FASHION, steps=40_000, batch=128, warmup=500, eval_every=1000, save_every=2000),
    ),
    # the first layers look around only: what a convolution would have been given
    "local": Config(
        local=3, radius=2, augment=SHIFTED, model=sized(96, 6, 4, 50, position="none", **MODERN), train=FASHION
    ),
    # ViT-B/16 (2010.11929): bring --data and a GPU
    "vit-base": Config(
        data="cifar10",
        looks="half",
        **square(224, 16, 3),
        augment=Augment(flip=True, distort=2, mix=0.2),
        val_fraction=0.02,
        skip_unreadable=True,
        model=sized(768, 12, 12, 197, norm_eps=1e-12, dropout=0.1),
        train=TrainConfig(steps=300_000, batch=256, accumulate=16, lr=3e-3, warmup=10_000, weight_decay=0.3),
    ),
}
