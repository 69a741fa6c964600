"""Images at the size a model takes, decoded once: kept in the cache under a hash of all that they depend on.

    cache/images/HASH/pixels.bin     (N, H, W, C) uint8
    cache/images/HASH/meta.json      shape, and which images could not be read

They are read from disk as they are needed, so that a set larger than memory trains.
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ...errors import InputError, nearest
from ...events import progress
from ..io.resolve import cache_dir
from .decode import Resample, fitted
from .read import Source, find

FORMAT = 1  # a change of what is stored makes a new number


@dataclass(frozen=True)
class Album:
    """pixels (N, H, W, C) uint8, labels (N,) int64; what is for training and for validation, as indexes."""

    pixels: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    parts: dict[str, np.ndarray]
    sha256: str
    """Of the data alone."""
    skipped: int = 0

    def split(self, name: str) -> np.ndarray:
        """The indexes of one part: "train", "val" or "all"."""
        if name not in self.parts:
            raise InputError(f"split '{name}': {nearest(name, self.parts)}")
        return self.parts[name]


def album(
    data: str,
    height: int,
    width: int,
    channels: int,
    resample: Resample = "bilinear",
    val_fraction: float = 0.1,
    skip_unreadable: bool = False,
) -> Album:
    """The images of a path or a named set. Data that have a part of their own for validation (or test) keep it; of
    others, `val_fraction` of the images are kept, always the same. Raises InputError."""
    if not 0 < val_fraction < 1:
        raise InputError(f"a validation fraction of {val_fraction}: it must be above 0 and below 1")
    source = find(data)
    content = source.sha256()
    shape = (len(source), height, width, channels)
    asked = f"{FORMAT} {content} {shape} {resample} {skip_unreadable}"
    folder = cache_dir() / "images" / hashlib.sha256(asked.encode()).hexdigest()
    if not (folder / "meta.json").is_file():
        make(folder, source, shape, resample, skip_unreadable)
    bad = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["unreadable"]
    pixels = np.memmap(folder / "pixels.bin", np.uint8, mode="r", shape=shape)
    parts = divided(source, np.setdiff1d(np.arange(len(source)), bad), val_fraction)
    for name, part in parts.items():
        if not len(part):
            raise InputError(f"data '{data}': of {len(source):,} images none is left for the {name} split")
    return Album(pixels, source.labels, source.classes, parts, content, len(bad))


def divided(source: Source, usable: np.ndarray, val_fraction: float) -> dict[str, np.ndarray]:
    """Which images are for what. Those for validation are in a random order, always the same: where the data come class
    by class, the first few batches of it would else be of one class."""
    order = np.random.Generator(np.random.Philox(key=0)).permutation(usable)
    if source.held_out is not None:
        held = source.held_out[order]
        return {"train": np.sort(order[~held]), "val": order[held], "all": usable}
    n_val = max(1, round(len(usable) * val_fraction)) if len(usable) else 0
    return {"train": np.sort(order[n_val:]), "val": order[:n_val], "all": usable}


def make(folder: Path, source: Source, shape: tuple[int, ...], resample: Resample, skip_unreadable: bool) -> None:
    """Decode all images into a new folder of the cache, which appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".new-"))
    try:
        bad = decode(new / "pixels.bin", source, shape, resample, skip_unreadable)
        (new / "meta.json").write_text(json.dumps({"shape": shape, "unreadable": bad}), encoding="utf-8")
        try:
            os.rename(new, folder)
        except OSError:
            if not (folder / "meta.json").is_file():  # else another process was faster, with the same content
                raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def decode(path: Path, source: Source, shape: tuple[int, ...], resample: Resample, skip_unreadable: bool) -> list[int]:
    """Write the pixels, one image after the other. Returns which could not be read."""
    bad: list[int] = []
    height, width, channels = shape[1:]
    with open(path, "wb") as file:
        for i in range(len(source)):
            try:
                pixels = fitted(source.read(i), height, width, channels, resample)
            except InputError as error:
                if not skip_unreadable:
                    raise InputError(f"{error}; to leave such images out: --skip-unreadable") from None
                bad.append(i)
                pixels = np.zeros(shape[1:], np.uint8)
            file.write(np.ascontiguousarray(pixels).data)
            if i % 64 == 0 or i + 1 == len(source):
                progress("decoding images", i + 1, len(source))
    return bad


def moments(album: Album, most: int = 10_000) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, on the scale 0 to 1, over training images (evenly chosen, where they
    are more than `most`). A channel that never changes has a deviation of 1."""
    train = album.split("train")
    chosen = train[:: math.ceil(len(train) / most)]
    total, square, count = 0.0, 0.0, 0
    for start in range(0, len(chosen), 256):
        x = album.pixels[chosen[start : start + 256]].astype(np.float64) / 255
        total, square = total + x.sum((0, 1, 2)), square + (x * x).sum((0, 1, 2))
        count += x[..., 0].size
    mean = np.asarray(total) / count
    spread = np.sqrt(np.maximum(np.asarray(square) / count - mean**2, 0))
    return [round(float(m), 6) for m in mean], [round(float(s), 6) or 1.0 for s in spread]


@lru_cache(maxsize=8)
def order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: each of n images once."""
    return np.random.Generator(np.random.Philox(key=seed, counter=(0, 0, 0, epoch))).permutation(n)


def drawn(part: np.ndarray, batch: int, seed: int, step: int) -> np.ndarray:
    """The images of a training step, (B,), out of `part`. Depends on (seed, step) and the part alone."""
    epoch, at = np.divmod(step * batch + np.arange(batch), len(part))
    return np.array([part[order(len(part), seed, int(e))[i]] for e, i in zip(epoch, at, strict=True)])


def stamp(data: str) -> int:
    """Changes when one of the files does."""
    path = Path(data)
    files = sorted(path.rglob("*")) if path.is_dir() else [path] if data and path.exists() else []
    return hash(tuple((str(p.resolve()), (s := p.stat()).st_mtime_ns, s.st_size) for p in files))
