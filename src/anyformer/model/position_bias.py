"""Positions as a bias on the edge, which depends on the distance between its ends (T5's buckets, ALiBi).

Shapes: H heads, Q queries, K keys.
"""

import math

import torch
from torch import Tensor, nn

from .config import RELATIVE, TransformerConfig


class RelativeBias(nn.Module):
    """T5's relative positions (1910.10683, section 2.1): a learned bias for each bucket of distances and each head,
    shared by all layers. Near distances have a bucket each, far ones share buckets of growing width."""

    def __init__(self, n_head: int, buckets: int = 32, max_distance: int = 128):
        super().__init__()
        self.buckets, self.max_distance = buckets, max_distance
        self.weight = nn.Parameter(torch.empty(buckets, n_head).normal_(std=0.02))

    def forward(self, h: Tensor, q: Tensor, k: Tensor, bidirectional: bool) -> Tensor:
        """The bias of each edge, (h, q, k) as for a rule. `bidirectional`: half of the buckets are for later keys."""
        return self.weight[self.bucket(k - q, bidirectional), h]

    def bucket(self, offset: Tensor, bidirectional: bool) -> Tensor:
        buckets = self.buckets // 2 if bidirectional else self.buckets
        first = (offset > 0) * buckets if bidirectional else 0
        distance = offset.abs() if bidirectional else -offset.clamp(max=0)
        exact = buckets // 2
        steps = (distance.clamp(min=1).float() / exact).log() / math.log(self.max_distance / exact) * (buckets - exact)
        far = exact + steps.long()
        return first + torch.where(distance < exact, distance, far.clamp(max=buckets - 1))


class Alibi(nn.Module):
    """Attention with linear biases (2108.12409): scores fall with distance, at a fixed rate for each head."""

    slope: Tensor

    def __init__(self, n_head: int):
        super().__init__()
        power = 2 ** math.floor(math.log2(n_head))
        slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
        slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(n_head - power)]  # the paper's rule for other counts
        self.register_buffer("slope", torch.tensor(slopes), persistent=False)

    def forward(self, h: Tensor, q: Tensor, k: Tensor, bidirectional: bool) -> Tensor:
        return -self.slope.to(q.device)[h] * (q - k).abs()


def build_position_bias(config: TransformerConfig) -> RelativeBias | Alibi | None:
    """The position that is a bias on the edges, or None."""
    if config.position in RELATIVE:
        return RelativeBias(config.n_head)
    return Alibi(config.n_head) if config.position == "alibi" else None
