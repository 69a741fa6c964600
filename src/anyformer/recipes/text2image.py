"""Text to image: draw what a caption says, patch after patch, and paint a part of a picture anew.

raw    images with captions: a folder with captions.csv (file,caption), class folders, or a set by name
nodes  the words of the caption, then patches as numbers of a codebook (k-means), with their row and column, and those
       of the patch that comes next
edges  causal; in a quarter of the training rows a rectangle of patches comes last, as if it were to be painted
head   a logit for each entry of the codebook
loss   cross-entropy of the next patch; a tenth of the rows see no caption

    anyformer train text2image                  11 minutes of one core: Fashion-MNIST, 9 in 10 pictures are as asked for
    anyformer train text2image --data pictures/                      your own: class folders, or captions.csv in it
    anyformer sample RUN --prompt "a dark bag, top left" --samples 16 --out bags.png
    anyformer predict RUN "a bag" --image old.png --part bottom

Image tokens behind a text: DALL-E (2102.12092); any order of them: 2404.09562, 2411.00776; guidance: 2207.12598.
"""

from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..data.images import cache
from ..data.images.captioned import CaptionedImages
from ..data.images.captions import BLANK, CaptionVocabulary, find_caption_table, load_vocabulary, split_words
from ..data.images.measure import choose_format
from ..data.images.patches import cut_patches, draw_orders, join_patches
from ..data.images.read import encode_png, import_pillow, open_images, tile_images
from ..data.io.manifest import split_columns
from ..data.sampling import count_rows, sample_indices
from ..data.unusable import DuplicatePolicy, EmptyPolicy
from ..errors import InputError
from ..forms import Form, Task
from ..inference.drawing import DrawingRequest, draw, parse_drawing
from ..model import LMHead, Transformer, TransformerConfig, initialize
from ..model.cache import KVCache
from ..model.edges import causal
from ..model.kernels.cross_entropy import cross_entropy
from ..model.positions import LearnedPosition
from ..parsing import check_range, check_types, path_field
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
from ._shared.codebooks import read_codebook
from ._shared.media_lenses import lens_picture as lens  # noqa: F401
from ._shared.picture_figures import draw_figures
from ._shared.presets import MUON, TINY_TRAIN, make_modern_config
from ._shared.sizes import Size, offer_sizes
from ._shared.trivial_baselines import Baselines

COLUMNS = "file,caption"
MAX_NODES = 1 << 14
SHEET_SIDE = 112  # pixels of a picture on a contact sheet, about: it is enlarged by a whole factor


