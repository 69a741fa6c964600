"""Images with a class, from wherever they lie: found and counted here, decoded one by one when asked for.

    FOLDER/CLASS/*.png           class folders, or train/ and val/ (or test/) with class folders each
    list.csv                     columns path and label, optionally split (train, val, test)
    *-images-idx3-ubyte[.gz]     with its *-labels-idx1-ubyte: one pair, or a folder with train-* and t10k-*
    set.npz                      images (or x) and labels (or y), optionally is_test and classes; or x_train, y_train,
                                 x_test, y_test; or data and offsets: the bytes of image files, one after the other

Nothing in a file is executed, and no size that a file claims is believed before it was compared with a bound.
"""

import csv
import gzip
import hashlib
import io
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, nearest
from ...events import progress
from ..io import resolve as sets
from ..io.download import bounded
from .decode import ENDINGS, from_bytes, from_file

LARGEST = 8 << 30  # bytes of an array in memory
HELD_OUT = ("val", "valid", "validation", "test")
FASHION = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
IDX = ("-images-idx3-ubyte", "-labels-idx1-ubyte")


@dataclass(frozen=True)
class Source:
    """N images, not yet decoded. `read(i)` gives (H, W) or (H, W, C) uint8 and raises InputError."""

    read: Callable[[int], np.ndarray]
    labels: np.ndarray
    """(N,) int64, an index of `classes`."""
    classes: tuple[str, ...]
    held_out: np.ndarray | None
    """(N,) bool: the data's own validation part. None: they have none."""
    files: tuple[Path, ...]
    """All that was read, for a hash of the content."""

    def __len__(self) -> int:
        return len(self.labels)

    def sha256(self) -> str:
        """Of the content: the bytes of all files, and how they are labelled."""
        digest = hashlib.sha256(repr(self.classes).encode())
        digest.update(self.labels.tobytes())
        digest.update(b"" if self.held_out is None else self.held_out.tobytes())
        for i, path in enumerate(self.files, 1):
            digest.update(f"\n{path.stat().st_size}\n".encode())
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            if i % 64 == 0 or i == len(self.files):
                progress("checking images", i, len(self.files))
        return digest.hexdigest()


def find(data: str) -> Source:
    """The images of a path or of a named set; an existing path wins over a name. Raises InputError."""
    path = Path(data).expanduser()
    if data and path.exists():
        source = folder(path) if path.is_dir() else one_file(path)
    else:
        paths = sets.resolve(data)
        known: dict[str, Callable[[], Source]] = {
            "digits": lambda: digits(paths[0]),
            "fashion-mnist": lambda: idx(paths, FASHION),
            "cifar10": lambda: npz(paths[0]),
        }
        if data not in known:
            raise InputError(f"data '{data}' are no images: {nearest(data, known)}")
        source = known[data]()
    if len(there := np.unique(source.labels)) < 2:
        raise InputError(f"data '{data}' have one class ({source.classes[there[0]]}): there is nothing to tell apart")
    return source


def one_file(path: Path) -> Source:
    name = path.name.removesuffix(".gz")
    if name.endswith(".csv"):
        return listed(path)
    if name.endswith(".npz"):
        return npz(path)
    if name.endswith(IDX[0]):
        return idx([path, path.with_name(path.name.replace(*IDX))])
    raise InputError(f"{path}: images come as class folders, a .csv of path,label, a .npz, or *{IDX[0]}.gz")


# --- files of images ---


def folder(path: Path) -> Source:
    """Class folders, perhaps below train/ and val/; or idx files."""
    if packed := sorted(p for p in path.iterdir() if p.name.removesuffix(".gz").endswith(IDX)):
        return idx(packed)
    parts = {p.name: p for p in sorted(path.iterdir()) if p.is_dir()}
    later = next((name for name in HELD_OUT if name in parts), None)
    splits = [parts["train"], parts[later]] if "train" in parts and later else [path]
    rows = [
        (image, kind.name, split is not splits[0])
        for split in splits
        for kind in sorted(p for p in split.iterdir() if p.is_dir() and not p.name.startswith("."))
        for image in images_in(kind)
    ]
    if not rows:
        raise InputError(f"{path} has no class folders with images in them: expected {path / 'CLASS' / 'image.png'}")
    return of_rows(rows, len(splits) > 1, ())


