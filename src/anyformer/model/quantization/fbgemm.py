"""Linear maps by FBGEMM, torch's kernels for processors with AVX2 alone, where they are the fastest for weights of 16
and 8 bits (`python -m bench.model.linear`): such a processor has no instructions for bfloat16, and the kernels that
newer ones use are written without them.

Shapes: R rows of I numbers in, O numbers out.
"""

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.linear import has_onednn

HIGH_MAX, DIGIT_BASE = 63, 127  # two digits hold an input; with an unsigned one up to 128, AVX2's sums cannot overflow
ZERO_POINT = 64  # makes a digit unsigned


@cache
def has_fbgemm() -> bool:
    """Whether this build of torch has the kernels and this processor is one that they are best for."""
    is_avx2 = torch.backends.cpu.get_cpu_capability() == "AVX2" and not has_onednn(torch.bfloat16)
    names = ("linear_prepack", "linear_prepack_fp16", "linear_with_input_q_dq_qweight_dq_output_fp32")
    is_built = torch.backends.quantized.engine in ("x86", "fbgemm") and hasattr(
        torch, "_make_per_channel_quantized_tensor"
    )
    return is_avx2 and is_built and all(hasattr(torch.ops.quantized, name) for name in names)


class HalfLinear(nn.Module):
    """A linear map with weights of bfloat16, which float16 holds exactly from 6e-5 on. (..., I) -> (..., O)"""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight_bytes = 2 * linear.weight.numel()
        bias = None if linear.bias is None else linear.bias.detach().float()
        self.packed: Any = torch.ops.quantized.linear_prepack_fp16(linear.weight.detach().bfloat16().float(), bias)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.ops.quantized.linear_dynamic_fp16(x.reshape(-1, self.in_features).float(), self.packed)
        return y.view(*x.shape[:-1], self.out_features)


def pack_int8(integers: Tensor, scale: Tensor) -> Any:
    """Pack integers, (O, I) int8, with the scale of each row, (O,), as FBGEMM reads them."""
    zeros = torch.zeros(len(integers), dtype=torch.long)
    with warnings.catch_warnings():  # that a later torch will have no quantized tensors: then `has_fbgemm` is False
        warnings.simplefilter("ignore")
        matrix = torch._make_per_channel_quantized_tensor(integers, scale.double(), zeros, 0)
        return torch.ops.quantized.linear_prepack(matrix, None)


def multiply_int8(rows: Tensor, packed: Any) -> Tensor:
    """The product with packed int8 weights, in integers: an input is 127 times one digit from -63 to 63 plus another,
    so that only what is below 1 / 16000 of the largest number of the row is lost, and a row does not depend on others.
    A row of zeros has a unit of zero, which the sums are multiplied by. (R, I) -> (R, O)"""
    unit = torch.linalg.vector_norm(rows, torch.inf, -1, keepdim=True).div_(HIGH_MAX * DIGIT_BASE)
    number = rows / unit
    high = (number / DIGIT_BASE).round_()
    digits = torch.cat([high, number.sub_(high, alpha=DIGIT_BASE)])  # the product rounds the second
    sums = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(digits, 1.0, ZERO_POINT, packed)
    high, low = sums.chunk(2)  # (R, O) each
    return low.add_(high, alpha=DIGIT_BASE).mul_(unit)
