"""Norms: keep the numbers of each node in a range that the next map can use."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import TransformerConfig

MAX_MIRRORED = 1 << 10  # numbers; of more, twice as many cost more than some operations


class RMSNorm(nn.RMSNorm):
    """Divide by the root of the mean square (1910.07467): (..., C) -> (..., C).

    The weight is cast to the dtype of the input, so that torch's fused kernel also serves bfloat16.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(x, self.weight)

    def scale(self, x: Tensor, weight: Tensor) -> Tensor:
        if is_node_on_cpu(x):
            # Torch has no kernel for it on a CPU, but eight operations, a fifth of those of a decoding step. The layer
            # norm of x and -x, whose mean is 0, is one.
            C, eps = x.shape[-1], self.eps or torch.finfo(x.dtype).eps
            return F.layer_norm(torch.cat([x, -x], -1), (2 * C,), eps=eps)[..., :C] * weight
        return F.rms_norm(x, self.normalized_shape, weight.to(x.dtype), self.eps)


class RMSNorm1p(RMSNorm):
    """RMSNorm whose weight is what the scale has more than 1 (Gemma, 2403.08295), so that it starts at zero."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(x, 1 + self.weight.float())


class JointRMSNorm(RMSNorm):
    """RMSNorm over the channels of all heads together: (B, H, T, D) -> (B, H, T, D)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2).flatten(2)).unflatten(2, (x.shape[1], -1)).transpose(1, 2)


def is_node_on_cpu(x: Tensor) -> bool:
    """Whether so few numbers are normed, without a gradient, that the number of operations decides."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False  # before the size is looked at, which a graph for any size must not depend on
    return x.numel() <= MAX_MIRRORED and x.device.type == "cpu" and x.dtype == torch.float32


RMS_NORMS = {"rmsnorm": RMSNorm, "rmsnorm_1p": RMSNorm1p}


def build_norm(config: TransformerConfig) -> nn.Module:
    """The norm of the residual stream."""
    if config.norm in RMS_NORMS:
        return RMS_NORMS[config.norm](config.dim, config.norm_eps)
    return nn.LayerNorm(config.dim, config.norm_eps, bias=config.bias)


def build_block_norms(config: TransformerConfig) -> tuple[nn.Module, nn.Module]:
    """The norm of a sublayer (before it, or after its residual sum), and that of its output."""
    has_own, has_output = config.norm_place != "output", config.norm_place in ("output", "sandwich")
    return build_norm(config) if has_own else nn.Identity(), build_norm(config) if has_output else nn.Identity()


def build_head_norm(config: TransformerConfig, heads: int) -> nn.Module:
    """The norm of the queries or keys of so many heads; the identity without `qk_norm` (2302.05442)."""
    if not config.qk_norm:
        return nn.Identity()
    if config.qk_norm_joint:
        return JointRMSNorm(heads * config.head_channels, config.norm_eps)
    return RMS_NORMS.get(config.norm, RMSNorm)(config.head_channels, config.norm_eps)
