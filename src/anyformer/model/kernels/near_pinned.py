"""Rotary positions of pinned nodes: in a stream they never seem further away than in the training.

Shapes: B batch, H heads, Q queries, K keys, D channels of a head.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..positions import CosSin, apply_rotary

if TYPE_CHECKING:
    from .select import AttentionKernel


class NearPinned:
    """Wrap a kernel: a query past the context reads pinned keys as if it stood at the end of the context.

    Each query is laid beside its copy that is turned back, and each key beside zeros: in the first half, or, if it is
    pinned, in the second. So one product gives either score.

    Args:
        back: the angles from each query's position back to the end of the context.
        is_pinned: (K,) or (B, K) bool
    """

    def __init__(self, kernel: "AttentionKernel", back: CosSin, is_pinned: Tensor):
        self.kernel, self.back = kernel, back
        self.is_pinned = is_pinned.view(-1, 1, is_pinned.shape[-1], 1)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, scale: float | None = None) -> Tensor:
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        q = torch.cat([q, apply_rotary(q, self.back)], dim=-1)
        k = torch.cat([k.masked_fill(self.is_pinned, 0), k.masked_fill(~self.is_pinned, 0)], dim=-1)
        return self.kernel(q, k, v, dropout_p, scale)
