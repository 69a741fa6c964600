"""Images: a small Transformer beside the pipeline of 2011, HOG and colour histograms into a linear SVM.

    python -m bench.recipes.vision --sets digits fashion-mnist cifar10       1, 15 and 30 minutes of training
    python -m bench.recipes.vision --sets cifar10 --minutes 5 --json

The same training and test images for both, in one run. A tenth of the training images is for validation: the SVM's
cells and strength are chosen there, and the best checkpoint; nothing is chosen on the test images. HOG is of Dalal and
Triggs (2005).
"""

import argparse
import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from skimage.feature import hog
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from anyformer import api, recipe
from anyformer.recipes import vision
from anyformer.recipes.vision.drawing import predict_classes

SETS = {"digits": ("digits", 1.0), "fashion-mnist": ("small", 15.0), "cifar10": ("cifar10", 30.0)}  # preset, minutes
CELLS = {8: (2, 4), 28: (4, 7), 32: (4, 8)}  # pixels of a cell of HOG, by the side of the image
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
CHOOSING = 10_000  # training images that cells and strength are tried on


@dataclass(frozen=True)
class Parts:
    """pixels (N, H, W, C) uint8, labels (N,); indexes of what is for training, validation and the test."""

    pixels: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def parts(name: str, preset: str, images: int | None = None) -> Parts:
    """A set whose held-out part is for the test alone. images: how many are left to learn from, a tenth as many (but at
    least 500) to choose on; None: all."""
    config = recipe.get_preset(recipe.load_recipe("vision"), preset)
    found = vision.load_images(config)
    order = np.random.default_rng(0).permutation(found.split("train"))
    n_val = len(order) // 10 if images is None else max(500, images // 10)
    train = order[n_val:] if images is None else order[n_val : n_val + images]
    return Parts(found.pixels, found.labels, found.classes, np.sort(train), np.sort(order[:n_val]), found.split("val"))


# --- ours ---


def kept(found: Parts, path: Path) -> Path:
    """What may be learned from, as a file; its validation part is marked."""
    chosen = np.concatenate([found.train, found.val])
    held = np.arange(len(chosen)) >= len(found.train)
    np.savez(path, images=found.pixels[chosen], labels=found.labels[chosen], is_test=held, classes=found.classes)
    return path


def accuracy(model: api.Model, found: Parts) -> float:
    """On the test images."""
    answers, _ = predict_classes(model.module, found.pixels, found.test)
    return float((answers == found.labels[found.test]).mean())


def ours(found: Parts, preset: str, minutes: float, seed: int, folder: Path, out: Path | None) -> dict[str, Any]:
    began = time.monotonic()
    data = kept(found, folder / "images.npz")
    run = out or folder / "run"
    model = api.train("vision", preset, data=str(data), minutes=minutes, out=run, train={"seed": seed})
    size = sum(parameter.numel() for parameter in model.module.parameters())
    about = {"preset": preset, "steps": json.loads((run / "result.json").read_text())["step"]}
    return {"accuracy": accuracy(model, found), **about, "parameters": size, "seconds": time.monotonic() - began}


# --- the pipeline of 2011 ---


def described(image: np.ndarray, cell: int) -> np.ndarray:
    """An image (H, W, C) as numbers: gradients by direction in cells, and histograms of colour (of grey, where there is
    no colour) of the whole and of its quarters, their roots taken."""
    colour = image.shape[2] == 3
    gradients = hog(
        image if colour else image[:, :, 0],
        orientations=9,
        pixels_per_cell=(cell, cell),
        cells_per_block=(2, 2),
        block_norm="L2-Hys",
        transform_sqrt=True,
        channel_axis=2 if colour else None,
    )
    bins = 4 if colour else 16
    codes = (image.astype(np.int64) * bins // 256) @ (bins ** np.arange(image.shape[2]))
    high, wide = (n // 2 for n in codes.shape)
    pieces = [codes, codes[:high, :wide], codes[:high, wide:], codes[high:, :wide], codes[high:, wide:]]
    counts = [np.bincount(piece.ravel(), minlength=bins ** image.shape[2]) / piece.size for piece in pieces]
    return np.concatenate([gradients, np.sqrt(np.concatenate(counts))]).astype(np.float32)


def features(images: np.ndarray, cell: int) -> np.ndarray:
    with ProcessPoolExecutor() as pool:
        return np.stack(list(pool.map(partial(described, cell=cell), images, chunksize=200)))


def svm(strength: float, seed: int) -> Any:
    return make_pipeline(StandardScaler(), LinearSVC(C=strength, dual=False, tol=1e-3, random_state=seed))


def theirs(found: Parts, seed: int) -> dict[str, Any]:
    """Cells and strength chosen on the validation part, then learned from all training images."""
    began, tried = time.monotonic(), []
    few = found.train[:: max(1, len(found.train) // CHOOSING)]
    for cell in CELLS[found.pixels.shape[1]]:
        x, val = features(found.pixels[few], cell), features(found.pixels[found.val], cell)
        for strength in STRENGTHS:
            model = svm(strength, seed).fit(x, found.labels[few])
            tried.append((model.score(val, found.labels[found.val]), cell, strength))
    _, cell, strength = max(tried)
    model = svm(strength, seed).fit(features(found.pixels[found.train], cell), found.labels[found.train])
    right = model.score(features(found.pixels[found.test], cell), found.labels[found.test])
    return {"accuracy": float(right), "cell": cell, "C": strength, "seconds": time.monotonic() - began}


def compared(
    names: Sequence[str], minutes: float | None, images: int | None, seed: int, out: Path | None
) -> dict[str, Any]:
    made = {}
    for name in names:
        preset, usual = SETS[name]
        found = parts(name, preset, images)
        sizes = {"train": len(found.train), "val": len(found.val), "test": len(found.test)}
        made[name] = {"images": sizes, "HOG, colours, SVM": theirs(found, seed)}
        with TemporaryDirectory() as folder:
            made[name]["ours"] = ours(found, preset, minutes or usual, seed, Path(folder), out and out / name)
        print(f"{name}: {sizes}", flush=True)
        for side in ("HOG, colours, SVM", "ours"):
            told = made[name][side]
            print(f"  {side:<18} accuracy {told['accuracy']:.4f}  {told['seconds']:,.0f} s  {told}", flush=True)
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--minutes", type=float, help="of training, for each set; by default 1, 15 and 30")
    parser.add_argument("--images", type=int, help="to learn from; by default all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout at the end")
    parser.add_argument("--out", type=Path, help="keep the runs here, one a set")
    asked = parser.parse_args()
    told = compared(asked.sets, asked.minutes, asked.images, asked.seed, asked.out)
    if asked.json:
        print(json.dumps(told))
