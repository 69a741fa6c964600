"""Trained models in other forms: public checkpoints that become runs, runs with another context, public formats."""

from pathlib import Path
from typing import Any, Literal

from .checkpoints import gguf, hf_folder, onnx, peft
from .errors import InputError
from .longer_context import ContextChange, change_context
from .parsing import check_arguments, to_json
from .trained_model import Model, find_model, load, load_public
from .training import checkpoints
from .training.building import SkipInit
from .training.run_directory import RunDirectory, describe_run

UNCHANGED = ContextChange()
OPTIONS = {"quantize": "gguf", "cached": "onnx"}  # option of an export -> the format that has it


def change_model(model: Model, change: ContextChange) -> Model:
    """Return the model with another context; its weights stay."""
    config = change_context(model.config, change)
    with SkipInit():
        module = model.recipe.build(config)
    module.load_state_dict(model.module.state_dict())
    state = {"step": model.step, "stream_state": model.stream_state, "missing_keys": model.missing_keys}
    return Model(model.recipe, config, module, state, model.path)


@check_arguments
def import_checkpoint(source: str | Path, out: Path, command: str = "", change: ContextChange = UNCHANGED) -> Model:
    """Turn a public checkpoint, or a run with another context, into a run directory. Raises InputError; nothing
    half-written remains."""
    run = RunDirectory(out)
    if run.exists:
        raise InputError(f"{out} is a run already: name another directory with --out")
    run.require_unused()
    source = find_model(source)
    if not source.exists():
        raise InputError(f"there is no checkpoint at {source}")
    if source.is_dir() and not hf_folder.is_hf_folder(source) and not hf_folder.find_gguf(source):
        if not RunDirectory(source).exists:
            raise InputError(f"{source} has no config.json with a model_type: expected a folder of a public checkpoint")
        if change == UNCHANGED:
            raise InputError(f"{source} is a run of anyformer already: use it as it is, or copy the directory")
    model = load(source, "cpu") if RunDirectory(source).exists else load_public(source, "cpu")
    model = model if change == UNCHANGED else change_model(model, change)
    content = describe_run(model.name, "imported", model.config, command)
    state = {"step": model.step, "stream_state": model.stream_state, "best": {}, "missing_keys": model.missing_keys}
    with run.lock():
        run.create(content)
        try:
            with checkpoints.atomic_directory(run.checkpoints / f"step-{model.step}") as folder:
                checkpoints.write_model(folder, model.module, content, state)
        except BaseException:
            run.remove()
            raise
    return model


@check_arguments
def export_checkpoint(
    source: str | Path,
    to: Literal["hf", "gguf", "onnx", "peft"],
    folder: Path,
    recipe: Any = None,
    quantize: gguf.Quantization | None = None,
    cached: bool = False,
) -> list[str]:
    """Write a run or a checkpoint in a public format ("hf", "gguf", "onnx" or "peft") to a new or empty folder.

    Args:
        source: A run, a checkpoint or a public one, as for `load`.
        recipe: As for `load`.
        quantize: How GGUF stores matrices; None for float32.
        cached: The ONNX graph of a language model takes and returns keys and values, to generate token by token.

    Returns the names of the written files. Raises InputError if the format cannot hold this model.
    """
    options = {name: value for name, value in {"quantize": quantize, "cached": cached}.items() if value}
    for name, value in options.items():
        if OPTIONS[name] != to:
            raise InputError(f"{name} is {value}, which is for {OPTIONS[name]}, not for {to}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not empty: name a new folder")
    model = load(source, "cpu", merged=to != "peft", recipe=recipe)
    if model.task_hint:
        raise InputError(f"the recipe '{model.name}' has several tasks: {model.task_hint}")
    values = to_json(model.config)
    if to == "peft":
        base = checkpoints.read_json(model.path / "config.json").get("init", {}).get("path", "")
        peft.write(folder, model.recipe, values, model.module, base)
    else:
        write: Any = {"hf": hf_folder.write, "gguf": gguf.write, "onnx": onnx.write}[to]
        write(folder, model.recipe, values, model.module, **options)
    return sorted(path.name for path in folder.iterdir())
