"""anyformer import SOURCE [--out RUN]: turn a public checkpoint into a run."""

import json
import shlex
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Annotated

from ..errors import InputError
from .flags import POSITIONAL, JsonFlag
from .terminal import print_status, show_progress


@dataclass(frozen=True, kw_only=True)
class Command:
    """Turn a public checkpoint into a run. Nothing in the checkpoint is executed.

    A folder with config.json and model.safetensors (gpt2, llama, qwen3, bert, t5,
    vit, whisper, decision_transformer), a GGUF file (gpt2, llama, qwen3), or
    owner/name of such a model on the Hugging Face hub, which is downloaded once
    (needs anyformer[hub]; HF_ENDPOINT, HF_HOME and HF_TOKEN apply)."""

    source: Annotated[str, POSITIONAL, "The folder or the file, or owner/name; a path that exists is never looked up."]
    out: Annotated[Path | None, "The run directory to create. Default: one of the model's name below runs/."] = None
    revision: Annotated[str | None, "A branch, tag or commit on the hub."] = None
    json: JsonFlag = False


def run(options: Command) -> None:
    from .. import api
    from ..recipe import SupportsStream

    source, run_path = add_revision(options.source, options.revision), options.out or choose_out(options.source)
    command = shlex.join(["anyformer", "import", source, "--out", str(run_path)])
    with show_progress():
        model = api.import_checkpoint(source, run_path, command)
    facts = {"run": str(run_path), "recipe": model.name, "parameters": model.n_parameters}
    if options.json:
        print(json.dumps(facts | {"fresh": model.missing_keys}))
        return
    print_status(f"{model.name} · {model.n_parameters:,} parameters · {run_path}")
    if model.missing_keys:
        print_status(f"not in the checkpoint, and random until trained: {', '.join(model.missing_keys)}")
    verb = "sample" if isinstance(model.recipe, SupportsStream) else "predict"
    out = shlex.quote(str(run_path))
    print_status(f"use    anyformer {verb} {out}")
    print_status(f"tune   anyformer train {model.name} --init {out} --data DATA")


def add_revision(source: str, revision: str | None) -> str:
    """Return owner/name@revision. Raises InputError for a source that has no revisions."""
    if revision is None:
        return source
    from ..data.io.hub import parse_reference

    reference = parse_reference(source, "model")
    if reference is None:
        raise InputError(f"--revision is for a model on the hub (owner/name), not for {source}")
    path = f"/{reference.path}" if reference.path else ""
    if parse_reference(text := f"{reference.repo}@{revision}{path}", "model") is None:
        raise InputError(f"--revision is '{revision}': expected a branch, a tag or a commit")
    return text


def choose_out(source: str) -> Path:
    """Return runs/NAME, or the first of runs/NAME-2 ... that is free."""
    name = Path(source.rstrip("/")).name.partition("@")[0] or "imported"
    stem = name.removesuffix(".gguf")
    paths = (Path("runs") / (stem if i == 1 else f"{stem}-{i}") for i in count(1))
    return next(path for path in paths if not path.exists())
