"""Initial weights, all in one place.

Maps and embeddings are small and normal (GPT-2: 0.02), so that logits start near zero and all tokens are nearly equally
likely. Maps that write to the residual stream start smaller, by the root of their number, or at zero, so that the
variance of the stream does not grow with depth. Norms start as the identity, biases at zero.
"""

import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from .config import TransformerConfig
from .positions import LearnedPosition, RelativeBias
from .transformer import Transformer


def initialize(model: nn.Module, config: TransformerConfig) -> nn.Module:
    """Set every weight of the model, in the order of its modules, from torch's global random generator. Returns it."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv1d | nn.Conv2d | LearnedPosition | RelativeBias):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for stack in model.modules():
        if isinstance(stack, Transformer):
            _initialize_residual_writers(stack, config)
    return model


def _initialize_residual_writers(stack: Transformer, config: TransformerConfig) -> None:
    writers = (3 if stack.cross else 2) * config.n_layer
    std = 0.0 if config.init == "zero" else 0.02 / math.sqrt(writers)
    for name, module in stack.named_modules():
        if name.endswith((".output", ".down")):
            nn.init.normal_(module.weight, std=std)


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
