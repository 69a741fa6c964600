"""Drawing: pictures of captions, patch after patch, and parts of pictures painted anew.

Shapes: B pictures, N cells of the grid of patches, P words of a caption; pictures are (B, H, W, C) uint8.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ..data.images.captions import CaptionVocabulary
from ..data.images.patches import cut_patches, join_patches
from ..data.images.read import read_image, resize_image
from ..errors import InputError
from ..model.cache import KVCache
from ..model.transformer import Transformer
from ..parsing import check_range, check_types, parse_dataclass
from .completion import sample_seed
from .decode import Decoder, generate
from .guidance import GuidedDecoder
from .sampling import SamplingParams

Part = Literal["top", "bottom", "left", "right", "center"]
MAX_PICTURES, BATCH_SIZE = 1000, 64  # of a request, and drawn together
SHOWN_EXAMPLES = 4  # captions that are drawn without a request


@dataclass(frozen=True, kw_only=True)
class DrawingRequest:
    """What to draw, and how. Raises InputError on values that make no sense."""

    input: str | list[str] | None = None
    """A caption, or several. None: captions that are kept with the model; of an image, none is needed."""
    samples: int = 1
    """Pictures of each caption."""
    guidance: float = 2.0
    """How much a picture follows its caption: 1 as the model has learned it, 0 not at all."""
    temperature: float = 1.0
    """Divides the logits that patches are drawn by; 0 takes the likeliest."""
    top_k: int | None = None
    """Only the k likeliest patches."""
    top_p: float | None = None
    """Only the likeliest patches that together reach probability p."""
    image: str | None = None
    """The path of an image of which a part is painted anew."""
    part: Part = "center"
    """Which part of the image that is: a half of it, or its middle."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "samples", at_least=1, at_most=MAX_PICTURES)
        check_range(self, "guidance", at_least=0, at_most=100)
        check_range(self, "seed", at_least=0, below=1 << 40)
        SamplingParams(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
        if len(self.captions) * self.samples > MAX_PICTURES:
            raise InputError(f"request: {len(self.captions)} captions with {self.samples} pictures each are too many")

    @property
    def captions(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input or []


class PictureModel(Protocol):
    """A causal model of patches behind the words of a caption."""

    vocabulary: CaptionVocabulary
    size: tuple[int, int, int]
    grid: tuple[int, int]
    patch: int
    cells: int
    codes: int
    body: Transformer
    head: Any

    def hidden(self, ids: Tensor, cache: KVCache | None = None, order: Tensor | None = None) -> Tensor: ...

    def drop_caption(self, ids: Tensor, start: int) -> Tensor: ...

    def encode(self, pixels: Tensor) -> Tensor: ...

    def decode(self, codes: Tensor) -> Tensor: ...


class OrderedDecoder:
    """A model that draws the cells in this order, (N,)."""

    def __init__(self, model: PictureModel, order: Tensor):
        self.model, self.order, self.body, self.head = model, order, model.body, model.head

    def hidden(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        return self.model.hidden(ids, cache, self.order)


def parse_drawing(model: PictureModel, request: dict[str, Any]) -> DrawingRequest:
    """Return a request; one without a caption and an image gets captions that are kept with the model."""
    fields = parse_dataclass(DrawingRequest, request, "request")
    if fields.input is None and fields.image is None:
        return replace(fields, input=list(model.vocabulary.examples[:SHOWN_EXAMPLES]))
    return fields


def draw(model: PictureModel, request: DrawingRequest) -> np.ndarray:
    """Draw the pictures of a request, the samples of a caption one after the other. Raises InputError."""
    captions = [caption for caption in request.captions or [""] for _ in range(request.samples)]
    seeds = [sample_seed(request.seed, i % request.samples) for i in range(len(captions))]
    image = None if request.image is None else resize_image(read_image(Path(request.image)), *model.size)
    is_hidden = np.ones(model.grid, bool) if image is None else select_part(model.grid, request.part)
    paint = [
        paint_cells(model, captions[i : i + BATCH_SIZE], seeds[i : i + BATCH_SIZE], image, is_hidden, request)
        for i in range(0, len(captions), BATCH_SIZE)
    ]
    return np.concatenate(paint)


def select_part(grid: tuple[int, int], part: Part) -> np.ndarray:
    """Return which cells of a grid a part of the picture has: (rows, columns) bool"""
    (rows, columns), is_part = grid, np.zeros(grid, bool)
    margins = rows // 4, columns // 4
    halves = {
        "top": np.s_[: -(-rows // 2)],
        "bottom": np.s_[rows // 2 :],
        "left": np.s_[:, : -(-columns // 2)],
        "right": np.s_[:, columns // 2 :],
        "center": np.s_[margins[0] : rows - margins[0], margins[1] : columns - margins[1]],
    }
    is_part[halves[part]] = True
    return is_part


@torch.inference_mode()
def paint_cells(
    model: PictureModel,
    captions: Sequence[str],
    seeds: Sequence[int],
    image: np.ndarray | None,
    is_hidden: np.ndarray,
    request: DrawingRequest,
) -> np.ndarray:
    """Draw the hidden cells of pictures, (rows, columns) bool, after those of the image: (B, H, W, C)"""
    device = next(model.body.parameters()).device
    order = np.argsort(is_hidden.reshape(-1), kind="stable")
    n_new, shown = int(is_hidden.sum()), []
    if image is not None:
        codes = model.encode(torch.from_numpy(image[None].copy()).to(device))[0].tolist()
        shown = [codes[cell] for cell in order[: len(order) - n_new]]
    decoder: Decoder = OrderedDecoder(model, torch.from_numpy(order).to(device))
    if request.guidance != 1:
        decoder = GuidedDecoder(decoder, model.drop_caption, request.guidance)
    prompts = [[*(model.vocabulary.encode(caption) + model.codes).tolist(), *shown] for caption in captions]
    sampling = SamplingParams(temperature=request.temperature, top_k=request.top_k, top_p=request.top_p)
    steps = list(generate(decoder, prompts, tokens=n_new, sampling=sampling, seeds=seeds))
    drawn = torch.tensor([[*shown, *row] for row in zip(*steps, strict=True)], device=device)
    pictures = model.decode(drawn[:, np.argsort(order)]).cpu().numpy()
    if image is None:
        return pictures
    patches, originals = cut_patches(pictures, model.patch), cut_patches(image[None], model.patch)
    patches = np.where(is_hidden.reshape(1, -1, 1), patches, originals)
    return join_patches(patches, *model.size[:2], model.patch)
