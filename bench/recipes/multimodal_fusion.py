"""A spoken and a written digit under noise: both modalities together, compared with each alone.

    python -m bench.recipes.multimodal_fusion        three models of 1,500 steps, four noise levels of each modality
    python -m bench.recipes.multimodal_fusion --steps 300

Three models with the same body, steps and training pairs, which have noise of random levels: one reads both modalities,
two read one. Each predicts the same 300 validation pairs at every level, each pair with three samples of noise; the
model of both also without one of them. Noise is added before encoding: relative to the standard deviation of the sound,
and in gray values of the image. A level is won by the model with the higher accuracy.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from anyformer.data.audio.features import SAMPLE_RATE
from anyformer.data.audio.read import read_audio
from anyformer.data.tables import datasets as table_sets
from anyformer.data.tables import read as table_read
from anyformer.events import report_progress
from bench._common import make_parser, train_to_end

DRAWS = 3  # samples of noise for each pair
SOUND, IMAGE = (0.0, 0.5, 1.0, 2.0), (0.0, 60.0, 120.0, 240.0)
FIELDS = {
    "image": '[fields.image]\nkind = "image"\nheight = 28\nwidth = 28\npatch = 7\n',
    "sound": '[fields.sound]\nkind = "audio"\nseconds = 1.0\ncut = true\n',
}
TARGET = '[targets.digit]\nkind = "class"\n'


def read_pairs() -> list[dict[str, Any]]:
    """Return all pairs with decoded sound."""
    pairs = [row for _, row in table_sets.open_table("spoken-digits").rows()]
    clips: dict[str, np.ndarray] = {}
    for i, row in enumerate(pairs):
        path = row["sound"]
        if path not in clips:
            clips[path] = read_audio(Path(path))[:SAMPLE_RATE]
        row["sound"] = clips[path]
        report_progress("reading sounds", i, len(pairs))
    return pairs


def add_noise(row: dict[str, Any], sound: float, image: float, rng: np.random.Generator) -> dict[str, Any]:
    """Add noise to both modalities of a pair."""
    waveform, pixels = row["sound"], row["image"]
    waveform = waveform + sound * waveform.std() * rng.standard_normal(len(waveform))
    pixels = (pixels + image * rng.standard_normal(pixels.shape)).clip(0, 255).astype(np.uint8)
    return row | {"sound": waveform.astype(np.float32), "image": pixels}


def make_table(
    pairs: list[dict[str, Any]], seed: int, sound: float | None = None, image: float | None = None
) -> table_read.Table:
    """Return the pairs as a table with this noise, or with random levels: made as they are read."""

    def noisy() -> Iterator[table_read.Row]:
        for i, row in enumerate(pairs):
            rng = np.random.default_rng((seed, i))
            random_sound, random_image = float(rng.choice(SOUND)), float(rng.choice(IMAGE))
            levels = (random_sound if sound is None else sound, random_image if image is None else image)
            yield f"pair {i}", add_noise(row, *levels, rng)

    return table_read.Table(noisy, Path(), f"fused 1 {seed} {sound} {image} {len(pairs)}", self_contained=True)


def train_fields(fields: list[str], steps: int, seed: int, folder: Path) -> Any:
    schema = 'split = "split"\n' + "".join(FIELDS[name] for name in fields) + TARGET
    return train_to_end("multimodal", "spoken-digits", folder, steps, seed, data="noisy-pairs", schema=schema)


def measure_accuracy(model: Any, tables: list[table_read.Table], without: str = "") -> float:
    """Return the accuracy on tables, optionally without one modality."""
    kept = {field.name for field in model.module.schema.fields} - {without} | {"digit"}
    rows = [row for table in tables for _, row in table.rows()]
    request = {"input": [{name: value for name, value in row.items() if name in kept} for row in rows]}
    return float(np.mean([result["label"] == result["truth"] for result in model.predict(request)["results"]]))


def main(steps: int, seed: int, examples: int) -> dict[str, Any]:
    pairs = read_pairs()
    val = [row for row in pairs if row["split"] == "val"]
    val = val[:: max(1, len(val) // examples)]
    table_sets.NAMED_SETS["noisy-pairs"] = lambda: make_table(pairs, seed)
    with TemporaryDirectory() as folder:
        fields_of = {"fused": ["image", "sound"], "image alone": ["image"], "sound alone": ["sound"]}
        models = {name: train_fields(fields, steps, seed, Path(folder) / name) for name, fields in fields_of.items()}
        cells = []
        for sound in SOUND:
            for image in IMAGE:
                tables = [make_table(val, 1000 * draw + seed, sound, image) for draw in range(1, DRAWS + 1)]
                cell: dict[str, Any] = {"sound": sound, "image": image}
                cell |= {name: measure_accuracy(model, tables) for name, model in models.items()}
                for name in ("image", "sound"):
                    cell[f"fused, no {name}"] = measure_accuracy(models["fused"], tables, name)
                cells.append(cell)
                print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else k for k, v in cell.items()), flush=True)
    leads = [cell["fused"] - max(cell["image alone"], cell["sound alone"]) for cell in cells]
    won, ties = sum(lead > 0 for lead in leads), sum(lead == 0 for lead in leads)
    summary = {"levels": len(cells), "won": won, "even": ties, "closest": min(leads), "steps": steps, "pairs": len(val)}
    return {"cells": cells} | summary


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=300, help="validation pairs at each level")
    options = parser.parse_args()
    results = main(options.steps, options.seed, options.pairs)
    if options.json:
        print(json.dumps(results))
    print(f"of {results['levels']} noise levels, fused wins {results['won']}, {results['even']} are ties")
    print(f"its smallest lead: {results['closest']:+.4f}")
    for name in ("fused", "image alone", "sound alone", "fused, no image", "fused, no sound"):
        print(f"{name:<16} mean accuracy {np.mean([cell[name] for cell in results['cells']]):.4f}")
