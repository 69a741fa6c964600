"""anyformer predict RUN INPUT ...: ask a trained model of any recipe."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from ..errors import InputError
from ..parsing import check_range
from ..training.config import MAX_BATCH
from .flags import POSITIONAL, DeviceFlag, JsonFlag, RecipeFlag, RunArgument, WeightsFlag
from .terminal import print_status, read_inputs, show_progress


@dataclass(frozen=True)
class Command:
    """Print the model's answer to each input, one JSON object per line.

    An input is a text or the path of a file, by the recipe. Without inputs the
    recipe's example is answered. With --file and --out, the rows of a table are
    written with their predictions, in bounded memory:

        anyformer predict RUN --file new.csv --out scored.csv"""

    run: RunArgument
    input: Annotated[tuple[str, ...], POSITIONAL] = ()
    """What to answer; - reads stdin: one input per line, or one sound or image."""
    file: Path | None = None
    """A file with one input per line; with --out also a csv, tsv, jsonl or parquet with the columns of the recipe's
    data."""
    out: Path | None = None
    """A .csv, .tsv or .jsonl file to write the rows of --file to, with their predictions; jsonl holds the full
    answers."""
    batch: int = 64
    """With --out: inputs that are answered together."""
    skip_broken: bool = False
    """With --out: leave out rows that cannot be read or answered, instead of stopping at the first."""
    request: Annotated[dict | None, """More of the recipe's request: '{"beam": 4}'."""] = None
    recipe: RecipeFlag = None
    device: DeviceFlag = "auto"
    weights: WeightsFlag = "float32"
    json: JsonFlag = False

    def __post_init__(self) -> None:
        check_range(self, "batch", at_least=1, at_most=MAX_BATCH)


def run(options: Command) -> None:
    request: Any = {} if options.request is None else options.request
    if not isinstance(request, dict):
        raise InputError(f"--request should be a JSON object, found {json.dumps(request)}")
    if options.out is not None:
        return write_file(options, options.out, request)
    with TemporaryDirectory() as folder:
        media = Path(folder) / "stdin"
        inputs = read_inputs(options.input, options.file, media)
        if not inputs and (options.input or options.file):
            raise InputError(f"there is nothing to answer: {options.file or 'stdin'} holds no lines")
        with show_progress():
            model = load_model(options)
            answer = model.predict(request | ({"input": inputs} if inputs else {}))
    for result in answer.get("results") or ():
        result |= {"input": "-"} if result.get("input") == str(media) else {}
    if options.json:
        print(json.dumps(answer | {"run": str(options.run), "step": model.step}, ensure_ascii=False))
        return
    for result in answer.get("results") or answer.get("samples") or [answer]:
        print(json.dumps(result, ensure_ascii=False))


def load_model(options: Command) -> Any:
    from .. import api

    return api.load(options.run, options.device, weights=options.weights, recipe=options.recipe)


def write_file(options: Command, out: Path, request: dict[str, Any]) -> None:
    """Write the rows of --file with their predictions, and say how many."""
    if options.file is None or options.input:
        raise InputError("--out writes the predictions for --file FILE: name one, and no other inputs")
    with show_progress():
        model = load_model(options)
        start = time.monotonic()
        result = model.predict_file(options.file, out, options.batch, options.skip_broken, **request)
        seconds = time.monotonic() - start
    if options.json:
        facts = {"run": str(options.run), "step": model.step, "file": str(options.file), "out": str(out)}
        print(json.dumps(facts | result | {"seconds": round(seconds, 3)}, ensure_ascii=False))
        return
    skipped = f"; {result['skipped']:,} left out, the first: {result['first_skipped']}" if result["skipped"] else ""
    print_status(f"{out}: {result['rows']:,} rows, {result['rows'] / seconds:,.0f} per second{skipped}")
