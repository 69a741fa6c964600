"""Embeddings: raw input -> nodes (B, T, C). The only part of a model that knows what the input was.

Shapes: B batch, T nodes, C channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .config import TransformerConfig
from .kernels.dropout import Dropout
from .norm import build_norm
from .positions import GridPosition, LearnedPosition, build_position_embedding


def add_position(x: Tensor, position: nn.Module | None, positions: Tensor | None = None) -> Tensor:
    """Add the vectors of `positions` to the nodes; None for 0, 1, 2 ..."""
    if position is None:
        return x
    return x + position(torch.arange(x.shape[1], device=x.device) if positions is None else positions)


class TokenEmbedding(nn.Module):
    """ids (B, T), positions (T,) or (B, T) or None for 0, 1 ... -> (B, T, C). BERT (1810.04805) also adds a vector for
    the type of each token, one of `token_types`, to tell two texts apart, and norms the sum (`embedding_norm`)."""

    def __init__(self, vocab_size: int, config: TransformerConfig, token_types: int = 0, embedding_norm: bool = False):
        super().__init__()
        self.token = nn.Embedding(vocab_size, config.dim)
        self.scale, self.position = config.embedding_scale, build_position_embedding(config)
        self.kind = nn.Embedding(token_types, config.dim) if token_types else None
        self.norm = build_norm(config) if embedding_norm else nn.Identity()
        self.drop = Dropout(config.dropout)

    def forward(self, ids: Tensor, positions: Tensor | None = None, token_types: Tensor | None = None) -> Tensor:
        x = self.token(ids) if self.scale == 1 else self.token(ids) * self.scale
        x = add_position(x, self.position, positions)
        if self.kind is not None:
            x = x + self.kind(torch.zeros_like(ids) if token_types is None else token_types)
        return self.drop(self.norm(x))


class PatchEmbedding(nn.Module):
    """Square patches of an image, row by row, after a class token (ViT, 2010.11929) and others (DeiT, 2012.12877),
    `cls_token` in all. image (B, channels, H, W) -> (B, HW/p^2, C), and one node more for each such token.
    Learned positions number the nodes; sinusoidal ones the rows and columns of patches, and no token."""

    def __init__(self, patch: int, config: TransformerConfig, channels: int = 3, cls_token: int = 1):
        super().__init__()
        self.project = nn.Conv2d(channels, config.dim, patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim)) if cls_token else None
        self.extra_tokens = nn.Parameter(torch.zeros(1, cls_token - 1, config.dim)) if cls_token > 1 else None
        self.grid = GridPosition(config.dim) if config.position == "sinusoidal" else None
        self.position = None if self.grid is not None else build_position_embedding(config)
        self.drop = Dropout(config.dropout)

    def forward(self, image: Tensor) -> Tensor:
        cells = self.project(image)  # (B, C, rows, columns)
        x = cells.flatten(2).transpose(1, 2)
        if self.grid is not None:
            rows, columns = (torch.arange(n, device=image.device) for n in cells.shape[2:])
            x = x + self.grid(rows, columns)
        tokens = [t.expand(x.shape[0], -1, -1) for t in (self.cls_token, self.extra_tokens) if t is not None]
        return self.drop(add_position(torch.cat([*tokens, x], dim=1), self.position))


class FrameEmbedding(nn.Module):
    """Frames of a mel spectrogram by two convolutions (Whisper, 2212.04356): (B, mels, T) -> (B, T/2, C)."""

    def __init__(self, mels: int, config: TransformerConfig):
        super().__init__()
        self.conv1 = nn.Conv1d(mels, config.dim, 3, padding=1)
        self.conv2 = nn.Conv1d(config.dim, config.dim, 3, stride=2, padding=1)
        self.position = build_position_embedding(config)
        self.drop = Dropout(config.dropout)

    def forward(self, mel: Tensor) -> Tensor:
        x = nn.functional.gelu(self.conv2(nn.functional.gelu(self.conv1(mel)))).transpose(1, 2)
        return self.drop(add_position(x, self.position))


class TrajectoryEmbedding(nn.Module):
    """Return to go, state, action, return to go ...: three nodes for each time step (Decision Transformer, 2106.01345).
    return_to_go (B, K, 1), state (B, K, S), action (B, K, A), timestep (B, K) -> (B, 3 K, C)"""

    def __init__(self, states: int, actions: int, steps: int, config: TransformerConfig):
        super().__init__()
        self.return_to_go = nn.Linear(1, config.dim)
        self.state = nn.Linear(states, config.dim)
        self.action = nn.Linear(actions, config.dim)
        self.timestep = LearnedPosition(steps, config.dim)
        self.norm = nn.LayerNorm(config.dim)  # always LayerNorm with defaults, whatever the norm of the body
        self.drop = Dropout(config.dropout)

    def forward(self, return_to_go: Tensor, state: Tensor, action: Tensor, timestep: Tensor) -> Tensor:
        nodes = [self.return_to_go(return_to_go), self.state(state), self.action(action)]
        x = torch.stack(nodes, dim=2) + self.timestep(timestep)[:, :, None]  # (B, K, 3, C)
        return self.drop(self.norm(x.flatten(1, 2)))


class ScalarEmbedding(nn.Module):
    """A few numbers as one node: (B, features) -> (B, 1, C)."""

    def __init__(self, features: int, config: TransformerConfig):
        super().__init__()
        self.value = nn.Linear(features, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x)[:, None]


class SeriesPatchEmbedding(nn.Module):
    """Patches of a time series, each of `size` steps: (B, T, channels) -> (B, T/size, C)."""

    def __init__(self, size: int, channels: int, config: TransformerConfig):
        super().__init__()
        self.project = nn.Conv1d(channels, config.dim, size, stride=size)
        self.position = build_position_embedding(config)

    def forward(self, x: Tensor) -> Tensor:
        return add_position(self.project(x.transpose(1, 2)).transpose(1, 2), self.position)


class Normalized(nn.Module):
    """Normalize the input of another embedding: (x - mean) / std for each entry of the last axis; nan becomes the mean.
    x (B, ..., features), or with `image` (B, H, W, channels), which `nodes` gets as (B, channels, H, W)"""

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
    """Fields of several kinds as one set of nodes after a class token; each node carries its field. Absent fields are
    removed and padding moves to the right. inputs: one for each of `parts`; present (B, N) bool, for the N nodes of all
    parts -> nodes (B, 1 + N, C), lengths (B,)"""

    def __init__(self, parts: Sequence[nn.Module], config: TransformerConfig):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.kind = nn.Embedding(len(parts), config.dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.drop = Dropout(config.dropout)

    def forward(self, inputs: Sequence[Tensor], present: Tensor) -> tuple[Tensor, Tensor]:
        nodes = [part(x) + self.kind.weight[i] for i, (part, x) in enumerate(zip(self.parts, inputs, strict=True))]
        x = torch.cat([self.cls_token.expand(present.shape[0], -1, -1), *nodes], dim=1)
        is_present = torch.cat([torch.ones_like(present[:, :1]), present], dim=1)
        index = torch.arange(x.shape[1], device=x.device)
        order = (index + x.shape[1] * ~is_present).argsort(dim=1)  # present nodes first, in their order
        x = x.gather(1, order[..., None].expand_as(x))
        return self.drop(x), is_present.sum(1)
