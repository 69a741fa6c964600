"""anyformer import SOURCE --out RUN: a public checkpoint becomes a run of ours."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .parse import parse, say
from .terminal import busy


@dataclass(frozen=True)
class Command:
    """Bring in a public checkpoint: a folder with config.json and model.safetensors (gpt2, llama, bert, t5, vit,
    whisper, decision_transformer), or a GGUF file (gpt2, llama). Nothing in it is executed."""

    source: tyro.conf.Positional[Path]
    """The folder or the file."""
    out: Path
    """The run directory to make."""
    json: Annotated[bool, tyro.conf.arg(help="One JSON object on stdout, and nothing else there.")] = False


def run(arguments: list[str]) -> int:
    asked = parse(Command, arguments, "anyformer import")
    from .. import api

    with busy():
        model = api.bring_in(asked.source, asked.out, shlex.join(["anyformer", "import", *arguments]))
    size = sum(parameter.numel() for parameter in model.module.parameters())
    if asked.json:
        print(json.dumps({"run": str(asked.out), "recipe": model.name, "parameters": size, "fresh": model.fresh}))
        return 0
    say(f"{model.name} · {size:,} parameters · {asked.out}")
    if model.fresh:
        say(f"not in the checkpoint, and random until trained: {', '.join(model.fresh)}")
    verb = "sample" if hasattr(model.recipe, "stream") else "predict"
    say(f"use    anyformer {verb} {shlex.quote(str(asked.out))}")
    say(f"tune   anyformer train {model.name} --init {shlex.quote(str(asked.out))} --data DATA")
    return 0
