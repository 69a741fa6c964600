"""Heads: nodes -> predictions.

Shapes: B batch, T nodes, C channels.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from .config import TransformerConfig
from .kernels.linear import Linear
from .norm import build_norm
from .transformer import ACTIVATIONS


class LMHead(nn.Module):
    """A logit for each token of the vocabulary: (B, T, C) -> (B, T, vocab_size).

    Args:
        tied: an embedding whose weight this map shares (1608.05859).
        scale: multiplies the nodes; T5 has 1 / sqrt(dim) where weights are tied (1910.10683).
    """

    def __init__(self, dim: int, vocab_size: int, tied: nn.Embedding | None = None, scale: float = 1.0):
        super().__init__()
        self.scale = scale
        # On "meta" a matrix that is about to be replaced, often the largest of the model, is never allocated.
        self.project = Linear(dim, vocab_size, bias=False, device=None if tied is None else "meta")
        if tied is not None:
            self.project.weight = tied.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x if self.scale == 1 else x * self.scale)


class PointerHead(nn.Module):
    """Write a token of the vocabulary, or copy one of the source: the logarithm of a mixture (1704.04368).

    Names, numbers and tags that training has never shown can be copied. The pointer is an attention of one head over
    the memory; the weight of each node goes to the token that stands there.

    Args:
        vocabulary: the head that writes; source and target have one vocabulary.

    Shapes:
        x: (B, T, C); keys: (B, S, C), `key` of the memory; source: (B, S) ids; is_real: (B or 1, S) bool, not padding
        returns: log-probabilities (B, T, vocab_size)
    """

    def __init__(self, dim: int, vocabulary: LMHead):
        super().__init__()
        self.vocabulary = vocabulary
        self.query, self.key = Linear(dim, dim, bias=False), Linear(dim, dim, bias=False)
        self.gate = Linear(dim, 1)

    def forward(self, x: Tensor, keys: Tensor, source: Tensor, is_real: Tensor) -> Tensor:
        written = self.vocabulary(x).float().softmax(-1)  # (B, T, V)
        scores = (self.query(x) @ keys.mT).float() * x.shape[-1] ** -0.5  # (B, T, S)
        weights = scores.masked_fill(~is_real[:, None], -math.inf).softmax(-1)
        copied = self.gate(x).float().sigmoid()  # (B, T, 1)
        mixture = (1 - copied) * written
        mixture = mixture.scatter_add(2, source[:, None].expand(weights.shape), copied * weights)
        return mixture.clamp_min(torch.finfo(mixture.dtype).tiny).log()


class MaskedHead(nn.Module):
    """BERT's head (1810.04805): a hidden layer, then a logit for each token: (B, T, C) -> (B, T, vocab_size)"""

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
    """Pooled nodes -> a logit for each class: (B, T, C) -> (B, classes)."""

    def __init__(self, dim: int, classes: int, pool: Literal["mean", "first"] = "mean"):
        super().__init__()
        self.pool = {"mean": mean_pool, "first": first_pool}[pool]
        self.project = nn.Linear(dim, classes)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.project(self.pool(x, lengths))


class Regressor(Classifier):
    """Pooled nodes -> numbers: (B, T, C) -> (B, outputs)."""


def mean_pool(x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The mean node, without padding. (B, T, C), lengths (B,) -> (B, C)"""
    if lengths is None:
        return x.mean(1)
    is_real = torch.arange(x.shape[1], device=x.device) < lengths[:, None]  # (B, T)
    return (x * is_real[..., None]).sum(1) / lengths.clamp(min=1)[:, None]


def first_pool(x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The first node, the position of a class token. (B, T, C) -> (B, C)"""
    return x[:, 0]
