"""Building a model whose weights come from a file: without initial values, and of a bounded number of tensors."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

INITIALIZERS = ("normal_", "uniform_", "kaiming_uniform_", "zeros_", "zero_")


class SkipInit(TorchFunctionMode):
    """Build modules without drawing the initial values of their parameters, which a file is about to replace; buffers,
    which may be in no file, are filled. A tensor of the meta device has no values to fill, but torch would load its
    compiler to do so, which takes seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensor = args[0] if args else kwargs.get("tensor")
        is_skipped = isinstance(tensor, nn.Parameter) or (isinstance(tensor, Tensor) and tensor.is_meta)
        if is_skipped and getattr(func, "__name__", "") in INITIALIZERS:
            return tensor
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
