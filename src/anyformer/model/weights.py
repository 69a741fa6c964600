"""Who reads whom in a stack that runs: the weights of its attention, asked from outside while a forward goes by.

Shapes: B batch, H heads, T nodes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .attention import Attention, Wires
from .block import Transformer


@torch.no_grad()
def attention_weights(body: Transformer, forward: Callable[[], Any]) -> Tensor:
    """How much each node reads of each in every layer while `forward()` runs: (layers, B, H, T, T), [query, key]. For
    stacks that read themselves, without a cache."""
    found: list[Tensor] = []

    def note(attention: Attention, heard: tuple[Tensor, Wires]) -> None:
        found.append(weights(attention, *heard[:2]))

    hooks = [block.get_submodule("attn").register_forward_pre_hook(note) for block in body.blocks]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(found)


def weights(attention: Attention, x: Tensor, wires: Wires) -> Tensor:
    """Of one layer, (B, H, T, T): what arrives where every node tells its own name, whatever path the messages take."""
    q, k, _ = attention.emits(x, wires)
    names = torch.eye(k.shape[2], dtype=q.dtype, device=q.device).expand(*k.shape[:2], -1, -1)
    return wires.path(q, k, names, 0.0, attention.scale)
