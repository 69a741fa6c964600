"""Images: a small Transformer, compared with a linear SVM on HOG and color histograms.

    python -m bench.recipes.vision --sets digits fashion-mnist cifar10       1, 15 and 30 minutes of training
    python -m bench.recipes.vision --sets cifar10 --minutes 5 --json

Both use the same training and test images. A tenth of the training images is the validation split, on which the cells
and the regularization of the SVM and the best checkpoint are chosen. HOG is of Dalal and Triggs (2005).
"""

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

from anyformer import api, recipe_loading
from anyformer.recipes import vision
from anyformer.recipes.vision import predict_probabilities
from bench._common import make_parser

SETS = {"digits": ("digits", 1.0), "fashion-mnist": ("small", 15.0), "cifar10": ("cifar10", 30.0)}  # preset, minutes
CELL_SIZES = {8: (2, 4), 28: (4, 7), 32: (4, 8)}  # pixels of a HOG cell, by image height
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
MAX_SELECTION_IMAGES = 10_000  # on which cells and regularization are tried


@dataclass(frozen=True)
class ImageSplits:
    """pixels (N, H, W, C) uint8, labels (N,), and the indices of each split."""

    pixels: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def split_images(name: str, preset: str, images: int | None = None) -> ImageSplits:
    """Split a set; its held-out part is the test split.

    Args:
        name: Of the set.
        preset: Of the vision recipe.
        images: Of the training split; the validation split has a tenth as many, at least 500. None: all.
    """
    config = recipe_loading.get_preset(recipe_loading.load_recipe("vision"), preset)
    dataset = vision.load_images(config)
    order = np.random.default_rng(0).permutation(dataset.split("train"))
    n_val = len(order) // 10 if images is None else max(500, images // 10)
    train = order[n_val:] if images is None else order[n_val : n_val + images]
    splits = np.sort(train), np.sort(order[:n_val]), dataset.split("val")
    return ImageSplits(dataset.pixels, dataset.labels, dataset.classes, *splits)


# --- ours ---


def save_images(splits: ImageSplits, path: Path) -> Path:
    """Save the training and validation images, the latter marked."""
    indices = np.concatenate([splits.train, splits.val])
    is_test = np.arange(len(indices)) >= len(splits.train)
    arrays = {"images": splits.pixels[indices], "labels": splits.labels[indices], "classes": splits.classes}
    np.savez(path, is_test=is_test, **arrays)
    return path


def measure_accuracy(model: api.Model, splits: ImageSplits) -> float:
    """Return the accuracy on the test images."""
    predictions = predict_probabilities(model.module, splits.pixels[splits.test]).argmax(-1).numpy()
    return float((predictions == splits.labels[splits.test]).mean())


def measure_ours(
    splits: ImageSplits, preset: str, minutes: float, seed: int, folder: Path, out: Path | None
) -> dict[str, Any]:
    start = time.monotonic()
    data = save_images(splits, folder / "images.npz")
    run = out or folder / "run"
    model = api.train("vision", preset, data=str(data), minutes=minutes, out=run, train={"seed": seed})
    parameters = sum(parameter.numel() for parameter in model.module.parameters())
    facts = {"preset": preset, "steps": json.loads((run / "result.json").read_text())["step"], "parameters": parameters}
    return {"accuracy": measure_accuracy(model, splits), **facts, "seconds": time.monotonic() - start}


# --- HOG and SVM ---


def extract_features(image: np.ndarray, cell: int) -> np.ndarray:
    """Return the features of an image (H, W, C): HOG, and square roots of the color (or gray) histograms of the
    image and its quarters.
    """
    is_color = image.shape[2] == 3
    gradients = hog(
        image if is_color else image[:, :, 0],
        orientations=9,
        pixels_per_cell=(cell, cell),
        cells_per_block=(2, 2),
        block_norm="L2-Hys",
        transform_sqrt=True,
        channel_axis=2 if is_color else None,
    )
    bins = 4 if is_color else 16
    codes = (image.astype(np.int64) * bins // 256) @ (bins ** np.arange(image.shape[2]))
    regions = [codes, *(part for half in np.array_split(codes, 2) for part in np.array_split(half, 2, axis=1))]
    counts = [np.bincount(region.ravel(), minlength=bins ** image.shape[2]) / region.size for region in regions]
    return np.concatenate([gradients, np.sqrt(np.concatenate(counts))]).astype(np.float32)


def extract_all(images: np.ndarray, cell: int) -> np.ndarray:
    with ProcessPoolExecutor() as pool:
        return np.stack(list(pool.map(partial(extract_features, cell=cell), images, chunksize=200)))


def build_svm(strength: float, seed: int) -> Any:
    return make_pipeline(StandardScaler(), LinearSVC(C=strength, dual=False, tol=1e-3, random_state=seed))


def measure_svm(splits: ImageSplits, seed: int) -> dict[str, Any]:
    """Choose cells and regularization on the validation split, then fit on all training images."""
    start, candidates = time.monotonic(), []
    subset = splits.train[:: max(1, len(splits.train) // MAX_SELECTION_IMAGES)]
    for cell in CELL_SIZES[splits.pixels.shape[1]]:
        x, val = extract_all(splits.pixels[subset], cell), extract_all(splits.pixels[splits.val], cell)
        for strength in STRENGTHS:
            model = build_svm(strength, seed).fit(x, splits.labels[subset])
            candidates.append((model.score(val, splits.labels[splits.val]), cell, strength))
    _, cell, strength = max(candidates)
    model = build_svm(strength, seed).fit(extract_all(splits.pixels[splits.train], cell), splits.labels[splits.train])
    accuracy = model.score(extract_all(splits.pixels[splits.test], cell), splits.labels[splits.test])
    return {"accuracy": float(accuracy), "cell": cell, "C": strength, "seconds": time.monotonic() - start}


def compare(
    names: Sequence[str], minutes: float | None, images: int | None, seed: int, out: Path | None
) -> dict[str, Any]:
    results = {}
    for name in names:
        preset, default_minutes = SETS[name]
        splits = split_images(name, preset, images)
        sizes = {"train": len(splits.train), "val": len(splits.val), "test": len(splits.test)}
        results[name] = {"images": sizes, "HOG, color, SVM": measure_svm(splits, seed)}
        with TemporaryDirectory() as folder:
            budget, run = minutes or default_minutes, out and out / name
            results[name]["ours"] = measure_ours(splits, preset, budget, seed, Path(folder), run)
        print(f"{name}: {sizes}", flush=True)
        for method in ("HOG, color, SVM", "ours"):
            result = results[name][method]
            print(f"  {method:<18} accuracy {result['accuracy']:.4f}  {result['seconds']:,.0f} s  {result}", flush=True)
    return results


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--minutes", type=float, help="of training, for each set; by default 1, 15 and 30")
    parser.add_argument("--images", type=int, help="training images; by default all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="keep the runs here, one for each set")
    options = parser.parse_args()
    results = compare(options.sets, options.minutes, options.images, options.seed, options.out)
    if options.json:
        print(json.dumps(results))
