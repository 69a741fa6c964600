"""Norms: keep the numbers of each node in a range that the next map can use."""

import torch.nn.functional as F
from torch import Tensor, nn

from .config import TransformerConfig


class RMSNorm(nn.RMSNorm):
    """Divide by the root of the mean square (1910.07467). Its weight takes the format of what it norms, so that torch's
    fused kernel serves bfloat16 as well. (..., C) -> (..., C)"""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def build_norm(config: TransformerConfig) -> nn.Module:
    """The norm of a whole node."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.dim, config.norm_eps)
    return nn.LayerNorm(config.dim, config.norm_eps, bias=config.bias)


def build_head_norm(config: TransformerConfig) -> nn.Module:
    """The norm of a head's queries or keys, if there is one (2302.05442)."""
    return RMSNorm(config.head_channels, config.norm_eps) if config.qk_norm else nn.Identity()
