"""Images with captions: their words, their codebook, and the compositions that training draws of them.

Shapes: B images, N patches of an image, D numbers of a patch, K entries of a codebook.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..codebook import find_nearest, fit_codebook
from ..sampling import sample_evenly
from . import compose
from .cache import ImageDataset
from .captions import CaptionVocabulary, fit_vocabulary
from .patches import cut_patches

CODEBOOK_IMAGES, SCORED_IMAGES = 6000, 10_000  # of a split, for the codebook and for its frequencies
MAX_CUT_BYTES = 1 << 28  # of images that are cut into patches at once
MAX_EXAMPLES = 8  # captions to show a model with
ALL_COMPOSITIONS = tuple((i, j) for i in range(len(compose.BRIGHTNESSES)) for j in range(len(compose.PLACES)))


@dataclass(frozen=True)
class CaptionedImages:
    """Images whose classes are captions; with `has_compositions` also darker, brighter or in a corner."""

    images: ImageDataset
    patch: int
    has_compositions: bool

    def list_captions(self) -> Iterator[str]:
        for caption in self.images.classes:
            for pair in ALL_COMPOSITIONS if self.has_compositions else ALL_COMPOSITIONS[:1]:
                yield compose.compose_caption(caption, *pair)

    def fit_vocabulary(self) -> CaptionVocabulary:
        """Return the words of all captions. Raises InputError."""
        names = sample_evenly(np.array(self.images.classes, object), MAX_EXAMPLES).tolist()
        pairs = ALL_COMPOSITIONS if self.has_compositions else ALL_COMPOSITIONS[:1]
        examples = [compose.compose_caption(name, *pairs[7 * i % len(pairs)]) for i, name in enumerate(names)]
        return fit_vocabulary(self.list_captions(), examples)

    def draw_compositions(self, rows: np.ndarray, seed: int, step: int) -> np.ndarray:
        """Draw brightness and place of each image: (B,) -> (B, 2)"""
        if not self.has_compositions:
            return np.zeros((len(rows), 2), np.int64)
        rng = np.random.Generator(np.random.Philox(key=seed, counter=(0, 0, 2, step)))
        return compose.draw_compositions(self.images.labels[rows], rng)

    @property
    def validation_compositions(self) -> np.ndarray:
        """Brightness and place of every image, for validation: (images, 2)"""
        return self.draw_compositions(np.arange(len(self.images.labels)), 0, 0)

    def compose(self, rows: np.ndarray, compositions: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Return images (B, H, W, C), and their captions."""
        pixels = [
            compose.compose_image(self.images.pixels[i], *pair, self.patch) for i, pair in zip(rows, compositions)
        ]
        names = [self.images.classes[label] for label in self.images.labels[rows]]
        return np.stack(pixels), [compose.compose_caption(text, *pair) for text, pair in zip(names, compositions)]

    def cut(self, split: str, count: int) -> np.ndarray:
        """Return the patches of up to `count` images of a split: (B, N, D)"""
        count = max(1, min(count, MAX_CUT_BYTES // math.prod(self.images.pixels.shape[1:])))
        rows = sample_evenly(self.images.split(split), count)
        return cut_patches(self.compose(rows, self.validation_compositions[rows])[0], self.patch)

    def fit_codebook(self, size: int) -> np.ndarray:
        """Return the codebook of patches of training images, fitted once: (K, D) float32"""
        return _fit_codebook(self, size)

    def score_frequencies(self, size: int) -> float:
        """Return the nats of a patch of the validation split, by the frequencies of codes in its cell."""
        centers, codes = self.fit_codebook(size), {}
        for split in ("train", "val"):
            patches = self.cut(split, SCORED_IMAGES)
            codes[split] = find_nearest(patches.reshape(-1, patches.shape[-1]), centers).reshape(len(patches), -1)
        cells = np.arange(codes["val"].shape[1])
        counts = np.ones((len(cells), size))
        for row in codes["train"]:
            counts[cells, row] += 1
        return -float(np.log(counts / counts.sum(1, keepdims=True))[cells, codes["val"]].mean())


@lru_cache(4)
def _fit_codebook(data: CaptionedImages, size: int) -> np.ndarray:
    patches = data.cut("train", CODEBOOK_IMAGES)
    return fit_codebook(patches.reshape(-1, patches.shape[-1]), size)
