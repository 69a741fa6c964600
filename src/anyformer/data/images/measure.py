"""What size and color a model should read images in, from the images themselves."""

from typing import NamedTuple

import numpy as np

from ...errors import InputError
from .read import ImageSource

MAX_IMAGES, MAX_PIXELS = 300, 100 << 20  # that are looked at
MAX_SIDE = 64  # of the longer side: larger images make more patches than minutes on a CPU allow
PATCHES = {12: 2, 32: 4, MAX_SIDE: 8}  # longer side up to -> side of a patch


class ImageFormat(NamedTuple):
    """Size, color and patch of the input of a model, and the median size of the images."""

    height: int
    width: int
    channels: int
    patch: int
    median: tuple[int, int]


def choose_format(source: ImageSource) -> ImageFormat | None:
    """Look at a few hundred images, drawn at random; None if none of them can be read."""
    sizes, is_gray, n_pixels = [], True, 0
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(source))
    for i in order[:MAX_IMAGES]:
        try:
            pixels = source.read(int(i))
        except InputError:
            continue  # is reported when the images are decoded
        sizes.append(pixels.shape[:2])
        is_gray = is_gray and (pixels.ndim == 2 or bool((pixels == pixels[..., :1]).all()))
        n_pixels += sizes[-1][0] * sizes[-1][1]
        if n_pixels > MAX_PIXELS:
            break
    if not sizes:
        return None
    height, width = (int(value) for value in np.median(np.array(sizes), axis=0))
    scale = min(1.0, MAX_SIDE / max(height, width))
    patch = next(side for limit, side in PATCHES.items() if max(height, width) * scale <= limit)
    rows, columns = (max(patch, round(side * scale / patch) * patch) for side in (height, width))
    return ImageFormat(rows, columns, 1 if is_gray else 3, patch, (height, width))
