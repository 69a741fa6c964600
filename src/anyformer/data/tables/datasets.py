"""Sets of rows by name, each with the schema it brings along.

sensors         made on the spot: all seven kinds of fields, a class and a number to tell; for tests
watch           windows of two seconds from a wrist: accelerations, rotations, which arm; seven exercises, ten people
breast-cancer   30 numbers of a biopsy, benign or malignant: a plain table, whose schema is inferred
spoken-digits   a spoken digit beside a written one
"""

import hashlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, nearest
from ..audio.features import RATE
from ..audio.read import WORDS
from ..images.read import idx_array, npz_arrays
from ..io.resolve import resolve
from .read import Row, Table, of_file

SENSORS = """\
[fields.device]
kind = "category"
[fields.power]
kind = "scalar"
[fields.axes]
kind = "vector"
size = 3
[fields.motion]
kind = "series"
channels = 2
rate = 20.0
seconds = 1.0
[fields.note]
kind = "text"
tokens = 12
tokenizer = "char"
[fields.picture]
kind = "image"
height = 8
width = 8
[fields.hum]
kind = "audio"
seconds = 0.1
mels = 8
position = "fixed"
[targets.state]
kind = "class"
[targets.load]
kind = "number"
"""
WATCH = """\
group = "subject"
[fields.accelerations]
kind = "series"
channels = 3
rate = 50.0
seconds = 2.0
[fields.rotations]
kind = "series"
channels = 3
rate = 50.0
seconds = 2.0
[fields.side]
kind = "category"
[targets.exercise]
kind = "class"
"""
DIGITS = """\
split = "split"
[fields.image]
kind = "image"
height = 28
width = 28
patch = 7
[fields.sound]
kind = "audio"
seconds = 1.0
cut = true
[targets.digit]
kind = "class"
"""


def table(data: str) -> Table:
    """The rows of a file, or of a set by name; an existing file wins over a name. Raises InputError."""
    path = Path(data).expanduser()
    if data and path.is_file():
        return of_file(path)
    if data and (path.exists() or path.suffix):
        raise InputError(f"data '{data}': no such table: expected a .csv, .tsv, .jsonl or .parquet file")
    if data not in KNOWN:
        raise InputError(f"data '{data}': no such table or set of rows: {nearest(data, KNOWN)}")
    return KNOWN[data]()


def made(name: str, rows: Callable[[], Iterator[dict[str, Any]]], schema: str, files: list[Path]) -> Table:
    content = hashlib.sha256(f"{name} 2".encode())  # another number where the rows of the same files change
    for path in files:
        content.update(path.read_bytes())
    numbered: Callable[[], Iterator[Row]] = lambda: ((f"{name}, row {i}", row) for i, row in enumerate(rows()))  # noqa: E731
    return Table(numbered, Path(), content.hexdigest(), schema, closed=True)


def sensors() -> Table:
    return made("sensors", lambda: (sensor(i) for i in range(240)), SENSORS, [])


def sensor(i: int) -> dict[str, Any]:
    """A device in one of three states, which all but one of the fields tell, more or less; some fields are missing."""
    rng = np.random.default_rng((7, i))
    state = i % 3
    t, load = np.arange(20) / 20, state + rng.normal(0, 0.3)
    hum = np.sin(2 * np.pi * (400 + 900 * state) * np.arange(RATE // 10) / RATE + rng.uniform(0, 6))
    row = {
        "device": "abc"[int(rng.integers(3))],  # tells nothing
        "power": load + rng.normal(0, 0.5),
        "axes": rng.normal([state, -state, 0], 1.5).round(3),
        "motion": np.stack([np.sin(2 * np.pi * (1 + state) * t + rng.uniform(0, 6)), rng.normal(0, 1, 20)], 1).round(3),
        "note": ("all quiet", "busy", "too hot")[state if rng.random() < 0.8 else int(rng.integers(3))],
        "picture": (rng.integers(0, 120, (8, 8)) + 60 * state).clip(0, 255).astype(np.uint8),
        "hum": (0.3 * hum + rng.normal(0, 0.2, len(hum))).astype(np.float32),
    }
    kept = {name: value for name, value in row.items() if rng.random() < 0.9}
    return kept | {"state": ("idle", "busy", "hot")[state], "load": load}


def watch() -> Table:
    (path,) = resolve("watch")
    return made("watch", lambda: windows(path, 100, 25), WATCH, [path])


# A left arm moves as a right one does in a mirror: x, along the arm, is turned round. What turns about the other two
# axes turns the other way then.
MIRROR = np.array([-1, 1, 1, 1, -1, -1], np.float32)


def windows(path: Path, size: int, step: int) -> Iterator[dict[str, Any]]:
    """Windows of so many readings, one every `step`, none across two series; left arms in the mirror."""
    arrays = npz_arrays(path)
    readings, ends = arrays["readings"], np.cumsum(arrays["lengths"])
    for end, n, label, who, side in zip(*(ends, *(arrays[k] for k in ("lengths", "label", "subject", "side")))):
        about = {"exercise": str(arrays["labels"][label]), "subject": int(who), "side": "right" if side else "left"}
        for start in range(end - n, end - size + 1, step):
            window = readings[start : start + size] * (1 if side else MIRROR)
            yield {"accelerations": window[:, :3], "rotations": window[:, 3:]} | about


def breast_cancer() -> Table:
    """The table has no names: they are those of its description (Street, Wolberg and Mangasarian 1993)."""
    (path,) = resolve("breast-cancer")
    about = ("radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity", "points")
    names = [f"{kind} {name}" for kind in ("mean", "error", "worst") for name in (*about, "symmetry", "dimension")]

    def rows() -> Iterator[dict[str, Any]]:
        for line in path.read_text("ascii").splitlines()[1:]:
            *cells, benign = line.split(",")
            yield dict(zip(names, cells, strict=True)) | {"diagnosis": ("malignant", "benign")[int(benign)]}

    return made("breast-cancer", rows, "", [path])


def spoken_digits() -> Table:
    """Each clip of fsdd with three of MNIST's test images of its digit; the official test part, with one each, is for
    validation. No image is on both sides."""
    clips, files = resolve("fsdd"), resolve("mnist-t10k")
    return made("spoken-digits", lambda: pairs(tuple(clips), tuple(files)), DIGITS, [*clips, *files])


def pairs(clips: tuple[Path, ...], files: tuple[Path, ...]) -> Iterator[dict[str, Any]]:
    pixels, labels = digits(files)
    own = [np.flatnonzero(labels == digit) for digit in range(10)]
    used = [[0, 60] for _ in own]  # the first 60 of each digit are for validation
    for path in clips:  # DIGIT_SPEAKER_TAKE.wav
        digit, _, take = path.stem.split("_")
        val = int(take) < 5
        for _ in range(1 if val else 3):  # the rarest digit has 892 images, and 270 clips to train on
            at = used[int(digit)]
            which = own[int(digit)][at[0] if val else at[1]]
            at[0 if val else 1] += 1
            about = {"digit": WORDS[int(digit)], "split": "val" if val else "train"}
            yield {"image": pixels[which], "sound": str(path)} | about


@lru_cache(maxsize=1)
def digits(files: tuple[Path, ...]) -> tuple[np.ndarray, np.ndarray]:
    images, labels = sorted(files)
    return idx_array(images, 3), idx_array(labels, 1)


KNOWN: dict[str, Callable[[], Table]] = {
    "watch": watch,
    "breast-cancer": breast_cancer,
    "spoken-digits": spoken_digits,
    "sensors": sensors,
}
