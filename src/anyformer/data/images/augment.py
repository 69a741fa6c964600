"""Images changed so that their class stays: pure functions of an image and a random generator.

Shapes: an image is (H, W, C) uint8; B images (B, H, W, C) with labels (B,).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Random = np.random.Generator


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How training images are changed so that no image is ever quite the same."""

    flip: bool = False
    """Left and right are swapped every other time."""
    crop: int = 0
    """Shifts by up to so many pixels."""
    distort: int = 0
    """How many distortions are drawn for each image (RandAugment, 1909.13719)."""
    mix: float = 0.0
    """Alpha of mixup (1710.09412) and cutmix (1905.04899), one step each in turn; 0 for none."""

    def __post_init__(self) -> None:
        for name in ("crop", "distort", "mix"):
            if getattr(self, name) < 0:
                raise ValueError(f"augment.{name} is {getattr(self, name)}; it must be 0 or more")


def batch(how: Augment, images: np.ndarray, labels: np.ndarray, seed: int, step: int) -> dict[str, np.ndarray]:
    """A training batch, which depends on (seed, step) alone. images (B, H, W, C), labels (B,) -> "images", "label", and
    where images are mixed, "other" and "share" (see `Mixed`)."""
    rng = np.random.Generator(np.random.Philox(key=seed, counter=(0, 0, 1, step)))
    if how.flip or how.crop or how.distort:
        images = np.stack([varied(how, image, rng) for image in images])
    if not how.mix:
        return {"images": images, "label": labels}
    return vars((cutmix if step % 2 else mixup)(images, labels, rng, how.mix))


def varied(how: Augment, image: np.ndarray, rng: Random) -> np.ndarray:
    image = flip(image, rng) if how.flip else image
    image = crop(image, rng, how.crop) if how.crop else image
    return distort(image, rng, how.distort) if how.distort else image


def flip(image: np.ndarray, rng: Random) -> np.ndarray:
    """Left becomes right, every other time."""
    return image[:, ::-1] if rng.random() < 0.5 else image


def crop(image: np.ndarray, rng: Random, by: int) -> np.ndarray:
    """Shift by up to `by` pixels in either direction; what comes in from outside is black."""
    height, width = image.shape[:2]
    top, left = (int(n) for n in rng.integers(0, 2 * by + 1, 2))
    padded = np.pad(image, ((by, by), (by, by), (0, 0)))
    return padded[top : top + height, left : left + width]


# --- what a distortion may be: RandAugment (1909.13719), with the operations that need nothing but arrays ---


def brightness(image: np.ndarray, rng: Random) -> np.ndarray:
    return clipped(image * rng.uniform(0.6, 1.4))


def contrast(image: np.ndarray, rng: Random) -> np.ndarray:
    mean = image.mean()
    return clipped((image - mean) * rng.uniform(0.6, 1.4) + mean)


def colour(image: np.ndarray, rng: Random) -> np.ndarray:
    grey = image.mean(2, keepdims=True)
    return clipped((image - grey) * rng.uniform(0.4, 1.6) + grey)


def solarize(image: np.ndarray, rng: Random) -> np.ndarray:
    return np.where(image >= rng.integers(128, 256), 255 - image, image)


def posterize(image: np.ndarray, rng: Random) -> np.ndarray:
    return image & np.uint8(0xFF << int(rng.integers(1, 5)) & 0xFF)


def stretch(image: np.ndarray, rng: Random) -> np.ndarray:
    """The whole range of brightness is used (auto-contrast)."""
    low, high = int(image.min()), int(image.max())
    return image if high == low else clipped((image.astype(np.float32) - low) * (255 / (high - low)))


def warp(image: np.ndarray, rng: Random) -> np.ndarray:
    """A small turn, shear and change of size about the middle; each pixel is the nearest one of the old image."""
    turn, shear, zoom = rng.uniform(-0.4, 0.4), rng.uniform(-0.2, 0.2), rng.uniform(0.85, 1.15)
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    y, x = y - (height - 1) / 2, x - (width - 1) / 2
    across = (np.cos(turn) * x - np.sin(turn) * y + shear * y) / zoom
    down = (np.sin(turn) * x + np.cos(turn) * y) / zoom
    rows = np.clip(np.rint(down + (height - 1) / 2), 0, height - 1).astype(np.int64)
    columns = np.clip(np.rint(across + (width - 1) / 2), 0, width - 1).astype(np.int64)
    return image[rows, columns]


def erase(image: np.ndarray, rng: Random) -> np.ndarray:
    """A square of a quarter of the height becomes grey (cutout, 1708.04552)."""
    side = max(1, image.shape[0] // 4)
    top, left = (int(rng.integers(0, max(1, n - side + 1))) for n in image.shape[:2])
    changed = image.copy()
    changed[top : top + side, left : left + side] = 128
    return changed


DISTORTIONS: tuple[Callable[[np.ndarray, Random], np.ndarray], ...] = (
    brightness,
    contrast,
    colour,
    solarize,
    posterize,
    stretch,
    warp,
    erase,
)


def distort(image: np.ndarray, rng: Random, times: int) -> np.ndarray:
    """`times` distortions drawn at random, one after the other."""
    for i in rng.integers(0, len(DISTORTIONS), times):
        image = DISTORTIONS[int(i)](image, rng)
    return image


def clipped(image: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


# --- two images in one ---


@dataclass(frozen=True)
class Mixed:
    """images (B, H, W, C); image b is `share[b]` of class `label[b]`, the rest of class `other[b]`."""

    images: np.ndarray
    label: np.ndarray
    other: np.ndarray
    share: np.ndarray


def mixup(images: np.ndarray, labels: np.ndarray, rng: Random, alpha: float) -> Mixed:
    """Each image fades into the one before it (1710.09412), by a share drawn from Beta(alpha, alpha)."""
    share = rng.beta(alpha, alpha, len(images)).astype(np.float32)
    weight = share[:, None, None, None]
    faded = clipped(images * weight + np.roll(images, 1, axis=0) * (1 - weight))
    return Mixed(faded, labels, np.roll(labels, 1), share)


def cutmix(images: np.ndarray, labels: np.ndarray, rng: Random, alpha: float) -> Mixed:
    """A rectangle of each image is that of the one before it (1905.04899); the share is the area that stays."""
    changed, others = images.copy(), np.roll(images, 1, axis=0)
    height, width = images.shape[1:3]
    share = np.empty(len(images), np.float32)
    for i, cut in enumerate(np.sqrt(1 - rng.beta(alpha, alpha, len(images)))):
        high, wide = round(height * cut), round(width * cut)
        top, left = int(rng.integers(0, height - high + 1)), int(rng.integers(0, width - wide + 1))
        changed[i, top : top + high, left : left + wide] = others[i, top : top + high, left : left + wide]
        share[i] = 1 - high * wide / (height * width)
    return Mixed(changed, labels, np.roll(labels, 1), share)
