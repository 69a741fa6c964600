"""Files in, files out: rows per second one by one and in batches, for every recipe.

    python -m bench.inference.file_prediction
    python -m bench.inference.file_prediction classify:small multimodal:table --rows 2000 --seconds 5

"one by one" calls `predict` for each row, without a file; "batched" is `predict_file`, from file to file. "floor" is
what the forward passes of the batches alone would allow. A row of `forecast` is a series of 60 steps,
one by one in a table of its own. The models are untrained: what they have learned does not change how long they take,
but for texts that end early. Times are CPU seconds of one thread, so that other processes do not matter much.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from anyformer import recipe as recipes
from anyformer import recipe_loading
from anyformer.data.tables.stream import RowReader
from anyformer.predict_file import predict_file, read_input
from bench._common import make_parser

WORDS = ["the", "spring", "song", "is", "bright", "and", "so", "are", "my", "friends", "on", "the", "warm", "mat"]
PAIRS, PROMPTS = ("translation", "seq2seq", "rnnsearch"), ("language", "recall", "mlp")
PRESETS = {"forecast": "small"}  # others: tiny
SETTINGS = {name: {"tokens": 20, "temperature": 0} for name in PROMPTS}


def make_rows(name: str, config: Any, column: str, count: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield rows that a recipe reads, of different lengths where it reads texts."""
    rng = np.random.default_rng(0)
    if name in ("multimodal", "control"):
        recipe = recipe_loading.load_recipe(name)
        yield from (recipe.examples(config).request["input"] * count)[:count]
    for i in range(count if name not in ("multimodal", "control") else 0):
        if name in ("vision", "speech"):
            yield {column: write_media(name, folder, i % 50)}
        elif name in PAIRS:
            yield {column: "".join(map(str, rng.integers(0, 10, rng.integers(2, 12))))}
        else:
            words = rng.choice(WORDS, rng.integers(3, 4 if name in (*PROMPTS, "masked", "spans") else 12)).tolist()
            hidden = {"masked": "[MASK]", "spans": "___"}.get(name, words[1])
            yield {column: " ".join([words[0], hidden, *words[2:]])}


def write_media(name: str, folder: Path, number: int) -> str:
    path = folder / f"{number}.{'png' if name == 'vision' else 'wav'}"
    if not path.exists() and name == "vision":
        from PIL import Image

        Image.fromarray(np.random.default_rng(number).integers(0, 256, (28, 28), np.uint8)).save(path)
    elif not path.exists():
        import soundfile

        from anyformer.data.audio.datasets import load_tones

        soundfile.write(path, load_tones().read_clip(number), 16000)
    return path.name


@contextmanager
def time_forwards(model: torch.nn.Module) -> Iterator[list[float]]:
    """Measure the seconds in the outermost calls of the model's modules: seconds, start, depth."""
    clock = [0.0, 0.0, 0.0]

    def enter(*_: Any) -> None:
        clock[1] = clock[1] if clock[2] else time.process_time()
        clock[2] += 1

    def leave(*_: Any) -> None:
        clock[2] -= 1
        clock[0] += 0 if clock[2] else time.process_time() - clock[1]

    modules = [*model.modules()]
    hooks = [module.register_forward_pre_hook(enter) for module in modules]
    hooks += [module.register_forward_hook(leave, always_call=True) for module in modules]
    yield clock
    for hook in hooks:
        hook.remove()


def write_series(file: Path, count: int) -> list[str]:
    """Write a table of series of 60 steps, and the first ones each as a table of its own. Returns their paths."""
    dates, names, tables = np.datetime64("2024-01-01") + np.arange(60), "date,id,value\n", []
    for i, values in enumerate(np.random.default_rng(0).normal(size=(count, 60)).cumsum(1)):
        tables.append("".join(f"{date},s{i},{x:.3f}\n" for date, x in zip(dates, values, strict=True)))
    file.write_text(names + "".join(tables))
    paths = [file.with_name(f"{i}.csv") for i in range(min(count, 100))]
    for path, table in zip(paths, tables):
        path.write_text(names + table)
    return list(map(str, paths))


def write_inputs(name: str, recipe: Any, model: Any, config: Any, file: Path, count: int) -> tuple[list[Any], dict]:
    """Write a file for a recipe. Returns the inputs of its first rows, and what a request of them holds besides."""
    if isinstance(recipe, recipes.SupportsTablePredict):  # a row of it is a series
        return write_series(file, count), {}
    source = recipe.file_input(model, config)
    rows = make_rows(name, config, source.columns[0], count, file.parent)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = RowReader(file, source.columns).rows()
    inputs = [read_input(source, row, file.parent) for _, row in islice(pairs, 500) if isinstance(row, dict)]
    return inputs, {**source.settings, **SETTINGS.get(name, {})}


@torch.no_grad()
def measure(name: str, preset: str, count: int, batch: int, seconds: float) -> dict[str, Any]:
    recipe = recipe_loading.load_recipe(name)
    config = recipe.PRESETS[preset]
    model = recipe.build(config).eval()
    with TemporaryDirectory() as text:
        file = Path(text) / ("in.csv" if isinstance(recipe, recipes.SupportsTablePredict) else "in.jsonl")
        inputs, request = write_inputs(name, recipe, model, config, file, count)
        recipe.predict(model, request | {"input": inputs[0]})  # prepares what is prepared once
        start, singles = time.process_time(), 0
        while time.process_time() - start < seconds:
            recipe.predict(model, request | {"input": inputs[singles % len(inputs)]})
            singles += 1
        one_by_one = singles / (time.process_time() - start)
        with time_forwards(model) as clock:
            start = time.process_time()
            predict_file(recipe, model, config, file, file.with_name("out.csv"), batch, settings=SETTINGS.get(name, {}))
            batched = count / (time.process_time() - start)
    results = {"one_by_one": one_by_one, "batched": batched, "floor": count / max(clock[0], 1e-9)}
    return {"rows": count, "times": batched / one_by_one} | results


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("recipes", nargs="*", help="RECIPE or RECIPE:PRESET; default: all, with their preset tiny")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2, help="of the measurement of one by one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name, _, preset in (word.partition(":") for word in options.recipes or recipe_loading.list_recipes()):
        preset = preset or PRESETS.get(name, "tiny")
        result = measure(name, preset, options.rows, options.batch, options.seconds)
        results[f"{name} {preset}"] = result
        speeds = f"one by one {result['one_by_one']:>7,.0f}  batched {result['batched']:>7,.0f}"
        print(f"{name:<12}{preset:<8}{speeds}  {result['times']:>5.1f}x  floor {result['floor']:>8,.0f}")
    if options.json:
        print(json.dumps(results))
