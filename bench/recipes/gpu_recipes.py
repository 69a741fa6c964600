"""Recipes on a GPU, for bench/gpu.py: CIFAR-10 and Multi30k, as a person trains them, for some minutes."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

Row = dict[str, Any]
RESERVE = 30  # seconds of a part for building the model, the last evaluation and its report


def list_cifar10(setup: Any) -> Iterator[tuple[str, Callable[[], Row]]]:
    def measure() -> Row:
        with TemporaryDirectory() as folder:
            data = {"data": str(write_images(Path(folder)))} if setup.dry else {}
            _, row = train(setup, "vision", "tiny" if setup.dry else "cifar10-gpu", Path(folder), **data)
            return row

    yield "cifar10", measure


def list_multi30k(setup: Any) -> Iterator[tuple[str, Callable[[], Row]]]:
    def measure() -> Row:
        with TemporaryDirectory() as folder:
            model, row = train(setup, "translation", "tiny" if setup.dry else "multi30k", Path(folder))
            try:
                scores = model.score() if not setup.dry else {}
            except Exception as error:  # sacrebleu is an extra
                return row | {"no_bleu": str(error)}
            return row | {name.lower(): value for name, value in scores.items() if isinstance(value, float)}

    yield "multi30k", measure


def train(setup: Any, recipe: str, preset: str, folder: Path, **fields: Any) -> tuple[Any, Row]:
    """Train for the time of the part. Returns the model, and its metrics on the validation split."""
    from anyformer import api

    minutes = max(0.5, (setup.ends_at - time.monotonic() - RESERVE) / 60)
    length = {"train": {"device": str(setup.device), "steps": 4}} if setup.dry else {"minutes": minutes, "yes": True}
    if not setup.dry:
        length["train"] = {"device": str(setup.device)}
    start, run = time.perf_counter(), folder / "run"
    model = api.train(recipe, preset, out=run, progress=False, **length, **fields)
    result = json.loads((run / "result.json").read_text())
    metrics = {name.removeprefix("val_"): value for name, value in result.items() if name.startswith("val_")}
    seconds = time.perf_counter() - start
    return model, {"seconds": seconds, "steps": result["step"]} | metrics


def write_images(folder: Path) -> Path:
    path = folder / "images.npz"
    rng = np.random.default_rng(0)
    np.savez(path, images=rng.integers(0, 255, (80, 8, 8), np.uint8), labels=np.arange(80) % 4)
    return path
