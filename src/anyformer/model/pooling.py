"""Pooling: all nodes of a row -> one vector.

Shapes: B batch, T nodes, C channels.
"""

import torch
from torch import Tensor


def mean_pool(x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The mean node, without padding. (B, T, C), lengths (B,) -> (B, C)"""
    if lengths is None:
        return x.mean(1)
    is_real = torch.arange(x.shape[1], device=x.device) < lengths[:, None]  # (B, T)
    return (x * is_real[..., None]).sum(1) / lengths.clamp(min=1)[:, None]


def first_pool(x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The first node, the position of a class token. (B, T, C) -> (B, C)"""
    return x[:, 0]


def last_pool(x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The last node before the padding, which has read all others if edges are causal. (B, T, C) -> (B, C)"""
    return x[:, -1] if lengths is None else x[torch.arange(x.shape[0], device=x.device), lengths - 1]


POOLING = {"mean": mean_pool, "first": first_pool, "last": last_pool}
