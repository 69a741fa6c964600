"""Contrastive: images and texts as vectors in one space, where an image is near its caption.

raw    images with captions: a folder with captions.csv (file,caption), class folders, or a set by name
nodes  patches of the image; tokens of the caption
edges  full among patches; among tokens full, or causal as in CLIP
head   of each tower one vector, of length 1: the mean node, the class node, the last token, or what a probe reads
loss   which caption of a group belongs to which image: softmax over the group (CLIP), or each pair alone (SigLIP)

    anyformer train contrastive          5 CPU minutes: Fashion-MNIST, 76 in 100 by the names of ten classes
    anyformer train contrastive --data photos/                       your own: captions.csv in it, or class folders
    anyformer predict RUN photo.jpg --choices "a cat, a dog"         zero-shot: which of these texts fits best?
    anyformer predict RUN --search "a red bag" --images photos/      the nearest images to a text
    anyformer embed RUN "a red bag"                                  vectors of texts

CLIP (2103.00020), SigLIP (2303.15343).
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..data.images import cache
from ..data.images import preprocessing as prep
from ..data.images.captioned import ALL_COMPOSITIONS, CaptionedImages
from ..data.images.captions import find_caption_table, split_words
from ..data.images.measure import choose_format
from ..data.images.read import import_pillow, open_images
from ..data.io.cache import cache_by_files, data_files
from ..data.io.manifest import split_columns
from ..data.registry import SETS
from ..data.sampling import count_rows, sample_evenly, sample_indices
from ..data.text.batches import pad_ids
from ..data.tokenizers.base import Tokenizer
from ..data.tokenizers.build import build_tokenizer, end_texts
from ..data.unusable import DuplicatePolicy, EmptyPolicy
from ..errors import InputError
from ..metrics import number_rows, score_retrieval
from ..model import TransformerConfig
from ..parsing import check_range, parse_dataclass, path_field
from ..recipe import BatchStream, DataDefaults, Graph, GraphInput, SizeOption, StreamState, advance_stream, init_stream
from ..training.config import TrainConfig
from ._shared.media_lenses import lens_towers as lens  # noqa: F401
from ._shared.presets import MUON, TINY_TRAIN, make_model_config, make_modern_config
from ._shared.sizes import Size, offer_sizes
from ._shared.text import VocabularyConfig, first_tokens, load_config_tokenizer
from ._shared.tower_figures import draw_figures as figures  # noqa: F401
from ._shared.tower_requests import TowerRequest, file_input, form, predict, predict_batch  # noqa: F401
from ._shared.towers import (  # noqa: F401
    TwoTowers,
    compare_pairs,
    count_tokens,
    embed,
    embed_images,
    embed_texts,
    encode_captions,
    initialize_towers,
    wrap_tokenizer,
)
from ._shared.trivial_baselines import Baselines

COLUMNS = "file,caption"
EXAMPLES = ("a photo of a cat", "a photo of a dog")
MAX_CAPTIONS = 100  # that are kept with the model
MAX_RECALL_PAIRS = 5000  # of the validation split, among which recall is measured (MS-COCO's 5k)


@dataclass(frozen=True, kw_only=True)
class Config(VocabularyConfig):
    """Two towers, their images and captions, and their training."""

    data: str = path_field("fashion-mnist")
    """The name of a set (fashion-mnist, cifar10, digits), a folder with captions.csv (or .tsv, .jsonl, .json) or with
    class folders, such a table by its path, a .parquet, a .npz, or a folder of idx files."""
    columns: str = COLUMNS
    """Names of a table's columns of the image and of its caption."""
    empty: EmptyPolicy = "few"
    """Rows of a table without a caption: skip, error, or few: skip where they are at most 1 %."""
    duplicates: DuplicatePolicy = "keep"
    """Rows of a table that repeat an image and its caption: keep or skip."""
    tokenizer: str = path_field("bpe", [".json"])
    vocab_size: int = 2048
    labels: str = path_field("", [".json"])
    """A labels.json with the texts that an image is compared with where a request names none: its path, or its content.
    Empty: captions of the data."""
    preprocessing: str = path_field("measured", [".json"])
    """How pixels become numbers: measured (mean 0 and deviation 1 on the training images), half (from -1 to 1), or a
    preprocessing.json: its path, or its content."""
    compose: bool = False
    """Also show images darker, brighter or in a corner, and say so in the caption; some combinations are held out."""
    height: int = 28
    """Pixels. Images of other sizes are stretched."""
    width: int = 28
    """Pixels."""
    channels: Literal[1, 3] = 1
    """1: gray, 3: red, green, blue."""
    patch: int = 4
    """Side of a patch in pixels."""
    patch_bias: bool = True
    """Whether the map of a patch to a node has a bias; CLIP's has none."""
    image_norm: bool = False
    """Normalize the patches' nodes before the first block (CLIP)."""
    image_pool: Literal["mean", "first", "probe"] = "mean"
    """The vector of an image: the mean node, a class node in front (CLIP), or what a learned node reads (SigLIP)."""
    text_edges: Literal["full", "causal"] = "full"
    """Whether tokens read all others, or those before them (CLIP)."""
    text_pool: Literal["mean", "first", "last"] = "mean"
    """The vector of a text: the mean node, the first, or the last, which is the end token (CLIP)."""
    end_id: int | None = None
    """The token that ends a text, of a tokenizer that puts none there. None: the tokenizer's own."""
    pad_id: int | None = None
    """Texts are filled up to the context with this token, which is read as any other (SigLIP). None: padding is not
    read."""
    projection: Literal["both", "text"] = "both"
    """What is mapped to the shared space: both towers (CLIP), or the texts to that of the images (SigLIP)."""
    embed_dim: int = 64
    """Channels of the shared space; with projection text, those of the image tower."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """softmax over the group for each image and each text (CLIP), or every pair by itself (SigLIP)."""
    pairs: int = 64
    """Pairs of a group, in which each image is compared with each caption; a row of a batch is a group."""
    val_fraction: float = 0.1
    """Kept for validation where the data have no split of their own for it."""
    skip_unreadable: bool = False
    """Leave out images that cannot be read, and count them."""
    vision: TransformerConfig = field(default_factory=TransformerConfig)
    text: TransformerConfig = field(default_factory=TransformerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        split_columns(self.columns, COLUMNS)
        check_range(self, "height", "width", "patch", at_least=1, at_most=1 << 14)
        check_range(self, "pairs", at_least=2, at_most=1 << 20)
        check_range(self, "embed_dim", at_least=1, at_most=1 << 20)
        check_range(self, "pad_id", "end_id", at_least=0, at_most=1 << 24)
        check_range(self, "val_fraction", above=0, below=1)
        if self.height % self.patch or self.width % self.patch:
            raise InputError(f"patches of {self.patch} pixels do not cut {self.height} x {self.width} pixels")

    @property
    def image_nodes(self) -> int:
        return (self.height // self.patch) * (self.width // self.patch) + (self.image_pool == "first")


def square(side: int, patch: int, channels: int) -> dict[str, Any]:
    return {"height": side, "width": side, "patch": patch, "channels": channels}


CLIP: dict[str, Any] = dict(
    image_pool="first", image_norm=True, patch_bias=False, text_edges="causal", text_pool="last"
)
"""2103.00020"""
SIGLIP: dict[str, Any] = dict(image_pool="probe", text_pool="last", projection="text", loss="sigmoid")
"""2303.15343"""
TRAIN = TrainConfig(
    steps=800, batch=1, lr=4e-3, warmup=50, weight_decay=0.01, eval_every=200, eval_batches=20, save_every=200, **MUON
)
SMALL = Config(
    compose=True,
    vocab_size=512,
    vision=make_modern_config(64, 4, 4, 49, position="learned", init="zero"),
    text=make_modern_config(64, 2, 4, 16, init="zero"),
    train=TRAIN,
)
LARGE_TRAIN = TrainConfig(
    steps=300_000, batch=1, lr=5e-4, warmup=2000, weight_decay=0.2, beta2=0.98, activation_checkpointing=True
)
SIZES = (Size(32, 2, 1, 0), Size(48, 3, 1, 200))  # of --minutes
PRESETS = {
    # seconds: for tests
    "tiny": Config(
        data="digits",
        tokenizer="char",
        **square(8, 4, 1),
        **CLIP,
        embed_dim=24,
        pairs=8,
        val_fraction=0.2,
        vision=make_model_config(32, 2, 2, 5),
        text=make_model_config(32, 1, 2, 8),
        train=replace(TINY_TRAIN, batch=2),
    ),
    # 5 minutes of one core
    "small": SMALL,
    # the same with the loss of SigLIP
    "sigmoid": replace(SMALL, loss="sigmoid"),
    # CLIP ViT-B/32 (2103.00020): bring --data, --tokenizer and a GPU
    "clip-base": Config(
        preprocessing="half",
        vocab_size=49408,
        end_id=49407,
        **square(224, 32, 3),
        **CLIP,
        embed_dim=512,
        pairs=1024,
        skip_unreadable=True,
        vision=make_model_config(768, 12, 12, 50, activation="quick_gelu"),
        text=make_model_config(512, 12, 8, 77, activation="quick_gelu"),
        train=LARGE_TRAIN,
    ),
    # SigLIP ViT-B/16 (2303.15343): bring --data, --tokenizer and a GPU
    "siglip-base": Config(
        preprocessing="half",
        vocab_size=32000,
        end_id=1,
        pad_id=1,
        **square(224, 16, 3),
        **SIGLIP,
        embed_dim=768,
        pairs=1024,
        skip_unreadable=True,
        vision=make_model_config(768, 12, 12, 196, activation="gelu_tanh", norm_eps=1e-6),
        text=make_model_config(768, 12, 12, 64, activation="gelu_tanh", norm_eps=1e-6),
        train=LARGE_TRAIN,
    ),
}


def sizes(config: Config) -> Iterator[SizeOption]:
    yield from offer_sizes(config, SIZES, steps=400)


def check_sizes(config: Config) -> None:
    """Raise InputError if image, patch and context do not fit together."""
    if config.vision.context != config.image_nodes:
        raise InputError(
            f"an image of {config.height} x {config.width} pixels in patches of {config.patch} makes "
            f"{config.image_nodes} nodes, and the context is {config.vision.context}: "
            f"--vision.context {config.image_nodes}"
        )


def build(config: Config) -> TwoTowers:
    check_sizes(config)
    tokenizer = load_tokenizer(config)
    captions = prep.load_class_names(config.labels) if config.labels else select_captions(config, tokenizer)
    if config.preprocessing == "measured":
        preprocessor = prep.fit_preprocessor(load_data(config).images)
    elif config.preprocessing == "half":
        preprocessor = prep.uniform_preprocessor(0.5, config.channels)
    else:
        preprocessor = prep.load_preprocessor(config.preprocessing, config.channels)
    if config.preprocessing in ("measured", "half") and config.data:
        preprocessor = replace(preprocessor, examples=prep.select_examples(load_data(config).images))
    model = TwoTowers(config, tokenizer, preprocessor, captions)
    for name in ("pad_id", "end_id"):
        if (getattr(config, name) or 0) >= model.vocab_size:
            raise InputError(f"{name} is {getattr(config, name)}; the vocabulary has {model.vocab_size} tokens")
    return initialize_towers(model, config.vision, config.text)


# --- data ---


def data_defaults(overrides: dict[str, Any]) -> DataDefaults | None:
    """Choose color, size and the contexts from the images and captions, where the user has not."""
    data = overrides["data"]
    if data == "fashion-mnist":
        return None
    names = ("columns", "empty", "duplicates")
    options: dict[str, Any] = {"columns": COLUMNS} | {name: overrides[name] for name in names if name in overrides}
    try:
        source = open_images(find_caption_table(data), **options)
    except InputError:
        if data not in SETS:
            raise
        return None
    if (image_format := choose_format(source)) is None:
        return None
    patch = overrides.get("patch", image_format.patch)
    height, width = (max(patch, round(side / patch) * patch) for side in image_format[:2])
    chosen = {"height": height, "width": width, "channels": image_format.channels, "patch": patch, "compose": False}
    c = chosen | {name: overrides[name] for name in chosen if name in overrides}
    fields: dict[str, Any] = {name: value for name, value in chosen.items() if name not in overrides}
    nodes = c["height"] * c["width"] // c["patch"] ** 2 + (overrides.get("image_pool") == "first")
    words = max(len(split_words(caption)) for caption in source.classes)
    contexts = {"vision": nodes, "text": min(128, 1 << (2 * words + 4).bit_length())}
    fields |= {name: {"context": n} for name, n in contexts.items() if "context" not in overrides.get(name, {})}
    color = "gray" if c["channels"] == 1 else "in color"
    size = f"{c['width']} x {c['height']} pixels in patches of {c['patch']}, {color}"
    return DataDefaults("small", fields, f"data '{data}': {size} (flags: --channels --height --width --patch)")


def load_data(config: Config) -> CaptionedImages:
    """Load the images of the config and their captions; files that have changed are read again."""
    import_pillow()
    is_file = config.preprocessing not in ("measured", "half")
    stored = prep.load_preprocessor(config.preprocessing, config.channels) if is_file else prep.ImagePreprocessor()
    size, data = (config.height, config.width, config.channels), find_caption_table(config.data)
    settings = config.val_fraction, config.skip_unreadable, config.columns, config.empty, config.duplicates
    images = cache.load_images(data, *size, stored.resample, *settings, stored.crop)
    return CaptionedImages(images, config.patch, config.compose)


def select_captions(config: Config, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Return the captions that are kept with the model: all if they are few, else some at equal distances;
    without data, examples."""
    if config.data:
        return tuple(sample_evenly(np.array(load_data(config).images.classes, object), MAX_CAPTIONS).tolist())
    try:
        tokenizer.encode_batch(EXAMPLES)
    except InputError:  # a vocabulary of numbers
        return (first_tokens(tokenizer),)
    return EXAMPLES


