"""Nodes: raw input -> vectors (B, T, C). The only part of a model that knows what the input was.

Shapes: B batch, T nodes, C channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .config import TransformerConfig
from .kernels.dropout import Dropout
from .norm import build_norm
from .positions import GridPosition, LearnedPosition, build_position_embedding


class TokenEmbedding(nn.Module):
    """Ids of a vocabulary -> nodes. ids (B, T), positions (T,) or (B, T) or None for 0, 1, 2 ... -> (B, T, C)

    BERT (1810.04805) also says which of its texts a token belongs to, kind (B, T) of `kinds`, all 0 unless told, and
    norms the sum (`normed`)."""

    def __init__(self, vocab_size: int, config: TransformerConfig, kinds: int = 0, normed: bool = False):
        super().__init__()
        self.token = nn.Embedding(vocab_size, config.dim)
        self.position = build_position_embedding(config)
        self.kind = nn.Embedding(kinds, config.dim) if kinds else None
        self.norm = build_norm(config) if normed else nn.Identity()
        self.drop = Dropout(config.dropout)

    def forward(self, ids: Tensor, positions: Tensor | None = None, kind: Tensor | None = None) -> Tensor:
        x = self.token(ids)
        if self.position is not None:
            x = x + self.position(torch.arange(ids.shape[1], device=ids.device) if positions is None else positions)
        if self.kind is not None:
            x = x + self.kind(torch.zeros_like(ids) if kind is None else kind)
        return self.drop(self.norm(x))


class PatchEmbedding(nn.Module):
    """An image in squares, row by row, behind a class node if there is one (ViT, 2010.11929).
    image (B, channels, H, W) -> (B, HW/p^2, C), with a class node (`first`) one more.

    A learned position is one of the row of nodes, a sinusoidal one of the grid's two axes; the class node is off it."""

    def __init__(self, patch: int, config: TransformerConfig, channels: int = 3, cls_token: bool = True):
        super().__init__()
        self.project = nn.Conv2d(channels, config.dim, patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim)) if cls_token else None
        self.grid = GridPosition(config.dim) if config.position == "sinusoidal" else None
        self.position = None if self.grid is not None else build_position_embedding(config)
        self.drop = Dropout(config.dropout)

    def forward(self, image: Tensor) -> Tensor:
        cells = self.project(image)  # (B, C, rows, columns)
        x = cells.flatten(2).transpose(1, 2)
        if self.grid is not None:
            rows, columns = (torch.arange(n, device=image.device) for n in cells.shape[2:])
            x = x + self.grid(rows, columns)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        if self.position is not None:
            x = x + self.position(torch.arange(x.shape[1], device=x.device))
        return self.drop(x)


class FrameEmbedding(nn.Module):
    """Sound as slices of a mel spectrogram, two convolutions (Whisper, 2212.04356). mel (B, mels, T) -> (B, T/2, C)"""

    def __init__(self, mels: int, config: TransformerConfig):
        super().__init__()
        self.conv1 = nn.Conv1d(mels, config.dim, 3, padding=1)
        self.conv2 = nn.Conv1d(config.dim, config.dim, 3, stride=2, padding=1)
        self.position = build_position_embedding(config)
        self.drop = Dropout(config.dropout)

    def forward(self, mel: Tensor) -> Tensor:
        x = nn.functional.gelu(self.conv2(nn.functional.gelu(self.conv1(mel)))).transpose(1, 2)
        if self.position is not None:
            x = x + self.position(torch.arange(x.shape[1], device=x.device))
        return self.drop(x)


class SensorEmbedding(nn.Module):
    """Measurements of several kinds, a set: what was read plus which sensor it was, no position.
    value (B, T, features), kind (B, T) ids -> (B, T, C)"""

    def __init__(self, kinds: int, features: int, config: TransformerConfig):
        super().__init__()
        self.value = nn.Linear(features, config.dim)
        self.kind = nn.Embedding(kinds, config.dim)
        self.drop = Dropout(config.dropout)

    def forward(self, value: Tensor, kind: Tensor) -> Tensor:
        return self.drop(self.value(value) + self.kind(kind))


