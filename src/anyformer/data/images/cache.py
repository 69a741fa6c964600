"""Images at the size that a model takes, decoded once into the disk cache under a hash of everything they depend on.

    cache/images/HASH/pixels.bin     (N, H, W, C) uint8
    cache/images/HASH/meta.json      shape, and the indices of the images that could not be read

The pixels are memory-mapped, so that a set larger than memory can be trained on.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ...events import report_progress
from ..io.cache import build_cached, cache_by_files, cache_dir, data_files
from ..sampling import select_split
from .read import ImageSource, Resample, open_images, resize_image

FORMAT_VERSION = 1  # to be raised when the stored content changes


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Images of one size with labels."""

    pixels: np.ndarray  # (N, H, W, C) uint8
    labels: np.ndarray  # (N,) int64, indices of `classes`
    classes: tuple[str, ...]
    splits: dict[str, np.ndarray]  # the indices of "train", "val" and "all"
    sha256: str  # of the content, whatever the size
    skipped: int = 0  # images that could not be read, which are in no split

    def split(self, name: str) -> np.ndarray:
        """Return the indices of "train", "val" or "all"."""
        return select_split(name, self.splits)


@cache_by_files(lambda data, *_, **__: data_files(data))
def load_images(
    data: str,
    height: int,
    width: int,
    channels: int,
    resample: Resample = "bilinear",
    val_fraction: float = 0.1,
    skip_unreadable: bool = False,
) -> ImageDataset:
    """Load the images of a path or of a named set. Raises InputError.

    The data's own validation (or test) split is kept; without one, a fixed random `val_fraction` of the images is used.
    """
    if not 0 < val_fraction < 1:
        raise InputError(f"a validation fraction of {val_fraction}: it must be above 0 and below 1")
    source = open_images(data)
    content = source.sha256()
    shape = (len(source), height, width, channels)
    key = f"{FORMAT_VERSION} {content} {shape} {resample} {skip_unreadable}"
    folder = cache_dir() / "images" / hashlib.sha256(key.encode()).hexdigest()

    def write(new: Path) -> dict[str, Any]:
        return {"shape": shape, "unreadable": decode_images(new, source, shape, resample, skip_unreadable)}

    unreadable = build_cached(folder, "meta.json", write)["unreadable"]
    pixels = np.memmap(folder / "pixels.bin", np.uint8, mode="r", shape=shape)
    splits = split_indices(source, np.setdiff1d(np.arange(len(source)), unreadable), val_fraction)
    for name, indices in splits.items():
        if not len(indices):
            raise InputError(f"data '{data}': of {len(source):,} images none is left for the {name} split")
    return ImageDataset(pixels, source.labels, source.classes, splits, content, len(unreadable))


def split_indices(source: ImageSource, usable: np.ndarray, val_fraction: float) -> dict[str, np.ndarray]:
    """Return the indices of each split; "val" is in a fixed random order, because data often come class by class, and
    an evaluation during training reads only its first batches."""
    order = np.random.Generator(np.random.Philox(key=0)).permutation(usable)
    if source.is_val is not None:
        is_val = source.is_val[order]
        return {"train": np.sort(order[~is_val]), "val": order[is_val], "all": usable}
    n_val = max(1, round(len(usable) * val_fraction)) if len(usable) else 0
    return {"train": np.sort(order[n_val:]), "val": order[:n_val], "all": usable}


def decode_images(
    folder: Path, source: ImageSource, shape: tuple[int, ...], resample: Resample, skip_unreadable: bool
) -> list[int]:
    """Write the pixels of all images into one file. Returns the indices of the unreadable ones."""
    unreadable: list[int] = []
    height, width, channels = shape[1:]
    with open(folder / "pixels.bin", "wb") as file:
        for i in range(len(source)):
            try:
                pixels = resize_image(source.read(i), height, width, channels, resample)
            except InputError as error:
                if not skip_unreadable:
                    raise InputError(f"{error}; to leave such images out: --skip-unreadable") from None
                unreadable.append(i)
                pixels = np.zeros(shape[1:], np.uint8)
            file.write(np.ascontiguousarray(pixels).data)
            if i % 64 == 0 or i + 1 == len(source):
                report_progress("decoding images", i + 1, len(source))
    return unreadable


def channel_statistics(dataset: ImageDataset, max_images: int = 10_000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure mean and deviation (1 for a constant) of each channel, from 0 to 1, over at most `max_images` training
    images, evenly spaced."""
    train = dataset.split("train")
    indices = train[:: math.ceil(len(train) / max_images)]
    total, square, count = 0.0, 0.0, 0
    for start in range(0, len(indices), 256):
        x = dataset.pixels[indices[start : start + 256]].astype(np.float64) / 255
        total, square = total + x.sum((0, 1, 2)), square + (x * x).sum((0, 1, 2))
        count += x[..., 0].size
    mean = np.asarray(total) / count
    std = np.sqrt(np.maximum(np.asarray(square) / count - mean**2, 0))
    return tuple(round(float(m), 6) for m in mean), tuple(round(float(s), 6) or 1.0 for s in std)
