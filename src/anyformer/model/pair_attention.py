"""Attention by position alone: how much a place reads of another is learned for each pair and head, whatever they hold.

A single such layer learns what a Potts model does (Bhattacharya et al. 2021). The weights are the same for all rows, so
that a batch is read by one product for each head.

Shapes: N rows, L places of a row, H heads, D channels of a head.
"""

import torch
from torch import Tensor, nn

GAIN = 10.0  # of a bias, which must become large within the steps in which other weights change little


class PairAttention(nn.Module):
    """Ids of the L places of each row (N, L) -> logits of every place given all others (N, L, vocab_size).

    Linear in what it reads: the logits of place i are a sum over the tokens at the other places.
    """

    def __init__(self, length: int, vocab_size: int, n_head: int, head_dim: int):
        super().__init__()
        self.length, self.n_head, self.head_dim = length, n_head, head_dim
        self.bias = nn.Parameter(torch.empty(n_head, length, length).normal_(std=0.3 / GAIN))
        self.value = nn.Embedding(vocab_size, n_head * head_dim)
        self.output = nn.Linear(n_head * head_dim, vocab_size, bias=False)

    def initialize(self) -> None:
        """Set the weights that the first steps learn well from: larger ones than those of a Transformer."""
        nn.init.normal_(self.bias, std=0.3 / GAIN)
        nn.init.normal_(self.value.weight, std=0.2)
        nn.init.normal_(self.output.weight, std=0.05)

    def forward(self, ids: Tensor) -> Tensor:
        values = self.value(ids).unflatten(-1, (self.n_head, self.head_dim))  # (N, L, H, D)
        columns = values.permute(2, 1, 0, 3).flatten(2)  # (H, L, N D): one product reads all rows
        read = torch.bmm(self.attention_weights().to(columns.dtype), columns).unflatten(2, (-1, self.head_dim))
        return self.output(read.permute(2, 1, 0, 3).flatten(2))

    def attention_weights(self) -> Tensor:
        """How much each place reads of each other one: (H, L, L), rows sum to 1, and no place reads itself."""
        itself = torch.eye(self.length, dtype=torch.bool, device=self.bias.device)
        return (GAIN * self.bias).masked_fill(itself, -torch.inf).softmax(-1)

    def head_maps(self) -> Tensor:
        """What each head makes of a token it reads: logits of the tokens at the place that reads. (H, V, V)"""
        values, outputs = (w.unflatten(1, (self.n_head, -1)) for w in (self.value.weight, self.output.weight))
        return torch.einsum("vhd,uhd->hvu", values, outputs)

    def sum_couplings(self) -> Tensor:
        """The sum of all squared couplings. The coupling of a pair of places is the matrix that takes the token at one
        to logits at the other: the heads' maps by their weights. It is built for no pair."""
        maps, weights = self.head_maps().flatten(1), self.attention_weights().flatten(1)
        return ((weights @ weights.T) * (maps @ maps.T)).sum()

    @torch.no_grad()
    def measure_couplings(self, first: int = 0) -> Tensor:
        """The norm of the coupling of each pair of places, between the tokens from `first` on, without what all tokens
        of one of both have in common: (L, L)"""
        maps, weights = self.head_maps(), self.attention_weights()
        maps = maps - maps.mean(1, keepdim=True) - maps.mean(2, keepdim=True) + maps.mean((1, 2), keepdim=True)
        maps = maps[:, first:, first:].flatten(1)
        mixed = torch.einsum("hg,gij->hij", maps @ maps.T, weights)
        return (weights * mixed).sum(0).clamp(min=0).sqrt()
