"""Tables by name, each with its schema."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, suggest
from ...parsing import check_path
from ..audio.datasets import DIGIT_WORDS
from ..audio.features import SAMPLE_RATE
from ..audio.read import AUDIO_EXTENSIONS
from ..images.read import read_idx
from ..io.archives import unpack_archive
from ..io.arrays import read_npz
from ..io.class_folders import find_classes, select_validation
from ..io.file_index import list_files
from ..io.resolve import resolve
from . import car
from .read import Row, Table, read_table

SENSORS = """\
[fields]
device = { kind = "category" }
power = { kind = "scalar" }
axes = { kind = "vector", size = 3 }
motion = { kind = "series", channels = 2, rate = 20.0, seconds = 1.0 }
note = { kind = "text", tokens = 12, tokenizer = "char" }
picture = { kind = "image", height = 8, width = 8 }
hum = { kind = "audio", seconds = 0.1, mels = 8, position = "fixed" }
[targets]
state = { kind = "class" }
load = { kind = "number" }
"""
WATCH = """\
group = "subject"
[fields]
accelerations = { kind = "series", channels = 3, rate = 50.0, seconds = 2.0 }
rotations = { kind = "series", channels = 3, rate = 50.0, seconds = 2.0 }
side = { kind = "category" }
[targets]
exercise = { kind = "class" }
"""
SPOKEN_DIGITS = """\
split = "split"
[fields]
image = { kind = "image", height = 28, width = 28, patch = 7 }
sound = { kind = "audio", seconds = 1.0, cut = true }
[targets]
digit = { kind = "class" }
"""


SPOKEN_WORDS = """\
split = "split"
[fields]
sound = { kind = "audio", seconds = 1.0, cut = true }
[targets]
digit = { kind = "class" }
"""
# Whether two digits are the same is learned beside which ones they are, and not by itself.
DIGIT_PAIRS = (
    SPOKEN_DIGITS.replace("digit = {", "same = {")
    + """\
