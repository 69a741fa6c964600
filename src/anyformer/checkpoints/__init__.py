"""Public checkpoint formats, in and out: folders of Hugging Face, GGUF files, ONNX graphs, PEFT adapters."""

from typing import Any


def exports(recipe: Any, config: Any) -> dict[str, str | None]:
    """List the formats that a model with this config can be exported to. No model is built.

    Args:
        recipe: a recipe's module.
        config: a config of this recipe.

    Returns:
        format name ("hf", "gguf", "onnx") -> None where it can be exported, else the reason why not.
    """
    from ..errors import InputError
    from ..parsing import to_json
    from . import gguf, onnx
    from .family import select_family

    values = to_json(config)
    checks = {
        "hf": lambda: select_family(recipe, values),
        "gguf": lambda: gguf.select_architecture(recipe, values),
        "onnx": lambda: onnx.require_export(recipe),
    }
    reasons: dict[str, str | None] = dict.fromkeys(checks)
    for name, check in checks.items():
        try:
            check()
        except InputError as error:
            reasons[name] = str(error)
    return reasons
