"""The linear map, with faster ways to compute it on a CPU where no gradient is needed."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_ONEDNN_PRODUCTS = 1 << 20  # below, the overhead of oneDNN exceeds its gain over MKL
MIN_SPLIT_WEIGHTS = 1 << 16  # below, splitting the weight over cores costs more than it gains
MIN_PACKED_WEIGHTS = 1 << 18  # below, packing a weight does not pay
PACKED_BATCH = 16  # batch size assumed when weights are packed; correct for any batch size


class Linear(nn.Linear):
    """nn.Linear: (..., in) -> (..., out), faster for float32 inference on a CPU.

    Torch's F.linear uses MKL, which computes a single row on one core and does not use all instructions of processors
    of other makers. oneDNN does both (bench/inference/generation.py), but has no backward. Where the overhead of oneDNN
    is too large, a single row is multiplied with parts of the weight, one for each core, as a batched product.
    """

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not self._is_float32_on_cpu(input):
            return F.linear(input, self.weight, self.bias)
        if input.numel() * self.out_features >= MIN_ONEDNN_PRODUCTS and has_onednn(torch.float32):
            return onednn_linear(input, self.weight, self.bias)
        return (
            self._split_over_cores(input)
            if self._is_worth_splitting(input)
            else F.linear(input, self.weight, self.bias)
        )

    def _is_float32_on_cpu(self, input: Tensor) -> bool:
        is_float32 = input.dtype == self.weight.dtype == torch.float32 and input.device.type == "cpu"
        return is_float32 and not (torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"))

    def _is_worth_splitting(self, input: Tensor) -> bool:
        cores = torch.get_num_threads()
        is_large_row = input.numel() == self.in_features and self.weight.numel() >= MIN_SPLIT_WEIGHTS
        return is_large_row and cores > 1 and self.out_features % cores == 0

    def _split_over_cores(self, input: Tensor) -> Tensor:
        cores = torch.get_num_threads()
        parts = self.weight.view(cores, -1, self.in_features).transpose(1, 2)  # (cores, in, out / cores)
        row = input.reshape(1, 1, -1).expand(cores, 1, -1)
        y = torch.bmm(row, parts).view(*input.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias


@cache
def has_onednn(dtype: torch.dtype) -> bool:
    """Whether this build of torch has oneDNN and this processor the instructions it needs for the dtype."""
    is_available = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")
    return is_available and (dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear by oneDNN, without backward. weight: (out, in), plain or from `pack_weight`"""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def pack_weight(weight: Tensor) -> Tensor:
    """The weight in oneDNN's memory layout, or unchanged where that does not pay."""
    is_worth = weight.device.type == "cpu" and weight.numel() >= MIN_PACKED_WEIGHTS and has_onednn(weight.dtype)
    return torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_BATCH) if is_worth else weight


def multiply(rows: Tensor, weight: Tensor) -> Tensor:
    """F.linear in the dtype in which the processor multiplies fastest: (R, in), (out, in) -> (R, out) in float32"""
    if rows.device.type == "cpu" and has_onednn(torch.float32) and not has_onednn(torch.bfloat16):
        return onednn_linear(rows.float(), weight.float())
    return F.linear(rows.bfloat16(), weight.bfloat16()).float()