class TrajectoryEmbedding(nn.Module):
    """Return to go, state, action, return to go, state ...: three nodes a time step, which tell the step (Decision
    Transformer, 2106.01345). wanted (B, K, 1), state (B, K, S), action (B, K, A), at (B, K) -> (B, 3 K, C)"""

    def __init__(self, states: int, actions: int, steps: int, config: TransformerConfig):
        super().__init__()
        self.return_to_go = nn.Linear(1, config.dim)
        self.state = nn.Linear(states, config.dim)
        self.action = nn.Linear(actions, config.dim)
        self.timestep = LearnedPosition(steps, config.dim)
        self.norm = nn.LayerNorm(config.dim)  # the stem's own, whatever the body's is
        self.drop = Dropout(config.dropout)

    def forward(self, return_to_go: Tensor, state: Tensor, action: Tensor, timestep: Tensor) -> Tensor:
        kinds = torch.stack([self.return_to_go(return_to_go), self.state(state), self.action(action)], dim=2)  # (B, K, 3, C)
        return self.drop(self.norm((kinds + self.timestep(timestep)[:, :, None]).flatten(1, 2)))


class ScalarEmbedding(nn.Module):
    """A few numbers that belong together as one node. (B, features) -> (B, 1, C)"""

    def __init__(self, features: int, config: TransformerConfig):
        super().__init__()
        self.value = nn.Linear(features, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x)[:, None]


class SeriesPatchEmbedding(nn.Module):
    """A series of readings in slices: what a patch is to an image, along time. (B, T, channels) -> (B, T/size, C)"""

    def __init__(self, size: int, channels: int, config: TransformerConfig):
        super().__init__()
        self.project = nn.Conv1d(channels, config.dim, size, stride=size)
        self.position = build_position_embedding(config)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x.transpose(1, 2)).transpose(1, 2)
        if self.position is not None:
            x = x + self.position(torch.arange(x.shape[1], device=x.device))
        return x


class Normalized(nn.Module):
    """The nodes of measurements in their own units: (x - mean) / std for each number of the last axis; what is no
    number becomes the mean. (B, ..., features), or of an `image` (B, H, W, channels)"""

    mean: Tensor
    std: Tensor

    def __init__(self, nodes: nn.Module, mean: Sequence[float], std: Sequence[float], image: bool = False):
        super().__init__()
        self.nodes, self.image = nodes, image
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.nan_to_num((x.float() - self.mean) / self.std, 0.0)
        return self.nodes(x.permute(0, 3, 1, 2) if self.image else x)


class MultiFieldEmbedding(nn.Module):
    """Fields of several kinds as one set of nodes behind a class node; each node tells which field it is of. Those that
    are not there are left out: the others close ranks, and what is left at the end of a row is padding.

    inputs: one for each of `parts`; present (B, N) bool, N nodes of all parts -> nodes (B, 1 + N, C), lengths (B,)"""

    def __init__(self, parts: Sequence[nn.Module], config: TransformerConfig):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.kind = nn.Embedding(len(parts), config.dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.drop = Dropout(config.dropout)

    def forward(self, inputs: Sequence[Tensor], present: Tensor) -> tuple[Tensor, Tensor]:
        nodes = [part(x) + self.kind.weight[i] for i, (part, x) in enumerate(zip(self.parts, inputs, strict=True))]
        x = torch.cat([self.cls_token.expand(present.shape[0], -1, -1), *nodes], dim=1)
        there = torch.cat([torch.ones_like(present[:, :1]), present], dim=1)
        at = torch.arange(x.shape[1], device=x.device)
        order = (at + x.shape[1] * ~there).argsort(dim=1)  # those that are there first, each in its turn
        x = x.gather(1, order[..., None].expand_as(x))
        return self.drop(x), there.sum(1)
