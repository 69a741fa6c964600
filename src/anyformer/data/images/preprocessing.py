"""What a model of images needs besides its weights: the names of its classes, and how pixels become its input.

Both are small JSON files beside the weights, labels.json and preprocessing.json. The functions that load them take the
path of such a file, or its content.
"""

import base64
import binascii
import json
import math
from dataclasses import asdict, dataclass

import numpy as np

from ...errors import InputError, suggest
from ..io.checks import is_finite_number, load_json
from .cache import ImageDataset, channel_statistics
from .read import RESAMPLE_FILTERS, Resample

MAX_FILE_BYTES = 16 << 20
MAX_EXAMPLES, MAX_EXAMPLE_BYTES = 8, 64 << 10  # images kept in preprocessing.json, and bytes of all of them


@dataclass(frozen=True)
class ImagePreprocessor:
    """Resamples images to the model's size, then maps pixels p from 0 to 255 to (p * scale - mean) / std, by channel.

    Attributes:
        examples: images to demonstrate the model on: {"label": class name, "pixels": (H, W, C) uint8 in base64}.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1 / 255
    resample: Resample = "bilinear"
    examples: tuple[dict[str, str], ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def decode_examples(self, shape: tuple[int, int, int]) -> list[np.ndarray]:
        """Return the pixels of the examples, (H, W, C) each. Raises InputError where they are not of this shape."""
        try:
            raw = [base64.b64decode(example["pixels"], validate=True) for example in self.examples]
            return [np.frombuffer(pixels, np.uint8).reshape(shape) for pixels in raw]
        except (binascii.Error, ValueError, KeyError, TypeError):
            raise InputError(f"preprocessing: an example is not an image of {shape}: remove the examples") from None


def uniform_preprocessor(value: float, channels: int) -> ImagePreprocessor:
    """Build a preprocessor with this mean and deviation for every channel."""
    return ImagePreprocessor((value,) * channels, (value,) * channels)


def fit_preprocessor(dataset: ImageDataset) -> ImagePreprocessor:
    """Build a preprocessor with the mean and deviation of the training images."""
    return ImagePreprocessor(*channel_statistics(dataset))


def select_examples(dataset: ImageDataset) -> tuple[dict[str, str], ...]:
    """Pick a few validation images, first one of each class, within the limits of number and size."""
    val, size = dataset.split("val"), math.prod(dataset.pixels.shape[1:])
    labels = dataset.labels[val]
    firsts = [int(val[np.flatnonzero(labels == c)[0]]) for c in np.unique(labels)]
    indices = firsts + [int(i) for i in val if int(i) not in set(firsts)]
    return tuple(
        {
            "label": dataset.classes[dataset.labels[i]],
            "pixels": base64.b64encode(dataset.pixels[i].tobytes()).decode(),
        }
        for i in indices[: min(MAX_EXAMPLES, MAX_EXAMPLE_BYTES // size)]
    )


def load_preprocessor(text: str, channels: int) -> ImagePreprocessor:
    """Load a preprocessing.json: its path, or its content. Raises InputError."""
    values = load_json(text, "preprocessing", MAX_FILE_BYTES)
    fields = ("mean", "std", "scale", "resample", "examples")
    if unknown := sorted(values.keys() - set(fields)):
        raise InputError(f"preprocessing: unknown field '{unknown[0]}': {suggest(unknown[0], fields)}")
    for name in ("mean", "std"):
        row = values.get(name)
        if not isinstance(row, list) or len(row) != channels or not all(map(is_finite_number, row)):
            raise InputError(f"preprocessing: {name} is {row!r}; it must be {channels} numbers, one per channel")
    scale, resample = values.get("scale", 1 / 255), values.get("resample", "bilinear")
    if not is_finite_number(scale) or scale <= 0 or min(values["std"]) <= 0:
        raise InputError(f"preprocessing: scale is {scale!r} and std {values['std']}; they must be above 0")
    if resample not in RESAMPLE_FILTERS:
        raise InputError(f"preprocessing: resample is {resample!r}: {suggest(str(resample), RESAMPLE_FILTERS)}")
    examples = values.get("examples", [])
    if not isinstance(examples, list) or not all(isinstance(example, dict) for example in examples):
        raise InputError("preprocessing: examples must be a list of objects with label and pixels")
    return ImagePreprocessor(tuple(values["mean"]), tuple(values["std"]), float(scale), resample, tuple(examples))


def load_class_names(text: str) -> tuple[str, ...]:
    """Load a labels.json, a list of class names: its path, or its content. Raises InputError."""
    names = load_json(text, "labels", MAX_FILE_BYTES, list)
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError("labels: expected a list of names, one for each class")
    return tuple(names)
