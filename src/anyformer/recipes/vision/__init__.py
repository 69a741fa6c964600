"""Vision: predict the class of an image, from patches that all read each other.

raw    images in class folders, a csv of path,label, idx or npz files, or a set by name
nodes  patches of an image with a position (learned, or of the two axes of the grid), a class node in front
edges  full; in the first layers, optionally, only nearby patches (the class node reads all and is read by all)
head   a logit for each class, from the class node or the mean node
loss   cross-entropy of the class

    anyformer train vision --minutes 15                        on two cores: Fashion-MNIST, 91 in 100 right
    anyformer train vision --preset digits --minutes 1         on two cores: scikit-learn's digits, 98 in 100 right
    anyformer train vision --preset cifar10 --minutes 30       on two cores: photographs, 80 in 100 right

ViT (Dosovitskiy et al. 2020, 2010.11929).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.images import cache
from ...data.images.augment import Augment, augment_batch
from ...data.images.cache import ImageDataset
from ...data.images.preprocessing import (
    ImagePreprocessor,
    fit_preprocessor,
    load_class_names,
    load_preprocessor,
    select_examples,
    uniform_preprocessor,
)
from ...data.images.read import read_image, resize_image
from ...data.sampling import sample_indices
from ...errors import InputError, suggest
from ...inference.classification import ImageRequest, classify_images
from ...model.config import TransformerConfig
from ...model.edges import Edges, full, neighbors
from ...model.embeddings import PatchEmbedding
from ...model.heads import Classifier
from ...model.init import initialize
from ...model.transformer import Transformer
from ...parsing import check_range, check_types, parse_dataclass, path_field
from ...recipe import BatchStream, Figure, Graph, GraphInput, StreamState, init_stream
from ...training.config import TrainConfig
from .._shared.presets import MUON, TINY_TRAIN, make_model_config, make_modern_config
from .._shared.trivial_baselines import Baselines, score_majority, score_nearest_mean
from .drawing import draw_figures

MAX_SIDE = 1 << 14  # pixels


@dataclass(frozen=True, kw_only=True)
class Config:
    """A classifier of images, its images and its training."""

    data: str = path_field("fashion-mnist")
    """The name of a set (digits, fashion-mnist, cifar10), a folder of class folders, a .csv of path,label, a .npz, or a
    folder of idx files."""
    labels: str = path_field("", [".json"])
    """A labels.json with the names of the classes: its path, or its content. Empty: those of the data."""
    preprocessing: str = path_field("measured", [".json"])
    """How pixels become numbers: measured (mean 0 and deviation 1 on the training images), half (from -1 to 1), or a
    preprocessing.json: its path, or its content."""
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
    local_layers: int = 0
    """How many of the first layers have edges only between nearby patches."""
    radius: int = 1
    """In these layers each patch reads the square of so many patches around it."""
    augment: Augment = field(default_factory=Augment)
    smoothing: float = 0.0
    """Share of the label's probability that is spread over all classes."""
    val_fraction: float = 0.1
    """Kept for validation where the data have no split of their own for it."""
    skip_unreadable: bool = False
    """Leave out images that cannot be read, and count them."""
    model: TransformerConfig = field(default_factory=TransformerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "height", "width", "patch", "radius", at_least=1, at_most=MAX_SIDE)
        check_range(self, "local_layers", at_least=0)
        check_range(self, "smoothing", at_least=0, below=1)
        check_range(self, "val_fraction", above=0, below=1)


def square(side: int, patch: int, channels: int) -> dict[str, Any]:
    return {"height": side, "width": side, "patch": patch, "channels": channels}


MODERN: dict[str, Any] = {"position": "learned", "init": "zero"}
SHIFT = Augment(flip=True, crop=2)
DIGITS = TrainConfig(
    steps=800, batch=64, lr=4e-3, warmup=20, weight_decay=0.01, clip=0.0, eval_every=200, save_every=400, **MUON
)
FASHION = replace(DIGITS, steps=6000, lr=3e-3, warmup=100, eval_every=500, eval_batches=40, save_every=1000)

