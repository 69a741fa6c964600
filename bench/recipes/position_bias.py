"""Inductive bias by amount of data: position none, fixed or learned; edges to all patches, or first to nearby ones.

    python -m bench.recipes.position_bias --minutes 2                                 24 minutes: 12 cells, one seed
    python -m bench.recipes.position_bias --minutes 4 --seeds 1 2 3 --few 1000 --data cifar10

Each cell trains for the same time, on few images and on all; its checkpoint is chosen on a validation split and
measured on the same test images. A position tells the model where patches are; nearby edges tell it that neighbors
belong together. ViT (2010.11929, section 4.3) found that with enough data neither is needed.
"""

import json
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from anyformer import api
from bench._common import make_parser
from bench.recipes.vision import ImageSplits, measure_accuracy, save_images, split_images

POSITIONS = {"none": "none", "fixed": "sinusoidal", "learned": "learned"}
EDGES = {"full": 0, "neighborhood": 3}  # of the first layers
PRESETS = {"fashion-mnist": "local", "cifar10": "cifar10", "digits": "digits"}


def train_cell(data: str, position: str, edges: str, budget: dict[str, Any], folder: Path, seed: int) -> api.Model:
    """Train a cell; shape and training are the same for all cells of a set."""
    preset = PRESETS[data]
    train = {"seed": seed, "eval_every": 100, "save_every": 1 << 30} | budget.get("train", {})
    return api.train(
        "vision",
        preset,
        data=str(folder / "images.npz"),
        local_layers=EDGES[edges],
        radius=1,
        model={"position": POSITIONS[position]},
        train=train,
        out=folder / f"{position}-{edges}-{seed}",
        minutes=budget.get("minutes"),
    )


def measure_cells(data: str, small_size: int, budget: dict[str, Any], seeds: list[int]) -> list[dict[str, Any]]:
    """Return every cell with its accuracies, one for each seed."""
    cells = []
    for images in (small_size, None):
        splits = split_images(data, PRESETS[data], images)
        with TemporaryDirectory() as folder:
            save_images(splits, Path(folder) / "images.npz")
            for position, edges in product(POSITIONS, EDGES):
                scores, steps = [], []
                for seed in seeds:
                    model = train_cell(data, position, edges, budget, Path(folder), seed)
                    scores.append(measure_accuracy(model, splits))
                    steps.append(model.config.train.steps)
                cells.append(describe_cell(splits, position, edges, scores, steps))
                print(format_cell(cells[-1]), flush=True)
    return cells


def describe_cell(
    splits: ImageSplits, position: str, edges: str, scores: list[float], steps: list[int]
) -> dict[str, Any]:
    setting = {"images": len(splits.train), "position": position, "edges": edges}
    spread = float(np.std(scores, ddof=1)) if len(scores) > 1 else None
    return setting | {"accuracy": float(np.mean(scores)), "deviation": spread, "scores": scores, "steps": steps}


def format_cell(cell: dict[str, Any]) -> str:
    spread = "" if cell["deviation"] is None else f" ± {cell['deviation']:.4f}"
    setting = f"{cell['images']:>7,} images  position {cell['position']:<8} edges {cell['edges']:<14}"
    return f"{setting} accuracy {cell['accuracy']:.4f}{spread}  steps {cell['steps']}"


def summarize(cells: list[dict[str, Any]]) -> str:
    """Return what nearby edges and a position are worth with few and with all images: differences of mean accuracy."""
    lines = []
    for images in dict.fromkeys(cell["images"] for cell in cells):
        rows = [cell for cell in cells if cell["images"] == images]
        mean = {key: np.mean([r["accuracy"] for r in rows if key in (r["position"], r["edges"])]) for key in SETTINGS}
        local, fixed, learned = mean["neighborhood"] - mean["full"], mean["fixed"], mean["learned"]
        positions = f"fixed position {fixed - mean['none']:+.4f}, learned {learned - mean['none']:+.4f}"
        lines.append(f"{images:>7,} images: nearby edges first {local:+.4f}; over none, {positions}")
    return "\n".join(lines)


SETTINGS = (*POSITIONS, *EDGES)


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--data", choices=PRESETS, default="fashion-mnist")
    parser.add_argument("--few", type=int, default=1000, help="images of the small training set")
    parser.add_argument("--minutes", type=float, default=2, help="of each training")
    parser.add_argument("--steps", type=int, help="of each training, instead of minutes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    options = parser.parse_args()
    budget = {"minutes": options.minutes} if options.steps is None else {"train": {"steps": options.steps}}
    cells = measure_cells(options.data, options.few, budget, options.seeds)
    print(summarize(cells))
    if options.json:
        print(json.dumps({"data": options.data, **budget, "cells": cells}))
