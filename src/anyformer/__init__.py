"""anyformer: any data, one Transformer.

    import anyformer
    model = anyformer.train("language", data="my.txt", minutes=1)
    print(model.generate("Once upon a time")["samples"][0]["text"])

Importing it loads no torch; the first call does.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Model, load, train

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "load", "train"]


def __getattr__(name: str) -> Any:
    if name in ("Model", "load", "train"):
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module 'anyformer' has no attribute '{name}'")
