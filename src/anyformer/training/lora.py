"""LoRA (2106.09685): fine-tune low-rank adapters of linear layers whose own weights are frozen.

An adapted layer computes W x + (alpha / rank) B A x. Only A and B are trained and saved. B is zero at first.
"""

import math
from collections.abc import Collection
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..model.kernels.linear import Linear
from ..model.transformer import Transformer
from .config import LoRAConfig

M = TypeVar("M", bound=nn.Module)


class LoRALinear(nn.Module):
    """A linear layer with an adapter: (..., in) -> (..., out)."""

    def __init__(self, base: Linear, lora: LoRAConfig):
        super().__init__()
        self.base, self.scale = base, lora.alpha / lora.rank
        self.lora_A = nn.Parameter(base.weight.new_empty(lora.rank, base.in_features))
        self.lora_B = nn.Parameter(base.weight.new_zeros(base.out_features, lora.rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + nn.functional.linear(nn.functional.linear(x, self.lora_A), self.lora_B) * self.scale

    @torch.no_grad()
    def merge(self) -> Linear:
        """Add the adapter to the base layer's weight, and return that layer."""
        self.base.weight += self.scale * (self.lora_B @ self.lora_A)
        return self.base


def add_lora(model: nn.Module, lora: LoRAConfig, trainable: Collection[str] = ()) -> nn.Module:
    """Add adapters to the linear layers of a model's Transformer blocks, in place. Freeze everything else except the
    parameters named in `trainable` (a new head)."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    for parent, name, linear in find_modules(model, Linear):
        if lora.where == "all" or name in ("query", "key", "value", "output"):
            setattr(parent, name, LoRALinear(linear, lora))
    return model


def merge_lora(model: nn.Module) -> nn.Module:
    """Merge every adapter into its layer. Returns the model, which then has none."""
    for parent, name, adapter in find_modules(model, LoRALinear):
        setattr(parent, name, adapter.merge())
    return model.requires_grad_(True)


def find_modules(model: nn.Module, kind: type[M]) -> list[tuple[nn.Module, str, M]]:
    """Return the modules of a type inside a model's Transformer blocks, as (parent, name in the parent, module)."""
    stacks = [stack for stack in model.modules() if isinstance(stack, Transformer)]
    parents = [module for stack in stacks for module in stack.blocks.modules() if not isinstance(module, LoRALinear)]
    return [(p, name, child) for p in parents for name, child in p.named_children() if isinstance(child, kind)]
