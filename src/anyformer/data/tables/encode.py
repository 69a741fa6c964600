"""A value of a row to numbers, as its field keeps them: the same in training and in use.

Shapes are the field's own (`Field.shape`); which of its nodes are there is a second array, (nodes,) bool.
"""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, nearest
from ..audio import features as audio
from ..images.decode import fitted, from_file
from ..tokenizers.build import Tokenizer, of_files
from .read import missing
from .schema import Field, Target

Encoded = tuple[np.ndarray, np.ndarray]
FEW = 8  # names that a message lists


class DamageError(InputError):
    """A value that is there and damaged: it may be left out on request."""


def nothing(field: Field) -> Encoded:
    """A field that a row lacks."""
    return np.zeros(field.shape, field.dtype), np.zeros(field.nodes, bool)


def encode(field: Field, value: Any, where: str, folder: Path = Path(), lenient: bool = False) -> Encoded:
    """The numbers of a value, and which of the field's nodes are there.

    Raises DamageError for what is damaged (numbers that are not finite, a file that cannot be read), other InputErrors
    for what does not belong here. lenient: readings that are not finite are let through, as NaN.
    """
    if missing(value):
        return nothing(field)
    try:
        return READERS[field.kind](field, value, folder, lenient)
    except InputError as error:
        raise type(error)(f"{where}, {field.name}: {error}") from None


def category(field: Field, value: Any, folder: Path, lenient: bool) -> Encoded:
    return np.array([index(value, field.values)]), np.ones(1, bool)


def index(value: Any, values: tuple[str, ...]) -> int:
    """Which of these a value is. Raises InputError."""
    name = named(value)
    if name not in values:
        near = nearest(name, values) if len(values) <= FEW else nearest(name, values).split("valid:")[0]
        raise InputError(f"'{name}' was not seen in training: {near}" + ("" if len(values) <= FEW else f"{values[:3]}"))
    return values.index(name)


def named(value: Any) -> str:
    return str(value).strip()


def scalar(field: Field, value: Any, folder: Path, lenient: bool) -> Encoded:
    return real(np.array([numeric(value)], np.float32)), np.ones(1, bool)


def vector(field: Field, value: Any, folder: Path, lenient: bool) -> Encoded:
    found = numbers(value, folder)
    if found.shape != (field.size,):
        raise InputError(f"numbers of shape {found.shape}; the schema says {field.size} of them")
    return real(found), np.ones(1, bool)


def series(field: Field, value: Any, folder: Path, lenient: bool) -> Encoded:
    found = numbers(value, folder)
    found = found[:, None] if found.ndim == 1 else found
    if found.ndim != 2 or found.shape[1] != field.channels or not len(found):
        raise InputError(f"readings of shape {found.shape}; the schema says {field.channels} channels a reading")
    if len(found) > field.length and not field.cut:
        longest = f"{field.seconds:g} seconds at {field.rate:g} a second are {field.length}"
        raise InputError(f"{len(found)} readings, and {longest}: raise seconds in the schema, or cut = true")
    if not lenient:
        real(found)
    kept = np.full(field.shape, np.nan, np.float32)
    kept[: min(len(found), field.length)] = found[: field.length]
    kept[~np.isfinite(kept)] = np.nan
    return kept, np.isfinite(kept).reshape(field.nodes, -1).sum(1) > 0


def words(field: Field, value: Any, folder: Path, lenient: bool) -> Encoded:
    if not isinstance(value, str):
        raise InputError(f"{value!r} is {type(value).__name__}, not a text")
    ids = tokenizer(field.words).encode(value)
    if len(ids) > field.tokens and not field.cut:
        raise InputError(f"a text of {len(ids)} tokens, and {field.tokens} fit: raise tokens, or cut = true")
    kept = np.zeros(field.shape, field.dtype)
    kept[: len(ids)] = ids[: field.tokens]
    return kept, np.arange(field.tokens) < len(ids)


@lru_cache(maxsize=16)
def tokenizer(text: str) -> Tokenizer:
    return of_files({"tokenizer.json": text})


def entries(field: Field) -> int:
    """How many ids there are of a category or a text."""
    return len(field.values) if field.kind == "category" else tokenizer(field.words).vocab_size


def image(field: Field, value: Any, folder: Path, lenient: bool) -> Encoded:
    if isinstance(value, str):
        try:
            pixels = from_file(folder / value)
        except InputError as error:
            raise DamageError(str(error)) from None
    else:
        pixels = np.asarray(value)
        if pixels.ndim not in (2, 3) or pixels.dtype.kind not in "iu" or pixels.min() < 0 or pixels.max() > 255:
            raise InputError("an image is the path of a file, or rows of pixels from 0 to 255")
    made = fitted(pixels.astype(np.uint8), field.height, field.width, field.channels)
    return made, np.ones(field.nodes, bool)


def sound(field: Field, value: Any, folder: Path, lenient: bool) -> Encoded:
    longest = round(field.seconds * audio.RATE)
    if isinstance(value, str):
        try:
            samples = audio.read(folder / value)
        except InputError as error:
            raise DamageError(str(error)) from None
    else:
        samples = real(numbers(value, folder))
        if samples.ndim != 1 or not len(samples):
            raise InputError(f"a sound is the path of a file, or samples at {audio.RATE} Hz in one row")
    if len(samples) > longest and not field.cut:
        raise InputError(
            f"{len(samples) / audio.RATE:.2f} s long, and {field.seconds:g} fit: raise seconds, or cut = true"
        )
    mel = audio.log_mel(samples[:longest], field.mels)[:, : 2 * field.nodes]
    kept = np.zeros(field.shape, field.dtype)
    kept[:, : mel.shape[1]] = mel
    return kept, np.arange(field.nodes) < mel.shape[1] // 2


READERS: dict[str, Callable[[Field, Any, Path, bool], Encoded]] = {
    "category": category,
    "scalar": scalar,
    "vector": vector,
    "series": series,
    "text": words,
    "image": image,
    "audio": sound,
}


def answer(target: Target, value: Any, where: str) -> float:
    """A target as a number: which class, or how much; NaN where the row does not say."""
    if missing(value):
        return float("nan")
    try:
        return float(index(value, target.values)) if target.kind == "class" else float(real(np.array(numeric(value))))
    except InputError as error:
        raise InputError(f"{where}, {target.name}: {error}") from None


def numeric(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError(f"{str(value)[:40]!r} is no number") from None


def numbers(value: Any, folder: Path) -> np.ndarray:
    """A list of numbers, or of such: as it is, as JSON, or in a .npy or .csv file."""
    try:
        if isinstance(value, str) and value.lower().endswith(".npy"):
            value = np.load(folder / value, allow_pickle=False)
        elif isinstance(value, str) and value.lower().endswith(".csv"):
            value = np.loadtxt(folder / value, delimiter=",", ndmin=2)
        elif isinstance(value, str):
            value = json.loads(value)
        return np.array(value, np.float32)  # None becomes NaN
    except (OSError, EOFError) as error:
        raise DamageError(f"{value} cannot be read: {error}") from None
    except (TypeError, ValueError, RecursionError):
        raise InputError(f"{str(value)[:40]!r} are no numbers: a list such as [1.0, 2.5] is expected") from None


def real(found: np.ndarray) -> np.ndarray:
    """Raises DamageError unless every number is finite."""
    if not np.isfinite(found).all():
        bad = int((~np.isfinite(found)).sum())
        raise DamageError(f"{bad} of {found.size} numbers are not finite (NaN); to leave them out: --lenient")
    return found
