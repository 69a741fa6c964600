"""anyformer predict RUN INPUT ...: ask a trained model of any recipe."""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from ..errors import InputError
from .flags import POSITIONAL, DeviceFlag, JsonFlag, RecipeFlag, RunArgument, WeightsFlag
from .terminal import read_inputs, show_progress


@dataclass(frozen=True)
class Command:
    """Print the model's answer to each input, one JSON object per line.

    An input is a text or the path of a file, by the recipe. Without inputs the
    recipe's example is answered."""

    run: RunArgument
    input: Annotated[tuple[str, ...], POSITIONAL] = ()
    """What to answer; - reads stdin: one input per line, or one sound or image."""
    file: Annotated[Path | None, "A file with one input per line."] = None
    request: Annotated[dict | None, """More of the recipe's request: '{"beam": 4}'."""] = None
    recipe: RecipeFlag = None
    device: DeviceFlag = "auto"
    weights: WeightsFlag = "float32"
    json: JsonFlag = False


def run(options: Command) -> None:
    request: Any = {} if options.request is None else options.request
    if not isinstance(request, dict):
        raise InputError(f"--request should be a JSON object, found {json.dumps(request)}")
    with TemporaryDirectory() as folder:
        media = Path(folder) / "stdin"
        inputs = read_inputs(options.input, options.file, media)
        from .. import api

        with show_progress():
            model = api.load(options.run, options.device, weights=options.weights, recipe=options.recipe)
            answer = model.predict(request | ({"input": inputs} if inputs else {}))
    for result in answer.get("results") or ():
        result |= {"input": "-"} if result.get("input") == str(media) else {}
    if options.json:
        print(json.dumps(answer | {"run": str(options.run), "step": model.step}, ensure_ascii=False))
        return
    for result in answer.get("results") or answer.get("samples") or [answer]:
        print(json.dumps(result, ensure_ascii=False))
