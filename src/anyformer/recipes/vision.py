"""Vision: say what is on an image, from patches that all read each other.

raw    images in class folders, a csv of path,label, idx or npz files, or a set by name
nodes  patches of an image with a position (learned, or of the two axes of the grid), a class node in front
edges  full; in early layers, perhaps, only the patches around (the class node reads all and is read by all)
head   a logit for each class, from the class node or the mean node
loss   cross-entropy of the class

    anyformer train vision --minutes 15             on two cores: Fashion-MNIST
    anyformer train vision --preset digits          a minute on two cores: scikit-learn's digits

ViT (Dosovitskiy et al. 2020, 2010.11929).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import augment
from ..data.album import Album, album, drawn, stamp
from ..data.augment import Augment
from ..data.looks import Looks, examples, flat, measured, read_labels, read_looks
from ..data.picture import fitted, from_file
from ..errors import InputError, nearest
from ..generate.classes import Question, judge
from ..model.block import Transformer
from ..model.config import TransformerConfig
from ..model.edges import Edges, full, neighbours
from ..model.head import Classifier
from ..model.init import initialise
from ..model.nodes import Patches
from ..recipe import Graph, Input, Place, begin
from ..training.config import TrainConfig


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
CIFAR = replace(FASHION, steps=20_000, batch=128, warmup=500, eval_every=1000, save_every=2000)

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
    "small": Config(augment=SHIFTED, model=sized(96, 6, 4, 50, init="zero"), train=FASHION),
    # a minute on two cores
    "digits": Config(
        data="digits",
        **square(8, 2, 1),
        val_fraction=0.2,
        augment=Augment(mix=0.4),
        model=sized(64, 4, 4, 17, **MODERN),
        train=DIGITS,
    ),
    # half an hour on two cores, minutes on a GPU
    "cifar10": Config(
        data="cifar10",
        **square(32, 4, 3),
        pool="mean",
        augment=Augment(flip=True, crop=4, distort=1, mix=0.8),
        smoothing=0.1,
        model=sized(192, 6, 6, 64, position="sinusoidal", **MODERN),
        train=CIFAR,
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


class VisionTransformer(nn.Module):
    """pixels (B, channels, H, W) from 0 to 255 -> logits (B, classes)"""

    mean: Tensor
    std: Tensor

    def __init__(self, config: Config, classes: tuple[str, ...], looks: Looks):
        super().__init__()
        self.classes, self.looks = classes, looks
        self.size = (config.height, config.width, config.channels)
        self.files = {"labels.json": json.dumps(classes), "looks.json": looks.json()}
        self.nodes = Patches(config.patch, config.model, config.channels, config.pool == "first")
        self.body = Transformer(config.model)
        self.head = Classifier(config.model.dim, len(classes), config.pool)
        self.edges, self.smoothing = layers(config), config.smoothing
        self.register_buffer("mean", torch.tensor(looks.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(looks.std).view(-1, 1, 1), persistent=False)

    def hidden(self, x: Tensor) -> Tensor:
        """The nodes after the last block, (B, T, C), of numbers (B, channels, H, W) as `looks` makes them."""
        return self.body(self.nodes(x), self.edges)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.hidden((pixels.float() * self.looks.scale - self.mean) / self.std))


HUB = Edges(lambda b, h, q, k: (q == 0) | (k == 0), "hub", batched=False, headed=False)
"""The class node reads all and is read by all."""


def layers(config: Config) -> list[Edges]:
    """The rule of each layer: the patches around in the first `local` ones, then full."""
    grid, first = (config.height // config.patch, config.width // config.patch), config.pool == "first"
    near = neighbours(*grid, config.radius, int(first)) if config.local else full
    near = HUB | near if first and config.local else near
    return [near if i < config.local else full for i in range(config.model.n_layer)]


def check(config: Config) -> None:
    """Raises InputError where the sizes do not fit together."""
    if min(config.height, config.width, config.patch) < 1:
        raise InputError(f"height {config.height}, width {config.width} and patch {config.patch} must be at least 1")
    for name in ("height", "width"):
        if (side := getattr(config, name)) % config.patch:
            near = max(config.patch, round(side / config.patch) * config.patch)
            raise InputError(
                f"patches of {config.patch} pixels do not cut a {name} of {side}: --{name} {near} would do"
            )
    nodes = config.height * config.width // config.patch**2 + (config.pool == "first")
    if config.model.context != nodes:
        raise InputError(
            f"an image of {config.height} x {config.width} pixels in patches of {config.patch} makes {nodes} nodes, "
            f"and the context is {config.model.context}: --model.context {nodes}"
        )


def pictures(config: Config) -> Album:
    """The images of the config, decoded once; files that have changed since are read again."""
    given = config.looks not in ("measured", "half")
    how = read_looks(config.looks, config.channels).resample if given else "bilinear"
    size = (config.height, config.width, config.channels)
    return prepared(config.data, *size, how, config.val_fraction, config.skip_unreadable, stamp=stamp(config.data))


@lru_cache(maxsize=4)
def prepared(*asked: Any, stamp: int) -> Album:
    """`album`, once for each stamp of the files."""
    return album(*asked)


def build(config: Config) -> VisionTransformer:
    check(config)
    classes = read_labels(config.labels) if config.labels else pictures(config).classes
    if config.looks in ("measured", "half"):
        looks = measured(pictures(config)) if config.looks == "measured" else flat(0.5, config.channels)
        looks = replace(looks, examples=examples(pictures(config)) if config.data else ())
    else:
        looks = read_looks(config.looks, config.channels)
    model = VisionTransformer(config, classes, looks)
    initialise(model, config.model)
    return model


def batches(config: Config, split: str, place: Place | None = None) -> Iterator[tuple[dict[str, Tensor], Place]]:
    """ "train": every image once an epoch, changed by the augmentation, for ever. "val" and "all": one pass."""
    check(config)
    c, found = config.train, pictures(config)
    labels, part = numbered(config, found), found.split(split)
    place = begin(place, config.data, found.sha256, skipped=found.skipped)
    for start in range(0, len(part) if split != "train" else 0, c.batch):
        chosen = part[start : start + c.batch]
        yield tensors(found.pixels[chosen], label=labels[chosen]), place
    while split == "train":
        chosen = drawn(part, c.batch, c.seed, place["step"])
        made = augment.batch(config.augment, found.pixels[chosen], labels[chosen], c.seed, place["step"])
        place = place | {"step": place["step"] + 1, "tokens": place["tokens"] + c.batch * config.model.context}
        yield tensors(**made), place


def numbered(config: Config, found: Album) -> np.ndarray:
    """The label of each image as a number of the model's classes, (N,). Raises InputError for a class it lacks."""
    classes = read_labels(config.labels) if config.labels else found.classes
    if strange := [name for name in found.classes if name not in classes]:
        raise InputError(
            f"data '{config.data}': the class '{strange[0]}' is none of the model's: {nearest(strange[0], classes)}"
        )
    return np.array([classes.index(name) for name in found.classes], np.int64)[found.labels]