PRESETS = {
    # seconds: for tests
    "tiny": Config(
        data="digits", **square(8, 4, 1), val_fraction=0.2, model=make_model_config(32, 2, 2, 5), train=TINY_TRAIN
    ),
    # 15 minutes on two cores
    "small": Config(
        local_layers=3,
        augment=SHIFT,
        model=make_model_config(96, 6, 4, 50, init="zero"),
        train=replace(FASHION, steps=10_000),
    ),
    # a minute on two cores
    "digits": Config(
        data="digits",
        **square(8, 2, 1),
        val_fraction=0.2,
        augment=Augment(mix=0.4),
        model=make_modern_config(64, 4, 4, 17, **MODERN),
        train=DIGITS,
    ),
    # half an hour on two cores
    "cifar10": Config(
        data="cifar10",
        **square(32, 4, 3),
        pool="mean",
        local_layers=3,
        augment=Augment(flip=True, crop=4),
        smoothing=0.1,
        model=make_modern_config(128, 6, 4, 64, **MODERN | {"position": "sinusoidal"}),
        train=replace(FASHION, steps=13_000, warmup=300, eval_every=1000),
    ),
    # a hundred epochs for a GPU
    "cifar10-gpu": Config(
        data="cifar10",
        **square(32, 4, 3),
        pool="mean",
        augment=Augment(flip=True, crop=4, distort=1, mix=0.8),
        smoothing=0.1,
        model=make_modern_config(192, 9, 6, 64, **MODERN | {"position": "sinusoidal"}),
        train=replace(FASHION, steps=40_000, batch=128, warmup=500, eval_every=1000, save_every=2000),
    ),
    # no positions: the edges of the first layers are all that tells patches apart
    "local": Config(
        local_layers=3,
        radius=2,
        augment=SHIFT,
        model=make_modern_config(96, 6, 4, 50, **MODERN | {"position": "none"}),
        train=FASHION,
    ),
    # ViT-B/16 (2010.11929): bring --data and a GPU
    "vit-base": Config(
        data="cifar10",
        preprocessing="half",
        **square(224, 16, 3),
        augment=Augment(flip=True, distort=2, mix=0.2),
        val_fraction=0.02,
        skip_unreadable=True,
        model=make_model_config(768, 12, 12, 197, norm_eps=1e-12, dropout=0.1),
        train=TrainConfig(steps=300_000, batch=256, accumulate=16, lr=3e-3, warmup=10_000, weight_decay=0.3),
    ),
}


class VisionTransformer(nn.Module):
    """pixels (B, channels, H, W) from 0 to 255 -> logits (B, classes)"""

    mean: Tensor
    std: Tensor

    def __init__(self, config: Config, classes: tuple[str, ...], preprocessor: ImagePreprocessor):
        super().__init__()
        self.classes, self.preprocessor = classes, preprocessor
        self.size = (config.height, config.width, config.channels)
        self.files = {"labels.json": json.dumps(classes), "preprocessing.json": preprocessor.to_json()}
        self.nodes = PatchEmbedding(config.patch, config.model, config.channels, config.pool == "first")
        self.body = Transformer(config.model)
        self.head = Classifier(config.model.dim, len(classes), config.pool)
        self.edges, self.smoothing = build_layer_edges(config), config.smoothing
        self.register_buffer("mean", torch.tensor(preprocessor.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessor.std).view(-1, 1, 1), persistent=False)

    def hidden(self, x: Tensor) -> Tensor:
        """Return the nodes after the last block, (B, T, C), of preprocessed pixels (B, channels, H, W)."""
        return self.body(self.nodes(x), self.edges)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.hidden((pixels.float() * self.preprocessor.scale - self.mean) / self.std))


