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
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.images import cache
from ..data.images import preprocessing as prep
from ..data.images.augment import Augment, augment_batch
from ..data.images.measure import choose_format
from ..data.images.read import (
    COLUMNS,
    PIXEL_COLUMNS,
    encode_png,
    open_images,
    overlay_heatmap,
    read_image,
)
from ..data.io.manifest import split_columns
from ..data.registry import SETS
from ..data.sampling import count_rows, sample_evenly, sample_indices
from ..data.unusable import DuplicatePolicy, EmptyPolicy
from ..errors import InputError, suggest
from ..forms import Form, Task
from ..inference.classification import describe_classes, unique_names
from ..metrics import confusion_matrix, score_classes
from ..model import PatchEmbedding, Transformer, TransformerConfig, attention_weights, initialize
from ..model.edges import Edges, full, neighbors
from ..model.token_classifiers import build_classifier
from ..parsing import check_range, check_types, parse_dataclass, path_field
from ..recipe import (
    BatchStream,
    DataDefaults,
    Figure,
    FileInput,
    Graph,
    GraphInput,
    SizeOption,
    StreamState,
    advance_stream,
    init_stream,
)
from ..training.config import TrainConfig
from ._shared.figures import draw_confusion
from ._shared.media_lenses import lens_vision as lens  # noqa: F401
from ._shared.presets import MUON, TINY_TRAIN, make_model_config, make_modern_config
from ._shared.sizes import Size, offer_sizes
from ._shared.trivial_baselines import Baselines, score_gradients, score_majority

BATCH_SIZE = 32  # images in one forward
FIGURE_IMAGES = 2000  # of the validation split
MAX_MISTAKES, ATTENTION_IMAGES = 12, 6


@dataclass(frozen=True, kw_only=True)
class Config:
    """A classifier of images, its images and its training."""

    data: str = path_field("fashion-mnist")
    """The name of a set (digits, fashion-mnist, cifar10), a folder of class folders, a table of path,label (csv, tsv,
    jsonl, json), a .parquet with images in it, a .npz, or a folder of idx files."""
    columns: str = COLUMNS
    """Names of a table's columns of the image, or * where each other column is a pixel, and of its class."""
    empty: EmptyPolicy = "few"
    """Rows of a table without a class: skip, error, or few: skip where they are at most 1 %."""
    duplicates: DuplicatePolicy = "keep"
    """Rows of a table that repeat an image and its class: keep or skip."""
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
    pool: Literal["first", "mean", "each"] = "first"
    """What the head reads: a class node, the mean of the patches, or each node before them by its own classifier."""
    extra_tokens: int = 0
    """Nodes behind the class node, such as a distillation token."""
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
        split_columns(self.columns, COLUMNS)
        check_range(self, "height", "width", "patch", "radius", at_least=1, at_most=1 << 14)
        check_range(self, "local_layers", "extra_tokens", at_least=0, at_most=1 << 14)
        if self.extra_tokens and (self.local_layers or self.pool == "mean"):
            raise InputError(f"extra_tokens is {self.extra_tokens}; with local_layers or pool mean it must be 0")
        check_range(self, "smoothing", at_least=0, below=1)
        check_range(self, "val_fraction", above=0, below=1)

    @property
    def class_nodes(self) -> int:
        """Nodes in front of the patches."""
        return 0 if self.pool == "mean" else 1 + self.extra_tokens


def square(side: int, patch: int, channels: int) -> dict[str, Any]:
    return {"height": side, "width": side, "patch": patch, "channels": channels}


DIGITS = TrainConfig(
    steps=800, batch=64, lr=4e-3, warmup=20, weight_decay=0.01, clip=0.0, eval_every=200, save_every=400, **MUON
)
FASHION = replace(DIGITS, steps=6000, lr=3e-3, warmup=100, eval_every=500, eval_batches=40, save_every=1000)
SMALL = Config(
    local_layers=3,
    augment=Augment(flip=True, crop=2),
    model=make_model_config(96, 6, 4, 50, init="zero"),
    train=replace(FASHION, steps=10_000),
)
CIFAR10 = Config(
    data="cifar10",
    **square(32, 4, 3),
    pool="mean",
    local_layers=3,
    augment=Augment(flip=True, crop=4),
    smoothing=0.1,
    model=make_modern_config(128, 6, 4, 64, position="sinusoidal", init="zero"),
    train=replace(FASHION, steps=13_000, warmup=300, eval_every=1000),
)

