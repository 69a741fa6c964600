"""What the MLP of a block computes between its two maps."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor


def relu2(x: Tensor) -> Tensor:
    """Squared ReLU."""
    return F.relu(x) * x


def quick_gelu(x: Tensor) -> Tensor:
    """The approximation of GELU in CLIP (2103.00020): x * sigmoid(1.702 x) (1606.08415)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "relu2": relu2,
    "silu": F.silu,
    "swiglu": F.silu,
    "geglu": partial(F.gelu, approximate="tanh"),
    "geglu_exact": F.gelu,
}
