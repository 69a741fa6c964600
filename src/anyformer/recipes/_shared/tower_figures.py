"""Figures of two towers: which captions and images of the validation split are near each other."""

from typing import Any

import numpy as np

from ...data.images import cache
from ...data.images.captioned import CaptionedImages
from ...data.images.captions import find_caption_table
from ...data.images.read import tile_images
from ...data.sampling import sample_evenly
from ...recipe import Figure
from .picture_figures import show_pictures
from .towers import TwoTowers, embed_images, embed_texts

MAX_SHOWN, MAX_SEARCHED, MAX_LABEL = 10, 1000, 40
NEAREST = 5


def draw_figures(model: TwoTowers, config: Any) -> list[Figure]:
    """Draw the similarities of some images and their captions, the images themselves, and the nearest images to each of
    these captions."""
    settings = config.val_fraction, config.skip_unreadable, config.columns, config.empty, config.duplicates
    size = config.height, config.width, config.channels
    images = cache.load_images(
        find_caption_table(config.data), *size, model.preprocessor.resample, *settings, model.preprocessor.crop
    )
    data = CaptionedImages(images, config.patch, config.compose)
    rows = sample_evenly(images.split("val"), MAX_SEARCHED)
    pixels, captions = data.compose(rows, data.validation_compositions[rows])
    _, first = np.unique(np.array(captions, object).astype(str), return_index=True)
    shown = sample_evenly(np.sort(first), MAX_SHOWN)
    vectors, texts = embed_images(model, pixels), embed_texts(model, [captions[i] for i in shown], cut=True)
    similarity = (texts @ vectors.T).tolist()  # (captions, images)
    names = [captions[i][:MAX_LABEL] for i in shown]
    numbers = [f"{n}: {name}" for n, name in enumerate(names, 1)]
    values = [[round(max(0.0, similarity[column][i]), 4) for column in range(len(shown))] for i in shown]
    matrix: Figure = {
        "kind": "matrix",
        "title": "Images and captions",
        "note": "cosine similarity, darker for more; a row for each image, by the number below, a column for each "
        "caption: the diagonal should be darkest",
        "top": 1.0,
        "values": values,
        "rows": [f"image {n}" for n in range(1, len(shown) + 1)],
        "columns": names,
    }
    nearest = [np.argsort(-np.array(row), kind="stable")[:NEAREST] for row in similarity]
    sheets = [tile_images(pixels[order], columns=NEAREST) for order in nearest]
    note = (
        f"of {len(rows):,} images of the validation split the {NEAREST} nearest to each caption, the best on the left"
    )
    return [
        matrix,
        show_pictures("The images", "of the validation split, with their captions", pixels[shown], numbers),
        show_pictures("Images found by captions", note, sheets, names),
    ]
