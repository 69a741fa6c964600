"""anyformer import SOURCE [--out RUN]: turn a public checkpoint, or a run with another context, into a run."""

import json
import re
import shlex
from dataclasses import dataclass, fields
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..errors import InputError
from ..longer_context import ContextChange, RopeChoice
from ..parsing import check_range
from .flags import POSITIONAL, JsonFlag, flag_name
from .terminal import print_status, show_progress

if TYPE_CHECKING:
    from ..trained_model import Model


@dataclass(frozen=True, kw_only=True)
class Command:
    """Turn a public checkpoint, or a run with another context, into a run.

    A folder with config.json and model.safetensors (gpt2, llama, qwen3, bert, t5,
    vit, clip, siglip, whisper and others), a GGUF file (gpt2, llama, qwen3), or
    owner/name of such a model on the Hugging Face hub, which is downloaded once
    (needs anyformer[hub]; HF_ENDPOINT, HF_HOME and HF_TOKEN apply). Nothing in
    it is executed.

    A run, or such a checkpoint, can be given a longer context, or a window that
    slides over a stream without end; its weights stay:

        anyformer import RUN --out LONG --context 1024 --rope-scaling yarn
        anyformer import RUN --out STREAM --window 251 --sinks 4"""

    source: Annotated[str, POSITIONAL, "The folder or the file, or owner/name; a path that exists is never looked up."]
    out: Annotated[Path | None, "The run directory to create. Default: one of the model's name below runs/."] = None
    revision: Annotated[str | None, "A branch, tag or commit on the hub."] = None
    context: Annotated[int | None, "A longer context than that of the training."] = None
    rope_scaling: Annotated[RopeChoice | None, "How rotary positions reach it; see docs/streams.md."] = None
    window: Annotated[int | None, "Nodes that each layer reads: generation never fills the cache."] = None
    sinks: Annotated[int, "With a window: first nodes that each layer reads too."] = 0
    json: JsonFlag = False

    def __post_init__(self) -> None:
        check_range(self, "context", "window", at_least=1, at_most=1 << 24)
        check_range(self, "sinks", at_least=0, at_most=1 << 24)


def run(options: Command) -> None:
    from ..recipe import SupportsStream

    source, run_path = add_revision(options.source, options.revision), options.out or choose_out(options.source)
    change = {field.name: getattr(options, field.name) for field in fields(ContextChange)}
    flags = [f"{flag_name([name])}={value}" for name, value in change.items() if value]
    command = shlex.join(["anyformer", "import", source, "--out", str(run_path), *flags])
    with show_progress():
        model = import_changed(source, run_path, command, change)
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


def import_changed(source: str, out: Path, command: str, change: dict[str, Any]) -> "Model":
    """Import with another context. An InputError about a field of it names the flag."""
    from .. import api

    try:
        return api.import_checkpoint(source, out, command, ContextChange(**change))
    except InputError as error:
        name = re.split(r"\W", str(error), maxsplit=1)[0]
        text = str(error)[len(name) :]
        raise InputError(f"{flag_name([name]) if name in change else name}{text}") from None


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
