"""A classifier for each of several nodes.

Shapes: B batch, T nodes, C channels.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from .heads import Classifier


class TokenClassifiers(nn.Module):
    """The mean of the logits of a classifier for each of the first nodes (DeiT, 2012.12877): (B, T, C) -> (B, classes).

    Args:
        tokens: how many.
    """

    def __init__(self, dim: int, classes: int, tokens: int):
        super().__init__()
        self.projects = nn.ModuleList(nn.Linear(dim, classes) for _ in range(tokens))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([project(x[:, i]) for i, project in enumerate(self.projects)]).mean(0)

    def project(self, x: Tensor) -> Tensor:
        """What nodes (..., C) would give, each alone."""
        return torch.stack([project(x) for project in self.projects]).mean(0)


def build_classifier(dim: int, classes: int, pool: Literal["first", "mean", "each"], tokens: int) -> nn.Module:
    """A classifier of pooled nodes, or, for each of so many first nodes, one of its own."""
    return TokenClassifiers(dim, classes, tokens) if pool == "each" else Classifier(dim, classes, pool)
