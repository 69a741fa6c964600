"""A mixture of a model's predictions and of the tokens that followed similar states in a text (kNN-LM, 1911.00172).

Shapes: B batch, T nodes, C channels, N = B * T, K neighbors, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Search = Callable[[Tensor], tuple[Tensor, Tensor]]
"""States (N, C) -> the tokens that followed the nearest ones, and their squared distances, (N, K) each; inf: none."""


class NeighborMixture(nn.Module):
    """Log-probabilities of a head's predictions, mixed with those of the nearest states: (B, T, C) -> (B, T, V).

    Args:
        dim: Channels of a state, the first of what the head reads.
        weight: Of the neighbors, from 0 to below 1; with 0 the logits are those of the head.
        temperature: Divides the squared distances.
    """

    def __init__(self, head: Any, dim: int, search: Search, weight: float, temperature: float):
        super().__init__()
        self.head, self.dim, self.vocab_size = head, dim, head.vocab_size
        self.search, self.weight, self.temperature = search, weight, temperature

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(x)
        if self.weight == 0:
            return logits
        tokens, distances = self.search(x[..., : self.dim].flatten(0, -2))
        shares = weigh_neighbors(distances, self.temperature)
        rows = shares.new_zeros(len(shares), logits.shape[-1]).scatter_add_(1, tokens, self.weight * shares)
        log_shares = rows.log().to(logits.device).view(logits.shape)
        own = math.log1p(-self.weight)
        return torch.logaddexp(logits.float().log_softmax(-1) + own, log_shares)


def weigh_neighbors(distances: Tensor, temperature: float) -> Tensor:
    """Return the share of each neighbor, which sum to 1: (N, K)"""
    return (distances / -temperature).softmax(-1)