def images_in(kind: Path) -> list[Path]:
    found = sorted(p for p in kind.rglob("*") if p.suffix.lower() in ENDINGS and not p.name.startswith("."))
    if not found:
        raise InputError(f"the class folder {kind} holds no image: it needs {', '.join(ENDINGS)}")
    return found


def listed(path: Path) -> Source:
    """A table of path,label; paths are meant from where the table lies."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            table = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a table: {error}") from None
    columns = set(table[0]) if table else set()
    if missing := [name for name in ("path", "label") if name not in columns]:
        raise InputError(f"{path} lacks the column {missing[0]}: its first line should be path,label")
    rows = []
    for number, row in enumerate(table, 2):
        if not row["path"] or not row["label"]:
            raise InputError(f"{path}, line {number}: the {'path' if row['label'] else 'label'} is empty")
        image = path.parent / row["path"]
        if not image.is_file():
            raise InputError(f"{path}, line {number}: there is no file {image}")
        rows.append((image, row["label"], (row.get("split") or "train") in HELD_OUT))
    return of_rows(rows, "split" in columns, (path,))


def of_rows(rows: Sequence[tuple[Path, str, bool]], split: bool, more: tuple[Path, ...]) -> Source:
    """(file, label, held out) of each image."""
    files = tuple(row[0] for row in rows)
    labels, classes = numbered([row[1] for row in rows])
    held = np.array([row[2] for row in rows]) if split else None
    return Source(lambda i: from_file(files[i]), labels, classes, held, (*more, *files))


def numbered(names: Sequence[Any]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as numbers, and what they are called: in order of the number where they are numbers, else by name."""
    texts = [str(name) for name in names]
    whole = all(text.isdecimal() for text in texts)
    classes = sorted(set(texts), key=lambda text: (int(text) if whole else 0, text))
    place = {name: i for i, name in enumerate(classes)}
    return np.array([place[text] for text in texts], np.int64), tuple(classes)


# --- arrays of images ---


def digits(path: Path) -> Source:
    """Lines of 64 numbers from 0 to 16, and the digit."""
    text = unzipped(path).decode("ascii", "replace")
    table = np.loadtxt(io.StringIO(text), delimiter=",")
    pixels = np.round(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    return of_arrays(pixels, table[:, 64].astype(np.int64), None, tuple("0123456789"), path)


def idx(paths: Sequence[Path], classes: tuple[str, ...] = ()) -> Source:
    """Pairs of images and labels; those whose name does not begin with train are held out."""
    pairs = [(p, p.with_name(p.name.replace(*IDX))) for p in paths if IDX[0] in p.name]
    pairs.sort(key=lambda pair: not pair[0].name.startswith("train"))
    if missing := [labels for _, labels in pairs if not labels.is_file()]:
        raise InputError(f"{missing[0]} does not exist: it should hold the labels of the images beside it")
    pixels, labels = [idx_array(images, 3) for images, _ in pairs], [idx_array(labels, 1) for _, labels in pairs]
    held = np.repeat([not images.name.startswith("train") for images, _ in pairs], [len(part) for part in pixels])
    own_split = bool(held.any() and not held.all())
    everything = tuple(path for pair in pairs for path in pair)
    whole = np.concatenate(pixels), np.concatenate(labels)
    return of_arrays(*whole, held if own_split else None, classes, *everything)


def idx_array(path: Path, axes: int) -> np.ndarray:
    """The format of MNIST: 0, 0, type 8 (uint8), how many axes, their lengths (big-endian uint32), the numbers."""
    raw = unzipped(path)
    shape = (
        tuple(int(n) for n in np.frombuffer(raw[4 : 4 + 4 * axes], ">u4")) if raw[:4] == bytes([0, 0, 8, axes]) else ()
    )
    if len(shape) != axes or len(raw) - 4 - 4 * axes != np.prod([float(n) for n in shape]):
        raise InputError(
            f"{path} is not a whole idx file of {axes} axes: {len(raw):,} bytes, shape {shape or 'unknown'}"
        )
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)


