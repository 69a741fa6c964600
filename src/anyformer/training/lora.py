"""LoRA (2106.09685): fine-tune small matrices beside the large ones, which stay as they are.

Each adapted map computes W x + (alpha / rank) B A x; only A and B learn, and only they are saved. B begins at zero, so
that training begins at the base model.
"""

import math
from collections.abc import Collection
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..model.transformer import Transformer
from ..model.kernels.linear import Linear
from .config import LoRAConfig

M = TypeVar("M", bound=nn.Module)


class LoRALinear(nn.Module):
    """A linear map and its adapter. (..., in) -> (..., out)"""

    def __init__(self, base: Linear, lora: LoRAConfig):
        super().__init__()
        self.base, self.scale = base, lora.alpha / lora.rank
        self.lora_A = nn.Parameter(base.weight.new_empty(lora.rank, base.in_features))
        self.lora_B = nn.Parameter(base.weight.new_zeros(base.out_features, lora.rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + nn.functional.linear(nn.functional.linear(x, self.lora_A), self.lora_B) * self.scale

    @torch.no_grad()
    def merged(self) -> Linear:
        """The one map that does the same: the adapter is added to the base's weight."""
        self.base.weight += self.scale * (self.lora_B @ self.lora_A)
        return self.base


def add_lora(model: nn.Module, lora: LoRAConfig, learns: Collection[str] = ()) -> nn.Module:
    """Put adapters on the maps of the model's blocks and freeze all else, but for parameters named in `learns` (a fresh
    head). Returns the model."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learns)
    for parent, name, child in find_modules(model, Linear):
        if lora.where == "all" or name in ("query", "key", "value", "output"):
            setattr(parent, name, LoRALinear(child, lora))
    return model


def merge_lora(model: nn.Module) -> nn.Module:
    """Fold every adapter into the map it is on. Returns the model, which is then as if it had none."""
    for parent, name, child in find_modules(model, LoRALinear):
        setattr(parent, name, child.merged())
    return model.requires_grad_(True)


def find_modules(model: nn.Module, kind: type[M]) -> list[tuple[nn.Module, str, M]]:
    """The maps of this kind within the blocks of the model's stacks: (module that holds it, its name there, it)."""
    stacks = [stack for stack in model.modules() if isinstance(stack, Transformer)]
    holders = [module for stack in stacks for module in stack.blocks.modules() if not isinstance(module, LoRALinear)]
    return [(m, name, child) for m in holders for name, child in m.named_children() if isinstance(child, kind)]
