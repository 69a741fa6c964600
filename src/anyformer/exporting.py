"""Write a trained model in a public format."""

from pathlib import Path
from typing import Any, Literal

from .checkpoints import gguf, hf_folder, onnx, peft
from .errors import InputError
from .parsing import check_arguments, to_json
from .trained_model import load
from .training import checkpoints

OPTIONS = {"quantize": "gguf", "cached": "onnx"}  # option -> the format that has it


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
    values = to_json(model.config)
    if to == "peft":
        base = checkpoints.read_json(model.path / "config.json").get("init", {}).get("path", "")
        peft.write(folder, model.recipe, values, model.module, base)
    else:
        write: Any = {"hf": hf_folder.write, "gguf": gguf.write, "onnx": onnx.write}[to]
        write(folder, model.recipe, values, model.module, **options)
    return sorted(path.name for path in folder.iterdir())
