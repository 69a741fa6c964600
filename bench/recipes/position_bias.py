"""Does little data want more bias? Position none, fixed or learned, with edges to all patches or first to near ones.

    python -m bench.recipes.position_bias --minutes 2                                 24 minutes: 12 cells, one seed
    python -m bench.recipes.position_bias --minutes 4 --seeds 1 2 3 --few 1000 --data cifar10

Each cell is trained for the same time, on few images and on all, its checkpoint chosen on a validation part, and tried
on the same test images. A position tells the model where patches lie, near edges that near ones belong together; a set
has neither. ViT (2010.11929, section 4.3) found that with enough data it needs no such help.
"""

import argparse
import json
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from anyformer import api
from bench.recipes.vision import Parts, accuracy, kept, parts

POSITIONS = {"none": "none", "fixed": "sinusoidal", "learned": "learned"}
EDGES = {"full": 0, "neighbourhood": 3}  # of the first layers
PRESETS = {"fashion-mnist": "local", "cifar10": "cifar10", "digits": "digits"}


def cell(data: str, position: str, edges: str, how_long: dict[str, Any], folder: Path, seed: int) -> api.Model:
    """One training. The same shape and the same training for all of a set."""
    preset = PRESETS[data]
    train = {"seed": seed, "eval_every": 100, "save_every": 1 << 30} | how_long.get("train", {})
    return api.train(
        "vision",
        preset,
        data=str(folder / "images.npz"),
        local_layers=EDGES[edges],
        radius=1,
        model={"position": POSITIONS[position]},
        train=train,
        out=folder / f"{position}-{edges}-{seed}",
        minutes=how_long.get("minutes"),
    )


def table(data: str, few: int, how_long: dict[str, Any], seeds: list[int]) -> list[dict[str, Any]]:
    """Every cell with its accuracies, one a seed."""
    made = []
    for images in (few, None):
        found = parts(data, PRESETS[data], images)
        with TemporaryDirectory() as folder:
            kept(found, Path(folder) / "images.npz")
            for position, edges in product(POSITIONS, EDGES):
                scores, steps = [], []
                for seed in seeds:
                    model = cell(data, position, edges, how_long, Path(folder), seed)
                    scores.append(accuracy(model, found))
                    steps.append(model.config.train.steps)
                made.append(about(found, position, edges, scores, steps))
                print(line(made[-1]), flush=True)
    return made


def about(found: Parts, position: str, edges: str, scores: list[float], steps: list[int]) -> dict[str, Any]:
    where = {"images": len(found.train), "position": position, "edges": edges}
    spread = float(np.std(scores, ddof=1)) if len(scores) > 1 else None
    return where | {"accuracy": float(np.mean(scores)), "deviation": spread, "scores": scores, "steps": steps}


def line(one: dict[str, Any]) -> str:
    spread = "" if one["deviation"] is None else f" ± {one['deviation']:.4f}"
    place = f"{one['images']:>7,} images  position {one['position']:<8} edges {one['edges']:<14}"
    return f"{place} accuracy {one['accuracy']:.4f}{spread}  steps {one['steps']}"


def verdict(made: list[dict[str, Any]]) -> str:
    """What near edges and a position are worth, with few images and with all: differences of mean accuracy."""
    said = []
    for images in dict.fromkeys(one["images"] for one in made):
        rows = [one for one in made if one["images"] == images]
        mean = {key: np.mean([r["accuracy"] for r in rows if key in (r["position"], r["edges"])]) for key in KEYS}
        near, fixed, learned = mean["neighbourhood"] - mean["full"], mean["fixed"], mean["learned"]
        positions = f"fixed position {fixed - mean['none']:+.4f}, learned {learned - mean['none']:+.4f}"
        said.append(f"{images:>7,} images: near edges first {near:+.4f}; over none, {positions}")
    return "\n".join(said)


KEYS = (*POSITIONS, *EDGES)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", choices=PRESETS, default="fashion-mnist")
    parser.add_argument("--few", type=int, default=1000, help="images of the small data")
    parser.add_argument("--minutes", type=float, default=2, help="of each training")
    parser.add_argument("--steps", type=int, help="of each training, instead of minutes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout at the end")
    asked = parser.parse_args()
    how_long = {"minutes": asked.minutes} if asked.steps is None else {"train": {"steps": asked.steps}}
    made = table(asked.data, asked.few, how_long, asked.seeds)
    print(verdict(made))
    if asked.json:
        print(json.dumps({"data": asked.data, **how_long, "cells": made}))
