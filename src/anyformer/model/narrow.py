"""Linear maps in fewer bits, for answering. A token that is written alone costs one read of all weights, so weights of
a quarter of the bytes are read four times as quickly. Nothing else changes: norms, the residual stream and the cache of
keys and values stay in float32, and what leaves a map is float32 again.

Shapes: I numbers in, O numbers out.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .head import LMHead
from .linear import Linear

Weights = Literal["float32", "bfloat16", "int8"]
FEW = 16  # rows; for more, the matrix is cheaper to widen once than to read for each
LANES = 16  # torch's kernel reads so many weights at once, and would read past the end of a row


class Int8Linear(nn.Module):
    """Whole numbers from -127 to 127 and a scale for each output (LLM.int8(), 2208.07339, without its outliers).
    (..., I) -> (..., O)

    What comes in is rounded to bfloat16, which the processor multiplies, and so is what goes out. Logits are large
    numbers of which small differences matter, so the rows of a head (`centred`) are kept as differences from their
    mean, whose part of the answer, the same for every token, is added in float32.
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
        rows = x.reshape(-1, self.in_features).bfloat16()
        if len(rows) <= FEW and rows.device.type == "cpu":
            y = torch._weight_int8pack_mm(rows.contiguous(), self.weight, self.scale).float()
        else:
            y = F.linear(rows, self.weight.bfloat16()).float() * self.scale.float()
        y = y.view(*x.shape[:-1], self.out_features)
        y = y if self.mean is None else y + (x.float() @ self.mean)[..., None]
        return y if self.bias is None else y + self.bias


class Bfloat16Linear(Linear):
    """Half of the bytes, and of a number's 24 bits the first 8. (..., I) -> (..., O)"""

    def __init__(self, linear: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(linear.weight.detach().bfloat16(), requires_grad=False)
        self.register_parameter("bias", None)
        self.added = linear.bias

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input.bfloat16()).float()
        return y if self.added is None else y + self.added


def narrow(model: nn.Module, weights: Weights) -> None:
    """Keep the linear maps of a model in this format, in place; it can then no longer be trained. A map of a width that
    the kernel cannot read stays as it is. Raises ValueError for a format that there is none of."""
    if weights not in ("float32", "bfloat16", "int8"):
        raise ValueError(f"weights are float32, bfloat16 or int8, not {weights!r}")
    if weights == "float32":
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, nn.Linear):
                continue
            if weights == "bfloat16":
                setattr(parent, name, Bfloat16Linear(child))
            elif child.in_features % LANES == 0:
                setattr(parent, name, Int8Linear(child, centred=isinstance(parent, LMHead)))