def config_files(config: Config) -> list[Path]:
    names = (find_caption_table(config.data), config.tokenizer)
    return [path for name in names for path in data_files(name)]


@cache_by_files(config_files)
def load_tokenizer(config: Config) -> Tokenizer:
    def train() -> Tokenizer:
        captions = list(load_data(config).list_captions())
        tokenizer = build_tokenizer(config.tokenizer, lambda: iter(captions), config.vocab_size)
        return end_texts(tokenizer)  # a node that has read the text, for a causal tower

    return load_config_tokenizer(config, train)


@cache_by_files(config_files)
def load_caption_ids(config: Config) -> tuple[dict[str, list[int]], set[str]]:
    """Return the ids of each caption, cut to the context, and which captions were cut."""
    tokenizer = load_tokenizer(config)
    masked = wrap_tokenizer(tokenizer, config)
    captions = list(dict.fromkeys(load_data(config).list_captions()))
    lengths = map(len, masked.encode_batch(captions))
    rows = encode_captions(masked, captions, config.text.context, config.pad_id, cut=True)
    cut = {text for text, length in zip(captions, lengths) if length > config.text.context}
    return dict(zip(captions, rows)), cut


def batches(config: Config, split: str, state: StreamState | None = None) -> BatchStream:
    """Yield batches of groups of pairs: pixels (G, N, channels, H, W) uint8, ids (G, N, T), lengths (G, N), and
    captions and images (G, N), numbers that are equal where these are.

    "train" never ends and shows every image once an epoch, composed anew. "val" and "all" yield every image once; the
    pairs that are left in the end are a smaller group.
    """
    check_sizes(config)
    c, data = config.train, load_data(config)
    indices, size, n_cut = data.images.split(split), config.pairs, count_cut(config)
    facts = {"skipped": data.images.skipped, "rows": count_rows(split, data.images.split)}
    state = init_stream(state, config.data, data.images.sha256, **facts, **({"cut": n_cut} if n_cut else {}))
    n_whole = len(indices) // size * size
    starts = range(0, n_whole, c.batch * size) if split != "train" else ()
    groups = [indices[i : min(n_whole, i + c.batch * size)].reshape(-1, size) for i in starts]
    groups += [indices[None, n_whole:]] if split != "train" and n_whole < len(indices) else []
    caption_ids, compositions = load_caption_ids(config)[0], data.validation_compositions
    for rows in groups:
        yield make_batch(data, caption_ids, rows, compositions[rows.reshape(-1)]), state
    while split == "train":
        rows = sample_indices(indices, c.batch * size, c.seed, state["step"])
        compositions = data.draw_compositions(rows, c.seed, state["step"])
        batch = make_batch(data, caption_ids, rows.reshape(-1, size), compositions)
        state = advance_stream(state, len(rows) * config.vision.context + int(batch["lengths"].sum()))
        yield batch, state


