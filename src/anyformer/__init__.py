"""anyformer: any data, one Transformer.

    import anyformer
    model = anyformer.train("language", data="my.txt", minutes=1)
    print(model.generate("Once upon a time")["samples"][0]["text"])

The names below are imported when they are first used: `import anyformer` loads no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .threads import limit_spinning

if TYPE_CHECKING:
    from .api import Model, load, train
    from .errors import InputError, Stopped, TrainingError
    from .model import Transformer, TransformerConfig, causal, full, same, window

__version__ = "0.1.0"
__all__ = [
    "InputError", "Model", "Stopped", "TrainingError", "Transformer", "TransformerConfig", "__version__", "causal",
    "full", "load", "same", "train", "window",
]  # fmt: skip

_MODULES = {"Model": "api", "load": "api", "train": "api"}
_MODULES |= dict.fromkeys(("InputError", "Stopped", "TrainingError"), "errors")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'anyformer' has no attribute '{name}'")
    limit_spinning()
    return getattr(importlib.import_module(f".{_MODULES.get(name, 'model')}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
