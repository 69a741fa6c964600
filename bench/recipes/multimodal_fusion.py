"""A spoken and a written digit under noise: both senses together beside each alone.

    python -m bench.recipes.multimodal_fusion                  three models of 1,500 steps, four levels of noise on either side
    python -m bench.recipes.multimodal_fusion --steps 300

Three models with the same body, steps and pairs of training, which come with noise of every level: one takes both
senses, two take one. Each is asked about the same 300 validation pairs at every level, each pair under three draws of
noise, the one of both also without one of its senses. Sound and image are made worse before they are decoded: noise of
so many times the sound's own deviation, and of so many grey values. A level is won by whoever is right more often.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from anyformer import api
from anyformer.data.audio.features import SAMPLE_RATE
from anyformer.data.audio.read import read_audio
from anyformer.data.tables import datasets as known
from anyformer.data.tables import read as rows
from anyformer.events import report_progress
from anyformer.training import checkpoints as checkpoint

DRAWS = 3  # of noise, for each pair
SOUND, IMAGE = (0.0, 0.5, 1.0, 2.0), (0.0, 60.0, 120.0, 240.0)
FIELDS = {
    "image": '[fields.image]\nkind = "image"\nheight = 28\nwidth = 28\npatch = 7\n',
    "sound": '[fields.sound]\nkind = "audio"\nseconds = 1.0\ncut = true\n',
}
TARGET = '[targets.digit]\nkind = "class"\n'


def pairs() -> list[dict[str, Any]]:
    """Every pair with its sound decoded."""
    found = [row for _, row in known.open_table("spoken-digits").rows()]
    heard: dict[str, np.ndarray] = {}
    for i, row in enumerate(found):
        path = row["sound"]
        if path not in heard:
            heard[path] = read_audio(Path(path))[:SAMPLE_RATE]
        row["sound"] = heard[path]
        report_progress("reading sounds", i, len(found))
    return found


def worse(row: dict[str, Any], sound: float, image: float, rng: np.random.Generator) -> dict[str, Any]:
    """A pair with noise on either side."""
    heard, seen = row["sound"], row["image"]
    heard = heard + sound * heard.std() * rng.standard_normal(len(heard))
    seen = (seen + image * rng.standard_normal(seen.shape)).clip(0, 255).astype(np.uint8)
    return row | {"sound": heard.astype(np.float32), "image": seen}


def table(found: list[dict[str, Any]], seed: int, sound: float | None = None, image: float | None = None) -> rows.Table:
    """Pairs with this noise, or with a level drawn for each: made as they are read."""

    def noisy() -> Iterator[rows.Row]:
        for i, row in enumerate(found):
            rng = np.random.default_rng((seed, i))
            loud, dim = float(rng.choice(SOUND)), float(rng.choice(IMAGE))
            yield f"pair {i}", worse(row, loud if sound is None else sound, dim if image is None else image, rng)

    return rows.Table(noisy, Path(), f"fused 1 {seed} {sound} {image} {len(found)}", self_contained=True)


def trained(fields: list[str], steps: int, seed: int, folder: Path) -> Any:
    given = 'split = "split"\n' + "".join(FIELDS[name] for name in fields) + TARGET
    train = {"steps": steps, "seed": seed, "eval_every": steps, "save_every": steps, "device": "cpu"}
    api.train("multimodal", "spoken-digits", data="noisy-pairs", schema=given, out=folder, train=train)
    last = checkpoint.find_latest(folder / "checkpoints")
    assert last is not None
    return api.load(last, "cpu")


def accuracy(model: Any, found: list[rows.Table], without: str = "") -> float:
    """How often it is right on these, with the senses that it has, but for one."""
    kept = {field.name for field in model.module.schema.fields} - {without} | {"digit"}
    asked = [{name: value for name, value in row.items() if name in kept} for one in found for _, row in one.rows()]
    return float(np.mean([one["label"] == one["truth"] for one in model.predict({"input": asked})["results"]]))


def main(steps: int, seed: int, examples: int) -> dict[str, Any]:
    every = pairs()
    val = [row for row in every if row["split"] == "val"]
    val = val[:: max(1, len(val) // examples)]
    known.NAMED_SETS["noisy-pairs"] = lambda: table(every, seed)
    with TemporaryDirectory() as folder:
        kinds = {"fused": ["image", "sound"], "image alone": ["image"], "sound alone": ["sound"]}
        models = {name: trained(fields, steps, seed, Path(folder) / name) for name, fields in kinds.items()}
        cells = []
        for sound in SOUND:
            for image in IMAGE:
                asked = [table(val, 1000 * draw + seed, sound, image) for draw in range(1, DRAWS + 1)]
                cell: dict[str, Any] = {"sound": sound, "image": image}
                cell |= {name: accuracy(model, asked) for name, model in models.items()}
                cell |= {f"fused, no {name}": accuracy(models["fused"], asked, name) for name in ("image", "sound")}
                cells.append(cell)
                print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else k for k, v in cell.items()), flush=True)
    ahead = [cell["fused"] - max(cell["image alone"], cell["sound alone"]) for cell in cells]
    won, even = sum(one > 0 for one in ahead), sum(one == 0 for one in ahead)
    about = {"levels": len(cells), "won": won, "even": even, "closest": min(ahead), "steps": steps, "pairs": len(val)}
    return {"cells": cells} | about


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=300, help="validation pairs asked at each level")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout at the end")
    asked = parser.parse_args()
    found = main(asked.steps, asked.seed, asked.pairs)
    if asked.json:
        print(json.dumps(found))
    print(f"of {found['levels']} levels of noise fused wins {found['won']}, {found['even']} are even")
    print(f"its smallest lead: {found['closest']:+.4f}")
    names = ("fused", "image alone", "sound alone", "fused, no image", "fused, no sound")
    for name in names:
        print(f"{name:<16} mean accuracy {np.mean([cell[name] for cell in found['cells']]):.4f}")
