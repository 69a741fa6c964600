"""What a model of images needs besides its weights: the names of its classes, and how pixels become its input.

They are stored beside the weights as labels.json and preprocessing.json; each is loaded from its path or its content.
"""

import base64
import json
import math
from dataclasses import asdict, dataclass

import numpy as np

from ...errors import InputError
from ...parsing import check_range, parse_dataclass
from ..io.checks import load_json
from .cache import ImageDataset
from .read import Resample, resize_image

MAX_FILE_BYTES = 16 << 20
MAX_EXAMPLES, MAX_EXAMPLE_BYTES = 8, 64 << 10  # images kept in preprocessing.json, and bytes of all of them


@dataclass(frozen=True)
class ImagePreprocessor:
    """Resamples images to the model's size, then maps pixels p of 0 to 255 to (p * scale - mean) / std, by channel."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    scale: float = 1 / 255
    resample: Resample = "bilinear"
    crop: bool = False
    """Keep the proportions of an image, and cut off what is too much on both sides, instead of stretching it (CLIP)."""
    examples: tuple[dict[str, str], ...] = ()
    """Images to demonstrate the model on: {"label": class name, "pixels": (H, W, C) uint8 in base64}."""

    def __post_init__(self) -> None:
        check_range(self, "scale", above=0)
        if min(self.std, default=1) <= 0:
            raise InputError(f"std is {self.std}; it must be above 0")

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def resize(self, image: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
        """Bring an image, (H, W) or (H, W, 1 or 3) uint8, to the size of a model: (height, width, channels)."""
        return resize_image(image, *size, self.resample, self.crop)

    def decode_examples(self, shape: tuple[int, int, int]) -> list[np.ndarray]:
        """Return the pixels of the examples, (H, W, C) each. Raises InputError where they are not of this shape."""
        try:
            raw = [base64.b64decode(example["pixels"], validate=True) for example in self.examples]
            return [np.frombuffer(pixels, np.uint8).reshape(shape) for pixels in raw]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"preprocessing: an example is not an image of {shape}: remove the examples") from None


def uniform_preprocessor(value: float, channels: int) -> ImagePreprocessor:
    """Build a preprocessor with this mean and deviation for every channel."""
    return ImagePreprocessor((value,) * channels, (value,) * channels)


def fit_preprocessor(dataset: ImageDataset) -> ImagePreprocessor:
    """Build a preprocessor with the mean and deviation (1 for a constant) of the channels of 10,000 training images."""
    train = dataset.split("train")
    indices = train[:: math.ceil(len(train) / 10_000)]  # evenly spaced
    total, square, count = 0.0, 0.0, 0
    for start in range(0, len(indices), 256):
        x = dataset.pixels[indices[start : start + 256]].astype(np.float64) / 255
        total, square = total + x.sum((0, 1, 2)), square + (x * x).sum((0, 1, 2))
        count += x[..., 0].size
    mean = np.asarray(total) / count
    std = np.sqrt(np.maximum(np.asarray(square) / count - mean**2, 0))
    return ImagePreprocessor(tuple(round(float(m), 6) for m in mean), tuple(round(float(s), 6) or 1.0 for s in std))


def select_examples(dataset: ImageDataset) -> tuple[dict[str, str], ...]:
    """Pick a few validation images, first one of each class, within the limits of number and size."""
    val = dataset.split("val")
    _, firsts = np.unique(dataset.labels[val], return_index=True)
    count = min(MAX_EXAMPLES, MAX_EXAMPLE_BYTES // math.prod(dataset.pixels.shape[1:]))
    indices = [*val[firsts], *np.delete(val, firsts)][:count]
    pixels = [base64.b64encode(dataset.pixels[i].tobytes()).decode() for i in indices]
    return tuple({"label": dataset.classes[dataset.labels[i]], "pixels": text} for i, text in zip(indices, pixels))


def load_preprocessor(text: str, channels: int) -> ImagePreprocessor:
    """Load a preprocessing.json. Raises InputError."""
    values = load_json(text, "preprocessing", MAX_FILE_BYTES)
    preprocessor = parse_dataclass(ImagePreprocessor, values, "preprocessing")
    if not len(preprocessor.mean) == len(preprocessor.std) == channels:
        raise InputError(f"preprocessing: mean and std must be {channels} numbers each, one per channel")
    return preprocessor


def load_class_names(text: str) -> tuple[str, ...]:
    """Load a labels.json, a list of class names. Raises InputError."""
    names = load_json(text, "labels", MAX_FILE_BYTES, list)
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError("labels: expected a list of names, one for each class")
    return tuple(names)