def count_cut(config: Config) -> int:
    """Return how many images have a caption that was cut."""
    cut, images = load_caption_ids(config)[1], load_data(config).images
    is_cut = np.array([caption in cut for caption in images.classes])
    return int(is_cut[images.labels].sum())


def make_batch(
    data: CaptionedImages, caption_ids: dict[str, list[int]], rows: np.ndarray, compositions: np.ndarray
) -> dict[str, Tensor]:
    """Return a batch of the images of rows (G, N), in their compositions (G N, 2)."""
    pixels, captions = data.compose(rows.reshape(-1), compositions)
    ids, lengths = pad_ids([caption_ids[caption] for caption in captions])
    numbers = compositions @ np.array([ALL_COMPOSITIONS[-1][1] + 1, 1])
    arrays = {
        "pixels": pixels.transpose(0, 3, 1, 2).copy(),
        "ids": ids,
        "lengths": lengths,
        "captions": data.images.labels[rows.reshape(-1)] * len(ALL_COMPOSITIONS) + numbers,
        "images": np.array([hash_pixels(image) for image in pixels], np.int64),
    }
    return {name: torch.from_numpy(array.reshape(*rows.shape, *array.shape[1:])) for name, array in arrays.items()}


def hash_pixels(image: np.ndarray) -> int:
    """Return a number that equal images share: one that has several captions is in the data several times."""
    digest = hashlib.blake2b(image.tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


# --- training ---


def loss(model: TwoTowers, batch: dict[str, Tensor]) -> Tensor:
    return compare_pairs(model, batch, *model.embed_pairs(batch)).mean()


def loss_weight(batch: dict[str, Tensor]) -> Tensor:
    """The pairs of a batch."""
    return torch.tensor(batch["captions"].numel(), device=batch["captions"].device)


def evaluate(model: TwoTowers, batches: Iterator[dict[str, Tensor]]) -> dict[str, float]:
    """Return the mean loss of a pair within its group, the recall at 1 and 5 in both directions among up to
    MAX_RECALL_PAIRS pairs, and how many different images and captions these have."""
    total, count, parts, n_kept = 0.0, 0, [], 0
    for batch in batches:
        images, texts = model.embed_pairs(batch)
        n = batch["captions"].numel()
        total, count = total + n * compare_pairs(model, batch, images, texts).mean().item(), count + n
        if n_kept < MAX_RECALL_PAIRS:
            values = images, texts, batch["images"], batch["captions"]
            parts.append([value.flatten(0, 1)[: MAX_RECALL_PAIRS - n_kept] for value in values])
            n_kept += len(parts[-1][0])
    if not count:
        return {}
    images, texts, image_numbers, caption_numbers = (torch.cat(values) for values in zip(*parts))
    scores = {"loss": total / count}
    directions = {
        "image_to_text": (images, texts, image_numbers, caption_numbers),
        "text_to_image": (texts, images, caption_numbers, image_numbers),
    }
    for name, values in directions.items():
        at_1, at_5 = score_retrieval(*values)
        scores |= {f"{name}_at_1": at_1, f"{name}_at_5": at_5}
    counts = {"images": image_numbers, "captions": caption_numbers}
    return scores | {name: len(number_rows(numbers)[1]) for name, numbers in counts.items()}


def baselines(config: Config) -> Baselines:
    """Return what guessing reaches among the pairs that the final evaluation reads."""
    data = load_data(config)
    rows = data.images.split("val")[:MAX_RECALL_PAIRS]
    pairs = np.c_[data.images.labels[rows], data.validation_compositions[rows]]
    n_captions = len(np.unique(pairs, axis=0))
    return {f"{name}_at_1": {"guessing": 1 / n_captions} for name in ("image_to_text", "text_to_image")}


@torch.inference_mode()
def score(model: TwoTowers, config: Config, split: str = "val", **request: Any) -> dict[str, Any]:
    """Return the accuracy of zero-shot classification: which caption is nearest to an image as it is, among all
    captions of the data as they are. `request` may hold the template of `TowerRequest`."""
    fields, images = parse_dataclass(TowerRequest, request, "request"), load_data(config).images
    indices = images.split(split)
    texts = embed_texts(model, [fields.fill_template(text) for text in images.classes], cut=True)
    vectors = embed_images(model, (images.pixels[i] for i in indices))
    labels = torch.from_numpy(images.labels[indices])
    accuracy = ((vectors @ texts.T).argmax(1) == labels).double().mean().item()
    return {"zero_shot_accuracy": accuracy, "images": len(indices), "captions": len(images.classes)}


def export_graph(model: TwoTowers) -> Graph:
    """The graph takes as many texts as images and returns a vector of length 1 for each."""
    height, width, channels = model.size
    inputs = {
        "pixels": GraphInput(f"batch {channels} {height} {width}", 256),
        "ids": GraphInput("batch length", model.vocab_size),
        "lengths": GraphInput("batch", is_length=True),
    }
    return Graph(model, inputs, ("image_vectors", "text_vectors"), {"length": model.context})
