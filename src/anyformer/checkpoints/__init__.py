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

    def explain(check: Any, *values: Any) -> str | None:
        try:
            check(recipe, *values)
        except InputError as error:
            return str(error)
        return None

    values = to_json(config)
    formats = {"hf": explain(select_family, values), "gguf": explain(gguf.select_architecture, values)}
    return formats | {"onnx": explain(onnx.require_export)}
