"""Attention weights of a stack, recorded while it runs.

Shapes: B batch, H heads, Q queries, K keys.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .trace import record
from .transformer import Transformer


class _Complete(Exception):  # noqa: N818 (not an error)
    """Every layer has run once."""


@torch.no_grad()
def attention_weights(
    body: Transformer, forward: Callable[[], Any], sublayer: str = "attn", first_pass: bool = False
) -> Tensor:
    """The weights of each layer's `sublayer` ("attn" or "cross") while `forward()` runs: (layers, B, H, Q, K).
    `first_pass`: only until every layer has run once, where `forward` generates."""
    names = [f"blocks.{layer}.{sublayer}" for layer in range(len(body.blocks))]

    def stop(module: nn.Module, args: tuple, output: Any) -> None:
        raise _Complete

    with record(body, 1 if first_pass else None, names) as trace:
        handle = body.blocks[-1].get_submodule(sublayer).register_forward_hook(stop) if first_pass else None
        try:
            forward()
        except _Complete:
            pass
        finally:
            if handle is not None:
                handle.remove()
    passes = zip(*(trace.calls.get(name, []) for name in names), strict=True)
    layers = [call.weights for calls in passes for call in calls]
    if not layers:
        raise ValueError("the Transformer has not run: give a request with something to read")
    return torch.stack(layers)
