"""Rotary positions of pinned nodes: in a stream they never seem further away than in the training.

Shapes: B batch, H heads, Q queries, K keys, D channels of a head.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..positions import CosSin, apply_rotary

if TYPE_CHECKING:
    from .select import AttentionKernel, AttentionSpec


class NearPinned:
    """Wrap a kernel: a query past the context reads pinned keys as if it stood at the end of the context.

    Args:
        pinned: how many nodes are pinned.
        back: the angles from each query's position back to the end of the context.
    """

    def __init__(self, kernel: "AttentionKernel", pinned: int, back: CosSin, spec: "AttentionSpec"):
        self.kernel, self.pinned, self.back = kernel, pinned, back
        slots = torch.arange(spec.keys, device=spec.device) if spec.slot_positions is None else spec.slot_positions
        self.is_pinned = (slots < pinned).view(-1, 1, slots.shape[-1], 1)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, scale: float | None = None) -> Tensor:
        if q.shape[2] == 1:  # to turn the query back is to turn the keys on, and in a cache they are the first ones
            cos, sin = self.back
            k = torch.cat([apply_rotary(k[:, :, : self.pinned], (cos, -sin)), k[:, :, self.pinned :]], dim=2)
            return self.kernel(q, k, v, dropout_p, scale)
        # Each query is laid beside its copy that is turned back, and each key beside zeros: in the first half or, if it
        # is pinned, in the second. So one product gives either score.
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        q = torch.cat([q, apply_rotary(q, self.back)], dim=-1)
        k = torch.cat([k.masked_fill(self.is_pinned, 0), k.masked_fill(~self.is_pinned, 0)], dim=-1)
        return self.kernel(q, k, v, dropout_p, scale)
