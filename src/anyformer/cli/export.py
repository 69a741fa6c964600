"""anyformer export RUN --to FORMAT DIRECTORY: what we trained opens elsewhere."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .parse import parse, say
from .terminal import busy


@dataclass(frozen=True)
class Command:
    """Write a run's best checkpoint as others read it. hf: a folder for transformers. gguf: a file for llama.cpp.
    onnx: a graph of any batch and length. peft: the adapters of a LoRA run alone. Adapters are merged otherwise."""

    run: tyro.conf.Positional[Path]
    """A run directory (its best checkpoint), or a checkpoint."""
    directory: tyro.conf.Positional[Path]
    """Where to write: a folder that is new or empty."""
    to: Literal["hf", "gguf", "onnx", "peft"]
    """The format."""
    json: Annotated[bool, tyro.conf.arg(help="One JSON object on stdout, and nothing else there.")] = False


def run(arguments: list[str]) -> int:
    asked = parse(Command, arguments, "anyformer export")
    from ..loading import give_out

    with busy():
        files = give_out(asked.run, asked.to, asked.directory)
    if asked.json:
        print(json.dumps({"directory": str(asked.directory), "format": asked.to, "files": files}))
        return 0
    say(f"{asked.directory}: {', '.join(files)}")
    return 0
