"""Heads: what turns nodes into an answer.

Shapes: B batch, T nodes, C channels.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from .linear import Linear


class LMHead(nn.Module):
    """Which token: a logit for each entry of the vocabulary. (B, T, C) -> (B, T, vocab_size)

    `tied` to an embedding, the map is the embedding's own weight (1608.05859): one parameter, two readers.
    """

    def __init__(self, dim: int, vocab_size: int, tied: nn.Embedding | None = None):
        super().__init__()
        self.project = Linear(dim, vocab_size, bias=False)
        if tied is not None:
            self.project.weight = tied.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x)


class Classifier(nn.Module):
    """Which class: pooled nodes -> logits. (B, T, C) -> (B, classes)"""

    def __init__(self, dim: int, classes: int, pool: Literal["mean", "first"] = "mean"):
        super().__init__()
        self.pool = {"mean": mean, "first": first}[pool]
        self.project = nn.Linear(dim, classes)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.project(self.pool(x, lengths))


class Regressor(Classifier):
    """How much: pooled nodes -> numbers. (B, T, C) -> (B, outputs). The same map as a classifier's, read as numbers."""


def mean(x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The mean node, padding left out. (B, T, C), lengths (B,) -> (B, C)"""
    if lengths is None:
        return x.mean(1)
    real = torch.arange(x.shape[1], device=x.device) < lengths[:, None]  # (B, T)
    return (x * real[..., None]).sum(1) / lengths.clamp(min=1)[:, None]


def first(x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The first node, where a class node stands. (B, T, C) -> (B, C)"""
    return x[:, 0]
