"""Positions: attention works on sets, so a position is something that a node carries.

Three ways to carry it: a vector added to the node (learned, sinusoidal), a rotation of queries and keys (rotary), or a
bias on the edge that depends on the distance between its ends (`position_bias.py`: relative, ALiBi).

Shapes: B batch, T nodes, C channels, H heads, D channels of a head.
"""

import math

import torch
from torch import Tensor, nn

from .config import LEARNED, TransformerConfig


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
    if config.position in LEARNED:
        return LearnedPosition(config.context, config.dim)
    return SinusoidalPosition(config.dim) if config.position == "sinusoidal" else None


CosSin = tuple[Tensor, Tensor]  # what each channel and its partner are multiplied by: (1 or B, 1, T, D) each


def rotary_cos_sin(positions: Tensor, frequency: Tensor, scale: float = 1.0) -> CosSin:
    """The angles of rotary positions (2104.09864), from the frequency of each pair of channels (`rope_scaling.py`).
    positions: (T,) or (B, T); frequency: (D/2,); scale: of queries and keys"""
    angle = positions[..., None].to(frequency.dtype) * frequency  # (T, D/2) or (B, T, D/2)
    angle = angle[:, None] if angle.ndim == 3 else angle[None, None]
    cos, sin = (angle.cos() * scale).float(), (angle.sin() * scale).float()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def apply_rotary(x: Tensor, cos_sin: CosSin) -> Tensor:
    """Rotate channels i and i + D/2, as a pair, by the angle of the position. x: (B, H, T, D)"""
    cos, sin = cos_sin
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * cos + wide.roll(x.shape[-1] // 2, dims=-1) * sin).type_as(x)
