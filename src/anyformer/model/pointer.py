"""A head that can copy tokens of the source.

Shapes: B batch, S nodes of the source, T tokens, C channels.
"""

import math

import torch
from torch import Tensor, nn

from .kernels.linear import Linear


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

    def __init__(self, dim: int, vocabulary: nn.Module):
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
