"""Positions: attention works on sets, so a position is something that a node carries.

Three ways to carry it: a vector added to the node (learned, sinusoidal), a rotation of queries and keys (rotary), or a
bias on the edge that depends on the distance between its ends (relative, ALiBi).

Shapes: B batch, T nodes, C channels, H heads, D channels of a head, Q queries, K keys.
"""

import math

import torch
from torch import Tensor, nn

from .config import TransformerConfig


class LearnedPosition(nn.Module):
    """One learned vector for each position: (...) -> (..., C)."""

    def __init__(self, context: int, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(context, dim).normal_(std=0.02))

    def forward(self, positions: Tensor) -> Tensor:
        return nn.functional.embedding(positions, self.weight)


class SinusoidalPosition(nn.Module):
    """Sines and cosines of geometric wavelengths from 2 pi to 10000 * 2 pi (1706.03762, section 3.5), sines first as in
    the authors' code and in Whisper: (...) -> (..., C)."""

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
    """Half of the channels for the row of a grid, half for its column (2104.02057): -> (rows * columns, C)"""

    def __init__(self, dim: int):
        super().__init__()
        self.row, self.column = SinusoidalPosition(dim // 2), SinusoidalPosition(dim - dim // 2)

    def forward(self, rows: Tensor, columns: Tensor) -> Tensor:
        row, column = self.row(rows)[:, None], self.column(columns)[None]  # (rows, 1, C/2), (1, columns, C/2)
        shape = (len(rows), len(columns), -1)
        return torch.cat([row.expand(shape), column.expand(shape)], dim=-1).flatten(0, 1)


def build_position_embedding(config: TransformerConfig) -> LearnedPosition | SinusoidalPosition | None:
    """The position that is added to the nodes; None for kinds that act within attention, or for none."""
    if config.position == "learned":
        return LearnedPosition(config.context, config.dim)
    return SinusoidalPosition(config.dim) if config.position == "sinusoidal" else None


CosSin = tuple[Tensor, Tensor]  # what each channel and its partner are multiplied by: (1 or B, 1, T, D) each


def rotary_cos_sin(positions: Tensor, channels: int, base: float) -> CosSin:
    """The angles of rotary positions (2104.09864). positions: (T,) or (B, T)"""
    frequency = base ** (-torch.arange(0, channels, 2, device=positions.device).float() / channels)
    angle = positions[..., None].float() * frequency  # (T, D/2) or (B, T, D/2)
    angle = angle[:, None] if angle.ndim == 3 else angle[None, None]
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def apply_rotary(x: Tensor, cos_sin: CosSin) -> Tensor:
    """Rotate channels i and i + D/2, as a pair, by the angle of the position. x: (B, H, T, D)"""
    cos, sin = cos_sin
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * cos + wide.roll(x.shape[-1] // 2, dims=-1) * sin).type_as(x)


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
    if config.position == "relative":
        return RelativeBias(config.n_head)
    return Alibi(config.n_head) if config.position == "alibi" else None
