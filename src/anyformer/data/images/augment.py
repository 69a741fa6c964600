"""Random changes of training images that keep their class: pure functions of an image and a random generator.

Shapes: an image is (H, W, C) uint8; B images are (B, H, W, C) with labels (B,).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...parsing import check_range, check_types

Random = np.random.Generator


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes of every training image."""

    flip: bool = False
    """Mirror every other image."""
    crop: int = 0
    """Shift by up to this many pixels."""
    distort: int = 0
    """Number of distortions of each image (RandAugment, 1909.13719)."""
    mix: float = 0.0
    """Alpha of mixup (1710.09412) and cutmix (1905.04899), which take turns step by step; 0 for neither."""

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "crop", at_least=0, at_most=1 << 14)
        check_range(self, "distort", at_least=0, at_most=100)
        check_range(self, "mix", at_least=0, at_most=1000)


def augment_batch(
    augment: Augment, images: np.ndarray, labels: np.ndarray, seed: int, step: int
) -> dict[str, np.ndarray]:
    """Augment a training batch; the result depends on (seed, step) and the images alone.

    Returns "images" (B, H, W, C) and "labels" (B,); and where images are mixed "mixed_labels" and "mix_share", (B,):
    image b is `mix_share[b]` of class `labels[b]` and the remainder of class `mixed_labels[b]`.
    """
    rng = np.random.Generator(np.random.Philox(key=seed, counter=(0, 0, 1, step)))
    if augment.flip or augment.crop or augment.distort:
        images = np.stack([augment_image(augment, image, rng) for image in images])
    if not augment.mix:
        return {"images": images, "labels": labels}
    images, share = (cutmix if step % 2 else mixup)(images, rng, augment.mix)
    return {"images": images, "labels": labels, "mixed_labels": np.roll(labels, 1), "mix_share": share}


def augment_image(augment: Augment, image: np.ndarray, rng: Random) -> np.ndarray:
    if augment.flip and rng.random() < 0.5:
        image = image[:, ::-1]
    if augment.crop:
        image = random_crop(image, rng, augment.crop)
    if augment.distort:
        for i in rng.integers(0, len(DISTORTIONS), augment.distort):
            image = list(DISTORTIONS.values())[i](image, rng)
    return image


def random_crop(image: np.ndarray, rng: Random, padding: int) -> np.ndarray:
    """Shift by up to `padding` pixels in either direction; what comes in is black."""
    shifts = (rng.integers(0, 2 * padding + 1, 2) - padding).tolist()
    targets, sources = zip(*(shift_slices(by, size) for by, size in zip(shifts, image.shape)))
    shifted = np.zeros_like(image)
    shifted[targets] = image[sources]
    return shifted


def shift_slices(by: int, size: int) -> tuple[slice, slice]:
    """Return where the pixels of an axis go, and which these are, when pixel `by` becomes the first."""
    by = max(-size, min(by, size))
    return slice(max(0, -by), size - max(0, by)), slice(max(0, by), size - max(0, -by))


# --- the distortions of RandAugment (1909.13719) that need nothing but arrays ---


def scale_contrast(image: np.ndarray, reference: np.ndarray | float, factor: float) -> np.ndarray:
    """Scale the difference of an image to a reference."""
    return to_uint8((image - reference) * factor + reference)


def autocontrast(image: np.ndarray, rng: Random) -> np.ndarray:
    low, high = int(image.min()), int(image.max())
    return image if high == low else to_uint8((image.astype(np.float32) - low) * (255 / (high - low)))


def affine(image: np.ndarray, rng: Random) -> np.ndarray:
    """Rotate, shear and scale a little about the center, with nearest-neighbor sampling."""
    angle, shear, zoom = rng.uniform(-0.4, 0.4), rng.uniform(-0.2, 0.2), rng.uniform(0.85, 1.15)
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    y, x = y - (height - 1) / 2, x - (width - 1) / 2
    source_x = (np.cos(angle) * x - np.sin(angle) * y + shear * y) / zoom
    source_y = (np.sin(angle) * x + np.cos(angle) * y) / zoom
    rows = np.clip(np.rint(source_y + (height - 1) / 2), 0, height - 1).astype(np.int64)
    columns = np.clip(np.rint(source_x + (width - 1) / 2), 0, width - 1).astype(np.int64)
    return image[rows, columns]


def cutout(image: np.ndarray, rng: Random) -> np.ndarray:
    """Gray out a square of a quarter of the height (1708.04552)."""
    size = max(1, image.shape[0] // 4)
    top, left = (rng.integers(0, max(1, n - size + 1)) for n in image.shape[:2])
    changed = image.copy()
    changed[top : top + size, left : left + size] = 128
    return changed


DISTORTIONS: dict[str, Callable[[np.ndarray, Random], np.ndarray]] = {
    "brightness": lambda image, rng: scale_contrast(image, 0.0, rng.uniform(0.6, 1.4)),
    "contrast": lambda image, rng: scale_contrast(image, image.mean(), rng.uniform(0.6, 1.4)),
    "saturation": lambda image, rng: scale_contrast(image, image.mean(2, keepdims=True), rng.uniform(0.4, 1.6)),
    "solarize": lambda image, rng: np.where(image >= rng.integers(128, 256), 255 - image, image),
    "posterize": lambda image, rng: image & np.uint8(0xFF << int(rng.integers(1, 5)) & 0xFF),
    "autocontrast": autocontrast,
    "affine": affine,
    "cutout": cutout,
}


def to_uint8(image: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


# --- two images in one: each is mixed with the one before it in the batch ---


def mixup(images: np.ndarray, rng: Random, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Blend pairs of images (1710.09412). Returns the images and the share of each that is its own, (B,)."""
    share = rng.beta(alpha, alpha, len(images)).astype(np.float32)
    weight = share[:, None, None, None]
    return to_uint8(images * weight + np.roll(images, 1, axis=0) * (1 - weight)), share


def cutmix(images: np.ndarray, rng: Random, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Paste a rectangle of the other image (1905.04899). Returns the images and the share that is their own, (B,)."""
    changed, others = images.copy(), np.roll(images, 1, axis=0)
    height, width = images.shape[1:3]
    share = np.empty(len(images), np.float32)
    for i, side in enumerate(np.sqrt(1 - rng.beta(alpha, alpha, len(images)))):
        rows, columns = round(height * side), round(width * side)
        top, left = rng.integers(0, height - rows + 1), rng.integers(0, width - columns + 1)
        changed[i, top : top + rows, left : left + columns] = others[i, top : top + rows, left : left + columns]
        share[i] = 1 - rows * columns / (height * width)
    return changed, share