seen = { kind = "class" }
heard = { kind = "class" }
"""
)
UNHEARD = "theo"  # the speaker of fsdd who is for validation of pairs


def open_table(data: str) -> Table:
    """Open a file of rows, or a named set; an existing file takes precedence over a name. Raises InputError."""
    check_path(data, "data")
    path = unpack_archive(Path(data).expanduser())
    if data and path.is_file():
        return read_table(path)
    if data and path.is_dir():
        return open_class_folders(path)
    if data and (path.exists() or path.suffix):
        raise InputError(f"data '{data}': no such table: expected a .csv, .tsv, .jsonl or .parquet file")
    if data not in NAMED_SETS:
        raise InputError(f"data '{data}': no such table or set of rows: {suggest(data, NAMED_SETS)}")
    return NAMED_SETS[data]()


def open_class_folders(folder: Path) -> Table:
    """Open sounds in class folders, maybe below train/ and test/, as rows of a sound and its label."""
    files = list_files(folder, AUDIO_EXTENSIONS)
    files, _ = select_validation([file for file in find_classes(folder, files) if file.label])
    rows = [{"sound": str(file.path.relative_to(folder)), "label": file.label} for file in files]
    if len({row["label"] for row in rows}) < 2:
        raise InputError(f"data '{folder}': expected a table, or a folder of class folders with sounds in them")
    content = hashlib.sha256(repr(rows).encode()).hexdigest()
    return Table(lambda: ((f"{folder}, {row['sound']}", row) for row in rows), folder, content)


def build_table(name: str, make_rows: Callable[[], Iterable[dict[str, Any]]], schema: str, *files: Path) -> Table:
    content = hashlib.sha256(f"{name} 2".encode())  # the number is raised when the rows of the same files change
    for path in files:
        content.update(path.read_bytes())

    def rows() -> Iterator[Row]:
        return ((f"{name}, row {i}", row) for i, row in enumerate(make_rows()))

    return Table(rows, Path(), content.hexdigest(), schema, self_contained=True)


def open_sensors() -> Table:
    """Generate a table for tests: all seven kinds of fields, a class and a number as targets."""
    return build_table("sensors", lambda: map(generate_sensor_row, range(240)), SENSORS)


def generate_sensor_row(i: int) -> dict[str, Any]:
    """Generate a device in one of three states; all fields but one depend on the state, and some are missing."""
    rng = np.random.default_rng((7, i))
    state = i % 3
    t, load = np.arange(20) / 20, state + rng.normal(0, 0.3)
    hum = np.sin(2 * np.pi * (400 + 900 * state) * np.arange(SAMPLE_RATE // 10) / SAMPLE_RATE + rng.uniform(0, 6))
    row = {
        "device": "abc"[rng.integers(3)],  # independent of the state
        "power": load + rng.normal(0, 0.5),
        "axes": rng.normal([state, -state, 0], 1.5).round(3),
        "motion": np.stack([np.sin(2 * np.pi * (1 + state) * t + rng.uniform(0, 6)), rng.normal(0, 1, 20)], 1).round(3),
        "note": ("all quiet", "busy", "too hot")[state if rng.random() < 0.8 else int(rng.integers(3))],
        "picture": (rng.integers(0, 120, (8, 8)) + 60 * state).clip(0, 255).astype(np.uint8),
        "hum": (0.3 * hum + rng.normal(0, 0.2, len(hum))).astype(np.float32),
    }
    present = {name: value for name, value in row.items() if rng.random() < 0.9}
    return present | {"state": ("idle", "busy", "hot")[state], "load": load}


def open_watch() -> Table:
    """Open windows of two seconds from a wrist: accelerations, rotations, which arm; seven exercises, ten people."""
    (path,) = resolve("watch")
    return build_table("watch", lambda: cut_windows(path, 100, 25), WATCH, path)


# A left arm moves as the mirror image of a right one: x, along the arm, changes sign, and so do the rotations about the
# other two axes.
LEFT_TO_RIGHT = np.array([-1, 1, 1, 1, -1, -1], np.float32)


def cut_windows(path: Path, size: int, step: int) -> Iterator[dict[str, Any]]:
    """Yield windows of `size` readings every `step` readings, none across two series; left arms are mirrored."""
    arrays = read_npz(path)
    readings, ends = arrays["readings"], np.cumsum(arrays["lengths"])
    columns = (arrays[name] for name in ("lengths", "label", "subject", "side"))
    for end, length, label, subject, side in zip(ends, *columns):
        about = {"exercise": str(arrays["labels"][label]), "subject": int(subject), "side": "right" if side else "left"}
        for start in range(end - length, end - size + 1, step):
            window = readings[start : start + size] * (1 if side else LEFT_TO_RIGHT)
            yield {"accelerations": window[:, :3], "rotations": window[:, 3:]} | about


def open_breast_cancer() -> Table:
    """Open 30 numbers of a biopsy, benign or malignant, named as in Street, Wolberg and Mangasarian (1993)."""
    (path,) = resolve("breast-cancer")
    measures = ("radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity", "points")
    names = [f"{kind} {name}" for kind in ("mean", "error", "worst") for name in (*measures, "symmetry", "dimension")]

    def rows() -> Iterator[dict[str, Any]]:
        for line in path.read_text("ascii").splitlines()[1:]:
            *cells, benign = line.split(",")
            yield dict(zip(names, cells, strict=True)) | {"diagnosis": ("malignant", "benign")[int(benign)]}

    return build_table("breast-cancer", rows, "", path)


def open_spoken_digits() -> Table:
    """Pair each clip of fsdd with three of MNIST's test images of its digit; of fsdd's test part, which is for
    validation, with one. No image is in both splits."""
    clips, images = resolve("fsdd"), resolve("mnist-t10k")
    return build_table("spoken-digits", lambda: pair_digits(clips, *images), SPOKEN_DIGITS, *clips, *images)


def pair_digits(clips: list[Path], image_file: Path, label_file: Path) -> Iterator[dict[str, Any]]:
    pixels, labels = read_idx(image_file, 3), read_idx(label_file, 1)
    by_digit = [np.flatnonzero(labels == digit) for digit in range(10)]  # the first 60 of each are for validation
    train, val = [iter(images[60:]) for images in by_digit], [iter(images[:60]) for images in by_digit]
    for path in clips:  # DIGIT_SPEAKER_TAKE.wav
        digit, _, take = path.stem.split("_")
        is_val = int(take) < 5
        about = {"sound": str(path), "digit": DIGIT_WORDS[int(digit)], "split": "val" if is_val else "train"}
        for _ in range(1 if is_val else 3):  # the rarest digit has 892 images, and 270 clips to train on
            yield {"image": pixels[next((val if is_val else train)[int(digit)])]} | about


def open_spoken_words() -> Table:
    """Open the clips of fsdd; those of its test part are for validation."""
    clips = resolve("fsdd")

    def rows() -> Iterator[dict[str, Any]]:
        for path in clips:
            digit, _, take = path.stem.split("_")
            split = "val" if int(take) < 5 else "train"
            yield {"sound": str(path), "digit": DIGIT_WORDS[int(digit)], "split": split}

    return build_table("spoken-words", rows, SPOKEN_WORDS, *clips)


def open_digit_pairs() -> Table:
    """Pair each clip of fsdd with an image of its digit and with one of another digit; a speaker whom training never
    hears is for validation. No image is in both splits."""
    clips, images = resolve("fsdd"), resolve("mnist-t10k")
    return build_table("digit-pairs", lambda: match_digits(clips, *images), DIGIT_PAIRS, *clips, *images)


def match_digits(clips: list[Path], image_file: Path, label_file: Path) -> Iterator[dict[str, Any]]:
    pixels, labels = read_idx(image_file, 3), read_idx(label_file, 1)
    by_digit = [np.flatnonzero(labels == digit) for digit in range(10)]  # the first 100 of each are for validation
    for i, path in enumerate(clips):  # DIGIT_SPEAKER_TAKE.wav
        digit, speaker, _ = path.stem.split("_")
        split = "val" if speaker == UNHEARD else "train"
        for same in (True, False):
            other = int(digit) if same else (int(digit) + 1 + i % 9) % 10
            images = by_digit[other][:100] if split == "val" else by_digit[other][100:]
            row = {"image": pixels[images[(7 * i + same) % len(images)]], "sound": str(path), "split": split}
            yield row | {"same": "yes" if same else "no", "seen": DIGIT_WORDS[other], "heard": DIGIT_WORDS[int(digit)]}


def open_car() -> Table:
    """Simulate 160 drives: what five sensors of a car report, and what its driver does."""
    return build_table("car", lambda: car.drive_rows(160), car.SCHEMA)


NAMED_SETS: dict[str, Callable[[], Table]] = {
    "watch": open_watch,
    "breast-cancer": open_breast_cancer,
    "spoken-digits": open_spoken_digits,
    "spoken-words": open_spoken_words,
    "digit-pairs": open_digit_pairs,
    "sensors": open_sensors,
    "car": open_car,
}
