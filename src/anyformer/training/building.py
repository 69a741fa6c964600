"""Building a model whose weights come from a file: without initial values, and of a bounded number of tensors."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode


class SkipInit(TorchFunctionMode):
    """Build modules without drawing their initial weights, which a file is about to replace."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_", "zeros_", "zero_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def limit_parameters(most: int) -> Generator[None]:
    """Raise OverflowError as soon as modules that are built in the block have registered more parameters than this."""
    count = 0

    def add(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        count += 1
        if count > most:
            raise OverflowError(f"it has more than {most:,} tensors")

    hook = register_module_parameter_registration_hook(add)
    try:
        yield
    finally:
        hook.remove()
