"""Heads: nodes -> predictions.

Shapes: B batch, T nodes, C channels.
"""

from typing import Literal

from torch import Tensor, nn

from .activations import ACTIVATIONS
from .config import TransformerConfig
from .kernels.cross_entropy import LinearHead
from .kernels.linear import Linear
from .norm import build_norm
from .pooling import POOLING


class LMHead(LinearHead):
    """A logit for each token of the vocabulary: (B, T, C) -> (B, T, vocab_size).

    Args:
        tied: an embedding whose weight this map shares (1608.05859).
        scale: multiplies the nodes; T5 has 1 / sqrt(dim) where weights are tied (1910.10683).
        cap: logits x become cap * tanh(x / cap) (Gemma 2, 2408.00118).
    """

    def __init__(
        self, dim: int, vocab_size: int, tied: nn.Embedding | None = None, scale: float = 1.0, cap: float | None = None
    ):
        super().__init__()
        self.scale, self.cap, self.vocab_size = scale, cap, vocab_size
        # On "meta" a matrix that is about to be replaced, often the largest of the model, is never allocated.
        self.project = Linear(dim, vocab_size, bias=False, device=None if tied is None else "meta")
        if tied is not None:
            self.project.weight = tied.weight

    def transform(self, x: Tensor) -> Tensor:
        return x if self.scale == 1 else x * self.scale

    def forward(self, x: Tensor) -> Tensor:
        logits = self.project(self.transform(x))
        return logits if self.cap is None else self.cap * (logits / self.cap).tanh()


class MaskedHead(LinearHead):
    """BERT's head (1810.04805): a hidden layer, then a logit for each token: (B, T, C) -> (B, T, vocab_size)"""

    def __init__(self, config: TransformerConfig, vocab_size: int, tied: nn.Embedding | None = None):
        super().__init__()
        self.vocab_size, self.dense = vocab_size, Linear(config.dim, config.dim)
        self.activation = ACTIVATIONS[config.activation]
        self.norm = build_norm(config)
        self.project = Linear(config.dim, vocab_size)
        if tied is not None:
            self.project.weight = tied.weight

    def transform(self, x: Tensor) -> Tensor:
        return self.norm(self.activation(self.dense(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.transform(x))


class Classifier(nn.Module):
    """Pooled nodes -> a logit for each class: (B, T, C) -> (B, classes)."""

    def __init__(self, dim: int, classes: int, pool: Literal["mean", "first"] = "mean"):
        super().__init__()
        self.pool = POOLING[pool]
        self.project = nn.Linear(dim, classes)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.project(self.pool(x, lengths))


class Regressor(Classifier):
    """Pooled nodes -> numbers: (B, T, C) -> (B, outputs)."""
