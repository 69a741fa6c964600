"""A value of a row to the numbers of its field: the same in training and in use.

An encoded value is an array of `Field.shape` and an array (nodes,) bool that says which of the field's nodes exist.
"""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, suggest
from ...events import report_notice
from ...parsing import show_value
from ..audio.features import SAMPLE_RATE, log_mel
from ..audio.read import read_audio
from ..images.read import read_image, resize_image
from ..io.arrays import read_npy
from ..io.checks import MAX_FILE_BYTES
from ..io.regular_file import join_inside, read_regular
from ..tokenizers.build import TOKENIZER_FILE, Tokenizer, tokenizer_from_files
from .dates import encode_moment, parse_date
from .number_formats import parse_number
from .read import find_media, is_missing
from .schema import Field, Schema, Target

Encoded = tuple[np.ndarray, np.ndarray]


class DamagedValueError(InputError):
    """A value is there and damaged: it may be left out on request."""


def encode_missing(field: Field) -> Encoded:
    return np.zeros(field.shape, field.dtype), np.zeros(field.nodes, bool)


def encode_value(field: Field, value: Any, place: str, folder: Path = Path(), lenient: bool = False) -> Encoded:
    """Encode a value of a field; `place` names its row in messages, and relative paths start from `folder`.

    With `lenient`, readings that are not finite become NaN. Raises DamagedValueError for what should be a number or a
    date and is none, for numbers that are not finite and for files that cannot be read, InputError for any other value
    that does not fit the field.
    """
    if is_missing(value) or says_missing(field, value):
        return encode_missing(field)
    try:
        return ENCODERS[field.kind](field, value, folder, lenient)
    except InputError as error:
        raise type(error)(f"{place}, {field.name}: {error}") from None


def encode_target(target: Target, value: Any, place: str) -> float:
    """Encode a target as its class index or number; NaN where it is missing. Raises InputError."""
    if is_missing(value) or says_missing(target, value):
        return float("nan")
    try:
        if target.kind == "number":
            return float(require_finite(np.array(parse_number(value, target.decimal))))
        name = category_name(value)
        if name not in target.values:
            hint = suggest(name, target.values)
            many = f"{hint.split('valid:')[0]}valid: {', '.join(target.values[:3])}, ..."
            raise InputError(f"'{name}' was not seen in training: {hint if len(target.values) <= 8 else many}")
        return float(target.values.index(name))
    except InputError as error:
        raise InputError(f"{place}, {target.name}: {error}") from None


def says_missing(column: Field | Target, value: Any) -> bool:
    """Whether a value is one of the texts that mean a missing value in its column."""
    return bool(column.missing) and category_name(value) in column.missing


def category_name(value: Any) -> str:
    return str(value).strip()


def encode_category(field: Field, value: Any, folder: Path, lenient: bool) -> Encoded:
    """Encode a category; one that was not seen in training is "other", or missing where training had no rare ones."""
    name = category_name(value)
    if name in field.index:
        return np.array([field.index[name]]), np.ones(1, bool)
    if field.rare:
        return np.array([len(field.values)]), np.ones(1, bool)
    seen = ", ".join(field.values[:8]) + (", ..." if len(field.values) > 8 else "")
    report_notice(f"{field.name}: values that were not seen in training are read as missing; seen: {seen}")  # once
    return encode_missing(field)


def encode_date(field: Field, value: Any, folder: Path, lenient: bool) -> Encoded:
    seconds = parse_date(value, field.format)
    if seconds is None:
        raise DamagedValueError(f"{str(value)[:40]!r} is not a date{f' as {field.format}' if field.format else ''}")
    return encode_moment(seconds, field.parts), np.ones(1, bool)


def encode_scalar(field: Field, value: Any, folder: Path, lenient: bool) -> Encoded:
    try:
        number = parse_number(value, field.decimal)
    except InputError as error:
        raise DamagedValueError(str(error)) from None
    return require_finite(np.array([number], np.float32)), np.ones(1, bool)


def encode_vector(field: Field, value: Any, folder: Path, lenient: bool) -> Encoded:
    array = parse_array(value, folder)
    if array.shape != (field.size,):
        raise InputError(f"numbers of shape {array.shape}; the schema says {field.size} of them")
    return require_finite(array), np.ones(1, bool)


def encode_series(field: Field, value: Any, folder: Path, lenient: bool) -> Encoded:
    readings = parse_array(value, folder)
    readings = readings[:, None] if readings.ndim == 1 else readings
    if readings.ndim != 2 or readings.shape[1] != field.channels or not len(readings):
        raise InputError(f"readings of shape {readings.shape}; the schema says {field.channels} channels per reading")
    if len(readings) > field.length and not field.cut:
        limit = f"{field.seconds:g} seconds at {field.rate:g} per second are {field.length}"
        raise InputError(f"{len(readings)} readings, and {limit}: raise seconds in the schema, or cut = true")
    if not lenient:
        require_finite(readings)
    padded = np.full(field.shape, np.nan, np.float32)
    padded[: min(len(readings), field.length)] = readings[: field.length]
    padded[~np.isfinite(padded)] = np.nan
    return padded, np.isfinite(padded).reshape(field.nodes, -1).sum(1) > 0