@dataclass(frozen=True, kw_only=True)
class Config:
    """A model of pictures, its images and captions, and its training."""

    data: str = path_field("fashion-mnist")
    """The name of a set (fashion-mnist, cifar10, digits), a folder with captions.csv (or .tsv, .jsonl, .json) or with
    class folders, such a table by its path, a .parquet, a .npz, or a folder of idx files."""
    columns: str = COLUMNS
    """Names of a table's columns of the image and of its caption."""
    empty: EmptyPolicy = "few"
    """Rows of a table without a caption: skip, error, or few: skip where they are at most 1 %."""
    duplicates: DuplicatePolicy = "keep"
    """Rows of a table that repeat an image and its caption: keep or skip."""
    words: str = path_field("", [".json"])
    """A words.json with the words of the captions: its path, or its content. Empty: those of the data."""
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
    codes: int = 512
    """Entries of the codebook."""
    drop_caption: float = 0.1
    """Share of the training rows that see no caption, for guidance."""
    repaint: float = 0.25
    """Share of the training rows in which a rectangle of patches comes last."""
    val_fraction: float = 0.1
    """Kept for validation where the data have no split of their own for it."""
    skip_unreadable: bool = False
    """Leave out images that cannot be read, and count them."""
    model: TransformerConfig = field(default_factory=TransformerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check_types(self)
        split_columns(self.columns, COLUMNS)
        check_range(self, "height", "width", "patch", at_least=1, at_most=1 << 14)
        check_range(self, "codes", at_least=2, at_most=1 << 16)
        check_range(self, "drop_caption", "repaint", at_least=0, at_most=1)
        check_range(self, "val_fraction", above=0, below=1)
        if self.height % self.patch or self.width % self.patch:
            raise InputError(f"patches of {self.patch} pixels do not cut {self.height} x {self.width} pixels")
        if self.cells > MAX_NODES:
            raise InputError(
                f"{self.height} x {self.width} pixels are {self.cells:,} patches: the limit is {MAX_NODES:,}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.height // self.patch, self.width // self.patch

    @property
    def cells(self) -> int:
        return self.grid[0] * self.grid[1]


def make_size(side: int, patch: int, channels: int, codes: int) -> dict[str, Any]:
    return {"height": side, "width": side, "patch": patch, "channels": channels, "codes": codes}


TRAIN = TrainConfig(
    steps=1000, batch=64, lr=4e-3, warmup=50, weight_decay=0.01, eval_every=250, eval_batches=10, save_every=250, **MUON
)
SMALL = Config(compose=True, model=make_modern_config(128, 6, 4, 64, init="zero"), train=TRAIN)
SIZES = (Size(64, 3, 32, 0), Size(96, 4, 64, 400))  # of --minutes
PRESETS = {
    # seconds: for tests
    "tiny": Config(
        data="digits",
        **make_size(8, 2, 1, 32),
        val_fraction=0.2,
        drop_caption=0.2,
        model=make_modern_config(32, 2, 2, 24),
        train=TINY_TRAIN,
    ),
    # 11 minutes of one core
    "small": SMALL,
    # photographs by their class, in color
    "cifar10": replace(
        SMALL,
        data="cifar10",
        compose=False,
        repaint=0.0,
        **make_size(32, 4, 3, 1024),
        train=replace(TRAIN, steps=4000),
    ),
}
OWN_PRESETS = {"fashion-mnist": "small", "cifar10": "cifar10"}


def sizes(config: Config) -> Iterator[SizeOption]:
    yield from offer_sizes(config, SIZES, steps=800)


class GridEmbedding(nn.Module):
    """Cells of a grid (...) -> (..., C): a learned vector for the row, and one for the column."""

    def __init__(self, rows: int, columns: int, dim: int):
        super().__init__()
        self.columns = columns
        self.row, self.column = LearnedPosition(rows, dim), LearnedPosition(columns, dim)

    def forward(self, cells: Tensor) -> Tensor:
        return self.row(cells // self.columns) + self.column(cells % self.columns)


class TextToImage(nn.Module):
    """ids (B, T) -> logits (B, T, codes). Ids below `codes` are patches, the others words."""

    codebook: Tensor

    def __init__(self, config: Config, vocabulary: CaptionVocabulary):
        super().__init__()
        self.vocabulary, self.files = vocabulary, {"words.json": vocabulary.to_json()}
        self.size: tuple[int, int, int] = (config.height, config.width, config.channels)
        self.patch, self.grid, self.cells, self.codes = config.patch, config.grid, config.cells, config.codes
        dim = config.model.dim
        self.length = vocabulary.length + config.cells - 1  # nodes: the last patch is predicted, but not read
        self.register_buffer("codebook", torch.zeros(config.codes, config.patch**2 * config.channels))
        self.token = nn.Embedding(config.codes + vocabulary.size, dim)
        self.look = nn.Linear(self.codebook.shape[1], dim)  # similar patches have similar nodes from the start
        self.cell, self.next_cell = GridEmbedding(*config.grid, dim), GridEmbedding(*config.grid, dim)
        self.body = Transformer(config.model)
        self.head = LMHead(dim, config.codes)

    def hidden(self, ids: Tensor, cache: KVCache | None = None, order: Tensor | None = None) -> Tensor:
        """Return the nodes after the last block, (B, T, C). `order` (N,) or (B, N): the cell of each patch; None: row
        by row. With a cache, ids are the next ones of each row."""
        n_words, new = self.vocabulary.length, ids.shape[1]
        positions = torch.arange(new, device=ids.device) if cache is None else cache.positions(new)
        order = torch.arange(self.cells, device=ids.device) if order is None else order
        cells = order[..., (positions - n_words).clamp(0, self.cells - 1)]
        next_cells = order[..., (positions - n_words + 1).clamp(0, self.cells - 1)]
        looks = self.look(self.codebook / 128 - 1)
        is_patch, is_before_patch = (positions >= n_words)[:, None], (positions >= n_words - 1)[:, None]
        x = self.token(ids) + is_before_patch * self.next_cell(next_cells)
        x = x + is_patch * (self.cell(cells) + nn.functional.embedding(ids.clamp(max=self.codes - 1), looks))
        return self.body(x, causal, cache=cache)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.hidden(ids))

    def drop_caption(self, ids: Tensor, start: int) -> Tensor:
        """Return ids (B, T), of which the first has the position `start`, with blanks in place of the words."""
        is_word = torch.arange(start, start + ids.shape[1], device=ids.device) < self.vocabulary.length
        return ids.masked_fill(is_word, self.codes + BLANK)

    def encode(self, pixels: Tensor) -> Tensor:
        """Return the nearest entry of the codebook for each patch: (B, H, W, channels) uint8 -> (B, N)"""
        patches = cut_patches(pixels, self.patch).float()
        return (self.codebook.square().sum(1) - 2 * patches @ self.codebook.T).argmin(-1)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the pictures of patches: (B, N) -> (B, H, W, channels) uint8"""
        patches = self.codebook[codes].round().clamp(0, 255).to(torch.uint8)
        return join_patches(patches, *self.size[:2], self.patch)


def build(config: Config) -> TextToImage:
    model = TextToImage(config, load_words(config))
    if model.length > config.model.context:
        nodes = f"{model.vocabulary.length} words and {model.cells} patches make {model.length} nodes"
        raise InputError(f"{nodes}, and the context is {config.model.context}: --model.context {model.length}")
    initialize(model, config.model)
    model.codebook.copy_(load_codebook(config))
    return model


# --- data ---


def data_defaults(overrides: dict[str, Any]) -> DataDefaults | None:
    """Choose color, size and context from the images and captions, where the user has not."""
    data = overrides["data"]
    if data in OWN_PRESETS:
        return DataDefaults(OWN_PRESETS[data], {}, f"data '{data}': the preset {OWN_PRESETS[data]}")
    names = ("columns", "empty", "duplicates")
    options: dict[str, Any] = {"columns": COLUMNS} | {name: overrides[name] for name in names if name in overrides}
    source = open_images(find_caption_table(data), **options)
    if (image_format := choose_format(source)) is None:
        return None
    patch = overrides.get("patch", image_format.patch)
    height, width = (max(patch, round(side / patch) * patch) for side in image_format[:2])
    chosen = {"height": height, "width": width, "channels": image_format.channels, "patch": patch, "compose": False}
    c = chosen | {name: overrides[name] for name in chosen if name in overrides}
    color = "gray" if c["channels"] == 1 else "in color"
    size = f"{c['width']} x {c['height']} pixels in patches of {c['patch']}, {color}"
    fields: dict[str, Any] = {name: value for name, value in chosen.items() if name not in overrides}
    if "context" not in overrides.get("model", {}):
        n_words = max(len(split_words(caption)) for caption in source.classes) + 3 * c["compose"]
        fields["model"] = {"context": n_words + c["height"] * c["width"] // c["patch"] ** 2}
    return DataDefaults("small", fields, f"data '{data}': {size} (flags: --channels --height --width --patch)")


def load_data(config: Config) -> CaptionedImages:
    """Load the images of the config and their captions; files that have changed are read again."""
    import_pillow()  # answers are PNGs: say so before the training
    size, data = (config.height, config.width, config.channels), find_caption_table(config.data)
    settings = config.val_fraction, config.skip_unreadable, config.columns, config.empty, config.duplicates
    images = cache.load_images(data, *size, "bilinear", *settings)
    return CaptionedImages(images, config.patch, config.compose)


def load_words(config: Config) -> CaptionVocabulary:
    """Return the words of the config, or those of all captions of its data."""
    return load_vocabulary(config.words) if config.words else load_data(config).fit_vocabulary()


def load_codebook(config: Config) -> Tensor:
    """Return the codebook of the checkpoint that the words of the config lie in; else that of its data."""
    codebook = read_codebook(config.words, (config.codes, config.patch**2 * config.channels), "patches")
    return torch.from_numpy(load_data(config).fit_codebook(config.codes)) if codebook is None else codebook


def batches(config: Config, split: str, state: StreamState | None = None) -> BatchStream:
    """Yield batches: pixels (B, H, W, channels) uint8, words (B, P), and order (B, N), the cells in the order in which
    they are drawn.

    "train" never ends and yields every image once an epoch, composed anew. "val" and "all" yield every image once, row
    by row.
    """
    c, data, vocabulary = config.train, load_data(config), load_words(config)
    images, indices = data.images, data.images.split(split)
    state = init_stream(state, config.data, images.sha256, skipped=images.skipped, rows=count_rows(split, images.split))
    compositions, in_rows = data.validation_compositions, np.arange(config.cells)[None]
    for start in range(0, len(indices) if split != "train" else 0, c.batch):
        rows = indices[start : start + c.batch]
        pixels, captions = data.compose(rows, compositions[rows])
        yield make_batch(vocabulary, pixels, captions, in_rows.repeat(len(rows), 0)), state
    while split == "train":
        rng = np.random.Generator(np.random.Philox(key=c.seed, counter=(0, 0, 3, state["step"])))
        rows = sample_indices(indices, c.batch, c.seed, state["step"])
        pixels, captions = data.compose(rows, data.draw_compositions(rows, c.seed, state["step"]))
        captions = ["" if rng.random() < config.drop_caption else text for text in captions]
        order = draw_orders(config.grid, c.batch, config.repaint, rng)
        state = advance_stream(state, c.batch * (vocabulary.length + config.cells - 1))
        yield make_batch(vocabulary, pixels, captions, order), state


def make_batch(
    vocabulary: CaptionVocabulary, images: np.ndarray, captions: list[str], order: np.ndarray
) -> dict[str, Tensor]:
    arrays = {"pixels": images, "words": np.stack([vocabulary.encode(text) for text in captions]), "order": order}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def baselines(config: Config) -> Baselines:
    frequencies = load_data(config).score_frequencies(config.codes)
    return {"loss": {"guessing evenly": float(np.log(config.codes)), "codes by their cell": frequencies}}


# --- training ---


def predict_cells(model: TextToImage, batch: dict[str, Tensor], reduction: str = "mean") -> Tensor:
    """Return the cross-entropy of the patches of a batch."""
    codes = model.encode(batch["pixels"]).gather(1, batch["order"])
    ids = torch.cat([batch["words"] + model.codes, codes[:, :-1]], dim=1)
    nodes = model.hidden(ids, order=batch["order"])[:, -model.cells :]
    return cross_entropy(model.head, nodes, codes, reduction=reduction)


def loss(model: TextToImage, batch: dict[str, Tensor]) -> Tensor:
    return predict_cells(model, batch)


def loss_weight(batch: dict[str, Tensor]) -> Tensor:
    """The patches of the pictures."""
    return torch.tensor(batch["order"].numel(), device=batch["order"].device)


def evaluate(model: TextToImage, batches: Iterator[dict[str, Tensor]]) -> dict[str, float]:
    """Return the mean nats of a patch."""
    nats, count = 0.0, 0
    for batch in batches:
        nats, count = nats + predict_cells(model, batch, "sum").item(), count + batch["order"].numel()
    return {"loss": nats / count} if count else {}


def export_graph(model: TextToImage) -> Graph:
    """The graph draws row by row: it reads words and the patches so far."""
    ids = GraphInput("batch length", model.codes + model.vocabulary.size)
    return Graph(model, {"ids": ids}, ("logits",), {"length": model.length})


# --- answers ---


def predict(model: TextToImage, request: dict[str, Any]) -> dict[str, Any]:
    """Draw pictures: the fields of `DrawingRequest`.

    {"input": "a dark bag, top left"} returns {"results": [{"input", "png"}, ...]}, PNGs in base64, those of several
    samples one after the other. Without an input or an image: captions that are kept with the model.
    """
    fields, pictures = draw_request(model, request)
    captions = [caption for caption in fields.captions or [None] for _ in range(fields.samples)]
    pairs = zip(captions, pictures, strict=True)
    return {"results": [{"input": caption, "png": encode_png(picture, len(picture))} for caption, picture in pairs]}


def draw_request(model: TextToImage, request: dict[str, Any]) -> tuple[DrawingRequest, np.ndarray]:
    """Return a request with its captions, and its pictures. Raises InputError."""
    fields = parse_drawing(model, request)
    return fields, draw(model, fields)


def predict_batch(model: TextToImage, inputs: list[str], settings: dict[str, Any]) -> list[dict[str, Any]]:
    if settings.get("samples", 1) != 1:
        raise InputError("samples: one picture of each row of a file")
    return predict(model, settings | {"input": inputs})["results"]


def file_input(model: TextToImage, config: Config) -> FileInput:
    return FileInput((split_columns(config.columns, COLUMNS)[1],))


def draw_sheet(model: TextToImage, request: dict[str, Any]) -> bytes:
    """Return a PNG of all pictures of a request, enlarged; of several captions, the samples of each in a row."""
    fields, pictures = draw_request(model, request)
    is_table = len(fields.captions) > 1 and fields.samples > 1
    factor = max(1, SHEET_SIDE // max(model.size[:2]))
    sheet = tile_images(pictures, factor, columns=fields.samples if is_table else 0)
    return b64decode(encode_png(sheet, len(sheet)))


def form(model: TextToImage, config: Config) -> Form:
    usual: dict[str, Any] = {"guidance": (0, 6), "temperature": (0, 1.5), "samples": (1, 16)}
    words = Task(
        "Draw a caption", "text", DrawingRequest, "pictures", omit=("part",), usual=usual, settings={"samples": 4},
        examples=model.vocabulary.examples,
    )  # fmt: skip
    image = Task(
        "Paint a part anew", "image", DrawingRequest, "pictures", "image", usual=usual, settings={"samples": 4}
    )
    return Form((words, image))


def figures(model: TextToImage, config: Config) -> list[Figure]:
    return draw_figures(model, load_data(config))
