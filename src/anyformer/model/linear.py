"""The linear map, quick also for one row at a time, which is how decoding uses it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGE = 1 << 16  # weights; below, a second core costs more than it brings


class Linear(nn.Linear):
    """nn.Linear, (..., in) -> (..., out).

    The CPU's matrix-vector product runs on one core, which cannot use all of the memory's speed. As a batch of products
    with parts of the matrix, one for each core, it can: the same sums, only shared out (bench/generation.py).
    """

    def forward(self, input: Tensor) -> Tensor:
        cores = torch.get_num_threads()
        if cores == 1 or self.out_features % cores or not self.alone(input):
            return F.linear(input, self.weight, self.bias)
        parts = self.weight.view(cores, -1, self.in_features).transpose(1, 2)  # (cores, in, out / cores)
        row = input.reshape(1, 1, -1).expand(cores, 1, -1)
        y = torch.bmm(row, parts).view(*input.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    def alone(self, input: Tensor) -> bool:
        """One row on a CPU, nothing to be learned from it, and a matrix of its format worth sharing out."""
        one = input.numel() == self.in_features and self.weight.numel() >= LARGE
        return one and input.device.type == "cpu" and input.dtype == self.weight.dtype and not torch.is_grad_enabled()
