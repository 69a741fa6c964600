"""Linear maps as they answer soonest: joined, in fewer bits, in the order in which they are read. A token that is
written alone costs one read of all weights, so weights of a quarter of the bytes are read four times as quickly.
Nothing else changes: norms, the residual stream, keys and values stay in float32, and so does what leaves a map.

Shapes: R rows of I numbers in, O numbers out.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..heads import LMHead
from ..kernels.linear import pack_weight, onednn_linear
from .fusion import fuse_linears

WeightFormat = Literal["float32", "bfloat16", "int8"]
FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LANES = 16  # torch's kernel reads so many weights at once, and would read past the end of a row
FEW = 8  # rows; of more, each weight is used so often that whole numbers pay
MANY = 128  # rows; of more, the matrix may as well be widened
DIGIT = 254  # what the higher of two digits counts


class FloatLinear(nn.Module):
    """The weights in a format of torch's own, in oneDNN's order where there is one. (..., I) -> (..., O)

    bfloat16 has half of the bytes, and of a number's 24 bits the first 8.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype):
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.weight = pack_weight(linear.weight.detach().to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        y = onednn_linear(x, self.weight) if self.weight.is_mkldnn else F.linear(x, self.weight)
        return y.float() if self.bias is None else y + self.bias


class Int8Linear(nn.Module):
    """Whole numbers from -127 to 127 and a scale for each output (LLM.int8(), 2208.07339, without its outliers).
    (..., I) -> (..., O)

    Logits are large numbers of which small differences matter, and the product of few rows comes out in bfloat16. So
    the rows of a head (`centred`) are kept as differences from their mean, whose part of the answer, the same for every
    token, is added in float32.
    """

    weight: Tensor
    scale: Tensor
    mean: Tensor | None

    def __init__(self, linear: nn.Linear, centred: bool = False):
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        matrix = linear.weight.detach().float()
        mean = matrix.mean(0) if centred else None
        matrix = matrix if mean is None else matrix - mean
        scale = (matrix.abs().amax(1) / 127).clamp(min=1e-30).bfloat16()
        whole = (matrix / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        for name, value in {"weight": whole, "scale": scale, "mean": mean}.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        cpu = rows.device.type == "cpu"
        if cpu and len(rows) <= FEW:
            y = torch._weight_int8pack_mm(rows.bfloat16().contiguous(), self.weight, self.scale)
        elif cpu and len(rows) <= MANY and torch.cpu._is_vnni_supported():
            y = self.by_digits(rows.float())
        else:
            y = F.linear(rows.bfloat16(), self.weight.bfloat16()) * self.scale.float()
        y = y.view(*x.shape[:-1], self.out_features)
        y = y if self.mean is None else y + (x.float() @ self.mean)[..., None]
        return y.float() if self.bias is None else y + self.bias

    def by_digits(self, rows: Tensor) -> Tensor:
        """In whole numbers all through: what comes in is 254 times one digit from -127 to 127 and another, so that
        nothing is lost but what lies below a 32,258th of a row's largest number. (R, I) -> (R, O)"""
        unit = rows.abs().amax(-1, keepdim=True).clamp(min=1e-30) / (127 * DIGIT)
        number = (rows / unit).round()
        high = (number / DIGIT).round()
        digits = torch.cat([high, number - DIGIT * high]).to(torch.int8)
        high, low = torch._int_mm(digits, self.weight.t()).chunk(2)  # (R, O) each
        return (high.float() * DIGIT + low) * (unit * self.scale)


def quantize_linear(linear: nn.Linear, weights: WeightFormat, centred: bool) -> nn.Module:
    """The map in this format; as it is where the format's kernel cannot read its width, or float32 gains nothing."""
    if weights == "int8":
        return Int8Linear(linear, centred) if linear.in_features % LANES == 0 else linear
    made = FloatLinear(linear, FORMATS[weights])
    return made if weights == "bfloat16" or made.weight.is_mkldnn else linear


def quantize(model: nn.Module, weights: WeightFormat) -> None:
    """Make a model ready for answering, in place: maps of the same nodes joined, and all kept in this format. It can
    then no longer be trained. Raises ValueError for a format that there is none of."""
    if weights not in ("float32", "bfloat16", "int8"):
        raise ValueError(f"weights are float32, bfloat16 or int8, not {weights!r}")
    fuse_linears(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, quantize_linear(child, weights, isinstance(parent, LMHead)))
