"""anyformer import SOURCE --out RUN: turn a public checkpoint into a run."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from .flags import POSITIONAL, JsonFlag
from .terminal import print_status, show_progress


@dataclass(frozen=True, kw_only=True)
class Command:
    """Turn a public checkpoint into a run. Nothing in the checkpoint is executed.

    A folder with config.json and model.safetensors (gpt2, llama, qwen3, bert, t5,
    vit, whisper, decision_transformer), or a GGUF file (gpt2, llama, qwen3)."""

    source: Annotated[Path, POSITIONAL, "The folder or the file."]
    out: Annotated[Path, "The run directory to create."]
    json: JsonFlag = False


def run(options: Command) -> None:
    from .. import api
    from ..recipe import SupportsStream

    command = shlex.join(["anyformer", "import", str(options.source), "--out", str(options.out)])
    with show_progress():
        model = api.import_checkpoint(options.source, options.out, command)
    facts = {"run": str(options.out), "recipe": model.name, "parameters": model.n_parameters}
    if options.json:
        print(json.dumps(facts | {"fresh": model.missing_keys}))
        return
    print_status(f"{model.name} · {model.n_parameters:,} parameters · {options.out}")
    if model.missing_keys:
        print_status(f"not in the checkpoint, and random until trained: {', '.join(model.missing_keys)}")
    verb = "sample" if isinstance(model.recipe, SupportsStream) else "predict"
    out = shlex.quote(str(options.out))
    print_status(f"use    anyformer {verb} {out}")
    print_status(f"tune   anyformer train {model.name} --init {out} --data DATA")
