"""Dropout (Srivastava et al. 2014): in training each number is 0 with probability p, and the others are scaled by
1 / (1 - p).

On a CPU torch draws one random number for each entry, in sequence, which can take longer than a matrix product. Here a
64-bit random number serves four entries; p is rounded to a multiple of 1 / 65536 (bench/training/throughput.py).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BITS = 16  # of a random number that decides on one entry
LEVELS = 1 << BITS


def dropout(x: Tensor, p: float) -> Tensor:
    """Drop each entry of x with probability p, by torch's global random generator."""
    if x.device.type != "cpu" or not 0 < p < 1 or torch.compiler.is_compiling():
        return F.dropout(x, p)
    words = torch.empty(-(-x.numel() * BITS // 64), dtype=torch.int64).random_(-(2**63), None)  # all 64 bits
    levels = words.view(torch.int16)[: x.numel()].view(x.shape)
    dropped = min(LEVELS - 1, max(1, round(p * LEVELS)))
    keep = torch.ge(levels, dropped - LEVELS // 2, out=torch.empty(x.shape, dtype=x.dtype))  # 0 or 1
    return x * keep.mul_(LEVELS / (LEVELS - dropped))


class Dropout(nn.Module):
    """`dropout` in training, the identity otherwise."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training and self.p else x

    def extra_repr(self) -> str:
        return f"p={self.p}"
