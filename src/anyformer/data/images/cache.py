"""Images at the size that a model takes, decoded once into the disk cache under a hash of everything they depend on.

    cache/images/HASH/pixels.bin     (N, H, W, C) uint8
    cache/images/HASH/meta.json      the indices of the images that could not be read

The pixels are memory-mapped, so that a set larger than memory can be trained on.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import InputError
from ...events import report_progress
from ..io.cache import build_cached, cache_by_files, cache_dir, data_files
from ..sampling import select_split, stratify
from ..unusable import DuplicatePolicy, EmptyPolicy
from .read import COLUMNS, ImageSource, Resample, open_images, resize_image

FORMAT_VERSION = 1  # to be raised when the stored content changes
FEW_VALIDATION = 10  # images for validation of each class, in the mean


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Images of one size with labels."""

    pixels: np.ndarray  # (N, H, W, C) uint8
    labels: np.ndarray  # (N,) int64, indices of `classes`
    classes: tuple[str, ...]
    splits: dict[str, np.ndarray]  # the indices of "train", "val" and "all"
    sha256: str  # of the content, whatever the size, and of the rule that splits it
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
    columns: str = COLUMNS,
    empty: EmptyPolicy = "few",
    duplicates: DuplicatePolicy = "keep",
    crop: bool = False,
) -> ImageDataset:
    """Load the images of a path or of a named set; `val_fraction` is for data without a split; `columns`, `empty`
    and `duplicates` are those of `open_images`, `crop` is that of `resize_image`. Raises InputError."""
    source = open_images(data, columns, empty, duplicates)
    content, shape = source.sha256(), (len(source), height, width, channels)
    key = f"{FORMAT_VERSION} {content} {shape} {resample} {skip_unreadable}" + " crop" * crop
    folder = cache_dir() / "images" / hashlib.sha256(key.encode()).hexdigest()
    meta = build_cached(
        folder, "meta.json", lambda new: decode_images(new, source, shape[1:], resample, skip_unreadable, crop)
    )
    pixels = np.memmap(folder / "pixels.bin", np.uint8, mode="r", shape=shape)
    usable = np.setdiff1d(np.arange(len(source)), meta["unreadable"])
    # Data often come class by class, and an evaluation during training reads only the first batches of "val".
    order = np.random.Generator(np.random.Philox(key=0)).permutation(usable)
    n_val = max(1, round(len(usable) * val_fraction))
    if source.is_val is not None:
        is_val = source.is_val[order]
    elif n_val < FEW_VALIDATION * len(source.classes):  # too few for a random sample to hold all classes alike
        n_classes = len(np.unique(source.labels[order]))
        is_val = stratify(source.labels[order], max(n_val, min(n_classes, len(order) // 5)))  # one of each, or a fifth
        content = hashlib.sha256(f"{content} stratified".encode()).hexdigest()
    else:
        is_val = np.arange(len(order)) < n_val
    splits = {"train": np.sort(order[~is_val]), "val": order[is_val], "all": usable}
    for name, indices in splits.items():
        if not len(indices):
            raise InputError(f"data '{data}': of {len(source):,} images none is left for the {name} split")
    return ImageDataset(pixels, source.labels, source.classes, splits, content, len(meta["unreadable"]))


def decode_images(
    folder: Path,
    source: ImageSource,
    shape: tuple[int, int, int],
    resample: Resample,
    skip_unreadable: bool,
    crop: bool = False,
) -> dict[str, list[int]]:
    """Write the pixels of all images into one file. Returns what meta.json holds."""
    unreadable: list[int] = []
    with open(folder / "pixels.bin", "wb") as file:
        for i in range(len(source)):
            try:
                pixels = resize_image(source.read(i), *shape, resample, crop)
            except InputError as error:
                if not skip_unreadable:
                    raise InputError(f"{error}; to leave such images out: --skip-unreadable") from None
                unreadable.append(i)
                pixels = np.zeros(shape, np.uint8)
            file.write(np.ascontiguousarray(pixels).data)
            if i % 64 == 0 or i + 1 == len(source):
                report_progress("decoding images", i + 1, len(source))
    return {"unreadable": unreadable}
