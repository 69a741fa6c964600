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
    from .report.notebook import Run, open_run, plot_runs

__version__ = "0.1.0"
__all__ = [
    "InputError", "Model", "Run", "Stopped", "TrainingError", "Transformer", "TransformerConfig", "__version__",
    "causal", "full", "load", "open_run", "plot_runs", "same", "train", "window",
]  # fmt: skip

_MODULES = {"Model": "api", "load": "api", "train": "api"}
_MODULES |= dict.fromkeys(("Run", "open_run", "plot_runs"), "report.notebook")
_MODULES |= dict.fromkeys(("InputError", "Stopped", "TrainingError"), "errors")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'anyformer' has no attribute '{name}'")
    limit_spinning()
    return getattr(importlib.import_module(f".{_MODULES.get(name, 'model')}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