def _hub(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (q == 0) | (k == 0)


HUB = Edges(_hub, "hub", uses_batch=False, uses_head=False)
"""The class node reads all and is read by all."""


def build_layer_edges(config: Config) -> list[Edges]:
    """Return the rule of each layer: nearby patches in the first `local_layers`, then full."""
    grid, has_class_node = (config.height // config.patch, config.width // config.patch), config.pool == "first"
    local = neighbors(*grid, config.radius, int(has_class_node)) if config.local_layers else full
    local = HUB | local if has_class_node and config.local_layers else local
    return [local if i < config.local_layers else full for i in range(config.model.n_layer)]


def check_sizes(config: Config) -> None:
    """Raise InputError if image, patch and context do not fit together."""
    for name in ("height", "width"):
        if (side := getattr(config, name)) % config.patch:
            near = max(config.patch, round(side / config.patch) * config.patch)
            message = f"patches of {config.patch} pixels do not cut a {name} of {side}: --{name} {near} would do"
            raise InputError(message)
    nodes = config.height * config.width // config.patch**2 + (config.pool == "first")
    if config.model.context != nodes:
        raise InputError(
            f"an image of {config.height} x {config.width} pixels in patches of {config.patch} makes {nodes} nodes, "
            f"and the context is {config.model.context}: --model.context {nodes}"
        )


def load_images(config: Config) -> ImageDataset:
    """Load the images of the config, decoded once; files that have changed since are read again."""
    is_file = config.preprocessing not in ("measured", "half")
    resample = load_preprocessor(config.preprocessing, config.channels).resample if is_file else "bilinear"
    size = (config.height, config.width, config.channels)
    return cache.load_images(config.data, *size, resample, config.val_fraction, config.skip_unreadable)


def build(config: Config) -> VisionTransformer:
    check_sizes(config)
    classes = load_class_names(config.labels) if config.labels else load_images(config).classes
    if config.preprocessing == "measured":
        preprocessor = fit_preprocessor(load_images(config))
    elif config.preprocessing == "half":
        preprocessor = uniform_preprocessor(0.5, config.channels)
    else:
        preprocessor = load_preprocessor(config.preprocessing, config.channels)
    if config.preprocessing in ("measured", "half") and config.data:
        preprocessor = replace(preprocessor, examples=select_examples(load_images(config)))
    model = VisionTransformer(config, classes, preprocessor)
    initialize(model, config.model)
    return model


def batches(config: Config, split: str, state: StreamState | None = None) -> BatchStream:
    """Yield batches: pixels (B, channels, H, W) uint8 and labels (B,); where images are mixed in pairs, also
    mixed_labels and mix_share (B,).

    "train" never ends and yields every image once an epoch, augmented. "val" and "all" yield every image once.
    """
    check_sizes(config)
    c, dataset = config.train, load_images(config)
    labels, indices = class_indices(config, dataset), dataset.split(split)
    state = init_stream(state, config.data, dataset.sha256, skipped=dataset.skipped)
    for start in range(0, len(indices) if split != "train" else 0, c.batch):
        rows = indices[start : start + c.batch]
        yield to_tensors(dataset.pixels[rows], labels=labels[rows]), state
    while split == "train":
        rows = sample_indices(indices, c.batch, c.seed, state["step"])
        batch = augment_batch(config.augment, dataset.pixels[rows], labels[rows], c.seed, state["step"])
        state = state | {"step": state["step"] + 1, "tokens": state["tokens"] + c.batch * config.model.context}
        yield to_tensors(**batch), state


def class_indices(config: Config, dataset: ImageDataset) -> np.ndarray:
    """Return the label of each image as an index of the model's classes, (N,). Raises InputError for other classes."""
    classes = load_class_names(config.labels) if config.labels else dataset.classes
    if unknown := [name for name in dataset.classes if name not in classes]:
        raise InputError(
            f"data '{config.data}': the class '{unknown[0]}' is none of the model's: {suggest(unknown[0], classes)}"
        )
    return np.array([classes.index(name) for name in dataset.classes], np.int64)[dataset.labels]


def to_tensors(images: np.ndarray, **arrays: np.ndarray) -> dict[str, Tensor]:
    """Convert images (B, H, W, C) to pixels (B, C, H, W) uint8, and the other arrays as they are."""
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return {"pixels": pixels} | {name: torch.from_numpy(value) for name, value in arrays.items()}


def loss(model: VisionTransformer, batch: dict[str, Tensor]) -> Tensor:
    logits = model(batch["pixels"]).float()
    losses = F.cross_entropy(logits, batch["labels"], reduction="none", label_smoothing=model.smoothing)
    if "mixed_labels" in batch:
        mixed = F.cross_entropy(logits, batch["mixed_labels"], reduction="none", label_smoothing=model.smoothing)
        losses = batch["mix_share"] * losses + (1 - batch["mix_share"]) * mixed
    return losses.mean()


def evaluate(model: VisionTransformer, batches: Iterator[dict[str, Tensor]]) -> dict[str, float]:
    """Return the mean cross-entropy of an image, and the accuracy."""
    nats, right, count = 0.0, 0, 0
    for batch in batches:
        logits = model(batch["pixels"]).float()
        nats += F.cross_entropy(logits, batch["labels"], reduction="sum").item()
        right += int((logits.argmax(-1) == batch["labels"]).sum())
        count += len(logits)
    return {"loss": nats / max(1, count), "accuracy": right / max(1, count)}


def export_graph(model: VisionTransformer) -> Graph:
    height, width, channels = model.size
    return Graph(model, {"pixels": GraphInput(f"batch {channels} {height} {width}", 256)}, ("logits",))


def figures(model: VisionTransformer, config: Config) -> list[Figure]:
    """Draw a confusion matrix, the most confident mistakes, and the attention to patches, of the validation split."""
    dataset = load_images(config)
    return draw_figures(model, dataset, class_indices(config, dataset))


def baselines(config: Config) -> Baselines:
    dataset = load_images(config)
    train, val, labels = dataset.split("train"), dataset.split("val"), dataset.labels
    nearest = score_nearest_mean(dataset.pixels, labels, train, val)
    return {"accuracy": score_majority(labels[train], labels[val]) | {"the nearest mean image": nearest}}


def predict(model: VisionTransformer, request: dict[str, Any]) -> dict[str, Any]:
    """Classify images: {"input": path or [path, ...], "top": 3}, the fields of `ImageRequest`.

    Returns {"results": [{"input", "label", "probability", "probabilities": {class: p}}, ...]}. Without input: a few
    images of the validation split, with their class as "truth".
    """
    fields, preprocessor = parse_dataclass(ImageRequest, request, "request"), model.preprocessor
    if fields.input is None:
        sources = [{"truth": example["label"]} for example in preprocessor.examples] or [{"input": "a grey image"}]
        images = iter(preprocessor.decode_examples(model.size) or [np.full(model.size, 128, np.uint8)])
    else:
        sources = [{"input": path} for path in fields.paths]
        images = (resize_image(read_image(Path(path)), *model.size, preprocessor.resample) for path in fields.paths)
    top = len(model.classes) if fields.top is None else fields.top
    answers = classify_images(lambda pixels: model(pixels.to(model.mean.device)), images, model.classes, top)
    return {"results": [source | answer for source, answer in zip(sources, answers, strict=True)]}
