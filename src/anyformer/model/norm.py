"""Norms: keep the numbers of each node in a range that the next map can use."""

import torch.nn.functional as F
from torch import Tensor, nn

from .config import TransformerConfig


class RMSNorm(nn.RMSNorm):
    """Divide by the root of the mean square (1910.07467): (..., C) -> (..., C).

    The weight is cast to the dtype of the input, so that torch's fused kernel also serves bfloat16.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def build_norm(config: TransformerConfig) -> nn.Module:
    """The norm of the residual stream."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.dim, config.norm_eps)
    return nn.LayerNorm(config.dim, config.norm_eps, bias=config.bias)


def build_head_norm(config: TransformerConfig) -> nn.Module:
    """The norm of a head's queries or keys; the identity without `qk_norm` (2302.05442)."""
    return RMSNorm(config.head_channels, config.norm_eps) if config.qk_norm else nn.Identity()
