"""Dropout (Srivastava et al. 2014): in training numbers are 0 with probability p, and the others grow by 1 / (1 - p).

torch draws a number for each on a CPU, one after the other, which takes longer than many a product of matrices; here
one of 64 bits serves four, to a 65,536th of p (bench/training/throughput.py).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EACH = 16  # bits
STEPS = 1 << EACH


def dropout(x: Tensor, p: float) -> Tensor:
    """x with each number dropped out with probability p, as torch's random numbers say."""
    if x.device.type != "cpu" or not 0 < p < 1 or torch.compiler.is_compiling():
        return F.dropout(x, p)
    words = torch.empty(-(-x.numel() * EACH // 64), dtype=torch.int64).random_(-(2**63), None)  # all 64 bits
    drawn = words.view(torch.int16)[: x.numel()].view(x.shape)
    gone = min(STEPS - 1, max(1, round(p * STEPS)))
    kept = torch.ge(drawn, gone - STEPS // 2, out=torch.empty(x.shape, dtype=x.dtype))  # 0 or 1
    return x * kept.mul_(STEPS / (STEPS - gone))


class Dropout(nn.Module):
    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training and self.p else x

    def extra_repr(self) -> str:
        return f"p={self.p}"
