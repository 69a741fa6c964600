"""Figures of a model that draws pictures: what it draws, what is near to that, and what its codebook can show."""

from collections.abc import Iterable, Sequence
from typing import Any, get_args

import numpy as np
import torch

from ...data.images import compose
from ...data.images.cache import ImageDataset
from ...data.images.captioned import ALL_COMPOSITIONS, CaptionedImages
from ...data.images.read import encode_png, tile_images
from ...data.sampling import sample_evenly
from ...inference.drawing import DrawingRequest, Part, PictureModel, draw, paint_cells, select_part
from ...recipe import Figure

MAX_PICTURES, HIDDEN_GRAY = 10, 96
NEAREST_ROWS = 4096  # images that are compared at once


def draw_figures(model: PictureModel, data: CaptionedImages) -> list[Figure]:
    """Draw pictures of captions, beside the nearest images of the training, parts painted anew, and what the codebook
    leaves of images."""
    images = data.images
    labels = sample_evenly(np.arange(len(images.classes)), MAX_PICTURES)
    captions = [images.classes[label] for label in labels]
    plain = draw(model, DrawingRequest(input=captions))
    rows = sample_evenly(images.split("val"), MAX_PICTURES)
    truths = images.pixels[rows]
    return [
        *([draw_compositions(model, images.classes, labels)] if data.has_compositions else ()),
        show_pairs(
            "Drawn from captions",
            "on the right of each the nearest image of the training: where they differ, it is no copy",
            zip(plain, find_nearest_images(images, plain)),
            captions,
        ),
        draw_repainted(model, truths, [images.classes[label] for label in images.labels[rows]]),
        show_pairs(
            "The codebook",
            f"images of the validation split, and what {model.codes} patches leave of them: no picture can be better",
            zip(truths, encode_and_decode(model, truths)),
            [""] * len(truths),
        ),
    ]


def draw_compositions(model: PictureModel, classes: Sequence[str], labels: np.ndarray) -> Figure:
    """Draw two compositions of each class, one of them of those that are held out."""
    pairs = np.array([pair for pair in ALL_COMPOSITIONS if all(pair)])
    captions, notes = [], []
    for n, label in enumerate(labels):
        is_out = compose.find_held_out(np.full(len(pairs), label), pairs)
        for choices, note in ((pairs[~is_out], ""), (pairs[is_out], " (never seen together)")):
            captions.append(compose.compose_caption(classes[label], *choices[n % len(choices)]))
            notes.append(captions[-1] + note)
    note = "class, brightness and place; some combinations are held out of the training"
    return show_pictures("Composed captions", note, draw(model, DrawingRequest(input=captions)), notes)


def draw_repainted(model: PictureModel, images: np.ndarray, captions: Sequence[str]) -> Figure:
    """Hide a part of each image, and paint it anew after its caption."""
    parts, pairs = get_args(Part), []
    for i, (image, caption) in enumerate(zip(images, captions)):
        is_hidden = select_part(model.grid, parts[i % len(parts)])
        mask = np.kron(is_hidden, np.ones((model.patch, model.patch), bool))[..., None]
        (after,) = paint_cells(model, [caption], [i], image, is_hidden, DrawingRequest())
        pairs.append((np.where(mask, np.uint8(HIDDEN_GRAY), image), after))
    return show_pairs("Painted anew", "a part is hidden, and painted anew after the caption", pairs, captions)


@torch.inference_mode()
def encode_and_decode(model: PictureModel, images: np.ndarray) -> np.ndarray:
    """Return what the codebook leaves of images (B, H, W, C)."""
    device = next(model.body.parameters()).device
    return model.decode(model.encode(torch.from_numpy(np.array(images)).to(device))).cpu().numpy()


def find_nearest_images(dataset: ImageDataset, pictures: np.ndarray) -> np.ndarray:
    """Return for each picture the image of the training split that is nearest in its pixels."""
    rows, wide = dataset.split("train"), pictures.reshape(len(pictures), -1).astype(np.float32)
    best, nearest = np.full(len(pictures), np.inf), np.zeros(len(pictures), np.int64)
    for start in range(0, len(rows), NEAREST_ROWS):
        part = rows[start : start + NEAREST_ROWS]
        images = dataset.pixels[part].reshape(len(part), -1).astype(np.float32)
        distances = (images**2).sum(1) - 2 * wide @ images.T
        index = distances.argmin(1)
        distance = distances[np.arange(len(wide)), index]
        nearest, best = np.where(distance < best, part[index], nearest), np.minimum(distance, best)
    return dataset.pixels[nearest]


def show_pairs(title: str, note: str, pairs: Iterable[tuple[Any, Any]], captions: Sequence[str]) -> Figure:
    """Draw pairs of pictures side by side."""
    return show_pictures(title, note, [tile_images(np.stack(pair), columns=2) for pair in pairs], captions)


def show_pictures(title: str, note: str, pictures: Iterable[np.ndarray], captions: Sequence[str]) -> Figure:
    images = [{"png": encode_png(picture), "caption": text} for picture, text in zip(pictures, captions, strict=True)]
    return {"kind": "images", "title": title, "note": note, "images": images}
