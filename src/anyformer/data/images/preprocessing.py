"""What a model of images must know besides its weights: what its classes are called, and how pixels become numbers.

Both are small JSON texts kept beside the weights, labels.json and looks.json. A value is given as the path of such a
file or as the JSON itself.
"""

import base64
import binascii
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, nearest
from .cache import Album, moments
from .decode import RESAMPLE, Resample

LARGEST = 16 << 20  # bytes of such a file
ROOM = 64 << 10  # bytes of the images kept to show
SHOWN = 8


@dataclass(frozen=True)
class Looks:
    """Pixels p of 0 to 255 become (p * scale - mean) / std, by channel, after a resampling to the model's size."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1 / 255
    resample: Resample = "bilinear"
    examples: tuple[dict[str, str], ...] = ()
    """Images to show what the model does: {"label": what it is, "pixels": (H, W, C) uint8 in base64}."""

    def json(self) -> str:
        return json.dumps(asdict(self))

    def images(self, shape: tuple[int, int, int]) -> list[np.ndarray]:
        """The pixels of the examples, (H, W, C) each. Raises InputError."""
        try:
            raw = [base64.b64decode(example["pixels"], validate=True) for example in self.examples]
            return [np.frombuffer(pixels, np.uint8).reshape(shape) for pixels in raw]
        except (binascii.Error, ValueError, KeyError, TypeError):
            raise InputError(f"looks.json: an example is not an image of {shape}: take its examples out") from None


def flat(value: float, channels: int) -> Looks:
    """The same mean and deviation for all channels."""
    return Looks((value,) * channels, (value,) * channels)


def measured(found: Album) -> Looks:
    mean, std = moments(found)
    return Looks(tuple(mean), tuple(std))


def examples(found: Album) -> tuple[dict[str, str], ...]:
    """A few images of the validation part, as many as have room; one of each class first, where that is possible."""
    val, size = found.split("val"), math.prod(found.pixels.shape[1:])
    labels = found.labels[val]
    first = [int(val[np.flatnonzero(labels == c)[0]]) for c in np.unique(labels)]
    chosen = (first + [int(i) for i in val if int(i) not in set(first)])[: min(SHOWN, ROOM // size)]
    text = {i: base64.b64encode(found.pixels[i].tobytes()).decode() for i in chosen}
    return tuple({"label": found.classes[found.labels[i]], "pixels": text[i]} for i in chosen)


def read_looks(given: str, channels: int) -> Looks:
    """A looks.json, or the JSON itself. Raises InputError."""
    values = read(given, "looks", dict)
    known = {"mean", "std", "scale", "resample", "examples"}
    if strange := sorted(values.keys() - known):
        raise InputError(f"looks: unknown field '{strange[0]}': {nearest(strange[0], sorted(known))}")
    for name in ("mean", "std"):
        row = values.get(name)
        if not isinstance(row, list) or len(row) != channels or not all(number(x) for x in row):
            raise InputError(f"looks: {name} is {row!r}; it must be {channels} numbers, one a channel")
    scale, resample = values.get("scale", 1 / 255), values.get("resample", "bilinear")
    if not number(scale) or scale <= 0 or min(values["std"]) <= 0:
        raise InputError(f"looks: scale is {scale!r} and std {values['std']}; they must be above 0")
    if resample not in RESAMPLE:
        raise InputError(f"looks: resample is {resample!r}: {nearest(str(resample), RESAMPLE)}")
    shown = values.get("examples", [])
    if not isinstance(shown, list) or not all(isinstance(one, dict) for one in shown):
        raise InputError("looks: examples must be a list of objects with label and pixels")
    return Looks(tuple(values["mean"]), tuple(values["std"]), float(scale), resample, tuple(shown))


def number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)


def read_labels(given: str) -> tuple[str, ...]:
    """A labels.json, or the JSON itself: a list of names. Raises InputError."""
    names = read(given, "labels", list)
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError("labels: expected a list of names, one for each class")
    return tuple(names)


def read(given: str, what: str, kind: type) -> Any:
    try:
        if given.lstrip().startswith(("{", "[")):
            found = json.loads(given)
        else:
            path = Path(given)
            if path.stat().st_size > LARGEST:
                raise InputError(f"{path} is larger than {LARGEST >> 20} MiB, which no such file is")
            found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{what} '{given}' cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{what} '{given[:60]}' cannot be read as JSON: {error}") from None
    if not isinstance(found, kind):
        raise InputError(f"{what} '{given[:60]}' should hold {'an object' if kind is dict else 'a list'}")
    return found
