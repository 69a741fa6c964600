"""Positions: attention works on sets, so where a node stands is something it carries.

Three ways to carry it: a vector added to the node (learned, sinusoidal), a turn of its queries and keys (rotary), or a
bias on the edge, by the distance between its ends (relative, ALiBi).

Shapes: B batch, T nodes, C channels, H heads, D channels of a head, Q queries, K keys.
"""

import math

import torch
from torch import Tensor, nn

from .config import TransformerConfig


class LearnedPosition(nn.Module):
    """A vector hangs at each place. positions (...) -> (..., C)"""

    def __init__(self, context: int, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(context, dim).normal_(std=0.02))

    def forward(self, positions: Tensor) -> Tensor:
        return nn.functional.embedding(positions, self.weight)


class SinusoidalPosition(nn.Module):
    """Sines and cosines of geometric wavelengths from 2 pi to 10000 * 2 pi (1706.03762, section 3.5), sines first, as
    in the authors' own code and in Whisper. positions (...) -> (..., C)"""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, positions: Tensor) -> Tensor:
        half = self.dim // 2
        step = math.log(10_000) / max(1, half - 1)
        frequency = torch.exp(-step * torch.arange(half, device=positions.device))
        angle = positions[..., None].float() * frequency  # (..., C/2)
        waves = torch.cat([angle.sin(), angle.cos()], dim=-1)
        return nn.functional.pad(waves, (0, self.dim % 2))


class GridPosition(nn.Module):
    """Sinusoidal positions of a grid's cells: half of the channels tell the row, half the column (2104.02057).
    rows, columns -> (rows * columns, C), row by row"""

    def __init__(self, dim: int):
        super().__init__()
        self.row, self.column = SinusoidalPosition(dim // 2), SinusoidalPosition(dim - dim // 2)

    def forward(self, rows: Tensor, columns: Tensor) -> Tensor:
        row, column = self.row(rows)[:, None], self.column(columns)[None]  # (rows, 1, C/2), (1, columns, C/2)
        shape = (len(rows), len(columns), -1)
        return torch.cat([row.expand(shape), column.expand(shape)], dim=-1).flatten(0, 1)


def build_position_embedding(config: TransformerConfig) -> nn.Module | None:
    """The position that is added to the nodes, or None where the position is told elsewhere (or not at all)."""
    if config.position == "learned":
        return LearnedPosition(config.context, config.dim)
    return SinusoidalPosition(config.dim) if config.position == "sinusoidal" else None


CosSin = tuple[Tensor, Tensor]  # cosine and sine that each channel is multiplied with, each (1 or B, 1, T, D)


def rotary_cos_sin(positions: Tensor, channels: int, base: float) -> CosSin:
    """The angles of rotary positions (2104.09864). positions: (T,) or (B, T)"""
    frequency = base ** (-torch.arange(0, channels, 2, device=positions.device).float() / channels)
    angle = positions[..., None].float() * frequency  # (T, D/2) or (B, T, D/2)
    angle = angle[:, None] if angle.ndim == 3 else angle[None, None]
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def apply_rotary(x: Tensor, turn: CosSin) -> Tensor:
    """Turn channel i with channel i + D/2 by the position's angle. x: (B, H, T, D)"""
    cos, sin = turn
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * cos + wide.roll(x.shape[-1] // 2, dims=-1) * sin).type_as(x)


class RelativeBias(nn.Module):
    """T5's buckets (1910.10683, section 2.1): near distances one by one, far ones in logarithmic steps, one learned
    number for each bucket and head, shared by all layers."""

    def __init__(self, n_head: int, buckets: int = 32, furthest: int = 128):
        super().__init__()
        self.buckets, self.furthest = buckets, furthest
        self.weight = nn.Parameter(torch.empty(buckets, n_head).normal_(std=0.02))

    def forward(self, h: Tensor, q: Tensor, k: Tensor, right_span: bool) -> Tensor:
        """The bias of each edge, broadcast over (h, q, k). `ahead`: half of the buckets serve keys after the query."""
        return self.weight[self.bucket(k - q, right_span), h]

    def bucket(self, distance: Tensor, right_span: bool) -> Tensor:
        buckets = self.buckets // 2 if right_span else self.buckets
        side = (distance > 0) * buckets if right_span else 0
        distance = distance.abs() if right_span else -distance.clamp(max=0)
        near = buckets // 2
        steps = (distance.clamp(min=1).float() / near).log() / math.log(self.furthest / near) * (buckets - near)
        far = near + steps.long()
        return side + torch.where(distance < near, distance, far.clamp(max=buckets - 1))


class Alibi(nn.Module):
    """Attention with linear biases (2108.12409): nothing learned, each head forgets with distance at its own rate."""

    slope: Tensor

    def __init__(self, n_head: int):
        super().__init__()
        whole = 2 ** math.floor(math.log2(n_head))
        rates = [2 ** (-8 * (i + 1) / whole) for i in range(whole)]
        rates += [2 ** (-4 * (2 * i + 1) / whole) for i in range(n_head - whole)]  # the paper's rule for other counts
        self.register_buffer("slope", torch.tensor(rates), persistent=False)

    def forward(self, h: Tensor, q: Tensor, k: Tensor, right_span: bool) -> Tensor:
        return -self.slope[h] * (q - k).abs()


def build_position_bias(config: TransformerConfig) -> RelativeBias | Alibi | None:
    """The position that is a bias on the edges, or None."""
    if config.position == "relative":
        return RelativeBias(config.n_head)
    return Alibi(config.n_head) if config.position == "alibi" else None
