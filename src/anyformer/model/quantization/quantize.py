"""Weights for inference: fused, in fewer bits, packed for the processor.

To write one token, all weights are read once, and memory bandwidth decides: weights of a quarter of the bytes take a
quarter of the time. Norms, residual stream, keys, values and the output of each map stay in float32. The kernel of int8
depends on the number of rows, so that a row is rounded differently in another batch.

Shapes: R rows of I numbers in, O numbers out.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..heads import LMHead
from ..kernels.linear import onednn_linear, pack_weight
from .fusion import fuse_linears

WeightFormat = Literal["float32", "bfloat16", "int8"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
INT8_ALIGNMENT = 16  # torch's int8 kernel reads this many weights at once, and would read past the end of a row
MAX_INT8PACK_ROWS = 8  # above, each weight is used so often that integer products pay
MAX_INTEGER_ROWS = 128  # above, converting the weight to bfloat16 costs little
DIGIT_BASE = 254  # of the two int8 digits that hold an input


class FloatLinear(nn.Module):
    """A linear map with weights in float32 or bfloat16, packed by oneDNN where available. (..., I) -> (..., O)"""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype):
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.weight = pack_weight(linear.weight.detach().to(dtype))

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
        for name, value in {"weight": integers, "scale": scale, "mean": mean}.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        is_cpu = rows.device.type == "cpu"
        if is_cpu and len(rows) <= MAX_INT8PACK_ROWS:
            y = torch._weight_int8pack_mm(rows.bfloat16().contiguous(), self.weight, self.scale)
        elif is_cpu and len(rows) <= MAX_INTEGER_ROWS and torch.cpu._is_vnni_supported():
            y = self._multiply_integers(rows.float())
        else:
            y = F.linear(rows.bfloat16(), self.weight.bfloat16()) * self.scale.float()
        y = y.view(*x.shape[:-1], self.out_features)
        y = y if self.mean is None else y + (x.float() @ self.mean)[..., None]
        return y.float() if self.bias is None else y + self.bias

    def _multiply_integers(self, rows: Tensor) -> Tensor:
        """The product in int8: an input is 254 times one digit from -127 to 127 plus another, so that only what is
        below 1 / 32258 of the largest number of the row is lost. (R, I) -> (R, O)"""
        unit = rows.abs().amax(-1, keepdim=True).clamp(min=1e-30) / (127 * DIGIT_BASE)
        number = (rows / unit).round()
        high = (number / DIGIT_BASE).round()
        digits = torch.cat([high, number - DIGIT_BASE * high]).to(torch.int8)
        high, low = torch._int_mm(digits, self.weight.t()).chunk(2)  # (R, O) each
        return (high.float() * DIGIT_BASE + low) * (unit * self.scale)


def quantize_linear(linear: nn.Linear, weights: WeightFormat, centered: bool) -> nn.Module:
    """The map in this format; unchanged where the format's kernel cannot read its width, or float32 gains nothing."""
    if weights == "int8":
        return Int8Linear(linear, centered) if linear.in_features % INT8_ALIGNMENT == 0 else linear
    packed = FloatLinear(linear, DTYPES[weights])
    return packed if weights == "bfloat16" or packed.weight.is_mkldnn else linear


def quantize(model: nn.Module, weights: WeightFormat) -> None:
    """Fuse the linear maps of a model and convert their weights to this format, in place. The model can then no longer
    be trained. Raises ValueError for an unknown format."""
    if weights not in ("float32", "bfloat16", "int8"):
        raise ValueError(f"weights are float32, bfloat16 or int8, not {weights!r}")
    fuse_linears(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, quantize_linear(child, weights, isinstance(parent, LMHead)))
