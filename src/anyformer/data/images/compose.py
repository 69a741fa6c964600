"""Composed pictures: an image made darker or brighter, or smaller in a corner, and a caption that says so.

Some combinations of class, brightness and place are held out of training, so that a model can be asked for what it has
never seen together. Pure functions of the images and of a random generator.

Shapes: an image is (H, W, C) uint8; a composition is (brightness, place), indices of BRIGHTNESSES and PLACES.
"""

import numpy as np

from .augment import to_uint8

BRIGHTNESSES = ("", "dark", "bright")
PLACES = ("", "top left", "top right", "bottom left", "bottom right")
BACKGROUND = 8  # pixels up to this value are not part of what is shown
DARK_MEAN, BRIGHT_MEAN = 55.0, 190.0  # of the other pixels
SMALL = 0.7  # of the sides of an image in a corner


def compose_caption(caption: str, brightness: int, place: int) -> str:
    text = f"{BRIGHTNESSES[brightness]} {caption}".strip()
    return f"{text}, {PLACES[place]}" if place else text


def find_held_out(labels: np.ndarray, compositions: np.ndarray) -> np.ndarray:
    """Return which combinations are held out of training, (N,) bool: a quarter of those that name both a brightness and
    a place. A class is seen in every brightness and in every place."""
    brightness, place = compositions.T
    return (brightness > 0) & (place > 0) & ((labels + 2 * brightness + place) % 4 == 0)


def draw_compositions(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a composition for each image, none that is held out: labels (N,) -> (N, 2)"""
    sizes = (len(BRIGHTNESSES), len(PLACES))
    compositions = rng.integers(0, sizes, (len(labels), 2))
    while (is_out := find_held_out(labels, compositions)).any():
        compositions[is_out] = rng.integers(0, sizes, (int(is_out.sum()), 2))
    return compositions


def compose_image(image: np.ndarray, brightness: int, place: int, patch: int) -> np.ndarray:
    """Change the brightness of an image, and put it in a corner, in whole patches."""
    return put_in_corner(change_brightness(image, brightness), place, patch)


def change_brightness(image: np.ndarray, brightness: int) -> np.ndarray:
    """Bring the mean of what is shown to that of a dark picture, by a factor, or of a bright one, by a power."""
    shown = image[image > BACKGROUND]
    if not brightness or not len(shown):
        return image
    mean = float(shown.mean())
    if BRIGHTNESSES[brightness] == "dark":
        return to_uint8(image * min(1.0, DARK_MEAN / mean))
    power = min(1.0, np.log(BRIGHT_MEAN / 255) / np.log(min(mean, 254.0) / 255))
    return to_uint8(255 * (image / 255) ** power)


def put_in_corner(image: np.ndarray, place: int, patch: int) -> np.ndarray:
    """Shrink an image and put it in a corner; the remainder is black."""
    if not place:
        return image
    (H, W), canvas = image.shape[:2], np.zeros_like(image)
    height, width = (max(patch, round(side * SMALL / patch) * patch) for side in (H, W))
    top = 0 if PLACES[place].startswith("top") else H - height
    left = 0 if PLACES[place].endswith("left") else W - width
    weights = share_pixels(H, height), share_pixels(W, width)
    small = np.einsum("ih,hwc,jw->ijc", weights[0], image.astype(np.float32), weights[1], optimize=True)
    canvas[top : top + height, left : left + width] = to_uint8(small)
    return canvas


def share_pixels(size: int, smaller: int) -> np.ndarray:
    """Return the share of each pixel in the mean that each of fewer pixels is: (smaller, size)"""
    edges, pixels = np.arange(smaller + 1)[:, None] * size / smaller, np.arange(size)[None]
    overlap = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return (overlap.clip(0) * smaller / size).astype(np.float32)
