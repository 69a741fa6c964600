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
    request: Annotated[str, """More of the recipe's request, as JSON: '{"beam": 4}'."""] = "{}"
    recipe: RecipeFlag = None
    device: DeviceFlag = "auto"
    weights: WeightsFlag = "float32"
    json: JsonFlag = False


def run(options: Command) -> None:
    request = parse_request(options.request)
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


def parse_request(text: str) -> dict[str, Any]:
    """Return a request as a dict. Raises InputError."""
    try:
        request = json.loads(text)
    except ValueError as error:
        raise InputError(f"--request is not JSON ({error}): {text}") from None
    if not isinstance(request, dict):
        raise InputError(f"--request should be a JSON object, found {text}")
    return request
