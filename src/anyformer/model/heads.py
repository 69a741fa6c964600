"""Heads: what turns nodes into an answer.

Shapes: B batch, T nodes, C channels.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from .transformer import ACTIVATIONS
from .config import TransformerConfig
from .kernels.linear import Linear
from .norm import build_norm


class LMHead(nn.Module):
    """Which token: a logit for each entry of the vocabulary. (B, T, C) -> (B, T, vocab_size)

    `tied` to an embedding, the map is the embedding's own weight (1608.05859): one parameter, two readers. T5 then
    multiplies what is read by `scale`, 1 / sqrt(dim), since its embeddings are large (1910.10683).
    """

    def __init__(self, dim: int, vocab_size: int, tied: nn.Embedding | None = None, scale: float = 1.0):
        super().__init__()
        self.scale = scale
        self.project = Linear(dim, vocab_size, bias=False, device=None if tied is None else "meta")
        if tied is not None:  # a matrix of its own, made only to be thrown away, would be the largest of all
            self.project.weight = tied.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x if self.scale == 1 else x * self.scale)


class MaskedHead(nn.Module):
    """Which token was hidden: each node thinks once more, then a logit for each entry of the vocabulary, with a bias
    (BERT, 1810.04805). (B, T, C) -> (B, T, vocab_size)"""

    def __init__(self, config: TransformerConfig, vocab_size: int, tied: nn.Embedding | None = None):
        super().__init__()
        self.dense = Linear(config.dim, config.dim)
        self.activation = ACTIVATIONS[config.activation]
        self.norm = build_norm(config)
        self.project = Linear(config.dim, vocab_size)
        if tied is not None:
            self.project.weight = tied.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.norm(self.activation(self.dense(x))))


class Classifier(nn.Module):
    """Which class: pooled nodes -> logits. (B, T, C) -> (B, classes)"""

    def __init__(self, dim: int, classes: int, pool: Literal["mean_pool", "first_pool"] = "mean"):
        super().__init__()
        self.pool = {"mean": mean_pool, "first": first_pool}[pool]
        self.project = nn.Linear(dim, classes)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.project(self.pool(x, lengths))


class Regressor(Classifier):
    """How much: pooled nodes -> numbers. (B, T, C) -> (B, outputs). The same map as a classifier's, read as numbers."""


def mean_pool(x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The mean node, padding left out. (B, T, C), lengths (B,) -> (B, C)"""
    if lengths is None:
        return x.mean(1)
    real = torch.arange(x.shape[1], device=x.device) < lengths[:, None]  # (B, T)
    return (x * real[..., None]).sum(1) / lengths.clamp(min=1)[:, None]


def first_pool(x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The first node, where a class node stands. (B, T, C) -> (B, C)"""
    return x[:, 0]
