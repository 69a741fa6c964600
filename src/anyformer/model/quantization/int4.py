"""Weights of 4 bits in groups, each with its scale and its smallest weight, rounded to fit.

Shapes: R rows of I numbers in, O numbers out; G = I / GROUP_SIZE groups in a row of weights.
"""

from functools import cache

import torch
from torch import Tensor, nn

from ..kernels.linear import multiply

GROUP_SIZE = 32  # weights that share a scale
LEVELS = 15  # a weight is one of 16 numbers
OUTPUT_ALIGNMENT = 16  # of torch's kernel
MAX_INT4PACK_ROWS = 256  # above, each weight is used so often that it pays to write it out first
BLOCKS = (64, 32)  # outputs that the kernel packs together, with AVX-512 and with less
FIT_STEPS = 2  # of scale and offset to the rounded weights


def has_int4() -> bool:
    """Whether this build of torch has the kernel."""
    names = ("_convert_weight_to_int4pack_for_cpu", "_weight_int4pack_mm_for_cpu")
    return all(hasattr(torch.ops.aten, name) for name in names)


class Int4Linear(nn.Module):
    """Weights as scale * integer + offset, the integer from 0 to 15, scale and offset of each group in bfloat16.
    (..., I) -> (..., O)"""

    packed: Tensor
    scale_offset: Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        integers, scale, offset = round_in_groups(linear.weight.detach().float())
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers, 1)
        # The kernel reads 8 as zero, and scales and offsets as (G, O, 2).
        scale_offset = torch.stack([scale, offset + 8 * scale], -1).transpose(0, 1).bfloat16().contiguous()
        self.register_buffer("packed", packed)
        self.register_buffer("scale_offset", scale_offset)
        self.weight_bytes = packed.numel() * packed.element_size() + 2 * scale_offset.numel()

    @staticmethod
    def fits(linear: nn.Linear) -> bool:
        """Whether the kernel can read a map of this shape."""
        return linear.in_features % GROUP_SIZE == 0 == linear.out_features % OUTPUT_ALIGNMENT

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        block = find_block() if len(rows) > MAX_INT4PACK_ROWS else 0
        if block and self.out_features % block == 0:
            y = multiply(rows, self.dequantize(block))
        else:
            rows = rows.bfloat16().contiguous()
            y = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, GROUP_SIZE, self.scale_offset).float()
        y = y.view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    def dequantize(self, block: int) -> Tensor:
        """The weights as numbers: (O, I)"""
        integers = unpack(self.packed, self.out_features, block).float().view(self.out_features, -1, GROUP_SIZE)
        scale, offset = self.scale_offset.float().transpose(0, 1).unsqueeze(2).unbind(-1)  # (O, G, 1) each
        return ((integers - 8) * scale + offset).flatten(1)


def round_in_groups(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Round a matrix (O, I) to integers (O, I) int32, with the scale and the offset of each group, (O, G) each. They
    start from the extremes of the group; then rounding and least squares take turns, as the best scale leaves some
    extremes out."""
    groups = matrix.view(len(matrix), -1, GROUP_SIZE)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale, offset = ((high - low) / LEVELS).clamp(min=1e-30), low
    best = round_to(groups, scale, offset)
    for _ in range(FIT_STEPS):
        integers = best[0]
        centered = integers - integers.mean(-1, keepdim=True)
        square = centered.square().sum(-1, keepdim=True)
        scale = torch.where(square > 0, (centered * groups).sum(-1, keepdim=True) / square.clamp(min=1e-30), best[1])
        scale = scale.abs().clamp(min=1e-30)
        offset = groups.mean(-1, keepdim=True) - scale * integers.mean(-1, keepdim=True)
        candidate = round_to(groups, scale, offset)
        is_better = candidate[3] < best[3]
        best = tuple(torch.where(is_better, new, old) for new, old in zip(candidate, best))
    integers, scale, offset, _ = best
    return integers.flatten(1).int(), scale.squeeze(-1), offset.squeeze(-1)


def round_to(groups: Tensor, scale: Tensor, offset: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Round to these scales and offsets, as bfloat16 holds them. Returns integers, scale, offset, squared error."""
    scale = scale.bfloat16().float().clamp(min=1e-30)
    offset = (offset + 8 * scale).bfloat16().float() - 8 * scale
    integers = ((groups - offset) / scale).round_().clamp_(0, LEVELS)
    error = (integers * scale + offset - groups).square().sum(-1, keepdim=True)
    return integers, scale, offset, error


def unpack(packed: Tensor, outputs: int, block: int) -> Tensor:
    """The integers of packed weights, whose kernel packs so many outputs together: (O, I)"""
    halves = (
        packed.flatten().view(torch.uint8).view(outputs // block, -1, block // 32, 16)
    )  # (O / block, I, 1 or 2, 16)
    integers = torch.stack([halves & 15, halves >> 4], 2)  # outputs 0 ... 15 and 32 ... 47 of 64, or 16 ... 31 of 32
    return integers.flatten(2).transpose(1, 2).reshape(outputs, -1)


@cache
def find_block() -> int:
    """How many outputs the kernel of this processor packs together; 0 if it packs otherwise than is known here."""
    integers = torch.randint(0, 16, (128, GROUP_SIZE), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers, 1)
    return next((block for block in BLOCKS if torch.equal(unpack(packed, 128, block).int(), integers)), 0)