def tensors(images: np.ndarray, **more: np.ndarray) -> dict[str, Tensor]:
    """images (B, H, W, C) -> "pixels" (B, C, H, W), uint8; and the rest as it is."""
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return {"pixels": pixels} | {name: torch.from_numpy(value) for name, value in more.items()}


def loss(model: VisionTransformer, batch: dict[str, Tensor]) -> Tensor:
    logits = model(batch["pixels"]).float()
    losses = F.cross_entropy(logits, batch["label"], reduction="none", label_smoothing=model.smoothing)
    if "other" in batch:
        others = F.cross_entropy(logits, batch["other"], reduction="none", label_smoothing=model.smoothing)
        losses = batch["share"] * losses + (1 - batch["share"]) * others
    return losses.mean()


def evaluate(model: VisionTransformer, batches: Iterator[dict[str, Tensor]]) -> dict[str, float]:
    """Mean cross-entropy and the share of images whose likeliest class is theirs."""
    nats, right, count = 0.0, 0, 0
    for batch in batches:
        logits = model(batch["pixels"]).float()
        nats += F.cross_entropy(logits, batch["label"], reduction="sum").item()
        right += int((logits.argmax(-1) == batch["label"]).sum())
        count += len(logits)
    return {"loss": nats / max(1, count), "accuracy": right / max(1, count)}


def graph(model: VisionTransformer) -> Graph:
    height, width, channels = model.size
    return Graph(model, {"pixels": Input(f"batch {channels} {height} {width}", 256)}, ("logits",))


def predict(model: VisionTransformer, request: dict[str, Any]) -> dict[str, Any]:
    """What is on these images: {"input": path or [path, ...], "top": how many classes to name, likeliest first}.
    Returns {"results": [{"input", "label", "probability", "probabilities": {class: p}}, ...]}. Without input: a few
    images of the validation part, and what they are ("truth")."""
    asked = Question.of(request)
    top = len(model.classes) if asked.top is None else asked.top
    if asked.paths is None:
        told = [{"truth": example["label"]} for example in model.looks.examples] or [{"input": "a grey image"}]
        shown = iter(model.looks.images(model.size) or [np.full(model.size, 128, np.uint8)])
    else:
        told = [{"input": path} for path in asked.paths]
        shown = (fitted(from_file(Path(path)), *model.size, model.looks.resample) for path in asked.paths)
    answers = judge(lambda pixels: model(pixels.to(model.mean.device)), shown, model.classes, top)
    return {"results": [about | answer for about, answer in zip(told, answers, strict=True)]}
