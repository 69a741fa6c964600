"""anyformer export RUN --to FORMAT DIRECTORY: write a model in a public format."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from .flags import POSITIONAL, JsonFlag, RecipeFlag
from .terminal import print_status, show_progress


@dataclass(frozen=True)
class Command:
    """Write a run's best checkpoint in a public format.

    hf    a folder for transformers
    gguf  a file for llama.cpp
    onnx  a graph for any batch size and length
    peft  the adapters of a LoRA run alone; other formats merge them"""

    run: Annotated[Path, POSITIONAL, "A run directory (its best checkpoint), or a checkpoint."]
    directory: Annotated[Path, POSITIONAL, "Where to write: a new or empty folder."]
    to: Annotated[Literal["hf", "gguf", "onnx", "peft"], "The format."]
    quantize: Annotated[
        Literal["f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"] | None,
        "How gguf stores matrices. Without it: float32.",
    ] = None
    cache: Annotated[
        bool, "The onnx graph of a language model also takes and returns keys and values: it reads new tokens only."
    ] = False
    recipe: RecipeFlag = None
    json: JsonFlag = False


def run(options: Command) -> None:
    from .. import api

    with show_progress():
        settings = {"recipe": options.recipe, "quantize": options.quantize, "cached": options.cache}
        files = api.export_checkpoint(options.run, options.to, options.directory, **settings)
    if options.json:
        print(json.dumps({"directory": str(options.directory), "format": options.to, "files": files}))
        return
    print_status(f"{options.directory}: {', '.join(files)}")