def unzipped(path: Path) -> bytes:
    """A file, or what a .gz holds, at most LARGEST bytes."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            raw = bounded(file, LARGEST)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if len(raw) > LARGEST:
        raise InputError(f"{path} holds more than {LARGEST >> 30} GiB")
    return raw


def npz(path: Path) -> Source:
    arrays = npz_arrays(path)
    classes = tuple(str(name) for name in arrays["classes"]) if "classes" in arrays else ()
    if {"data", "offsets", "labels"} <= arrays.keys():
        return of_encoded(arrays, classes, path)
    if {"x_train", "y_train"} <= arrays.keys():
        parts = [name for name in ("train", "test") if {f"x_{name}", f"y_{name}"} <= arrays.keys()]
        pixels = np.concatenate([arrays[f"x_{name}"] for name in parts])
        labels = np.concatenate([arrays[f"y_{name}"].reshape(-1) for name in parts])
        held = np.arange(len(pixels)) >= len(arrays["x_train"]) if len(parts) > 1 else None
        return of_arrays(pixels, labels, held, classes, path)
    pixels, labels = arrays.get("images", arrays.get("x")), arrays.get("labels", arrays.get("y"))
    if pixels is None or labels is None:
        raise InputError(f"{path} holds {', '.join(arrays) or 'nothing'}; expected images and labels (or x and y)")
    return of_arrays(pixels, labels.reshape(-1), arrays.get("is_test"), classes, path)


def npz_arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of the file, without pickles, after a look at what they would take."""
    try:
        with zipfile.ZipFile(path) as file:
            total = sum(member.file_size for member in file.infolist())
        if total > LARGEST:
            raise InputError(f"{path} unpacks to {total:,} bytes, more than {LARGEST >> 30} GiB")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read as .npz: {error}") from None


def of_encoded(arrays: dict[str, np.ndarray], classes: tuple[str, ...], path: Path) -> Source:
    """Image files in one array of bytes, the i-th from offsets[i] to offsets[i + 1]."""
    data, offsets = arrays["data"], arrays["offsets"].astype(np.int64)
    if len(offsets) != len(arrays["labels"]) + 1 or (np.diff(offsets) < 0).any() or offsets[-1] > len(data):
        raise InputError(
            f"{path}: offsets do not cut data ({len(data):,} bytes) into as many images as there are labels"
        )
    labels, names = told(arrays["labels"], classes, path)
    held = arrays["is_test"].astype(bool) if "is_test" in arrays else None
    cut = lambda i: from_bytes(data[offsets[i] : offsets[i + 1]].tobytes(), f"{path}, image {i}")  # noqa: E731
    return Source(cut, labels, names, held, (path,))


def of_arrays(
    pixels: np.ndarray, labels: np.ndarray, held: np.ndarray | None, classes: tuple[str, ...], *files: Path
) -> Source:
    if pixels.ndim not in (3, 4) or pixels.dtype != np.uint8 or (pixels.ndim == 4 and pixels.shape[3] not in (1, 3)):
        found = f"{pixels.dtype} of shape {pixels.shape}"
        raise InputError(
            f"{files[0]}: images are {found}; they must be uint8 of (N, H, W), (N, H, W, 1) or (N, H, W, 3)"
        )
    if len(labels) != len(pixels) or (held is not None and len(held) != len(pixels)):
        raise InputError(f"{files[0]}: {len(pixels):,} images but {len(labels):,} labels")
    numbers, names = told(labels, classes, files[0])
    return Source(lambda i: pixels[i], numbers, names, None if held is None else held.astype(bool), files)


def told(labels: np.ndarray, classes: tuple[str, ...], path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as numbers of classes, whose names the data may say."""
    if not len(labels):
        raise InputError(f"{path} holds no image")
    if not classes:
        return numbered(labels.tolist())
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= len(classes):
        raise InputError(
            f"{path}: labels must be numbers from 0 to {len(classes) - 1}, one of its {len(classes)} classes"
        )
    return labels.astype(np.int64), classes
