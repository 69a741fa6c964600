"""Images with class labels, from files and arrays. Files are listed first and decoded one at a time, on request.

    FOLDER/CLASS/*.png           class folders; or train/ and val/ (or test/) with class folders in each
    list.csv                     columns path and label, or others that are named, optionally split (train, val, test);
                                 also .tsv, .jsonl and .json; with columns *,label a pixel is in each other column
    *.parquet                    the bytes of image files and labels, a file or a folder of train-*, test-*
    *-images-idx3-ubyte[.gz]     with the matching *-labels-idx1-ubyte: one pair, or a folder with train-* and t10k-*
    set.npz                      images (or x) and labels (or y), optionally is_test and classes; or x_train, y_train,
                                 x_test, y_test; or data and offsets: the bytes of image files, concatenated

Pillow decodes. No code in a file is executed, and every size that a file claims is checked before memory is allocated.
"""

import base64
import hashlib
import io
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ...errors import InputError, suggest
from ...events import report_progress
from ..io.archives import unpack_archive
from ..io.arrays import MAX_ARRAY_BYTES, read_npz
from ..io.class_folders import find_classes, select_validation
from ..io.embedded import read_embedded
from ..io.file_index import FileIndex, list_files
from ..io.files import import_optional, open_data, suffix
from ..io.manifest import check_columns, is_table, read_manifest, read_rows, split_columns, to_text
from ..io.parquet import open_parquet, read_parquet_rows
from ..io.regular_file import open_regular, read_bounded, read_regular
from ..io.resolve import resolve
from ..sampling import IS_VALIDATION, parse_split
from ..unusable import DuplicatePolicy, EmptyPolicy, check_empty, select_distinct

