"""The linear map, and the quickest ways to make it where nothing is learned from it: in an answer."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WORK = 1 << 20  # products; of fewer, oneDNN takes longer to begin than MKL to end
SHARED = 1 << 16  # weights; below, a second core costs more than it brings
LARGE = 1 << 19  # weights that are worth an order of their own
ROWS = 16  # of which that order is thought; it also serves one, and thousands


class Linear(nn.Linear):
    """nn.Linear, (..., in) -> (..., out).

    For float32 on a CPU torch goes to MKL, which makes the product of a single row on one core, and does not use all
    that other makers' processors have. The oneDNN within torch does both (bench/inference/generation_vs_peers.py): the same sums, but there
    is no way back through them. Where it takes too long to begin, a single row is multiplied with parts of the matrix,
    one for each core, as a batch of products (bench/inference/generation_vs_nanogpt.py).
    """

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not self.answers(input):
            return F.linear(input, self.weight, self.bias)
        if input.numel() * self.out_features >= WORK and has_onednn(torch.float32):
            return onednn_linear(input, self.weight, self.bias)
        return self.shared_out(input) if self.alone(input) else F.linear(input, self.weight, self.bias)

    def answers(self, input: Tensor) -> bool:
        """float32 on a CPU, and nobody about who needs torch's own operation."""
        alike = input.dtype == self.weight.dtype == torch.float32 and input.device.type == "cpu"
        return alike and not (torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"))

    def alone(self, input: Tensor) -> bool:
        """One row, several cores, and a matrix worth sharing out that can be."""
        cores = torch.get_num_threads()
        one = input.numel() == self.in_features and self.weight.numel() >= SHARED
        return one and cores > 1 and self.out_features % cores == 0

    def shared_out(self, input: Tensor) -> Tensor:
        cores = torch.get_num_threads()
        parts = self.weight.view(cores, -1, self.in_features).transpose(1, 2)  # (cores, in, out / cores)
        row = input.reshape(1, 1, -1).expand(cores, 1, -1)
        y = torch.bmm(row, parts).view(*input.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias


@cache
def has_onednn(dtype: torch.dtype) -> bool:
    """Whether torch's oneDNN is there, and this processor has what it needs for the format."""
    there = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")
    return there and (dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear by oneDNN, of a weight as it is, (out, in), or as `packed` has left it."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def pack_weight(weight: Tensor) -> Tensor:
    """A weight in the order in which oneDNN reads it quickest, or as it is where that does not pay."""
    pays = weight.device.type == "cpu" and weight.numel() >= LARGE and has_onednn(weight.dtype)
    return torch.ops.mkldnn._reorder_linear_weight(weight, ROWS) if pays else weight
