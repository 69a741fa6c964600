"""Weights for inference: fused, in fewer bits, packed for the processor.

To write one token, all weights are read once, and memory bandwidth decides: weights of a quarter of the bytes take a
quarter of the time. Norms, residual stream, keys, values and the output of each map stay in float32. Kernels depend on
the processor and on the number of rows, so that a row can be rounded differently in another batch.

Shapes: R rows of I numbers in, O numbers out.
"""

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..heads import LMHead
from ..kernels.linear import multiply, onednn_linear, pack_weight
from .fbgemm import HalfLinear, has_fbgemm, multiply_int8, pack_int8
from .fusion import fuse_linears
from .int4 import Int4Linear, has_int4

WeightFormat = Literal["float32", "bfloat16", "int8", "int4"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
INT8_ALIGNMENT = 16  # torch's int8 kernel reads this many weights at once, and would read past the end of a row
MAX_INT8PACK_ROWS = 8  # above, each weight is used so often that integer products pay
MAX_INTEGER_ROWS = 128  # above, converting the weight to bfloat16 costs little
KEPT_IN_8_BITS = ("query_key_value", "query", "key", "value", "down")
"""Maps of a block that cost most in 4 bits: what is compared, and sums over the widest input."""
DIGIT_BASE = 254  # of the two int8 digits that hold an input


class FloatLinear(nn.Module):
    """A linear map with weights in float32 or bfloat16, packed by oneDNN where available. (..., I) -> (..., O)"""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype):
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.weight = pack_weight(linear.weight.detach().to(dtype))
        self.weight_bytes = self.weight.numel() * self.weight.element_size()

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        y = onednn_linear(x, self.weight) if self.weight.is_mkldnn else F.linear(x, self.weight)
        return y.float() if self.bias is None else y + self.bias


class Int8Linear(nn.Module):
    """Weights as integers from -127 to 127 with a scale for each output (LLM.int8(), 2208.07339, without its outliers).
    (..., I) -> (..., O)

    Args:
        centered: store the differences of the rows from their mean, and add the mean's part of the output in float32.
            For heads: logits are large with small differences, and the product of few rows is rounded to bfloat16.
    """

    weight: Tensor
    scale: Tensor
    mean: Tensor | None

    def __init__(self, linear: nn.Linear, centered: bool = False):
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        matrix = linear.weight.detach().float()
        mean = matrix.mean(0) if centered else None
        matrix = matrix if mean is None else matrix - mean
        scale = (matrix.abs().amax(1) / 127).clamp(min=1e-30).bfloat16()
        integers = (matrix / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        self.weight_bytes = integers.numel()
        for name, value in {"scale": scale, "mean": mean}.items():
            self.register_buffer(name, value)
        self.store(integers)

    def store(self, integers: Tensor) -> None:
        self.register_buffer("weight", integers)

    def forward(self, x: Tensor) -> Tensor:
        y = self.multiply(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)
        y = y if self.mean is None else y + (x.float() @ self.mean)[..., None]
        return y.float() if self.bias is None else y + self.bias

    def multiply(self, rows: Tensor) -> Tensor:
        """(R, I) -> (R, O)"""
        is_cpu = rows.device.type == "cpu"
        if is_cpu and len(rows) <= MAX_INT8PACK_ROWS:
            return torch._weight_int8pack_mm(rows.bfloat16().contiguous(), self.weight, self.scale)
        if is_cpu and len(rows) <= MAX_INTEGER_ROWS and torch.cpu._is_vnni_supported():
            return self._multiply_integers(rows.float())
        return multiply(rows, self.weight) * self.scale.float()

    def _multiply_integers(self, rows: Tensor) -> Tensor:
        """The product in int8: an input is 254 times one digit from -127 to 127 plus another, so that only what is
        below 1 / 32258 of the largest number of the row is lost. (R, I) -> (R, O)"""
        unit = rows.abs().amax(-1, keepdim=True).clamp(min=1e-30) / (127 * DIGIT_BASE)
        number = (rows / unit).round()
        high = (number / DIGIT_BASE).round()
        digits = torch.cat([high, number - DIGIT_BASE * high]).to(torch.int8)
        high, low = torch._int_mm(digits, self.weight.t()).chunk(2)  # (R, O) each
        return (high.float() * DIGIT_BASE + low) * (unit * self.scale)


class PackedInt8Linear(Int8Linear):
    """The same map by FBGEMM: the weights are packed, and a row does not depend on the others."""

    def store(self, integers: Tensor) -> None:
        self.packed: Any = pack_int8(integers, self.scale.float())

    def multiply(self, rows: Tensor) -> Tensor:
        return multiply_int8(rows.float(), self.packed)


QUANTIZED = FloatLinear, HalfLinear, Int8Linear, Int4Linear


def quantize_linear(linear: nn.Linear, weights: WeightFormat, name: str, is_head: bool) -> nn.Module:
    """The map in this format. In int4 some keep 8 bits: heads, KEPT_IN_8_BITS, and maps of a shape that its kernel
    cannot read. What no kernel of the format can read, or float32 gains nothing by, stays as it is."""
    is_packed = linear.weight.device.type == "cpu" and has_fbgemm()
    if weights == "int4" and not is_head and name not in KEPT_IN_8_BITS and Int4Linear.fits(linear):
        return Int4Linear(linear)
    if weights in ("int8", "int4"):
        if is_packed:
            return PackedInt8Linear(linear, is_head)
        return Int8Linear(linear, is_head) if linear.in_features % INT8_ALIGNMENT == 0 else linear
    if weights == "bfloat16" and is_packed:
        return HalfLinear(linear)
    packed = FloatLinear(linear, DTYPES[weights])
    return packed if weights == "bfloat16" or packed.weight.is_mkldnn else linear


def quantize(model: nn.Module, weights: WeightFormat) -> None:
    """Fuse the linear maps of a model and convert their weights to this format, in place. The model can then no longer
    be trained. Raises ValueError for an unknown format, or one without a kernel here."""
    if weights not in get_args(WeightFormat):
        raise ValueError(f"weights are float32, bfloat16, int8 or int4, not {weights!r}")
    if weights == "int4" and any(weight.device.type != "cpu" for weight in model.parameters()):
        raise ValueError("int4 weights are for a CPU: choose --device cpu, or int8")
    if weights == "int4" and not has_int4():
        raise ValueError(f"this build of torch ({torch.__version__}) has no int4 kernel: choose int8")
    fuse_linears(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, quantize_linear(child, weights, name, isinstance(parent, LMHead)))