MAX_PIXELS = 64 << 20  # of one image, checked before it is decoded
MAX_FILE_BYTES = 256 << 20  # of one image file
IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
PILLOW_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # none of them runs a program, as EPS does
FASHION_CLASSES = tuple(
    ["T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
)
COLUMNS = "path,label"  # of a table
PIXEL_COLUMNS = "*"  # instead of path: all columns but the label are the pixels of a square gray image
MAX_DIGITS = 100  # of a class that is a number
LABELS, INTEGERS, FLAGS = "biufUS", "iu", "biu"  # kinds of NumPy's dtypes
KIND_NAMES = {LABELS: "numbers or texts", INTEGERS: "integers", FLAGS: "flags or integers"}
NPZ_ARRAYS = {
    **{name: (LABELS, (1, 2)) for name in ("labels", "y", "y_train", "y_test")},
    **{name: (INTEGERS, (3, 4)) for name in ("x_train", "x_test")},
    "classes": (LABELS, (1,)),
    "is_test": (FLAGS, (1,)),
    "data": (INTEGERS, (1,)),
    "offsets": (INTEGERS, (1,)),
}  # name: (kinds, numbers of axes)
IDX_NAMES = ("-images-idx3-ubyte", "-labels-idx1-ubyte")
Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
RESAMPLE_FILTERS: tuple[Resample, ...] = get_args(Resample)  # in the order of Pillow's numbers
HEATMAP_COLOR = (214, 39, 40)


class ImageSource:
    """N images that are not decoded yet. Raises InputError where the arguments do not fit together.

    Args:
        read: Index -> (H, W) or (H, W, C) uint8; raises InputError.
        labels: (N,) indices of `classes`; without `classes`, the names.
        is_val: (N,) bool, the validation split of the data; None where they define none.
        files: Everything that is read, for the hash of the content; messages name the first.
    """

    def __init__(self, read: Callable, labels: Any, classes: tuple, is_val: Any, *files: Path):
        if not len(labels):
            raise InputError(f"{files[0]} holds no image")
        if is_val is not None and len(is_val) != len(labels):
            raise InputError(f"{files[0]}: {len(labels):,} labels but {len(is_val):,} entries of is_test")
        indices, self.classes = (np.asarray(labels), classes) if classes else number_classes(labels)
        if indices.dtype.kind not in "iu" or indices.min() < 0 or indices.max() >= len(self.classes):
            valid = f"integers from 0 to {len(classes) - 1}, indices of its classes"
            raise InputError(f"{files[0]}: labels must be {valid}")
        self.read, self.labels, self.files = read, indices.astype(np.int64), files
        self.is_val = None if is_val is None else np.asarray(is_val).astype(bool)

    def __len__(self) -> int:
        return len(self.labels)

    def sha256(self) -> str:
        """Hash the content: the bytes of all files, the labels and the split."""
        digest = hashlib.sha256(repr(self.classes).encode())
        digest.update(self.labels.tobytes())
        digest.update(b"" if self.is_val is None else self.is_val.tobytes())
        for i, path in enumerate(self.files, 1):
            with open_regular(path) as file:
                digest.update(f"\n{os.fstat(file.fileno()).st_size}\n".encode())
                hashlib.file_digest(file, lambda: digest)  # continues the digest
            if i % 64 == 0 or i == len(self.files):
                report_progress("checking images", i, len(self.files))
        return digest.hexdigest()


NAMED_SETS: dict[str, Callable[[list[Path]], ImageSource]] = {
    "digits": lambda paths: open_digits(paths[0]),
    "fashion-mnist": lambda paths: open_idx(paths, FASHION_CLASSES),
    "mnist-t10k": lambda paths: open_idx(paths),
    "cifar10": lambda paths: open_npz(paths[0]),
}


def open_images(
    data: str, columns: str = COLUMNS, empty: EmptyPolicy = "few", duplicates: DuplicatePolicy = "keep"
) -> ImageSource:
    """Open the images of a path or of a named set; an existing path takes precedence over a name. Raises InputError.

    Args:
        columns: the names of a table's columns of the images and their classes, with a comma between.
        empty: what becomes of rows without a class.
        duplicates: what becomes of rows that repeat an image and its class.
    """
    names = split_columns(columns, COLUMNS)
    path = unpack_archive(Path(data).expanduser())
    if data in NAMED_SETS and not path.exists():
        source = NAMED_SETS[data](resolve(data))
    elif data and path.is_dir():
        parquet_files = list_files(path, (".parquet",))
        source = open_parquet_images(parquet_files, names) if parquet_files else open_folder(path)
    elif suffix(path) == ".parquet" and path.is_file():
        source = open_parquet_images([path], names)
    elif suffix(path) == ".npz":
        source = open_npz(path)
    elif path.name.removesuffix(".gz").endswith(IDX_NAMES[0]):
        source = open_idx([path])
    elif path.is_file() and suffix(path) not in IMAGE_EXTENSIONS and is_table(path):
        source = open_table(path, names, empty, duplicates)
    else:
        forms = f"class folders, a .csv of path,label, a .npz, *{IDX_NAMES[0]}.gz, or a set by name"
        raise InputError(f"data '{data}' are no images: expected {forms}: {suggest(data, NAMED_SETS)}")
    if len(present := np.unique(source.labels)) < 2:
        only = source.classes[present[0]]
        raise InputError(f"data '{data}' have one class ({only}): a classifier needs two or more")
    return source


# --- lists of image files ---


def open_folder(path: Path) -> ImageSource:
    """Open class folders, possibly below train/ and val/, or idx files."""
    if idx_files := sorted(p for p in path.iterdir() if p.name.removesuffix(".gz").endswith(IDX_NAMES)):
        return open_idx(idx_files)
    images = list_files(path, IMAGE_EXTENSIONS)
    for folder in (p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")):
        if not any(folder in image.parents for image in images):
            raise InputError(f"the class folder {folder} holds no image: it needs {', '.join(IMAGE_EXTENSIONS)}")
    files, is_val = select_validation([file for file in find_classes(path, images) if file.label])
    if not files:
        raise InputError(f"{path} has no class folders with images in them: expected {path / 'CLASS' / 'image.png'}")
    paths = [file.path for file in files]
    return ImageSource(lambda i: read_image(paths[i]), [file.label for file in files], (), is_val, *paths)


def open_table(
    path: Path,
    columns: Sequence[str] = ("path", "label"),
    empty: EmptyPolicy = "few",
    duplicates: DuplicatePolicy = "keep",
) -> ImageSource:
    """Open a table of paths and labels; paths are relative to the folder of the table."""
    name, label = columns
    if name == PIXEL_COLUMNS:
        return open_pixel_table(path, label)
    rows = read_manifest(path, columns, ("split",), may_be_empty=(label,), may_be_number=columns)
    check_empty([where for where, row in rows if not row[label]], len(rows), empty, "images have no class")
    rows = select_distinct([pair for pair in rows if pair[1][label]], lambda pair: (pair[1][name], pair[1][label]),
                           duplicates, str(path))  # fmt: skip
    index = FileIndex(path.parent, IMAGE_EXTENSIONS)
    files = [index.find(row[name]) for _, row in rows]
    for (where, _), file in zip(rows, files, strict=True):
        if not file.is_file():
            raise InputError(f"{where}: there is no file {file}")
    is_val = [bool(row["split"]) and parse_split(row["split"], f"{where}: split") for where, row in rows]
    has_split = any(row["split"] for _, row in rows)
    labels = [row[label] for _, row in rows]
    return ImageSource(lambda i: read_image(files[i]), labels, (), is_val if has_split else None, path, *files)


def open_pixel_table(path: Path, label: str) -> ImageSource:
    """Open a table of numbers from 0 to 255, an image in each row, row by row from the top, as MNIST's csv files."""
    labels, images, side = [], [], 0
    for where, row in read_rows(path):
        check_columns(row, (label,), where)
        labels.append(to_text(row.pop(label)))
        side = side or math.isqrt(len(row))
        try:
            values = np.array(list(row.values())).astype(np.int64)
            images.append(values.astype(np.uint8).reshape(side, side))
        except (TypeError, ValueError):
            values = np.array([-1])
        if values.min() < 0 or values.max() > 255:
            raise InputError(f"{where}: expected a whole number from 0 to 255 for each pixel of a square image")
    indices, classes = number_classes(labels)
    return source_from_arrays(np.array(images, np.uint8), indices, None, classes, path)


def open_parquet_images(paths: Sequence[Path], columns: tuple[str, ...]) -> ImageSource:
    """Open parquet files of images: their bytes, alone or as {"bytes": ...}. Of several files, those that begin with
    the name of a split other than train are for validation."""
    images, labels, is_val, size = [], [], [], 0
    for path in paths:
        file_is_val = IS_VALIDATION.get(re.split(r"[^a-z]", path.name.lower())[0], False)
        for where, row in read_parquet_rows(path):
            check_columns(row, columns, where)
            image, label = read_embedded(row[columns[0]]), row[columns[1]]
            if image is None or not to_text(label):
                raise InputError(f"{where}: expected the bytes of an image in {columns[0]}, a class in {columns[1]}")
            size += len(image)
            if size > MAX_ARRAY_BYTES:
                raise InputError(f"{where}: more than {MAX_ARRAY_BYTES >> 30} GiB of images: save them as files")
            images.append((image, where))
            labels.append(to_text(label))
            is_val.append(file_is_val)
    classes = read_parquet_classes(paths[0], columns[1])
    own_split = is_val if any(is_val) and not all(is_val) else None
    source: Any = [int(label) for label in labels] if classes else labels
    return ImageSource(lambda i: decode_image(*images[i]), source, classes, own_split, *paths)


def read_parquet_classes(path: Path, column: str) -> tuple[str, ...]:
    """Return the names of the classes that Hugging Face's datasets store in the metadata of a file; none without."""
    with open_parquet(path) as file:
        metadata = file.schema_arrow.metadata or {}
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return tuple(map(str, features[column]["names"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()


def number_classes(labels: Iterable[Any]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels as indices, and the class names, sorted as numbers where all are numbers, else as text."""
    names = list(map(str, labels))
    numeric = all(name.isdecimal() and len(name) < MAX_DIGITS for name in names)
    classes = sorted(set(names), key=lambda name: (int(name) if numeric else 0, name))
    index = {name: i for i, name in enumerate(classes)}
    return np.array([index[name] for name in names], np.int64), tuple(classes)


# --- arrays of images ---


def open_digits(path: Path) -> ImageSource:
    """Open scikit-learn's digits: lines of 64 numbers from 0 to 16, then the digit."""
    table = np.loadtxt(io.StringIO(read_bytes(path).decode("ascii", "replace")), delimiter=",")
    pixels = np.round(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    return source_from_arrays(pixels, table[:, 64].astype(np.int64), None, tuple("0123456789"), path)


def open_idx(paths: Sequence[Path], classes: tuple[str, ...] = ()) -> ImageSource:
    """Open pairs of idx files; the pairs whose names do not begin with "train" are for validation."""
    pairs = [(p, p.with_name(p.name.replace(*IDX_NAMES))) for p in paths if IDX_NAMES[0] in p.name]
    pairs.sort(key=lambda pair: not pair[0].name.startswith("train"))
    if missing := [labels for _, labels in pairs if not labels.is_file()]:
        raise InputError(f"{missing[0]} does not exist: it should hold the labels of the images in the same folder")
    pixels, labels = [read_idx(images, 3) for images, _ in pairs], [read_idx(labels, 1) for _, labels in pairs]
    is_val = np.repeat([not images.name.startswith("train") for images, _ in pairs], [len(array) for array in pixels])
    own_split = is_val if is_val.any() and not is_val.all() else None
    return source_from_arrays(np.concatenate(pixels), np.concatenate(labels), own_split, classes, *chain(*pairs))


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Read MNIST's format: 0, 0, type 8 (uint8), number of axes, sizes (big-endian uint32), data."""
    raw, start = read_bytes(path), 4 + 4 * ndim
    shape = tuple(np.frombuffer(raw[4:start], ">u4").tolist()) if len(raw) >= start else ()
    if raw[:4] != bytes([0, 0, 8, ndim]) or len(raw) - start != math.prod(shape):
        raise InputError(f"{path} is not a complete idx file of {ndim} axes: {len(raw):,} bytes, shape {shape or '?'}")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def read_bytes(path: Path) -> bytes:
    """Read a file, or what a .gz holds, of at most MAX_ARRAY_BYTES."""
    with open_data(path) as file:
        return read_bounded(file, MAX_ARRAY_BYTES, path)


def open_npz(path: Path) -> ImageSource:
    arrays = read_npz(path)
    for name in NPZ_ARRAYS.keys() & arrays.keys():
        check_array(arrays[name], f"{path}: {name}", *NPZ_ARRAYS[name])
    classes, is_val = tuple(map(str, arrays.get("classes", ()))), arrays.get("is_test")
    if {"data", "offsets", "labels"} <= arrays.keys():
        data, offsets, labels = arrays["data"], arrays["offsets"].astype(np.int64), arrays["labels"]
        if len(offsets) != len(labels) + 1 or (np.diff(offsets, prepend=0) < 0).any() or offsets[-1] > len(data):
            raise InputError(f"{path}: offsets do not divide data ({len(data):,} bytes) into one image for each label")
        spans = list(pairwise(offsets.tolist()))
        decode = lambda i: decode_image(data[slice(*spans[i])].tobytes(), f"{path}, image {i}")  # noqa: E731
        return ImageSource(decode, labels, classes, is_val, path)
    if {"x_train", "y_train"} <= arrays.keys():
        splits = [name for name in ("train", "test") if {f"x_{name}", f"y_{name}"} <= arrays.keys()]
        if len(shapes := {arrays[f"x_{name}"].shape[1:] for name in splits}) > 1:
            raise InputError(f"{path}: the images of x_train and x_test differ in shape: {sorted(shapes)}")
        pixels = np.concatenate([arrays[f"x_{name}"] for name in splits])
        labels = np.concatenate([arrays[f"y_{name}"].reshape(-1) for name in splits])
        is_val = np.arange(len(pixels)) >= len(arrays["x_train"]) if len(splits) > 1 else None
    else:
        pixels, labels = arrays.get("images", arrays.get("x")), arrays.get("labels", arrays.get("y"))
    if pixels is None or labels is None:
        raise InputError(f"{path} holds {', '.join(arrays) or 'nothing'}; expected images and labels (or x and y)")
    return source_from_arrays(pixels, labels.reshape(-1), is_val, classes, path)


def check_array(array: np.ndarray, where: str, kinds: str, axes: Sequence[int]) -> None:
    """Raise InputError unless an array is of one of these kinds of numbers or texts and has so many axes."""
    if array.dtype.kind not in kinds or array.ndim not in axes:
        expected = f"{KIND_NAMES[kinds]} with {' or '.join(map(str, axes))} axes"
        raise InputError(f"{where} is {array.dtype} of shape {array.shape}; it must be {expected}")


def source_from_arrays(
    pixels: np.ndarray, labels: np.ndarray, is_val: np.ndarray | None, classes: tuple[str, ...], *files: Path
) -> ImageSource:
    if pixels.ndim not in (3, 4) or pixels.dtype != np.uint8 or (pixels.ndim == 4 and pixels.shape[3] not in (1, 3)):
        expected = "uint8 of shape (N, H, W), (N, H, W, 1) or (N, H, W, 3)"
        raise InputError(f"{files[0]}: images are {pixels.dtype} of shape {pixels.shape}; they must be {expected}")
    if len(labels) != len(pixels):
        raise InputError(f"{files[0]}: {len(pixels):,} images but {len(labels):,} labels")
    return ImageSource(lambda i: pixels[i], labels, classes, is_val, *files)


# --- one image ---


def import_pillow() -> Any:
    return import_optional("PIL.Image", "decoding images needs Pillow: pip install 'anyformer[vision]'")


def read_image(path: Path) -> np.ndarray:
    """Decode an image file: (H, W) or (H, W, 3) uint8, rotated as its EXIF orientation says. Raises InputError."""
    return decode_image(read_regular(path, MAX_FILE_BYTES), str(path))


def decode_image(raw: bytes, place: str) -> np.ndarray:
    """Decode the bytes of an image file, as `read_image` does; `place` names it in messages."""
    Image = import_pillow()
    from PIL import ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images, which are refused here
            with Image.open(io.BytesIO(raw), formats=PILLOW_FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise InputError(f"{place} has {width} x {height} pixels: the limit is {MAX_PIXELS:,}")
                image.load()
                if image.mode.startswith(("I", "F")):
                    raise InputError(f"{place} has pixels of more than 8 bits ({image.mode}): save it with 8 bits")
                image = ImageOps.exif_transpose(image)
                return np.asarray(image if image.mode == "L" else image.convert("RGB"))
    except InputError:
        raise
    except Image.UnidentifiedImageError:
        raise InputError(f"{place} is not an image of a known format: {', '.join(PILLOW_FORMATS)}") from None
    except (OSError, ValueError, SyntaxError, LookupError, EOFError, TypeError, Image.DecompressionBombError) as error:
        raise InputError(f"{place} is damaged or cut off, or too large: {error}") from None


def resize_image(
    pixels: np.ndarray, height: int, width: int, channels: int, resample: Resample = "bilinear", crop: bool = False
) -> np.ndarray:
    """Resize (H, W) or (H, W, 1 or 3) uint8 to (height, width, channels), and convert gray to color or back. `crop`:
    keep the proportions, and cut off what is too much on both sides."""
    pixels = pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    if pixels.shape == (height, width):
        return np.repeat(pixels[:, :, None], channels, axis=2)
    if pixels.shape == (height, width, channels):
        return pixels
    image = import_pillow().fromarray(pixels).convert("L" if channels == 1 else "RGB")
    if image.size != (width, height) and crop:
        scale = max(width / image.width, height / image.height)
        large = (max(width, int(image.width * scale)), max(height, int(image.height * scale)))
        left, top = (large[0] - width) // 2, (large[1] - height) // 2
        image = image.resize(large, RESAMPLE_FILTERS.index(resample)).crop((left, top, left + width, top + height))
    elif image.size != (width, height):
        image = image.resize((width, height), RESAMPLE_FILTERS.index(resample))
    return np.asarray(image).reshape(height, width, channels)


def encode_png(pixels: np.ndarray, height: int = 96) -> str:
    """Encode (H, W, 1 or 3) uint8 as a base64 PNG of about this height: enlarged by whole factors, or shrunk."""
    Image, buffer = import_pillow(), io.BytesIO()
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    if pixels.shape[0] > height:
        image.thumbnail((height * pixels.shape[1] // pixels.shape[0], height))
    else:
        factor = max(1, height // pixels.shape[0])
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def tile_images(images: np.ndarray, factor: int = 1, columns: int = 0, gap: int = 1) -> np.ndarray:
    """Put images (N, H, W, C) side by side, enlarged by a whole factor, with white lines between; 0 columns: about as
    many as rows. Returns (height, width, C)."""
    columns = columns or math.isqrt(len(images) - 1) + 1
    blank = np.full_like(images[:1], 255)
    images = np.concatenate([images, *[blank] * (-len(images) % columns)])
    images = np.pad(images, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    rows = images.reshape(-1, columns, *images.shape[1:]).swapaxes(1, 2)  # (rows, H, columns, W, C)
    sheet = rows.reshape(rows.shape[0] * rows.shape[1], -1, images.shape[-1])[:-gap, :-gap]
    return sheet.repeat(factor, 0).repeat(factor, 1)


def overlay_heatmap(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return an image (H, W, 1 or 3) and, to its right, the same with `heat` (rows, columns) over it in red."""
    Image, (height, width) = import_pillow(), pixels.shape[:2]
    opacity = Image.fromarray((heat / max(float(heat.max()), 1e-9)).astype(np.float32))
    opacity = np.asarray(opacity.resize((width, height), Image.Resampling.BILINEAR))[:, :, None] * 0.8
    colors = np.repeat(pixels, 3 // pixels.shape[2], axis=2)
    overlay = np.rint(colors * (1 - opacity) + np.array(HEATMAP_COLOR) * opacity).clip(0, 255).astype(np.uint8)
    gap = np.full((height, max(1, width // 16), 3), 255, np.uint8)
    return np.concatenate([colors, gap, overlay], axis=1)
