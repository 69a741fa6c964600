"""Vision: say what is on an image, from patches that all read each other.

raw    images in class folders, a csv of path,label, idx or npz files, or a set by name
nodes  patches of an image with a position (learned, or of the two axes of the grid), a class node in front
edges  full; in early layers, perhaps, only the patches around (the class node reads all and is read by all)
head   a logit for each class, from the class node or the mean node
loss   cross-entropy of the class

    anyformer train vision --minutes 15                        on two cores: Fashion-MNIST, 91 in 100 right
    anyformer train vision --preset digits --minutes 1         on two cores: scikit-learn's digits, 98 in 100 right
    anyformer train vision --preset cifar10 --minutes 30       on two cores: photographs, 80 in 100 right

ViT (Dosovitskiy et al. 2020, 2010.11929).
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.images import augment
from ...data.images.cache import Album, album, drawn, stamp
from ...data.images.decode import fitted, from_file
from ...data.images.preprocessing import Looks, examples, flat, measured, read_labels, read_looks
from ...errors import InputError, nearest
from ...inference.classification import Question, judge
from ...model.block import Transformer
from ...model.edges import Edges, full, neighbours
from ...model.embeddings import Patches
from ...model.heads import Classifier
from ...model.init import initialise
from ...recipe import Figure, Graph, Input, Place, begin
from .config import PRESETS, Config
from .drawing import drawn as figures_of

__all__ = [
    "PRESETS",
    "Config",
    "VisionTransformer",
    "batches",
    "build",
    "evaluate",
    "figures",
    "graph",
    "loss",
    "predict",
]


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


def figures(model: VisionTransformer, config: Config) -> list[Figure]:
    """A confusion matrix, the mistakes it was surest of, and where it looks, of the validation part."""
    found = pictures(config)
    return figures_of(model, found, numbered(config, found))


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