def encode_text(field: Field, value: Any, folder: Path, lenient: bool) -> Encoded:
    if not isinstance(value, str):
        raise InputError(f"{value!r} is {type(value).__name__}, not a text")
    ids = load_tokenizer(field.words).encode(value)
    if len(ids) > field.tokens and not field.cut:
        raise InputError(f"a text of {len(ids)} tokens, and {field.tokens} fit: raise tokens, or cut = true")
    padded = np.zeros(field.shape, field.dtype)
    padded[: len(ids)] = ids[: field.tokens]
    return padded, np.arange(field.tokens) < len(ids)


@lru_cache(maxsize=16)
def load_tokenizer(text: str) -> Tokenizer:
    return tokenizer_from_files({TOKENIZER_FILE: text})


def count_ids(field: Field) -> int:
    """Return the vocabulary size of a category, with one id for all that are rare, or of a text."""
    is_category = field.kind == "category"
    return len(field.values) + (field.rare > 0) if is_category else load_tokenizer(field.words).vocab_size


def encode_image(field: Field, value: Any, folder: Path, lenient: bool) -> Encoded:
    pixels = read_file(read_image, folder / value) if isinstance(value, str) else np.asarray(value)
    if pixels.ndim not in (2, 3) or pixels.dtype.kind not in "iu" or pixels.min() < 0 or pixels.max() > 255:
        raise InputError("an image is the path of a file, or rows of pixels from 0 to 255")
    resized = resize_image(pixels.astype(np.uint8), field.height, field.width, field.channels)
    return resized, np.ones(field.nodes, bool)


def encode_audio(field: Field, value: Any, folder: Path, lenient: bool) -> Encoded:
    is_path = isinstance(value, str)
    samples = read_file(read_audio, folder / value) if is_path else require_finite(parse_array(value, folder))
    if samples.ndim != 1 or not len(samples):
        raise InputError(f"a sound is the path of a file, or one list of samples at {SAMPLE_RATE} Hz")
    limit, seconds = round(field.seconds * SAMPLE_RATE), len(samples) / SAMPLE_RATE
    if len(samples) > limit and not field.cut:
        raise InputError(f"{seconds:.2f} s long, and {field.seconds:g} fit: raise seconds, or cut = true")
    mel = log_mel(samples[:limit], field.mels)[:, : 2 * field.nodes]
    padded = np.zeros(field.shape, field.dtype)
    padded[:, : mel.shape[1]] = mel
    return padded, np.arange(field.nodes) < mel.shape[1] // 2


def resolve_row_paths(schema: Schema, row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return what a row holds for a schema, with the paths in it relative to a folder."""

    values = {column.name: row[column.name] for column in schema.columns if column.name in row}
    for field in schema.fields:
        if field.kind not in ("image", "audio", "vector", "series") or is_missing(value := values.get(field.name)):
            continue
        if isinstance(value, str) and field.kind in ("image", "audio"):
            values[field.name] = find_media(folder, value)
        elif isinstance(value, str) and value.lower().endswith((".npy", ".csv")):
            values[field.name] = str(join_inside(folder, value))
    return values


def read_file(read: Callable[[Path], np.ndarray], path: Path) -> np.ndarray:
    try:
        return read(path)
    except InputError as error:
        raise DamagedValueError(str(error)) from None


ENCODERS: dict[str, Callable[[Field, Any, Path, bool], Encoded]] = {
    "category": encode_category,
    "scalar": encode_scalar,
    "date": encode_date,
    "vector": encode_vector,
    "series": encode_series,
    "text": encode_text,
    "image": encode_image,
    "audio": encode_audio,
}


def parse_array(value: Any, folder: Path) -> np.ndarray:
    """Convert lists of numbers, their JSON, or a .npy or .csv file to a float32 array; None becomes NaN."""
    try:
        if isinstance(value, str) and value.lower().endswith(".npy"):
            value = read_npy(folder / value)
        elif isinstance(value, str) and value.lower().endswith(".csv"):
            lines = read_regular(folder / value, MAX_FILE_BYTES).decode("utf-8", "replace").splitlines()
            value = np.loadtxt(lines, delimiter=",", ndmin=2)
        elif isinstance(value, str):
            value = json.loads(value)
        return np.array(value, np.float32)
    except InputError as error:
        raise DamagedValueError(str(error)) from None
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise InputError(f"{show_value(value)} is not a list of numbers such as [1.0, 2.5]") from None


def require_finite(array: np.ndarray) -> np.ndarray:
    """Return the array. Raises DamagedValueError unless every number is finite."""
    if count := int((~np.isfinite(array)).sum()):
        raise DamagedValueError(f"{count} of {array.size} numbers are not finite (NaN)")
    return array