KINDS = {"labeled images": {"columns": "{path},{label}"}}
SIZES = (Size(48, 2, 32, 0), Size(72, 3, 32, 1000), Size(96, 4, 64, 2500))  # of --minutes
PRESETS = {
    # seconds: for tests
    "tiny": Config(
        data="digits", **square(8, 4, 1), val_fraction=0.2, model=make_model_config(32, 2, 2, 5), train=TINY_TRAIN
    ),
    # 15 minutes on two cores
    "small": SMALL,
    # a minute on two cores
    "digits": Config(
        data="digits",
        **square(8, 2, 1),
        val_fraction=0.2,
        augment=Augment(mix=0.4),
        model=make_modern_config(64, 4, 4, 17, position="learned", init="zero"),
        train=DIGITS,
    ),
    # half an hour on two cores
    "cifar10": CIFAR10,
    # a hundred epochs for a GPU
    "cifar10-gpu": replace(
        CIFAR10,
        local_layers=0,
        augment=Augment(flip=True, crop=4, distort=1, mix=0.8),
        model=make_modern_config(192, 9, 6, 64, position="sinusoidal", init="zero"),
        train=replace(FASHION, steps=40_000, batch=128, warmup=500, eval_every=1000, save_every=2000),
    ),
    # no positions: the edges of the first layers are all that tells patches apart
    "local": replace(
        SMALL, radius=2, model=make_modern_config(96, 6, 4, 50, position="none", init="zero"), train=FASHION
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


def sizes(config: Config) -> Iterator[SizeOption]:
    for option in offer_sizes(config, SIZES, steps=4000):  # shallow models have few local layers
        local_layers = min(config.local_layers, option.config.model.n_layer // 2)
        yield replace(option, config=replace(option.config, local_layers=local_layers))


class VisionTransformer(nn.Module):
    """pixels (B, channels, H, W) from 0 to 255 -> logits (B, classes)"""

    mean: Tensor
    std: Tensor

    def __init__(self, config: Config, classes: tuple[str, ...], preprocessor: prep.ImagePreprocessor):
        super().__init__()
        self.classes, self.preprocessor, self.class_nodes = classes, preprocessor, config.class_nodes
        self.size = (config.height, config.width, config.channels)
        self.files = {"labels.json": json.dumps(classes), "preprocessing.json": preprocessor.to_json()}
        self.nodes = PatchEmbedding(config.patch, config.model, config.channels, config.class_nodes)
        self.body = Transformer(config.model)
        self.head = build_classifier(config.model.dim, len(classes), config.pool, config.class_nodes)
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
    grid, has_class_node = (config.height // config.patch, config.width // config.patch), config.class_nodes > 0
    local = neighbors(*grid, config.radius, int(has_class_node)) if config.local_layers else full
    local = HUB | local if has_class_node and config.local_layers else local
    return [local if i < config.local_layers else full for i in range(config.model.n_layer)]


def check_sizes(config: Config) -> None:
    """Raise InputError if image, patch and context do not fit together."""
    for name in ("height", "width"):
        if (side := getattr(config, name)) % config.patch:
            near = max(config.patch, round(side / config.patch) * config.patch)
            raise InputError(
                f"patches of {config.patch} pixels do not cut a {name} of {side}: --{name} {near} would do"
            )
    nodes = config.height * config.width // config.patch**2 + config.class_nodes
    if config.model.context != nodes:
        raise InputError(
            f"an image of {config.height} x {config.width} pixels in patches of {config.patch} makes {nodes} nodes, "
            f"and the context is {config.model.context}: --model.context {nodes}"
        )


def data_defaults(overrides: dict[str, Any]) -> DataDefaults | None:
    """Choose color and size from the images, where the user has not."""
    names = ("data", "columns", "empty", "duplicates")
    try:
        image_format = choose_format(open_images(**{name: overrides[name] for name in names if name in overrides}))
    except InputError:
        if overrides["data"] not in SETS:
            raise
        image_format = None  # the set is not on this machine: the presets know the named sets
    if image_format is None:
        return None
    height, width, channels, patch, median = image_format
    fields: dict[str, Any] = {} if "channels" in overrides else {"channels": channels}
    if not overrides.keys() & {"height", "width", "patch", "pool"} and "context" not in overrides.get("model", {}):
        context = height * width // patch**2 + 1
        fields |= {"height": height, "width": width, "patch": patch, "model": {"context": context}}
    size = f", {width} x {height} pixels in patches of {patch}" if "height" in fields else ""
    color = "gray" if channels == 1 else "in color"
    seen = f"data '{overrides['data']}': images {color}, the median of {median[1]} x {median[0]} pixels"
    chosen = overrides.get("channels", channels)
    reason = f"{seen}: read with {chosen} channel{'s' if chosen > 1 else ''}{size} (flags: --channels --height --width)"
    return DataDefaults("small", fields, reason)


def load_images(config: Config) -> cache.ImageDataset:
    """Load the images of the config, decoded once; files that have changed since are read again."""
    is_file = config.preprocessing not in ("measured", "half")
    resample = prep.load_preprocessor(config.preprocessing, config.channels).resample if is_file else "bilinear"
    size = (config.height, config.width, config.channels)
    settings = config.val_fraction, config.skip_unreadable, config.columns, config.empty, config.duplicates
    return cache.load_images(config.data, *size, resample, *settings)


def build(config: Config) -> VisionTransformer:
    check_sizes(config)
    classes = prep.load_class_names(config.labels) if config.labels else load_images(config).classes
    if config.preprocessing == "measured":
        preprocessor = prep.fit_preprocessor(load_images(config))
    elif config.preprocessing == "half":
        preprocessor = prep.uniform_preprocessor(0.5, config.channels)
    else:
        preprocessor = prep.load_preprocessor(config.preprocessing, config.channels)
    if config.preprocessing in ("measured", "half") and config.data:
        preprocessor = replace(preprocessor, examples=prep.select_examples(load_images(config)))
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
    state = init_stream(
        state, config.data, dataset.sha256, skipped=dataset.skipped, rows=count_rows(split, dataset.split)
    )
    for start in range(0, len(indices) if split != "train" else 0, c.batch):
        rows = indices[start : start + c.batch]
        yield to_tensors(dataset.pixels[rows], labels=labels[rows]), state
    while split == "train":
        rows = sample_indices(indices, c.batch, c.seed, state["step"])
        batch = augment_batch(config.augment, dataset.pixels[rows], labels[rows], c.seed, state["step"])
        state = advance_stream(state, c.batch * config.model.context)
        yield to_tensors(**batch), state


def class_indices(config: Config, dataset: cache.ImageDataset) -> np.ndarray:
    """Return the label of each image as an index of the model's classes, (N,). Raises InputError for other classes."""
    classes = prep.load_class_names(config.labels) if config.labels else dataset.classes
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
    scores = score_classes((model(batch["pixels"]).float(), batch["labels"]) for batch in batches)
    return {name: scores[name] for name in ("loss", "accuracy")}


def export_graph(model: VisionTransformer) -> Graph:
    height, width, channels = model.size
    return Graph(model, {"pixels": GraphInput(f"batch {channels} {height} {width}", 256)}, ("logits",))


def baselines(config: Config) -> Baselines:
    dataset = load_images(config)
    train, val, labels = dataset.split("train"), dataset.split("val"), dataset.labels
    linear = score_gradients(dataset.pixels, labels, train, val)
    return {"accuracy": score_majority(labels[train], labels[val]) | {"a linear model of gradients": linear}}


# --- predictions ---


@dataclass(frozen=True)
class Request:
    """Images to classify."""

    input: str | list[str] | None = None
    """The path of an image, or several; None: examples kept with the model."""
    top: int | None = None
    """How many classes to name, likeliest first; None: all."""

    def __post_init__(self) -> None:
        check_range(self, "top", at_least=1, at_most=1 << 31)


def predict(model: VisionTransformer, request: dict[str, Any]) -> dict[str, Any]:
    """Classify images: {"input": path or [path, ...], "top": 3}, the fields of `Request`.

    Returns {"results": [{"input", "label", "probability", "probabilities": {class: p}}, ...]}. Without input: a few
    images of the validation split, with their class as "truth".
    """
    fields, preprocessor = parse_dataclass(Request, request, "request"), model.preprocessor
    if fields.input is None:
        sources = [{"truth": example["label"]} for example in preprocessor.examples] or [{"input": "a grey image"}]
        images = iter(preprocessor.decode_examples(model.size) or [np.full(model.size, 128, np.uint8)])
    else:
        sources = [{"input": path} for path in ([fields.input] if isinstance(fields.input, str) else fields.input)]
        files = (read_image(Path(source["input"])) for source in sources)
        images = (preprocessor.resize(image, model.size) for image in files)
    names, rows = unique_names(model.classes), predict_probabilities(model, images)
    results = [source | describe_classes(row, names, fields.top) for source, row in zip(sources, rows, strict=True)]
    return {"results": results}


def file_input(model: VisionTransformer, config: Config) -> FileInput:
    name = split_columns(config.columns, COLUMNS)[0]
    return FileInput(("path" if name == PIXEL_COLUMNS else name,), is_path=True)


def form(model: VisionTransformer, config: Config) -> Form:
    return Form((Task("Recognize an image", "image", Request, "classes", usual={"top": (1, len(model.classes))}),))


def predict_batch(model: VisionTransformer, inputs: list[str], settings: dict[str, Any]) -> list[dict[str, Any]]:
    return predict(model, settings | {"input": inputs})["results"]


@torch.inference_mode()
def predict_probabilities(model: VisionTransformer, images: Iterable[np.ndarray]) -> Tensor:
    """Return the probabilities of the classes for each image (H, W, C) uint8: (images, classes) on the CPU."""
    stream, rows = iter(images), [torch.zeros(0, len(model.classes))]
    while batch := list(islice(stream, BATCH_SIZE)):
        rows.append(model(images_to_tensor(np.stack(batch), model.mean.device)).float().softmax(-1).cpu())
    return torch.cat(rows)


def images_to_tensor(images: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device)


# --- figures ---


def figures(model: VisionTransformer, config: Config) -> list[Figure]:
    """Draw a confusion matrix, the most confident mistakes, and the attention to patches, of the validation split or an
    even sample of it. Without Pillow, only the matrix."""
    dataset, names = load_images(config), unique_names(model.classes)
    indices = sample_evenly(dataset.split("val"), FIGURE_IMAGES)
    truths = class_indices(config, dataset)[indices]
    probabilities = predict_probabilities(model, (dataset.pixels[i] for i in indices))
    confidences, predictions = (values.numpy() for values in probabilities.max(-1))
    labels = [f"{names[i]} {p:.2f}" for i, p in zip(predictions, confidences, strict=True)]
    confusion = confusion_matrix(torch.from_numpy(truths), torch.from_numpy(predictions), len(names))
    matrix = draw_confusion(confusion, names, "images")
    wrong = np.flatnonzero(truths != predictions)
    worst = wrong[np.argsort(-confidences[wrong], kind="stable")[:MAX_MISTAKES]]
    captions = [f"{names[truths[i]]}, predicted {labels[i]}" for i in worst]
    note = f"{len(wrong):,} of {len(truths):,} are wrong; the most confident: class, prediction, probability"
    shown = sample_evenly(np.arange(len(indices)), ATTENTION_IMAGES)
    try:
        mistakes = draw_images("Mistakes", note, dataset.pixels[indices[worst]], captions) if len(worst) else []
        attention = draw_attention(model, dataset.pixels[indices[shown]], [f"predicted {labels[i]}" for i in shown])
        return [*matrix, *mistakes, *attention]
    except InputError:  # no Pillow
        return matrix


def draw_images(title: str, note: str, images: Iterable[np.ndarray], captions: list[str]) -> list[Figure]:
    pictures = [{"png": encode_png(image), "caption": text} for image, text in zip(images, captions, strict=True)]
    return [{"kind": "images", "title": title, "note": note, "images": pictures}]


def draw_attention(model: VisionTransformer, pixels: np.ndarray, captions: list[str]) -> list[Figure]:
    title, reader = "Attention of the class node", "by the class node"
    if model.nodes.cls_token is None:
        title, reader = "Attention to patches", "by all patches together (there is no class node)"
    note = f"how much is read of each patch {reader} in the last layer, mean of the heads: redder for more"
    return draw_images(title, note, map(overlay_heatmap, pixels, attention_heat(model, pixels)), captions)


@torch.inference_mode()
def attention_heat(model: VisionTransformer, images: np.ndarray) -> np.ndarray:
    """Return how much is read of each patch in the last layer, by the class node or else by all patches together:
    images (N, H, W, C) -> (N, rows, columns)"""
    device = model.mean.device
    on_cpu = model if device.type == "cpu" else deepcopy(model).cpu()  # its kernels take heads of any width
    pixels = images_to_tensor(images, on_cpu.mean.device)
    weights = attention_weights(on_cpu.body, lambda: on_cpu(pixels))[-1].float().mean(1)  # (N, T, T)
    patch = on_cpu.nodes.project.kernel_size[0]
    n_patches = images.shape[1] * images.shape[2] // patch**2
    heat = weights[:, 0, -n_patches:] if on_cpu.nodes.cls_token is not None else weights.mean(1)
    return heat.unflatten(1, (images.shape[1] // patch, images.shape[2] // patch)).numpy()
