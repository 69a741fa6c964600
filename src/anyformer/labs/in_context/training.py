"""What the parts of the lab share: one loop of training, a curriculum, and a model of characters."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...model.config import TransformerConfig
from ...model.edges import causal
from ...model.embeddings import TokenEmbedding
from ...model.init import initialize
from ...model.transformer import Transformer
from ...training.config import TrainConfig
from ...training.device import resolve_dtype
from ...training.optimizers import Optimizer, get_lr
from ..lab import Log

RECORDS = 40  # of a training


class Curriculum:
    """Levels of growing difficulty: the next begins when the average score at this one has passed a threshold.

    Args:
        decay: of the average of the scores.
    """

    def __init__(self, levels: int, threshold: float, decay: float = 0.95):
        self.levels, self.threshold, self.decay = levels, threshold, decay
        self.level, self.average = 0, 0.0

    def update(self, score: float) -> None:
        """Take in the score of a step, 1 where all is right."""
        self.average = self.decay * self.average + (1 - self.decay) * score
        if self.average > self.threshold and self.level < self.levels - 1:
            self.level, self.average = self.level + 1, 0.0


def configure_text_model(dim: int, layers: int, context: int) -> TransformerConfig:
    """Heads that read a node at a fixed distance are fast to learn with relative positions, and the MLPs do not learn
    before them with squared ReLU, which is flat at 0."""
    return TransformerConfig(
        dim=dim, n_layer=layers, n_head=4, context=context, position="relative", bias=False, activation="relu2"
    )


def choose_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where there is hardware for it."""
    dtype = resolve_dtype("auto", device)
    return torch.float32 if dtype == torch.float16 else dtype  # which would need a scaled loss


def configure_training(steps: int, lr: float, seed: int) -> TrainConfig:
    """Muon for the blocks and AdamW for the others, at a constant rate that goes to 0 at the end."""
    return TrainConfig(
        steps=steps, lr=lr, optimizer="muon", schedule="trapezoid", min_lr=0.0, weight_decay=0.0,
        warmup=min(50, steps), seed=seed,
    )  # fmt: skip


def fit(
    model: nn.Module, compute_loss: Callable[[int], tuple[Tensor, dict[str, Any]]], c: TrainConfig, log: Log
) -> float:
    """Train a model; return the seconds of processor time.

    Args:
        compute_loss: step -> the loss of a new batch, and what is logged beside it.
    """
    optimizer, start = Optimizer(model, c), time.process_time()
    for step in range(c.steps):
        loss, facts = compute_loss(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), c.clip)
        optimizer.step(get_lr(step, c))
        if step % max(1, c.steps // RECORDS) == 0 or step == c.steps - 1:
            log({"step": step, "loss": loss.item(), **facts, "seconds": round(time.process_time() - start, 1)})
    return time.process_time() - start


class TextModel(nn.Module):
    """A causal model of tokens: ids (B, T) -> scores of the token after each (B, T, V)"""

    def __init__(self, vocab_size: int, config: TransformerConfig):
        super().__init__()
        self.nodes, self.body = TokenEmbedding(vocab_size, config), Transformer(config)
        self.head = nn.Linear(config.dim, vocab_size, bias=False)
        initialize(self, config)
        nn.init.normal_(self.nodes.token.weight, std=0.1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.body(self.nodes(ids), causal))
