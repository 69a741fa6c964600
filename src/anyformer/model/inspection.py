"""Attention weights of a stack, recorded while it runs.

Shapes: B batch, H heads, Q queries, K keys.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .transformer import Transformer


class _Complete(Exception):  # noqa: N818 (not an error)
    """Every layer has run once."""


@torch.no_grad()
def attention_weights(
    body: Transformer, forward: Callable[[], Any], sublayer: str = "attn", first_pass: bool = False
) -> Tensor:
    """The weights of each layer's `sublayer` ("attn" or "cross") while `forward()` runs: (layers, B, H, Q, K).
    `first_pass`: only until every layer has run once, where `forward` generates."""
    layers: list[Tensor] = []

    def request_weights(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, kwargs | {"need_weights": True}

    def keep_weights(module: nn.Module, args: tuple, output: tuple[Tensor, Tensor]) -> Tensor:
        layers.append(output[1])
        if first_pass and len(layers) == len(modules):
            raise _Complete
        return output[0]

    modules = [block.get_submodule(sublayer) for block in body.blocks]
    hooks = [module.register_forward_pre_hook(request_weights, with_kwargs=True) for module in modules]
    hooks += [module.register_forward_hook(keep_weights) for module in modules]
    try:
        forward()
    except _Complete:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    if not layers:
        raise ValueError("the Transformer has not run: give a request with something to read")
    return torch.stack(layers)
