"""anyformer lens RUN: see inside a model while it answers an input."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ..errors import InputError
from ..parsing import check_range
from .flags import DeviceFlag, JsonFlag, RecipeFlag, RunArgument
from .terminal import print_status, show_progress

MAX_PASSES = 1_000_000


@dataclass(frozen=True)
class Command:
    """Write one page that shows what a model does with an input: who reads whom in
    every layer and head, what the head would answer after each layer, what the
    answer owes to each head, layer and kind of edge.

        anyformer lens RUN --input "the cat sat" --against "the dog sat"

    The page needs no network. Without an input an example of the run is shown."""

    run: RunArgument
    input: str | None = None
    """What to answer: a text, the path of a file, or JSON, as for predict."""
    against: str | None = None
    """Another input of the same length, whose activations are put in the place of the first one's."""
    out: Path = Path("lens.html")
    """Where the page is written."""
    answer: int | None = None
    """The row of the logit lens whose change is measured. Default: the last token, the first mask, the class."""
    passes: int | None = None
    """The most forward passes for ablations, and for patching; 0: none. Default: by the size of the model."""
    request: Annotated[dict | None, """More of the recipe's request: '{"target": "un chien"}'."""] = None
    recipe: RecipeFlag = None
    device: DeviceFlag = "auto"
    json: JsonFlag = False

    def __post_init__(self) -> None:
        check_range(self, "passes", at_least=0, at_most=MAX_PASSES)
        check_range(self, "answer", at_least=-MAX_PASSES, at_most=MAX_PASSES)


def run(options: Command) -> None:
    if options.out.is_dir() or not options.out.parent.is_dir():
        raise InputError(f"--out {options.out}: name a file in a folder that exists, such as lens.html")
    from .. import api
    from ..report.lens import build_lens, write_lens

    with show_progress():
        model = api.load(options.run, options.device, recipe=options.recipe)
        request = (options.request or {}) | ({} if options.input is None else {"input": options.input})
        data = build_lens(model, request, options.against, options.answer, options.passes)
    path = write_lens(options.out, data)
    facts: dict[str, Any] = {
        "run": str(options.run),
        "step": model.step,
        "out": str(path),
        "bytes": path.stat().st_size,
    }
    facts |= {"nodes": {stack["name"]: len(stack["labels"]) for stack in data["stacks"]}}
    facts |= {"outcome": data["ablation"]["outcome"], "value": data["ablation"]["base"]}
    if options.json:
        print(json.dumps(facts, ensure_ascii=False))
        return
    print(f"{facts['outcome']}: {facts['value']:.4g}")
    for note in data["notes"]:
        print_status(note)
    print_status(f"page  {shlex.quote(str(path))}")
